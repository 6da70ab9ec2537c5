"""What the watcher sees becomes claims; and of two jobs that write the same paths it is told whether the two merge.

A pair is looked at a moment after a write, once for all writes meanwhile; one pair at a time, in the threads that give
way to others. What was told is told again only when it is not true any more.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from agentd.core import lock_texts as texts
from agentd.core import locknames
from agentd.core.claims import Holder, Name
from agentd.core.errors import AgentdError, Usage
from agentd.core.job import Done, Job, Worktree
from agentd.core.machine import Notice
from agentd.core.text import decode
from agentd.daemon.engine import Engine, Locks
from agentd.daemon.lock_views import has_work
from agentd.daemon.locking import Locking
from agentd.daemon.perform import Performer, job_dir, plan_of, refuse_changed_commands, sentence_of, words_of
from agentd.git import overlap, repository
from agentd.git.run import GitFailed

LATER_S = 1.5
PATHS_TOLD = 50
ASIDE = re.compile(r"(?:^|/)\.[^/]*\.\d+\.agentd$")
"""What a tool writes before it is renamed into place."""
Found = dict[str, Any]
"""What an event tells; without a verdict the two have nothing in common."""


NOTHING: Found = {}


class Pair:
    def __init__(self, jobs: tuple[int, int]) -> None:
        self.jobs = jobs
        self.found: Found | None = None
        """At the last look, and told if it is worth telling."""
        self.timer: asyncio.TimerHandle | None = None
        self.is_looked_at = False
        self.is_stale = False


class Overlaps:
    """``tell(job, text)``: say something to the agent of a job; ``pause(job, name)``: it wrote what it may not."""

    def __init__(
        self,
        engine: Engine,
        locking: Locking,
        performer: Performer,
        tell: Callable[[Job, str], Coroutine[Any, Any, None]],
        pause: Callable[[Job, Name], None],
    ) -> None:
        self.engine = engine
        self.locking = locking
        self.performer = performer
        self.tell = tell
        self.pause = pause
        self.pairs: dict[tuple[int, int], Pair] = {}
        self.writes: dict[int, int] = {}
        """How often a job was seen to write."""
        self.works: dict[int, tuple[int, str, overlap.Work]] = {}
        """The last look at a job's work, with the number of writes and the attempt's state then."""
        self.turns = Locks()
        """One git of ours in a worktree at a time, and none while it is settled."""
        self.one_look = asyncio.Lock()

    # --- claims ---------------------------------------------------------------------------------------------

    def on_wrote(self, id: int, paths: tuple[str, ...]) -> None:
        self.writes[id] = self.writes.get(id, 0) + 1
        self.engine.spawn(self.note(id, paths))

    def on_result(self, id: int) -> None:
        """It is over. One that the watcher never saw, as it was so short, has changed what its result tells."""
        stat = (self.engine.jobs[id].result or {}).get("diffstat")
        if id not in self.writes and isinstance(stat, dict):
            self.on_wrote(id, tuple(row[0] for row in stat["paths"]))

    async def note(self, id: int, paths: Iterable[str]) -> None:
        job = self.engine.jobs.get(id)
        if job is None or not isinstance(job.place, Worktree):
            return
        common = plan_of(job).repo.common
        folds = await self.performer.in_prompt_thread(repository.folds_case, common)
        names = list(names_of((path for path in paths if not ASIDE.search(path)), common, folds))
        holder = self.locking.holder_of(job)
        await self.locking.save(self.locking.wrote(holder, names))
        await self.locking.after_its_end(id)
        for name in names:
            if self.locking.policy_of(name) == "pause" and self.locking.stands_before(holder, [name]) is not None:
                self.pause(job, name)
        for pair in {pair for name in names for pair in self.pairs_over(holder, name)}:
            self.look_soon(pair)

    def pairs_over(self, holder: Holder, name: Name) -> list[Pair]:
        """Those of this job with each other one that claims the name, by a word or by a write."""
        id = int(holder.key)
        claims = self.locking.table.who(name)
        others = {int(claim.holder.key) for claim in claims if claim.holder.kind == "job"} - {id}
        return [
            self.pair(id, other) for other in others if other in self.engine.jobs and is_open(self.engine.jobs[other])
        ]

    def pair(self, one: int, other: int) -> Pair:
        key = (min(one, other), max(one, other))
        return self.pairs.setdefault(key, Pair(key))

    # --- looking --------------------------------------------------------------------------------------------

    def look_soon(self, pair: Pair) -> None:
        if pair.is_looked_at:
            pair.is_stale = True
        elif pair.timer is None:
            pair.timer = self.engine.loop.call_later(LATER_S, self.begin_look, pair)

    def begin_look(self, pair: Pair) -> None:
        pair.timer = None
        if not self.engine.is_closing:
            pair.is_looked_at, pair.is_stale = True, False
            self.engine.spawn(self.look(pair))

    async def look(self, pair: Pair) -> None:
        try:
            if pair.found is None:
                pair.found = await self.told_before(pair)
            async with self.one_look:
                found = await self.compared(pair)
        finally:
            pair.is_looked_at = False
        if found is None:
            self.pairs.pop(pair.jobs, None)
            return
        if any(is_being_settled(self.engine.jobs[id]) for id in pair.jobs) or pair.is_stale:
            self.look_soon(pair)
        if found != pair.found:
            pair.found = found
            await self.report(pair, found)

    async def told_before(self, pair: Pair) -> Found:
        """By this daemon or the last one."""
        query = "SELECT data FROM events WHERE type = 'overlap' AND job IN (?, ?) ORDER BY seq DESC LIMIT 100"
        rows = await asyncio.wrap_future(self.engine.store.ask(lambda db: db.execute(query, pair.jobs).fetchall()))
        told: Iterable[Found] = (decode(row[0]) for row in rows)
        return next((one for one in told if one["jobs"] == list(pair.jobs)), NOTHING)

    async def compared(self, pair: Pair) -> Found | None:
        """None: one of them has nothing that could be merged, or not any more."""
        works = []
        try:
            for id in pair.jobs:
                async with self.turns.of(id):
                    job = self.engine.jobs[id]
                    if not is_open(job):
                        return None
                    if is_being_settled(job):
                        return pair.found
                    works.append(await self.work_of(job))
            one, other = works
            conflicts = await self.performer.in_thread(overlap.conflicts, one, other)
        except (AgentdError, GitFailed, OSError) as error:
            self.works.clear()  # somebody may have taken away objects that nothing held
            return self.found(pair, "unknown", [], []) | {"error": sentence_of(error)}
        paths = sorted(one.changed & other.changed)
        return (
            self.found(pair, "conflicting" if conflicts else "clean", paths, conflicts)
            if paths or conflicts
            else NOTHING
        )

    def found(self, pair: Pair, verdict: str, paths: list[str], conflicts: list[str]) -> Found:
        return {
            "jobs": list(pair.jobs),
            "names": [self.engine.jobs[id].name for id in pair.jobs],
            "paths": paths[:PATHS_TOLD],
            "count": len(paths),
            "verdict": verdict,
            "conflicts": conflicts[:PATHS_TOLD],
        }

    async def work_of(self, job: Job) -> overlap.Work:
        mark = (self.writes.get(job.id, 0), f"{job.attempt} {type(job.state).__name__}")
        known = self.works.get(job.id)
        if known is not None and known[:2] == mark:
            return known[2]
        work = await self.performer.in_thread(look_at, self.locking.state_dir, job)
        self.works[job.id] = (*mark, work)
        return work

    async def let_go(self, job: Job) -> None:
        """Nothing of ours is in its worktree when this returns, and nothing comes before it is settled."""
        async with self.turns.of(job.id):
            pass

    def forget(self, id: int) -> None:
        """Its work is merged, or gone."""
        self.works.pop(id, None)
        self.writes.pop(id, None)
        for key in [key for key in self.pairs if id in key]:
            pair = self.pairs.pop(key)
            if pair.timer is not None:
                pair.timer.cancel()

    def close(self) -> None:
        for pair in self.pairs.values():
            if pair.timer is not None:
                pair.timer.cancel()

    # --- telling --------------------------------------------------------------------------------------------

    async def report(self, pair: Pair, found: Found) -> None:
        if not found or (found["verdict"] == "clean" and all(map(self.is_shared, found["paths"]))):
            return
        jobs = [self.engine.jobs[id] for id in pair.jobs]
        about = {job.owner: (job.id, job.attempt, job.owner) for job in jobs}
        await self.locking.tell(*(Notice("overlap", found, who) for who in about.values()))
        for job, other in zip(jobs, reversed(jobs), strict=True):
            if job.progress is not None and not job.is_done:
                holder, verdict = self.locking.holder_of(other), found["verdict"]
                await self.tell(job, texts.overlap(holder, found["paths"], verdict, found["conflicts"]))

    def is_shared(self, path: str) -> bool:
        return self.locking.policy_of(Name("path", "", path)) == "share"

    def view(self, job: Job) -> list[dict[str, object]]:
        """With whom a job overlaps, as it was seen last."""
        return [
            {"job": sum(pair.jobs) - job.id, **{name: pair.found[name] for name in ("verdict", "paths", "conflicts")}}
            for pair in self.pairs.values()
            if job.id in pair.jobs and pair.found
        ]


def names_of(paths: Iterable[str], common: str, folds: bool) -> Iterable[Name]:
    for path in paths:
        try:
            yield locknames.path_name(path, common, "", folds)
        except Usage:
            continue  # a path of more characters than anybody can claim


def is_open(job: Job) -> bool:
    """There may be something of it that is not merged."""
    has_tree = isinstance(job.place, Worktree) and job.place.admin is not None
    return (
        has_tree
        and has_work(job)
        and not (job.is_done and job.merged is not None and job.merged.attempt == job.attempt)
    )


def is_being_settled(job: Job) -> bool:
    return isinstance(job.state, Done) and not job.state.is_settled


def look_at(state_dir: str, job: Job) -> overlap.Work:
    """In a worker thread."""
    assert isinstance(job.place, Worktree) and job.place.admin is not None
    plan = plan_of(job)
    refuse_changed_commands(job_dir(state_dir, job), plan, job.place.admin)
    return overlap.work(plan, job.place.admin, words_of(job))
