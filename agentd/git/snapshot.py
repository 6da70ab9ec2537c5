"""Commits made beside the user's and the agent's own: a temporary index, and a ref of ours that keeps them.

Never ``git stash``: it leaves untracked files out, rewrites the index, and all worktrees share its ref.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from agentd import files
from agentd.core.errors import Refused
from agentd.git.plan import Plan, is_intact, read, refuse_pipes_in, tree_of
from agentd.git.repository import calling_tree, ref_value
from agentd.git.run import GitFailed, Repo, Tree, git, sentence, zsplit

MAX_BYTES = 50 * 1024 * 1024
SUBMODULE = "160000"
SHOWN_PATHS = 100
SHOWN_TEXT = 20_000


@dataclass(frozen=True)
class Words:
    """What a job's commit says of itself. Its date is the attempt's end, and so the same work is always the same
    commit, whoever makes it and whenever: a merge that was cut short can simply be asked for again."""

    message: str
    author: str
    """Who it is by, unless it stands on commits of the job: then it is by whoever made the last of those."""
    mail: str
    at: float


@dataclass(frozen=True)
class Dirt:
    modified: int
    untracked: int
    examples: list[str]
    known: bool = True
    """False if git did not answer in time."""


def snapshot_calling_tree(repo: Repo, job: int, max_bytes: int = MAX_BYTES) -> str | None:
    """The calling tree as a commit on top of its HEAD, under refs/agentd/snap/<job>; None if it is clean."""
    tree = calling_tree(repo)
    refuse_pipes_in(tree)
    if git(["ls-files", "-u", "-z"], at=tree):
        message = "cannot take your changes along: files with conflicts; settle them, or drop --with-changes"
        raise Refused(message, code="unmerged")
    untracked = _untracked(tree)
    nested = [path for path in untracked if path.endswith("/")]
    if nested:
        message = f"cannot take your changes along: {', '.join(nested[:5])} holds a git repository of its own"
        raise Refused(f"{message}; add it to .gitignore, or drop --with-changes", code="embedded_repository")
    _refuse_too_much(tree, untracked, max_bytes)
    try:
        with tempfile.TemporaryDirectory(prefix="agentd-") as place:
            index = _index_with_everything(tree, place, ["add", "-A"])
            content = git(["write-tree"], at=tree, index=index, write=True).strip()
        if content == tree_id(tree, "HEAD"):
            return None
        made = commit_tree(tree, content, ["HEAD"], f"agentd snapshot for job {job}")
        git(["update-ref", f"refs/agentd/snap/{job}", made], at=tree, write=True)
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"take your changes along to job {job}", repo.common) from failure
    return made


def snapshot_job(plan: Plan, admin: str, words: Words) -> str | None:
    """What the job's tree holds now, under refs/agentd/work/<job>; None if that is just its base."""
    made = job_commit(plan, admin, words)
    if made == plan.base:
        return None
    try:
        git(["update-ref", f"refs/agentd/work/{plan.job}", made], at=plan.repo, write=True)
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"take a snapshot of job {plan.job}", plan.repo.common) from failure
    return made


def job_commit(plan: Plan, admin: str, words: Words) -> str:
    """What the job's tree holds now, as a commit on top of its own ones; its HEAD if there is nothing loose."""
    tree = intact_tree(plan, admin)
    try:
        content = worktree_content(tree)
        # No HEAD: the agent began an orphan branch, or deleted its own.
        head = ref_value(tree, "HEAD") or plan.base
        if content == tree_id(tree, head):
            return head
        return commit_tree(tree, content, [head], words.message, _signed(plan, tree, head, words))
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"take a snapshot of job {plan.job}", plan.repo.common) from failure


def intact_tree(plan: Plan, admin: str) -> Tree:
    tree = tree_of(plan, admin)
    if not is_intact(plan, admin):
        message = f"cannot read the work of job {plan.job}: {tree.git_dir} was rewritten"
        raise Refused(f"{message}; look at {plan.path} by hand", code="not_ours")
    return tree


def _signed(plan: Plan, tree: Tree, head: str, words: Words) -> dict[str, str]:
    author, mail = words.author, words.mail
    if head != plan.base:
        name, address = git(["log", "-1", "--format=%an%x00%ae", head], at=tree).rstrip("\n").split("\0")
        author, mail = name or author, address or mail
    when = f"@{int(words.at)} +0000"
    dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    return {"GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": mail, **dates, **committer(plan.repo)}


def committer(repo: Repo) -> dict[str, str]:
    """The user, as the configuration has it."""
    listed = zsplit(git(["config", "-z", "--get-regexp", r"^user\.(name|email)$"], at=repo, ok=(0, 1)))
    said = dict(line.partition("\n")[::2] for line in listed)
    return {f"GIT_COMMITTER_{key[5:].upper()}": value.strip() for key, value in said.items() if value.strip()}


def keep_everything(plan: Plan, admin: str) -> str:
    """A commit under refs/agentd/keep/<job> from which all that git knows of the job can be reached."""
    tree = tree_of(plan, admin)
    content = worktree_content(tree)
    parents = [sha for sha in (ref_value(tree, "HEAD"), ref_value(plan.repo, plan.ref)) if sha] or [plan.base]
    staged = _staged(tree)
    if staged and staged != content and staged != tree_id(tree, parents[0]):
        parents.append(commit_tree(tree, staged, parents[:1], f"agentd: what job {plan.job} had staged"))
    parents += _lonely_tips(tree, parents[0])
    made = commit_tree(tree, content, list(dict.fromkeys(parents)), f"agentd: what job {plan.job} left")
    git(["update-ref", f"refs/agentd/keep/{plan.job}", made], at=plan.repo, write=True)
    git(["cat-file", "-e", f"{made}^{{tree}}"], at=plan.repo)
    return made


def _staged(tree: Tree) -> str | None:
    """The index as a tree object; None with conflicts. From a copy: a stale index.lock is no obstacle."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as place:
        index = _copied_index(tree, place)
        if index is None or git(["ls-files", "-u", "-z"], at=tree, index=index):
            return None
        return git(["write-tree"], at=tree, index=index, write=True).strip()


def _lonely_tips(tree: Tree, head: str) -> list[str]:
    """Commits that would be unreachable without this admin directory."""
    names = ("MERGE_HEAD", "REBASE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "ORIG_HEAD")
    tips = [word for name in names for word in (read(os.path.join(tree.git_dir, name)) or "").split()]
    refs = ["refs/worktree", "refs/bisect", "refs/rewritten"]
    tips += git(["for-each-ref", "--format=%(objectname)", *refs], at=tree).split()
    for line in (read(os.path.join(tree.git_dir, "logs", "HEAD")) or "").splitlines():
        tips += line.split(" ")[:2]
    return _tips_among(tree, tips, head)


def _tips_among(tree: Tree, names: list[str], head: str) -> list[str]:
    """Those that no other of them, nor ``head``, leads to: a long reflog is a few parents."""
    asked = "".join(f"{name}^{{commit}}\n" for name in dict.fromkeys(names) if name.strip("0"))
    answers = git(["cat-file", "--batch-check"], at=tree, input=asked).splitlines()
    commits = [words[0] for words in map(str.split, answers) if words[1:2] == ["commit"]]
    if not commits:
        return []
    asked = "\n".join([*commits, f"^{head}"]) + "\n"
    lines = git(["rev-list", "--parents", "--stdin"], at=tree, input=asked).splitlines()
    listed = [line.split() for line in lines]
    inner = {parent for _, *parents in listed for parent in parents}
    return [commit for commit, *_ in listed if commit not in inner]


def worktree_content(tree: Tree) -> str:
    """The id of a tree object with all that is not ignored; repositories inside are left as they were staged."""
    nested = repositories_inside(tree)
    scope = ["--", ".", *(f":(exclude,literal){path}" for path in nested)] if nested else []
    with tempfile.TemporaryDirectory(prefix="agentd-") as place:
        index = _index_with_everything(tree, place, ["add", "-A", "--ignore-errors", *scope], unhide=True)
        return git(["write-tree"], at=tree, index=index, write=True).strip()


def repositories_inside(tree: Tree) -> list[str]:
    """Those that are not ignored, and submodules with anything in them. git is never run in one, or made to run itself
    there: its configuration is the job's."""
    refuse_pipes_in(tree)
    untracked = [path.rstrip("/") for path in _untracked(tree) if path.endswith("/")]
    submodules = (path for path, mode in modes(tree).items() if mode == SUBMODULE)
    return [*untracked, *(path for path in submodules if _holds_anything(os.path.join(tree.path, path)))]


def modes(tree: Tree) -> dict[str, str]:
    """Path -> mode of all that git tracks."""
    staged = (line.partition("\t") for line in zsplit(git(["ls-files", "-s", "-z"], at=tree)))
    return {path: how.partition(" ")[0] for how, _, path in staged}


def _holds_anything(path: str) -> bool:
    return files.kind(path) == "folder" and bool(os.listdir(path))


def _copied_index(tree: Tree, place: str) -> str | None:
    index = os.path.join(place, "index")
    with contextlib.suppress(FileNotFoundError), files.open_file(os.path.join(tree.git_dir, "index")) as source:
        with open(index, "wb") as target:
            shutil.copyfileobj(source, target)
        # With its time: git looks into a file only if that is no older than the index.
        made = os.fstat(source.fileno())
        os.utime(index, ns=(made.st_atime_ns, made.st_mtime_ns))
        return index
    return None


def _index_with_everything(tree: Tree, place: str, add: list[str], unhide: bool = False) -> str:
    index = _copied_index(tree, place)
    if index is None:
        index = os.path.join(place, "index")
        git(["read-tree", "HEAD"], at=tree, index=index, write=True)
    hidden = hidden_files(tree, index) if unhide else []
    if hidden:
        show = ["update-index", "--no-assume-unchanged", "--no-skip-worktree", "-z", "--stdin"]
        git(show, at=tree, index=index, write=True, input="\0".join(hidden) + "\0")
    # With --ignore-errors, 1 means that some file could not be read, and all others are in.
    ok = (0, 1) if "--ignore-errors" in add else (0,)
    git(add, at=tree, index=index, write=True, ok=ok, timeout=600)
    return index


def hidden_files(tree: Tree, index: str | None = None) -> list[str]:
    """Present files whose changes git was told not to see (assume-unchanged, skip-worktree)."""
    tagged = zsplit(git(["ls-files", "-v", "-z"], at=tree, index=index))
    marked = [line[2:] for line in tagged if line[0].islower() or line[0] == "S"]
    return [path for path in marked if os.path.lexists(os.path.join(tree.path, path))]


def _untracked(tree: Tree) -> list[str]:
    """Repositories inside are one entry each, which ends with a slash."""
    return zsplit(git(["ls-files", "-o", "--exclude-standard", "-z"], at=tree))


def _refuse_too_much(tree: Tree, untracked: list[str], max_bytes: int) -> None:
    sizes = sorted(((os.lstat(os.path.join(tree.path, path)).st_size, path) for path in untracked), reverse=True)
    total = sum(size for size, _ in sizes)
    if total <= max_bytes:
        return
    largest = ", ".join(f"{path} ({size:,} bytes)" for size, path in sizes[:5])
    message = f"cannot take {total:,} untracked bytes along: the limit is {max_bytes:,}; largest: {largest}"
    raise Refused(
        f"{message}; raise worktree.max_snapshot in agentd.toml or drop --with-changes", code="snapshot_too_large"
    )


def tree_id(tree: Tree | Repo, commit: str) -> str:
    return git(["rev-parse", f"{commit}^{{tree}}"], at=tree).strip()


def commit_tree(
    tree: Tree | Repo, content: str, parents: list[str], message: str, signed: Mapping[str, str] | None = None
) -> str:
    named = [word for parent in parents for word in ("-p", parent)]
    return git(["commit-tree", *named, "-F", "-", content], at=tree, write=True, input=message, env=signed).strip()


def diffstat(repo: Repo, base: str, sha: str) -> dict[str, object]:
    query = [
        "diff-tree",
        "-r",
        "--numstat",
        "-z",
        "--no-renames",
        "--no-ext-diff",
        "--no-textconv",
        base,
        sha,
    ]
    rows = [line.split("\t", 2) for line in zsplit(git(query, at=repo))]
    # A binary file has "-" in the place of numbers.
    counted = [(path, None if a == "-" else int(a), None if d == "-" else int(d)) for a, d, path in rows]
    return {
        "files": len(counted),
        "insertions": sum(added or 0 for _, added, _ in counted),
        "deletions": sum(deleted or 0 for _, _, deleted in counted),
        "paths": _first(counted),
    }


def _first(rows: list[tuple[str, int | None, int | None]]) -> list[list[object]]:
    """As many as an event may carry: a path can have four thousand characters."""
    shown: list[list[object]] = []
    room = SHOWN_TEXT
    for row in rows[:SHOWN_PATHS]:
        room -= len(row[0])
        if room < 0:
            break
        shown.append(list(row))
    return shown


def dirt(repo: Repo, timeout: float = 10) -> Dirt:
    """What of the calling tree is not in its HEAD."""
    query = [
        "status",
        "--porcelain",
        "-z",
        "--no-renames",
        "--untracked-files=normal",
        "--ignore-submodules=dirty",
    ]
    try:
        lines = zsplit(git(query, at=calling_tree(repo), timeout=timeout))
    except GitFailed as failure:
        if not failure.note:
            raise
        return Dirt(0, 0, [], known=False)
    untracked = [line[3:] for line in lines if line.startswith("??")]
    modified = [line[3:] for line in lines if not line.startswith("??")]
    return Dirt(len(modified), len(untracked), (modified + untracked)[:5])
