"""Is there any work in a worktree? Doubt means yes.

git is asked about the files it tracks, and about nothing else: it does not list what is ignored, what is in a
submodule's folder, nor a repository that lies among tracked files. So everything that a fresh worktree would not have
is found by looking at the folders.
"""

import os
import re
from collections.abc import Iterator, Sequence

from agentd import process
from agentd.core.errors import AgentdError, Fault
from agentd.core.names import escaped
from agentd.git.plan import (
    Plan,
    admin_dir,
    digest,
    files_in,
    half_made_admins,
    points_back,
    read,
    remove_tree,
    stands,
)
from agentd.git.repository import ref_value
from agentd.git.run import GitFailed, Tree, git, mutex, sentence, zsplit
from agentd.git.snapshot import SUBMODULE, hidden_files, modes

CACHE = re.compile(r"(^|/)(__pycache__|\.pytest_cache|\.mypy_cache|\.ruff_cache|node_modules/\.cache)(/|$)")
IN_PROGRESS = (
    "MERGE_HEAD",
    "REBASE_HEAD",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "BISECT_LOG",
    "rebase-merge",
    "rebase-apply",
    "sequencer",
    "modules",  # submodules of this worktree alone
)


def is_unchanged(plan: Plan, admin: str, manifest: dict[str, str]) -> bool:
    """Whether removing the worktree and its branch would lose nothing."""
    return first_work(plan, admin, manifest, plan.path) is None


def first_work(plan: Plan, admin: str, manifest: dict[str, str], path: str) -> str | None:
    """The first sign of work in the worktree, which is at ``path`` now; None if there is none."""
    tree = Tree(plan.repo.common, admin_dir(plan.repo, admin), path)
    try:
        if not stands(plan, admin, path):
            return f"{path} and its git folder do not name each other"
        return next(_work_in(plan, tree, manifest), None)
    except (AgentdError, GitFailed, OSError) as failure:
        return str(failure)


def _work_in(plan: Plan, tree: Tree, manifest: dict[str, str]) -> Iterator[str]:
    for name in IN_PROGRESS:
        if os.path.lexists(os.path.join(tree.git_dir, name)):
            yield f"there is {name} in its git folder"
    # Before git looks at a file: there is no repository inside and no pipe any more that it could be led to.
    yield from (f"{escaped(path)} is new or changed" for path in _new_files(tree, manifest))
    if [ref_value(tree, "HEAD"), ref_value(tree, plan.ref)] != [plan.base, plan.base]:
        yield "there are commits"
    if _seen_by_reflogs(plan, tree) - {plan.base}:
        yield "there were commits"
    if git(["for-each-ref", "refs/worktree", "refs/bisect"], at=tree):
        yield "there are refs of its own"
    yield from (f"{escaped(path)} is hidden from git" for path in hidden_files(tree))
    yield from (f"{escaped(path)} was changed" for path in _changed_files(tree))


def _seen_by_reflogs(plan: Plan, tree: Tree) -> set[str]:
    logs = [os.path.join(tree.git_dir, "logs", "HEAD"), os.path.join(plan.repo.common, "logs", plan.ref)]
    lines = [line for log in logs for line in (read(log) or "").splitlines()]
    return {sha for line in lines for sha in line.split(" ")[:2] if sha.strip("0")}


def _new_files(tree: Tree, manifest: dict[str, str]) -> Iterator[str]:
    """All that git does not track, whatever it thinks of it, but for caches and what was filled in."""
    tracked = {path for path, mode in modes(tree).items() if mode != SUBMODULE}
    for path, is_readable in files_in(tree):
        if is_readable and (path in tracked or _is_cache(path)):
            continue
        if path not in manifest or manifest[path] != digest(os.path.join(tree.path, path)):
            yield path


def _is_cache(path: str) -> bool:
    """A repository in a cache (of pages to be published, say) may hold commits."""
    return bool(CACHE.search(path)) and ".git" not in path.split("/")


def _changed_files(tree: Tree) -> list[str]:
    query = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=dirty"]
    return [line[3:] for line in zsplit(git(query, at=tree, timeout=600))]


def remove_unchanged(plan: Plan, admin: str, manifest: dict[str, str], helpers: Sequence[int] = ()) -> str | None:
    """Remove worktree and branch, if there is no work in them, nobody uses them, and none of ``helpers`` lives. Else
    why not, with everything where it was. Finishes what a crash cut off.

    The directory is put aside first, and looked at (again) there: who is not in it then does not find it any more. Its
    entry in the repository goes when it has passed, and the directory last.
    """
    gone = plan.path + ".gone"
    why = first_work(plan, admin, manifest, plan.path) if os.path.lexists(plan.path) else None
    if why is not None:
        return why
    with mutex(plan.repo) as lock:
        is_new = os.path.lexists(plan.path)
        if is_new:
            _rename(plan.path, gone)
        elif not os.path.lexists(gone) and os.path.lexists(admin_dir(plan.repo, admin)):
            return f"{plan.path} is gone"
        if is_new or (os.path.lexists(gone) and points_back(plan, admin)):
            why = _users(gone, helpers) or first_work(plan, admin, manifest, gone)
            if why is not None:
                _rename(gone, plan.path)
                return why
        try:
            drop_admin(plan, admin)
            if ref_value(plan.repo, plan.ref) == plan.base:
                git(["update-ref", "-d", plan.ref, plan.base], at=plan.repo, write=True, holding=lock)
        except GitFailed as failure:
            raise sentence(failure, f"remove the worktree of job {plan.job}") from failure
    if os.path.isdir(gone) and not os.path.islink(gone):
        remove_tree(gone)
    return None


def _rename(path: str, goal: str) -> None:
    if os.path.lexists(goal):
        raise Fault(f"cannot move {path} to {goal}: that exists; look at both by hand", code="path_exists")
    os.rename(path, goal)


def _users(path: str, helpers: Sequence[int]) -> str | None:
    alive = [pid for pid in helpers if not process.is_zombie(pid)]
    return used_by([*alive, *(pid for pid in process.using(path) if pid not in alive)])


def used_by(pids: Sequence[int]) -> str | None:
    """Who works in a worktree, in words; None if nobody does."""
    who = (f"{escaped(str(p['command'])[:40])} ({p['pid']})" for p in map(process.describe, pids[:5]))
    return f"{', '.join(who)} works in it" if pids else None


def drop_admin(plan: Plan, admin: str) -> None:
    """Drop the entry of a directory that is no longer there.

    Not by ``git worktree prune``, which drops other people's too, nor by ``remove``, which fails on an entry
    that a killed ``remove`` left half deleted, and on any broken sibling.
    """
    if not os.path.lexists(plan.path) and admin in half_made_admins(plan):
        remove_tree(admin_dir(plan.repo, admin))
