"""Bringing a job's work home: its commit, foretold and built beside all trees, then a branch that moves at once.

What is promised: the target is where it was or where it shall be, never between. It moves by compare-and-swap, or,
where a tree has it checked out, by ``git merge --ff-only --no-overwrite-ignore`` there, which refuses whatever
would overwrite something. Before that nothing is written but objects. Killed at any moment, the same call again
ends it, since the job's commit is always the same one. No hook runs: a job could have planted it.

The result is what ``git merge`` gives; a fast-forward where the job's own commit tells whose it is. What began with
the user's uncommitted changes is replayed without them, as one commit.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from agentd.core.errors import Fault, NotNow, Refused, Usage
from agentd.core.names import escaped
from agentd.git import mend, predict
from agentd.git.inuse import head_of, short, tree_with
from agentd.git.plan import Plan, tree_of
from agentd.git.repository import ref_value, settle
from agentd.git.run import GitFailed, Repo, Tree, git, mutex, sentence, zsplit
from agentd.git.snapshot import Words, commit_tree, committer, intact_tree, job_commit, tree_id

TRIES = 5
NAMES_SHOWN = 20
IN_HAND = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


@dataclass(frozen=True)
class Order:
    plan: Plan
    repo: Repo
    """The repository, with the calling tree if the call came from one of its trees."""
    work: str
    ref: str
    """The target, such as refs/heads/main."""
    is_replayed: bool
    """It began with the user's uncommitted changes: only what came after them is brought home."""
    last: tuple[str, str] | None
    """The work that was brought home before, and the commit it was then in."""
    words: Words
    """Of the commit that is made when the work alone does not tell whose it is."""


@dataclass(frozen=True)
class Landed:
    old: str
    new: str

    @property
    def is_new(self) -> bool:
        return self.old != self.new


# --- what is asked for --------------------------------------------------------------------------------------


def target(plan: Plan, cwd: str, into: str | None) -> tuple[Repo, str]:
    """The repository as it is called from, and the ref to move."""
    repo = plan.repo
    if into is None:
        settled = settle(cwd, None)
        if settled.repo.common != repo.common:
            message = f"job {plan.job} works on {escaped(repo.top or repo.common)}, and you are in another repository"
            raise Refused(f"{message}; go there, or name a branch of it with --into", "other_repository")
        if settled.ref is None:
            message = "your tree is on no branch (detached HEAD)"
            raise Refused(f"{message}; check one out, or name one with --into", "detached")
        repo, ref = settled.repo, settled.ref
    else:
        ref = f"refs/heads/{into.removeprefix('refs/heads/')}"
        if "\0" in into or into.startswith("-") or not _is_ref_name(repo, ref):
            raise Usage(f'"{escaped(into)}" cannot be the name of a branch', "bad_branch")
    if ref == plan.ref:
        raise Refused(f"{short(ref)} is the branch of job {plan.job} itself; merge it into another", "own_branch")
    if ref_value(repo, ref) is None:
        make = f"git branch {short(ref)} {plan.base[:10]}"
        raise Refused(f'there is no branch "{short(ref)}"; to make it where the job began: {make}', "unknown_branch")
    if git(["symbolic-ref", "-q", ref], at=repo, ok=(0, 1)):
        raise Refused(f"{short(ref)} is only another name of a branch; name that one with --into", "unknown_branch")
    return repo, ref


def _is_ref_name(repo: Repo, ref: str) -> bool:
    return _says_yes(repo, "check-ref-format", ref)


def _says_yes(repo: Repo, *question: str) -> bool:
    """git's answer by its exit code. One that was killed has answered nothing."""
    try:
        git(question, at=repo)
    except GitFailed as failure:
        if failure.code != 1:
            raise
        return False
    return True


def work(plan: Plan, admin: str, words: Words) -> str | None:
    """The job's work as a commit: as it stands in its worktree, or in the last snapshot if that is gone."""
    if not os.path.isdir(plan.path):
        return ref_value(plan.repo, f"refs/agentd/work/{plan.job}")
    tree = intact_tree(plan, admin)
    if any(os.path.lexists(os.path.join(tree.git_dir, name)) for name in IN_HAND) or git(["ls-files", "-u"], at=tree):
        message = f"a merge or a rebase is not finished in the worktree of job {plan.job}"
        raise Refused(f"{message}; finish it there: {plan.path}", "unmerged")
    made = job_commit(plan, admin, words)
    return None if made == plan.base else made


def changed(plan: Plan, work: str) -> list[str]:
    """The paths in which the work differs from where the job began; a renamed file is both."""
    return zsplit(git(["diff-tree", "-r", "-z", "--name-only", "--no-renames", plan.base, work], at=plan.repo))


def began_with_changes(plan: Plan) -> bool:
    return ref_value(plan.repo, f"refs/agentd/snap/{plan.job}") == plan.base


def has_landed(repo: Repo, ref: str, commit: str) -> bool:
    try:
        tip = ref_value(repo, ref)
        return tip is not None and _is_there(repo, commit) and _leads_to(repo, commit, tip)
    except (GitFailed, OSError):
        return False


# --- landing ------------------------------------------------------------------------------------------------


def land(order: Order, begin: Callable[[str, str], None], begun: tuple[str, str] | None = None) -> Landed:
    """Move the target. ``begin(old, new)`` is called before it moves; ``begun`` is what it was told last, if that
    call never came to an end."""
    deed = f"merge job {order.plan.job} into {short(order.ref)}"
    try:
        with mutex(order.repo) as lock:
            for _ in range(TRIES):
                landed = _land_once(order, begin, begun, lock)
                if landed is not None:
                    _keep(order, lock)
                    return landed
    except (GitFailed, OSError) as failure:
        raise sentence(failure, deed, order.repo.common) from failure
    raise NotNow(f"cannot {deed} now: the branch moves all the time; try again", "branch_moves")


def _land_once(
    order: Order, begin: Callable[[str, str], None], begun: tuple[str, str] | None, lock: int
) -> Landed | None:
    """None: the target, or what is checked out, moved meanwhile, which is nobody's fault."""
    tip = ref_value(order.repo, order.ref)
    if tip is None:
        raise Refused(f"{short(order.ref)} was deleted meanwhile", "unknown_branch")
    tree = tree_with(order.repo, order.ref)
    if begun is not None:
        common = order.repo.common
        mend.clear_locks(tree or Tree(common, common, common), order.ref)
    if begun is not None and _is_there(order.repo, begun[1]):
        if _leads_to(order.repo, begun[1], tip):
            return Landed(*begun)
        if tree is not None and tip == begun[0]:
            mend.mend(tree, *begun)
    new = _result(order, tip)
    if new == tip:
        return Landed(tip, tip)
    begin(tip, new)
    has_moved = _move(order, tip, new, lock) if tree is None else _fast_forward(order, tree, tip, new, lock)
    return Landed(tip, new) if has_moved else None


def _is_there(repo: Repo, commit: str) -> bool:
    """A power cut can take objects that were not synced."""
    return _says_yes(repo, "cat-file", "-e", commit)


def _leads_to(repo: Repo, older: str, newer: str) -> bool:
    return _says_yes(repo, "merge-base", "--is-ancestor", older, newer)


def _result(order: Order, tip: str) -> str:
    """The commit that the target shall be at: the tip itself if the work is there already."""
    repo = order.repo
    if order.is_replayed:
        since = _since(order, tip)
        tree = _predict(order, tip, *predict.as_siblings(repo, since, tip, order.work))
        if tree == tree_id(repo, tip):
            return tip
        return _commit(order, tree, [tip], _with_subjects(order, since))
    if _leads_to(repo, order.work, tip):
        return tip
    if _leads_to(repo, tip, order.work) and _tells_its_job(order):
        return order.work
    tree = _predict(order, tip, tip, order.work)
    return tip if tree == tree_id(repo, tip) else _commit(order, tree, [tip, order.work], order.words.message)


def _tells_its_job(order: Order) -> bool:
    told = git(["log", "-1", "--format=%(trailers:key=Agentd-Job,valueonly)", order.work], at=order.repo)
    return str(order.plan.job) in told.split()


def _commit(order: Order, tree: str, parents: list[str], message: str) -> str:
    signed = committer(order.repo)
    if order.is_replayed:
        signed |= {"GIT_AUTHOR_NAME": order.words.author, "GIT_AUTHOR_EMAIL": order.words.mail}
    else:
        signed |= {name.replace("COMMITTER", "AUTHOR"): value for name, value in signed.items()}
    return commit_tree(order.repo, tree, parents, message, signed)


def _since(order: Order, tip: str) -> str:
    """The commit after which what the target does not have begins."""
    if order.last is not None and all(_is_there(order.repo, commit) for commit in order.last):
        work, landed = order.last
        if _leads_to(order.repo, landed, tip):
            return work
    return order.plan.base


def _with_subjects(order: Order, since: str) -> str:
    """The one commit that stands for several says which they were."""
    subjects = git(["log", "--reverse", "--format=* %s", f"{since}..{order.work}"], at=order.repo).splitlines()
    head, trailers = order.words.message.rsplit("\n\n", 1)
    return "\n\n".join([head, *(["\n".join(subjects[:100])] if len(subjects) > 1 else []), trailers])


def _predict(order: Order, tip: str, ours: str, theirs: str) -> str:
    """The merged tree; refused with the names of the files in conflict."""
    tree, names = predict.merged_tree(order.repo, tip, ours, theirs)
    if names:
        raise Refused(
            f"cannot merge job {order.plan.job} into {short(order.ref)}: conflict in {listed(names)}; nothing was"
            f" changed; to settle it, commit and merge {short(order.ref)} in {order.plan.path}, then repeat",
            "conflict",
        )
    return tree


def listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(escaped, names[:NAMES_SHOWN])) + more


# --- moving -------------------------------------------------------------------------------------------------


def _note(order: Order) -> str:
    return f"agentd merge {order.plan.job}"


def _move(order: Order, old: str, new: str, lock: int) -> bool:
    try:
        command = ["update-ref", "-m", _note(order), order.ref, new, old]
        git(command, at=order.repo, write=True, holding=lock, env=committer(order.repo))
    except GitFailed:
        if ref_value(order.repo, order.ref) != old:
            return False
        raise
    return True


def _fast_forward(order: Order, tree: Tree, old: str, new: str, lock: int) -> bool:
    if head_of(tree.git_dir) != order.ref:
        return False
    # The rest switches off what the user's configuration may add to a merge (merge.*, branch.*.mergeOptions).
    how = ["--ff-only", "--no-overwrite-ignore", "--no-autostash", "--no-squash", "--no-verify-signatures"]
    try:
        command = ["merge", "-q", "--no-stat", *how, new]
        env = {"GIT_REFLOG_ACTION": _note(order), **committer(order.repo)}
        git(command, at=tree, write=True, holding=lock, timeout=3600, env=env)
    except GitFailed as failure:
        if ref_value(order.repo, order.ref) != old:
            return False
        raise _refusal(order, tree, failure) from failure
    if ref_value(order.repo, order.ref) != new:
        message = f"another branch was checked out in {tree.path} while job {order.plan.job} was merged into"
        raise Fault(f"{message} {short(order.ref)}; see what moved: git reflog", "branch_switched")
    return True


def _refusal(order: Order, tree: Tree, failure: GitFailed) -> Exception:
    names = [line[1:] for line in failure.stderr.splitlines() if line.startswith("\t")]
    if names:
        is_untracked = "untracked" in failure.stderr and "local changes" not in failure.stderr
        kind, remedy = ("untracked files", "move them away") if is_untracked else ("changes", "commit or stash them")
        message = f"cannot merge job {order.plan.job}: your tree {tree.path} has {kind} in {listed(names)}"
        return Refused(f"{message}; {remedy}, then repeat; nothing was changed", "dirty")
    if "unmerged files" in failure.stderr:
        return Refused(f"files with conflicts are not settled in {tree.path}; settle them first", "branch_busy")
    if "index.lock" in failure.stderr:
        message = f"another git is at work in {tree.path} (or was killed there, and left index.lock)"
        return NotNow(f"cannot merge now: {message}; try again", "tree_locked")
    return failure


# --- afterwards ---------------------------------------------------------------------------------------------


def _keep(order: Order, lock: int) -> None:
    """The work stays reachable, and what comes later can be told from it."""
    plan = order.plan
    with contextlib.suppress(FileNotFoundError):  # the mutex says that no git of ours holds it
        os.unlink(os.path.join(plan.repo.common, f"refs/agentd/merged/{plan.job}.lock"))
    git(["update-ref", f"refs/agentd/merged/{plan.job}", order.work], at=plan.repo, write=True, holding=lock)


def follow(plan: Plan, admin: str, work: str) -> None:
    """Give the job's own branch its commit, so that what the job does next comes on top of it. No file is touched.

    Where it cannot be done (another branch is checked out there) nothing is lost without it.
    """
    tree = tree_of(plan, admin)
    if not os.path.isdir(plan.path) or head_of(tree.git_dir) not in (plan.ref, None):
        return
    head = ref_value(tree, "HEAD")
    if head is None or head == work or not _leads_to(plan.repo, head, work):
        return
    mend.clear_locks(tree, plan.ref)
    try:
        git(["reset", "-q", "--mixed", work], at=tree, write=True, timeout=600)
    except GitFailed:
        return
