"""Which working tree has a branch checked out, and whether git itself is about to move that branch.

Read from the files in the git directories: ``git worktree list`` calls a branch that is being rebased free, and
fails for the whole repository when one entry is half made.
"""

import os

from agentd.core.errors import Refused
from agentd.core.names import escaped
from agentd.git.plan import admin_dir, admin_named_by, read
from agentd.git.run import Repo, Tree, git

UNFINISHED = {"MERGE_HEAD": "merge", "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert"}


def tree_with(repo: Repo, ref: str) -> Tree | None:
    """The tree that has ``ref`` checked out; None if it is in no tree. Refused where a merge could do harm.

    ``repo.top`` and ``repo.git_dir`` may name a tree that cannot be found from the repository alone.
    """
    found = [git_dir for git_dir in git_dirs(repo) if _is_in_use(repo, git_dir, ref)]
    if not found:
        return None
    if len(found) > 1:
        places = " and ".join(place_of(repo, git_dir) or git_dir for git_dir in found)
        message = f"{short(ref)} is checked out in {escaped(places)}: only one tree could follow it"
        raise Refused(f"{message}; check out another branch in the other", "branch_busy")
    place = place_of(repo, found[0])
    if place is None or not os.path.isdir(place):
        message = f"{short(ref)} is checked out in a tree that is not to be found ({escaped(place or found[0])})"
        raise Refused(f"{message}; go there, or if it is gone: git worktree prune", "branch_busy")
    tree = Tree(repo.common, found[0], place)
    _refuse_unfinished(tree)
    return tree


def short(ref: str) -> str:
    return escaped(ref.removeprefix("refs/heads/"))


def git_dirs(repo: Repo) -> list[str]:
    root = os.path.join(repo.common, "worktrees")
    admins = sorted(os.listdir(root)) if os.path.isdir(root) else []
    main = [] if is_bare(repo) else [repo.common]
    return main + [path for path in (os.path.join(root, admin) for admin in admins) if os.path.isdir(path)]


def is_bare(repo: Repo) -> bool:
    return git(["rev-parse", "--is-bare-repository"], at=repo).strip() == "true"


def _is_in_use(repo: Repo, git_dir: str, ref: str) -> bool:
    for name in ("rebase-merge/head-name", "rebase-apply/head-name", "rebase-merge/update-refs", "BISECT_START"):
        said = (read(os.path.join(git_dir, name)) or "").split()
        if ref in said or (name == "BISECT_START" and ref == f"refs/heads/{''.join(said)}"):
            what = "bisected" if name == "BISECT_START" else "rebased"
            place = escaped(place_of(repo, git_dir) or git_dir)
            raise Refused(f"{short(ref)} is being {what} in {place}; finish that first", "branch_busy")
    return head_of(git_dir) == ref


def head_of(git_dir: str) -> str | None:
    """The ref that is checked out; None if HEAD is detached."""
    said = (read(os.path.join(git_dir, "HEAD")) or "").strip()
    if said == "ref: refs/heads/.invalid":
        raise Refused(f"cannot merge in {escaped(git_dir)}: its refs are kept as reftable", "reftable")
    return said.removeprefix("ref: ") if said.startswith("ref: ") else None


def place_of(repo: Repo, git_dir: str) -> str | None:
    """The working tree that belongs to a git directory, if both name each other."""
    if git_dir == repo.git_dir and repo.top is not None:
        return repo.top
    if git_dir != repo.common:
        said = (read(os.path.join(git_dir, "gitdir")) or "").strip()
        place = os.path.dirname(os.path.join(git_dir, said))
        admin = admin_named_by(place, repo)
        return place if admin is not None and admin_dir(repo, admin) == git_dir else None
    named = git(["config", "--get", "core.worktree"], at=repo, ok=(0, 1)).strip()
    if named:
        return os.path.realpath(os.path.join(repo.common, named))
    return os.path.dirname(repo.common) if os.path.basename(repo.common) == ".git" else None


def _refuse_unfinished(tree: Tree) -> None:
    for name, what in UNFINISHED.items():
        if os.path.lexists(os.path.join(tree.git_dir, name)):
            message = f"a {what} is not finished in {escaped(tree.path)}"
            raise Refused(f"{message}; end it there first (git {what} --continue, or --abort)", "branch_busy")
