"""The trash: a worktree leaves the repository and keeps every byte, ignored files included.

An entry is a folder ``<trash>/<id>-<name>/`` with ``tree`` (the directory, renamed), ``admin`` (a copy of its
admin directory: index, reflog, merge or rebase in progress) and ``entry.json``, durable before any move.
refs/agentd/keep/<job> keeps the objects. Each step can be done again, so a crash is mended by the same call.
"""

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from agentd.core.errors import Refused
from agentd.git.plan import (
    Plan,
    admin_dir,
    admin_named_by,
    plan_from,
    points_back,
    read,
    remove_tree,
    stands,
    tree_of,
)
from agentd.git.repository import ref_value
from agentd.git.run import GitFailed, git, mutex, sentence
from agentd.git.snapshot import keep_everything
from agentd.git.unchanged import drop_admin, is_unchanged


@dataclass(frozen=True)
class Trashed:
    entry: dict[str, Any]
    """JSON-able; all that ``restore`` and ``forget`` need."""


def to_trash(plan: Plan, admin: str, trash_dir: str, manifest: dict[str, str]) -> Trashed:
    place = os.path.join(trash_dir, os.path.basename(plan.path))
    entry = _unfinished(plan, place)
    try:
        if entry is None:
            entry = _write_down(plan, admin, place, manifest)
        _move_out(plan, entry)
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"move the worktree of job {plan.job} to the trash", plan.repo.common) from failure
    return Trashed(entry)


def is_deleted(plan: Plan, trash_dir: str) -> bool:
    """Has somebody deleted the worktree's folder? (Not: moved to the trash, by a call that was cut short.)"""
    tree = os.path.join(trash_dir, os.path.basename(plan.path), "tree")
    return not os.path.lexists(plan.path) and not os.path.isdir(tree)


def let_go(plan: Plan, admin: str) -> None:
    """Of a worktree that was deleted: git's entry goes, and its branch unless there is a commit on it."""
    with mutex(plan.repo) as lock:
        drop_admin(plan, admin)
        if ref_value(plan.repo, plan.ref) == plan.base:
            git(["update-ref", "-d", plan.ref, plan.base], at=plan.repo, write=True, holding=lock)


def _unfinished(plan: Plan, place: str) -> dict[str, Any] | None:
    """The entry of an earlier call that got as far as moving the directory."""
    text = read(os.path.join(place, "entry.json"))
    if text is None or os.path.lexists(plan.path) or not os.path.isdir(os.path.join(place, "tree")):
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry


def _write_down(plan: Plan, admin: str, place: str, manifest: dict[str, str]) -> dict[str, Any]:
    if not stands(plan, admin):
        message = f"cannot move {plan.path} to the trash: its .git does not name the admin directory {admin}"
        raise Refused(f"{message}; look at it by hand", code="not_ours")
    if os.path.lexists(os.path.join(place, "tree")):
        raise Refused(f"cannot use {place}: it holds another worktree; move it away", code="path_exists")
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    _refuse_other_disk(plan.path, os.path.dirname(place))
    os.makedirs(place, mode=0o700, exist_ok=True)
    empty = is_unchanged(plan, admin, manifest)
    entry: dict[str, Any] = {
        "plan": asdict(plan),
        "admin": admin,
        "place": place,
        "keep": keep_everything(plan, admin),
        "branch": ref_value(plan.repo, plan.ref),
        "empty": empty,
    }
    copy = os.path.join(place, "admin")
    if os.path.lexists(copy):
        remove_tree(copy)
    shutil.copytree(tree_of(plan, admin).git_dir, copy, symlinks=True)
    _write_durably(os.path.join(place, "entry.json"), json.dumps(entry))
    return entry


def _refuse_other_disk(path: str, trash_dir: str) -> None:
    if os.lstat(path).st_dev != os.stat(trash_dir).st_dev:
        message = f"cannot move {path} to the trash: {trash_dir} is on another file system"
        raise Refused(f"{message}; put both on one", code="other_disk")


def _write_durably(path: str, text: str) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _move_out(plan: Plan, entry: dict[str, Any]) -> None:
    with mutex(plan.repo) as lock:
        if os.path.lexists(plan.path):
            os.rename(plan.path, os.path.join(entry["place"], "tree"))
        drop_admin(plan, entry["admin"])
        if entry["empty"] and ref_value(plan.repo, plan.ref) == plan.base:
            git(["update-ref", "-d", plan.ref, plan.base], at=plan.repo, write=True, holding=lock)


def restore(entry: dict[str, Any]) -> str:
    """Bring a worktree back as it was: files, index, reflog, branch. Its admin id, which may be a new one."""
    plan = plan_from(entry["plan"])
    tree = os.path.join(entry["place"], "tree")
    if not os.path.isdir(plan.repo.common):
        message = f"cannot restore job {plan.job}: its repository {plan.repo.common} is gone"
        raise Refused(f"{message}; its files are in {tree}", code="repository_gone")
    try:
        with mutex(plan.repo) as lock:
            if os.path.isdir(tree):
                _move_back(plan, entry, tree, lock)
            admin = admin_named_by(plan.path, plan.repo)
            if admin is None or not points_back(plan, admin):
                raise Refused(f"cannot restore job {plan.job}: it is not in {entry['place']}", code="not_in_trash")
            git(["update-ref", "-d", f"refs/agentd/keep/{plan.job}"], at=plan.repo, write=True, holding=lock)
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"restore job {plan.job}") from failure
    if os.path.isdir(entry["place"]):
        remove_tree(entry["place"])
    return admin


def _move_back(plan: Plan, entry: dict[str, Any], tree: str, lock: int) -> None:
    if os.path.lexists(plan.path):
        message = f"cannot restore job {plan.job}: {plan.path} is occupied; move it away"
        raise Refused(message, code="path_exists")
    if entry["branch"] and ref_value(plan.repo, plan.ref) is None:
        git(["update-ref", plan.ref, entry["branch"]], at=plan.repo, write=True, holding=lock)
    admin = _admin_back(plan, entry)
    with open(os.path.join(tree, ".git"), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"gitdir: {admin_dir(plan.repo, admin)}\n")
    os.makedirs(os.path.dirname(plan.path), mode=0o700, exist_ok=True)
    os.rename(tree, plan.path)


def _admin_back(plan: Plan, entry: dict[str, Any]) -> str:
    """Built aside and renamed: a half-copied entry would break ``git worktree list`` for everybody."""
    wanted = str(entry["admin"])
    for admin in (wanted, *(f"{wanted}{n}" for n in range(1, 100))):
        goal = admin_dir(plan.repo, admin)
        if os.path.lexists(goal):
            if points_back(plan, admin):
                return admin
            continue
        aside = os.path.join(plan.repo.common, f"agentd.restore-{plan.job}")
        if os.path.lexists(aside):
            remove_tree(aside)
        shutil.copytree(os.path.join(entry["place"], "admin"), aside, symlinks=True)
        os.makedirs(os.path.dirname(goal), exist_ok=True)
        os.rename(aside, goal)
        return admin
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), admin_dir(plan.repo, wanted))


def forget(entry: dict[str, Any]) -> None:
    """Delete for good what retention no longer holds: the folder, and the refs of ours. The branch stays."""
    plan = plan_from(entry["plan"])
    if os.path.isdir(entry["place"]):
        remove_tree(entry["place"])
    if not os.path.isdir(plan.repo.common):
        return
    with mutex(plan.repo) as lock:
        for kind in ("keep", "work", "snap", "merged"):
            git(["update-ref", "-d", f"refs/agentd/{kind}/{plan.job}"], at=plan.repo, write=True, holding=lock)
