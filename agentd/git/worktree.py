"""A job's worktree: made in two phases, taken back whole if anything goes wrong.

``git worktree add`` is not atomic and races with itself, so phase 1 (``add``) holds the repository's mutex
and checks nothing out; phase 2 (``checkout``) runs outside it, through the admin directory we stored. Killed
at any moment, it leaves some of: a branch, ref locks, an admin directory in any state (one of them makes
``git worktree list`` fail for the whole repository), a directory. ``rollback`` takes that away and no more;
``recover`` says whether there is a complete worktree, or makes sure that there is nothing.

git runs with the lock's descriptor, so that a git which outlives us keeps the lock until it has ended.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator

from filelock import Timeout

from agentd.core.errors import Fault, NotNow, Refused
from agentd.git.fill import Filled, fill
from agentd.git.plan import (
    Plan,
    admin_dir,
    admin_named_by,
    half_made_admins,
    is_intact,
    plan_from,
    read,
    remove_tree,
    tree_of,
)
from agentd.git.repository import ref_value, refs_there
from agentd.git.run import GitFailed, git, locked, mutex, sentence
from agentd.git.trash import Trashed, forget, restore, to_trash
from agentd.git.unchanged import is_unchanged, remove_unchanged

__all__ = [
    "Filled",
    "Plan",
    "Trashed",
    "add",
    "checkout",
    "fill",
    "forget",
    "is_unchanged",
    "mutex",
    "plan_from",
    "preflight",
    "recover",
    "remove_unchanged",
    "restore",
    "rollback",
    "to_trash",
    "tree_of",
]

RACED = re.compile(r"commondir|config\.lock|could not lock config|packed-refs\.lock|cannot lock ref|unable to lock")
TRIES = 5
RESERVED_BYTES = 64 * 1024 * 1024
RESERVED_FILES = 1000


def preflight(plan: Plan) -> None:
    """Refuse what is known beforehand to fail."""
    _refuse_branch_in_the_way(plan)
    _refuse_read_only(plan)
    for path in (plan.path, os.path.dirname(plan.path)):
        if os.path.islink(path):
            raise Refused(f"refusing: {path} is a symlink; remove it", code="symlink")
    if os.path.lexists(plan.path):
        raise Refused(f"cannot make a worktree at {plan.path}: it exists; move it away", code="path_exists")
    _refuse_little_space(plan.path)


def _refuse_branch_in_the_way(plan: Plan) -> None:
    levels = plan.branch.split("/")
    for ref in refs_there(plan.repo, [f"refs/heads/{'/'.join(levels[:n])}" for n in range(1, len(levels))]):
        message = f'cannot create {plan.branch} because branch "{ref.removeprefix("refs/heads/")}" exists'
        raise Refused(f"{message}; rename it, or set worktree.branch_prefix in agentd.toml", code="branch_in_the_way")


def _refuse_read_only(plan: Plan) -> None:
    places = [plan.repo.common, os.path.join(plan.repo.common, "worktrees")]
    if all(os.access(place, os.W_OK | os.X_OK) for place in places if os.path.lexists(place)):
        return
    message = f"cannot write {plan.repo.common}/worktrees (permission denied); make it writable for this user"
    raise Refused(message, code="read_only")


def _refuse_little_space(path: str) -> None:
    place = path
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = os.statvfs(place)
    # Some file systems (btrfs) do not count inodes: zero of zero.
    few_files = free.f_files > 0 and free.f_favail < RESERVED_FILES
    if free.f_bavail * free.f_frsize < RESERVED_BYTES or few_files:
        message = f"cannot make a worktree in {place}: hardly any {'inodes' if few_files else 'space'} left"
        raise NotNow(f"{message}; free some, then try again", code="disk_full")


def add(plan: Plan) -> str:
    """Phase 1: branch, admin directory and an empty worktree. Its admin id. On failure nothing stays."""
    with mutex(plan.repo) as lock:
        if ref_value(plan.repo, plan.ref):
            raise Refused(f"cannot create branch {plan.branch}: it exists; delete or rename it", code="branch_exists")
        if os.path.lexists(plan.path):
            raise Refused(f"cannot make a worktree at {plan.path}: it exists; move it away", code="path_exists")
        for attempt in range(1, TRIES + 1):
            try:
                return _add_once(plan, lock)
            except (GitFailed, OSError) as failure:
                answer = sentence(failure, f"make the worktree of job {plan.job}", *_places(plan))
                _roll_back(plan, lock)
                raced = isinstance(failure, GitFailed) and RACED.search(failure.stderr)
                if not raced or attempt == TRIES:
                    raise answer from failure
            # The other party is the user's own git: it takes no part in our mutex.
            time.sleep(0.02 * 2**attempt)
    raise AssertionError("the last try returns or raises")


def _add_once(plan: Plan, lock: int) -> str:
    os.makedirs(os.path.dirname(plan.path), mode=0o700, exist_ok=True)
    form = ["worktree", "add", "--no-track", "--no-checkout", "--lock", "--reason", plan.lock_reason]
    git([*form, "-b", plan.branch, plan.path, plan.base], at=plan.repo, write=True, holding=lock)
    admin = admin_named_by(plan.path, plan.repo)
    if admin is None:
        raise Fault(f"cannot find the admin directory of {plan.path}", code="git_failed")
    return admin


def checkout(plan: Plan, admin: str) -> None:
    """Phase 2, outside the mutex. After a failure the caller rolls back."""
    tree = tree_of(plan, admin)
    try:
        with locked(os.path.join(tree.git_dir, "agentd.busy")) as lock:
            reset = ["reset", "-q", "--hard"]
            git(reset, at=tree, write=True, timeout=1800, env={"GIT_LFS_SKIP_SMUDGE": "1"}, holding=lock)
    except (GitFailed, OSError) as failure:
        raise sentence(failure, f"check out the files of job {plan.job}", *_places(plan)) from failure


def _places(plan: Plan) -> tuple[str, str]:
    return plan.repo.common, os.path.dirname(plan.path)


def recover(plan: Plan) -> str | None:
    """After a crash: the admin id of a complete worktree; otherwise nothing of it is left, and None."""
    admin = admin_named_by(plan.path, plan.repo)
    if admin is not None:
        with _nobody_in(plan, admin):
            if _is_complete(plan, admin):
                return admin
    rollback(plan)
    return None


def _is_complete(plan: Plan, admin: str) -> bool:
    tree = tree_of(plan, admin)
    if not is_intact(plan, admin) or (read(os.path.join(tree.git_dir, "HEAD")) or "").strip() != f"ref: {plan.ref}":
        return False
    if os.path.lexists(os.path.join(tree.git_dir, "index.lock")):
        return False
    try:
        if ref_value(tree, "HEAD") != plan.base:
            return False
        return not git(["status", "--porcelain", "-z", "--untracked-files=no"], at=tree, timeout=600)
    except GitFailed:
        return False


def rollback(plan: Plan) -> None:
    """Take away what ``add`` and ``checkout`` of this plan made, from any half-way state; twice is fine."""
    with mutex(plan.repo) as lock:
        _roll_back(plan, lock)


def _roll_back(plan: Plan, lock: int) -> None:
    admins = half_made_admins(plan)
    with contextlib.ExitStack() as stack:
        for admin in admins:
            stack.enter_context(_nobody_in(plan, admin))
        if _directory_is_ours(plan, admins):
            remove_tree(plan.path)
        # The admin directory last, so that a rollback killed between the two still knows whose it is.
        for admin in admins:
            remove_tree(admin_dir(plan.repo, admin))
    _remove_stale_ref_lock(plan)
    try:
        if ref_value(plan.repo, plan.ref) == plan.base:
            git(["update-ref", "-d", plan.ref, plan.base], at=plan.repo, write=True, holding=lock)
    except GitFailed as failure:
        raise sentence(failure, f"take back branch {plan.branch}") from failure


@contextlib.contextmanager
def _nobody_in(plan: Plan, admin: str) -> Iterator[None]:
    """Wait for a checkout that outlived the daemon which began it."""
    if not os.path.lexists(os.path.join(admin_dir(plan.repo, admin), "agentd.busy")):
        yield
        return
    try:
        with locked(os.path.join(admin_dir(plan.repo, admin), "agentd.busy")):
            yield
    except Timeout:
        message = f"cannot tidy up job {plan.job}: a git of an earlier daemon still writes to {plan.path}"
        raise NotNow(f"{message}; wait for it or end it", code="worktree_busy") from None


def _directory_is_ours(plan: Plan, admins: list[str]) -> bool:
    if os.path.islink(plan.path) or not os.path.isdir(plan.path):
        return False
    return bool(admins) or not os.listdir(plan.path) or _names_nothing_but_us(plan)


def _names_nothing_but_us(plan: Plan) -> bool:
    """The ``.git`` file names an admin directory of our name which is gone: a rollback was interrupted."""
    named = admin_named_by(plan.path, plan.repo)
    pattern = re.escape(os.path.basename(plan.path)) + r"\d*"
    if named is None or not re.fullmatch(pattern, named):
        return False
    return not os.path.lexists(admin_dir(plan.repo, named))


def _remove_stale_ref_lock(plan: Plan) -> None:
    """Of our branch only; the mutex says that no git of ours holds it. Empty folders go too."""
    for root in (plan.repo.common, os.path.join(plan.repo.common, "logs")):
        ref = os.path.join(root, *plan.ref.split("/"))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(ref + ".lock")
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(ref))
