"""The one loop: event -> store -> step -> effects -> event.

Jobs in memory are what is committed, never ahead of it: a change is stepped, written with its notices in one
transaction, and only then becomes visible, is told, and has its effects carried out. Events of one job go one after
another; those of different jobs share commits.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable

from agentd.core import events as on
from agentd.core import machine, schedule
from agentd.core.effects import Effect, Reschedule
from agentd.core.job import Job
from agentd.core.jobs import Jobs
from agentd.core.machine import Notice
from agentd.store import Change, Entry, Store, Subscriber, Work, not_saved

Beforehand = Callable[[Job], Awaitable[None]]
Perform = Callable[[Job, Effect], Awaitable[None]]


class Locks:
    """A lock for each job that somebody does something to just now."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[asyncio.Lock, int]] = {}
        """And how many hold or want it."""

    @contextlib.asynccontextmanager
    async def of(self, id: int) -> AsyncIterator[None]:
        lock, users = self.held.get(id) or (asyncio.Lock(), 0)
        self.held[id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self.held[id]
            if users > 1:
                self.held[id] = (lock, users - 1)
            else:
                del self.held[id]


class Engine:
    """``publish(entries)`` is called in commit order; ``perform(job, effect)`` carries out one order."""

    def __init__(
        self,
        path: str,
        running_limit: int,
        publish: Callable[[list[Entry]], None],
        perform: Perform,
        on_trouble: Callable[[Job, Effect, BaseException], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.running_limit = running_limit
        self.publish = publish
        self.perform = perform
        self.on_trouble = on_trouble
        self.jobs = Jobs()
        self.locks = Locks()
        self.verbs = Locks()
        """What takes more than one change, and must not meet its like half-way: restart, rm, undo, emptying the trash.
        Taken before the job's own lock."""
        self.effect_tails: dict[int, asyncio.Task[None]] = {}
        self.last_waiting: dict[int, Effect] = {}
        self.admitting: set[int] = set()
        self.held_back: set[int] = set()
        """Queued jobs that wait for a lock."""
        self.on_change: list[Callable[[Job | None, Job], None]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_closing = False
        self.store = Store(path, self._deliver)

    def load(self) -> list[Subscriber]:
        jobs, subscribers, _ = self.store.load()
        for job in jobs:
            self.jobs.remember(job)
        return subscribers

    # --- changes --------------------------------------------------------------------------------------------

    async def apply(self, id: int, event: on.Event, must: bool = True, beforehand: Beforehand | None = None) -> Job:
        """Let ``event`` happen to a job. Refused if it cannot; NotNow if it cannot be saved (unless ``must``).
        ``beforehand`` is told the job as it will be, when nothing speaks against it any more: it writes what must be
        durable before that is true."""
        if not must and self.store.trouble is not None:
            raise not_saved(self.store.trouble)  # a fact about this very job may wait, and hold the lock
        async with self.locks.of(id):
            step = machine.step(self.jobs[id], event)
            if beforehand is not None:
                await beforehand(step.job)
            if step.job != self.jobs[id] or step.notices:
                await self.commit(Change(event.at, step.job, step.notices, must=must))
        self.carry_out(step.job, step.effects)
        return step.job

    async def add(self, job: Job, notices: Iterable[Notice]) -> None:
        """A new job, durable when this returns."""
        await self.commit(Change(job.created, job, tuple(notices)))
        self.reschedule()

    async def note(self, id: int, type: str, data: dict[str, object]) -> None:
        """Tell something about a job that is not a change of it."""
        async with self.locks.of(id):
            await self.commit(Change(time.time(), self.jobs[id], (Notice(type, data),), must=True))

    async def commit(self, change: Change) -> list[Entry]:
        return await asyncio.wrap_future(self.store.append(change))

    def _deliver(self, work: Work, entries: list[Entry]) -> None:
        # On the store's thread. The calls arrive in the loop in commit order.
        self.loop.call_soon_threadsafe(self._committed, work, entries)

    def _committed(self, work: Work, entries: list[Entry]) -> None:
        job = work.change.job
        if job is not None:
            was = self.jobs.get(job.id)
            self.jobs.remember(job)
            for heard in self.on_change:
                heard(was, job)
        if entries:
            self.publish(entries)
        if not work.done.cancelled():
            work.done.set_result(entries)

    # --- effects --------------------------------------------------------------------------------------------

    def carry_out(self, job: Job, effects: Iterable[Effect]) -> None:
        """Start the effects of a job. Those of one job follow each other; a Reschedule waits for nobody."""
        for effect in effects:
            if isinstance(effect, Reschedule):
                self.reschedule()
                continue
            before = self.effect_tails.get(job.id)
            if self.last_waiting.get(job.id) == effect:
                continue  # the same order is waiting already
            self.last_waiting[job.id] = effect
            task = asyncio.ensure_future(self._perform_after(before, job.id, effect))
            self.effect_tails[job.id] = task
            task.add_done_callback(functools.partial(self._forget, job.id))

    def _forget(self, id: int, task: asyncio.Task[None]) -> None:
        if self.effect_tails.get(id) is task:
            del self.effect_tails[id]

    async def _perform_after(self, before: asyncio.Task[None] | None, id: int, effect: Effect) -> None:
        if before is not None:
            await asyncio.wait([before])
        if self.last_waiting.get(id) == effect:
            del self.last_waiting[id]
        if self.is_closing:
            return
        try:
            await self.perform(self.jobs[id], effect)
        except Exception as error:
            self.on_trouble(self.jobs[id], effect, error)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside; its exception is told to whoever runs the loop."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- admission ------------------------------------------------------------------------------------------

    def reschedule(self) -> None:
        free = self.running_limit - self.jobs.active - len(self.admitting)
        for id in schedule.admissible(self.jobs.queued - self.admitting - self.held_back, free):
            self.admitting.add(id)
            self.spawn(self._admit(id))

    async def _admit(self, id: int) -> None:
        try:
            await self.apply(id, on.Admitted(time.time()))
        finally:
            self.admitting.discard(id)

    async def close(self) -> None:
        """No new effects; those begun are waited for a little; what is queued is committed."""
        self.is_closing = True
        if self.effect_tails:
            await asyncio.wait(list(self.effect_tails.values()), timeout=5.0)
        await asyncio.to_thread(self.store.close)
