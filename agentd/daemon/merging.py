"""A job's work, brought home and shown: merge, diff, result. Git runs in threads of their own.

Before a branch moves, ``merge.json`` in the job's folder says from where to where; when the store knows of it too, it
goes. So a daemon that dies in between leaves enough for the next one to know what it was about.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agentd import jobdir, protocol
from agentd.core import events as on
from agentd.core.errors import AgentdError, Refused
from agentd.core.job import SUCCEEDED, Done, Job, Kept, Merged, Worktree, state_name
from agentd.core.names import escaped
from agentd.daemon.engine import Engine, Locks
from agentd.daemon.locking import Locking
from agentd.daemon.perform import job_dir, plan_of, refuse_changed_commands, words_of
from agentd.daemon.views import job_view, merged_view
from agentd.git import look, merge
from agentd.git.run import GitFailed, Repo, sentence, umask
from agentd.git.snapshot import Words

T = TypeVar("T")
THREADS = 4
RECORD = "merge.json"
PAGE = 500_000
"""Characters of a diff in one answer."""


class Merging:
    def __init__(self, state_dir: str, engine: Engine, locking: Locking) -> None:
        self.state_dir = state_dir
        self.engine = engine
        self.locking = locking
        self.turns = Locks()
        """One merge of a job at a time, until the store knows of it."""
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="merge")

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    # --- merge ----------------------------------------------------------------------------------------------

    async def merge(self, id: int, ask: protocol.Merge) -> dict[str, Any]:
        async with self.turns.of(id):
            job = self.engine.jobs[id]
            refuse_unmergeable(job, ask.force)
            repo, ref = await self.in_thread(merge.target, plan_of(job), ask.cwd, ask.into)
            # While the branch moves, the job is neither started again nor removed.
            async with self.locking.integrating(job, repo.common, ref), self.engine.locks.of(id):
                job = self.engine.jobs[id]
                refuse_unmergeable(job, ask.force)
                work, changed = await self.in_thread(self._work, job)
                self.locking.refuse_contested(job, repo.common, changed)
                merged, is_new = None, False
                if work is not None:
                    merged, is_new = await self.in_thread(self._land, job, work, repo, ref, ask.umask)
            if merged is not None:
                job = await self._record(merged, job, is_new)
        return {"job": job_view(job), "merged": merged_view(job) if merged is not None else None, "is_new": is_new}

    def _work(self, job: Job) -> tuple[str | None, list[str]]:
        """The job's work as a commit, None if there is none, and the paths that it changes."""
        place, plan = worktree_of(job), plan_of(job)
        if place.admin is None or place.is_gone:
            return None, []
        refuse_changed_commands(job_dir(self.state_dir, job), plan, place.admin)
        work = merge.work(plan, place.admin, words_of(job))
        return work, [] if work is None else merge.changed(plan, work)

    def _land(self, job: Job, work: str, repo: Repo, ref: str, mask: int) -> tuple[Merged, bool]:
        """``(where the work is now, has anything moved)``."""
        before = umask.set(mask)
        try:
            return self._land_now(job, work, repo, ref)
        finally:
            umask.reset(before)

    def _land_now(self, job: Job, work: str, repo: Repo, ref: str) -> tuple[Merged, bool]:
        plan, folder, admin = plan_of(job), job_dir(self.state_dir, job), worktree_of(job).admin
        assert admin is not None
        is_replayed = merge.began_with_changes(plan)
        words = words_of(job) if is_replayed else merge_words(job)
        last = (job.merged.work, job.merged.new) if job.merged is not None else None
        order = merge.Order(plan, repo, work, ref, is_replayed, last, words)
        intent = {"attempt": job.attempt, "work": work, "ref": ref}

        def begin(old: str, new: str) -> None:
            jobdir.write(folder, RECORD, intent | {"old": old, "new": new, "at": time.time()})

        before = jobdir.read(folder, RECORD) or {}
        begun = (before["old"], before["new"]) if before.items() >= intent.items() else None
        landed = merge.land(order, begin, begun)
        merge.follow(plan, admin, work)
        record = (jobdir.read(folder, RECORD) or {}) if landed.is_new else {}
        return merged_fact({**intent, "old": landed.old, "new": landed.new, "at": time.time(), **record}), landed.is_new

    async def _record(self, merged: Merged, job: Job, is_new: bool) -> Job:
        known = job.merged
        if is_new or known is None or (known.work, known.into) != (merged.work, merged.into):
            job = await self.engine.apply(job.id, on.WorkMerged(merged.at, merged))
        await self.in_thread(jobdir.remove_quietly, f"{job_dir(self.state_dir, job)}/{RECORD}")
        return job

    async def recover(self) -> None:
        """Tell of what had landed when the last daemon died. What had not is for who asked to ask again."""
        for job in list(self.engine.jobs.values()):
            async with self.turns.of(job.id):
                record = jobdir.read(job_dir(self.state_dir, job), RECORD)
                if record is None or not isinstance(job.place, Worktree):
                    continue
                if await self.in_thread(merge.has_landed, plan_of(job).repo, record["ref"], record["new"]):
                    await self._record(merged_fact(record), job, is_new=True)

    # --- diff -----------------------------------------------------------------------------------------------

    async def diff(self, job: Job, ask: protocol.Diff) -> dict[str, Any]:
        base, work, text = await self.in_thread(self._diff, job, ask)
        end = ask.offset + PAGE
        return {
            "base": base,
            "work": work,
            "text": text[ask.offset : end],
            "next": end if end < len(text) else None,
        }

    def _diff(self, job: Job, ask: protocol.Diff) -> tuple[str, str, str]:
        place = worktree_of(job)
        plan, folder = plan_of(job), job_dir(self.state_dir, job)
        if place.admin is None or place.is_gone:
            return plan.base, plan.base, ""
        refuse_changed_commands(folder, plan, place.admin)
        try:
            work = ask.work or look.content(plan, place.admin)
            return plan.base, work, look.diff(plan.repo, plan.base, work, ask.form, ask.binary)
        except (GitFailed, OSError) as failure:
            raise sentence(failure, f"show the changes of job {job.id}", plan.repo.common) from failure

    # --- result ---------------------------------------------------------------------------------------------

    async def result(self, job: Job) -> dict[str, Any]:
        """What agentd saw itself; ``words`` is what the agent says of it, and is no fact."""
        commits: dict[str, object] = {"count": 0, "first": []}
        facts = job.result or {}
        if facts.get("snapshot"):
            try:
                plan = plan_of(job)
                commits = await self.in_thread(look.commits, plan.repo, plan.base, facts["snapshot"])
            except (AgentdError, GitFailed, OSError):
                commits = {"count": None, "first": []}
        return {**result_view(job), "commits": commits, "words": None}


def merged_fact(record: dict[str, Any]) -> Merged:
    into = record["ref"].removeprefix("refs/heads/")
    return Merged(record["at"], record["attempt"], record["work"], into, record["old"], record["new"])


def result_view(job: Job) -> dict[str, Any]:
    view = job_view(job)
    same = ("id", "name", "attempt", "state", "outcome", "exit_code", "signal", "reason", "started_at", "ended_at")
    facts = job.result or {}
    ended = job.state.ended if isinstance(job.state, Done) else None
    return {
        **{key: view[key] for key in (*same, "worktree", "branch", "base", "swept", "left", "merged")},
        "duration": ended - job.started if ended is not None and job.started is not None else None,
        "is_settled": isinstance(job.state, Done) and job.state.is_settled,
        "changed": facts.get("changed"),
        "snapshot": facts.get("snapshot"),
        "diffstat": facts.get("diffstat"),
        "repository_changed": facts.get("repository_changed", []),
        "error": facts.get("error") or facts.get("missing"),
    }


def refuse_unmergeable(job: Job, is_forced: bool) -> None:
    worktree_of(job)
    if not isinstance(job.shelf, Kept):
        raise Refused(f"job {job.id} is in the trash; put it back with: agentd undo {job.id}", "removed")
    if not isinstance(job.state, Done):
        raise Refused(
            f"job {job.id} is still {state_name(job.state)}; wait for it, or end it with: agentd kill {job.id}",
            "not_done",
        )
    if not job.state.is_settled:
        raise Refused(f"job {job.id} has just ended and its result is being saved; try again", "not_settled")
    if job.state.how.outcome != SUCCEEDED and not is_forced:
        raise Refused(
            f"job {job.id} has not succeeded ({job.state.how.outcome}); look at it with: agentd diff {job.id};"
            f" to merge it all the same: agentd merge --force {job.id}",
            "not_succeeded",
        )


def worktree_of(job: Job) -> Worktree:
    if not isinstance(job.place, Worktree):
        raise Refused(
            f"job {job.id} works in {escaped(job.place.cwd)}: it has no worktree of its own,"
            " and its changes are there already; look with: git diff",
            "in_place",
        )
    return job.place


def merge_words(job: Job) -> Words:
    """Of a merge commit."""
    own = words_of(job)
    return Words(f"Merge job {job.id} ({job.name}): {own.message}", own.author, own.mail, own.at)
