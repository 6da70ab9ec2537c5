"""Ignored files a job needs: copied by ``.worktreeinclude``, linked by ``.worktreelink``, the rest named."""

import errno
import os
import shutil
import stat
from dataclasses import dataclass, field

from agentd import files
from agentd.core.errors import Refused
from agentd.git.plan import Plan, digest, tree_of
from agentd.git.repository import calling_tree
from agentd.git.run import GitFailed, Repo, Tree, git, sentence, zsplit

MAX_BYTES = 200 * 1024 * 1024
MAX_PATTERNS = 1 << 20
MISSING_SHOWN = 50
MISSING_DEPTH = 2


@dataclass(frozen=True)
class Filled:
    copied: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    manifest: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Why something that was asked for was not put in."""


def fill(
    plan: Plan, admin: str, top: str | None, max_bytes: int = MAX_BYTES, ignored: list[str] | None = None
) -> Filled:
    """Put the ignored files into a fresh worktree; nothing that is there is overwritten. ``ignored``: the calling
    tree's ignored folders, if they have been looked for."""
    if top is None:
        return Filled()
    repo = Repo(plan.repo.common, top, plan.repo.git_dir)
    source = calling_tree(repo)
    target = tree_of(plan, admin)
    try:
        copied = _copy_all(source, target, _asked_for(source, ".worktreeinclude"), max_bytes)
        linked, notes = _link_all(source, target, _asked_for(source, ".worktreelink", "--directory"))
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"put ignored files into the worktree of job {plan.job}") from failure
    manifest = {path: digest(os.path.join(target.path, path)) for path in (*copied, *linked)}
    folders = ignored_folders(repo) if ignored is None else ignored
    absent = [path for path in folders if not os.path.lexists(os.path.join(target.path, path))]
    return Filled(tuple(copied), tuple(linked), tuple(absent[:MISSING_SHOWN]), manifest, tuple(notes))


def _asked_for(source: Tree, name: str, *how: str) -> list[str]:
    """Paths the file's patterns match and git ignores."""
    patterns = os.path.join(source.path, name)
    if files.kind(patterns) != "file":
        return []
    files.read_file(patterns, MAX_PATTERNS)  # git reads it whole
    matched = zsplit(git(["ls-files", "-o", "-i", "-z", *how, f"--exclude-from={patterns}"], at=source))
    if not matched:
        return []
    asked = "\0".join(matched) + "\0"
    return zsplit(git(["check-ignore", "-z", "--stdin"], at=source, input=asked, ok=(0, 1)))


def _copy_all(source: Tree, target: Tree, paths: list[str], max_bytes: int) -> list[str]:
    wanted = [path for path in paths if files.kind(os.path.join(source.path, path)) in ("file", "symlink")]
    sizes = sorted(((os.lstat(os.path.join(source.path, path)).st_size, path) for path in wanted), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > max_bytes:
        largest = ", ".join(f"{path} ({size:,} bytes)" for size, path in sizes[:5])
        message = f"cannot copy {total:,} bytes (.worktreeinclude): the limit is {max_bytes:,}; largest: {largest}"
        raise Refused(
            f"{message}; link them by .worktreelink, or make them in the set-up command",
            code="include_too_large",
        )
    return [path for path in wanted if _copy(source, target, path)]


def _copy(source: Tree, target: Tree, path: str) -> bool:
    origin, goal = os.path.join(source.path, path), os.path.join(target.path, path)
    _make_parents(target, path)
    try:
        if os.path.islink(origin):
            os.symlink(os.readlink(origin), goal)
            return True
        descriptor = os.open(goal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return False
    with files.open_file(origin, follow=False) as reader, open(descriptor, "wb") as writer:
        shutil.copyfileobj(reader, writer)
        # What git ignores is often secret: for its owner alone, never wider than it was.
        os.fchmod(writer.fileno(), stat.S_IMODE(os.fstat(reader.fileno()).st_mode) & 0o700)
    return True


def _make_parents(target: Tree, path: str) -> None:
    """Folders on the way, none of which may be a link: it could lead out of the worktree."""
    here = target.path
    for name in path.split("/")[:-1]:
        here = os.path.join(here, name)
        if os.path.islink(here):
            raise Refused(f"cannot copy {path} into the worktree: {here} is a symlink there", code="symlink")
        try:
            os.mkdir(here, 0o700)
        except FileExistsError:
            if not os.path.isdir(here):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), here) from None


def _link_all(source: Tree, target: Tree, paths: list[str]) -> tuple[list[str], list[str]]:
    linked, notes = [], []
    for path in (path.rstrip("/") for path in paths):
        goal = os.path.join(target.path, path)
        if os.path.lexists(goal):
            continue
        origin = os.path.join(source.path, path)
        _make_parents(target, path)
        if _is_ignored(target, path):
            os.symlink(origin, goal)
            linked.append(path)
        elif os.path.isdir(origin) and _is_ignored(target, path + "/"):
            # A pattern such as "node_modules/" ignores folders only, and a link would be committed by the agent: so
            # a folder it is, and what is in it is linked.
            os.mkdir(goal, 0o700)
            for name in sorted(os.listdir(origin)):
                os.symlink(os.path.join(origin, name), os.path.join(goal, name))
                linked.append(f"{path}/{name}")
        else:
            notes.append(f"{path} is not linked: the base commit does not ignore it")
    return linked, notes


def _is_ignored(tree: Tree, path: str) -> bool:
    return bool(git(["check-ignore", "-z", "--stdin"], at=tree, input=path + "\0", ok=(0, 1)))


def ignored_folders(repo: Repo) -> list[str]:
    """Those near the top of the calling tree; none if there is no tree, or git does not say in time."""
    if repo.top is None:
        return []
    query = ["ls-files", "-o", "-i", "--exclude-standard", "--directory", "-z"]
    try:
        entries = zsplit(git(query, at=calling_tree(repo), timeout=5))
    except GitFailed:
        return []
    return [path.rstrip("/") for path in entries if path.endswith("/") and path.count("/") <= MISSING_DEPTH]
