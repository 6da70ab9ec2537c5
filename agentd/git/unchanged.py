"""Is there any work in a worktree? Doubt means yes."""

import os
import re
from collections.abc import Iterator

from agentd.core.errors import Fault
from agentd.git.plan import (
    Plan,
    admin_dir,
    digest,
    files_below,
    half_made_admins,
    read,
    remove_tree,
    stands,
    tree_of,
)
from agentd.git.repository import ref_value
from agentd.git.run import GitFailed, Tree, git, mutex, sentence, zsplit
from agentd.git.snapshot import hidden_files

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
    return stands(plan, admin) and _holds_no_work(plan, tree_of(plan, admin), manifest)


def _holds_no_work(plan: Plan, tree: Tree, manifest: dict[str, str]) -> bool:
    if any(os.path.lexists(os.path.join(tree.git_dir, name)) for name in IN_PROGRESS):
        return False
    try:
        if [ref_value(tree, "HEAD"), ref_value(tree, plan.ref)] != [plan.base, plan.base]:
            return False
        if _seen_by_reflogs(plan, tree) - {plan.base} or git(["for-each-ref", "refs/worktree", "refs/bisect"], at=tree):
            return False
        return not hidden_files(tree) and not any(_new_or_changed(tree, manifest))
    except (GitFailed, OSError):
        return False


def _seen_by_reflogs(plan: Plan, tree: Tree) -> set[str]:
    logs = [os.path.join(tree.git_dir, "logs", "HEAD"), os.path.join(plan.repo.common, "logs", plan.ref)]
    lines = [line for log in logs for line in (read(log) or "").splitlines()]
    return {sha for line in lines for sha in line.split(" ")[:2] if sha.strip("0")}


def _new_or_changed(tree: Tree, manifest: dict[str, str]) -> Iterator[str]:
    for code, path in _entries(tree):
        if code not in ("!!", "??"):
            yield path
            continue
        for file in _files_of(tree, path):
            if manifest.get(file) != digest(os.path.join(tree.path, file)):
                yield file


def _entries(tree: Tree) -> list[tuple[str, str]]:
    query = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignored=matching"]
    lines = zsplit(git([*query, "--ignore-submodules=none"], at=tree, timeout=600))
    return [(line[:2], line[3:].rstrip("/")) for line in lines]


def _files_of(tree: Tree, path: str) -> Iterator[str]:
    for file in files_below(os.path.join(tree.path, path)):
        relative = os.path.relpath(file, tree.path)
        if not CACHE.search(relative):
            yield relative


def manifest_of(plan: Plan, admin: str) -> dict[str, str]:
    """Every ignored file there is now: taken after the set-up command, so that its products are no work."""
    tree = tree_of(plan, admin)
    try:
        ignored = [path for code, path in _entries(tree) if code == "!!"]
        return {file: digest(os.path.join(tree.path, file)) for path in ignored for file in _files_of(tree, path)}
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"list the ignored files of job {plan.job}") from failure


def remove_unchanged(plan: Plan, admin: str, manifest: dict[str, str]) -> bool:
    """Remove worktree and branch if there is no work in them, else False. Finishes what a crash cut off.

    The directory is put aside first and deleted last: what stands at ``<path>.gone`` has passed the check.
    """
    gone = plan.path + ".gone"
    with mutex(plan.repo) as lock:
        if os.path.lexists(plan.path):
            if not is_unchanged(plan, admin, manifest):
                return False
            if os.path.lexists(gone):
                raise Fault(f"cannot put {plan.path} aside: {gone} exists; remove it", code="path_exists")
            os.rename(plan.path, gone)
        elif not os.path.lexists(gone) and os.path.lexists(admin_dir(plan.repo, admin)):
            return False
        try:
            drop_admin(plan, admin)
            if ref_value(plan.repo, plan.ref) == plan.base:
                git(["update-ref", "-d", plan.ref, plan.base], at=plan.repo, write=True, holding=lock)
        except GitFailed as failure:
            raise sentence(failure, f"remove the worktree of job {plan.job}") from failure
    if os.path.isdir(gone) and not os.path.islink(gone):
        remove_tree(gone)
    return True


def drop_admin(plan: Plan, admin: str) -> None:
    """Drop the entry of a directory that is no longer there.

    Not by ``git worktree prune``, which drops other people's too, nor by ``remove``, which fails on an entry
    that a killed ``remove`` left half deleted, and on any broken sibling.
    """
    if not os.path.lexists(plan.path) and admin in half_made_admins(plan):
        remove_tree(admin_dir(plan.repo, admin))
