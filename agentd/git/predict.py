"""What a merge would give, without a working tree and without moving anything."""

import os
import tempfile

from agentd.core.errors import Refused
from agentd.git.run import GitFailed, Repo, Tree, git, zsplit
from agentd.git.snapshot import commit_tree, tree_id


def merged_tree(repo: Repo, tip: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    """The tree, and the files in conflict; with any of them the tree is of no use. ``tip``: whose attributes count."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as place:
        _put_attributes(repo, tip, place)
        try:
            query = ["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs]
            said = git(query, at=Tree(repo.common, repo.common, place), write=True, ok=(0, 1), timeout=600)
        except GitFailed as failure:
            if failure.code == 129 or "usage: git merge-tree" in failure.stderr:
                raise Refused("cannot merge: git is too old; install git 2.38 or newer", "old_git") from None
            if "unrelated histories" in failure.stderr:
                message = "the job's work and the branch have no commit in common; merge by hand"
                raise Refused(f"cannot merge: {message}", "unrelated") from None
            raise
    tree, *names = zsplit(said)
    return tree, names


def _put_attributes(repo: Repo, tip: str, place: str) -> None:
    """The .gitattributes of the target: git takes them from a working tree (merge=union, drivers)."""
    paths = zsplit(git(["ls-tree", "-r", "-z", "--format=%(objectmode) %(path)", tip], at=repo))
    for mode, _, path in (line.partition(" ") for line in paths):
        if mode.startswith("100") and os.path.basename(path) == ".gitattributes":
            goal = os.path.join(place, path)
            os.makedirs(os.path.dirname(goal), exist_ok=True)
            with open(goal, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(git(["cat-file", "blob", f"{tip}:{path}"], at=repo))


def as_siblings(repo: Repo, base: str, tip: str, work: str) -> tuple[str, str]:
    """Two commits whose common parent is ``base`` and nothing else: merging them replays what came after it."""
    parent = commit_tree(repo, tree_id(repo, base), [], "parent\n")
    one, other = (commit_tree(repo, tree_id(repo, sha), [parent], "side\n") for sha in (tip, work))
    return one, other
