"""Policy ``pause``: who wrote what somebody else claims, and could not be asked before, is stopped until it is free.

It waits in the lock table like anybody, so a circle is found: then it is not stopped. It is stopped for ten minutes at
most, since it may be waited for in a way that the table does not know. ``paused.json`` in the attempt's folder says
that it was us who stopped it, so the next daemon goes on where this one died. A person who stops or continues the job
has it from then on.
"""

import asyncio
import os
from collections.abc import Callable

from agentd import jobdir
from agentd.core import lock_texts as texts
from agentd.core.claims import Claim, Granted, Name, Queued, Want
from agentd.core.errors import AgentdError
from agentd.core.job import Job, Running
from agentd.core.machine import Notice
from agentd.daemon.engine import Engine
from agentd.daemon.locking import Locking, Waiter

MOST_S = 600.0
KEEPER_PATIENCE_S = 10.0
RECORD = "paused.json"
REASON = "it wrote there"


class Pausing:
    """``attempt_dir(job)``: where the files of its attempt are."""

    def __init__(self, engine: Engine, locking: Locking, attempt_dir: Callable[[Job], str]) -> None:
        self.engine = engine
        self.locking = locking
        self.attempt_dir = attempt_dir
        self.paused: dict[int, asyncio.Task[None]] = {}
        self.let_be: set[tuple[int, Name]] = set()
        """It was stopped for this once, and went on: not again."""

    def pause(self, job: Job, name: Name) -> None:
        is_running = isinstance(self.engine.jobs[job.id].state, Running)
        if is_running and job.id not in self.paused and (job.id, name) not in self.let_be:
            self.begin(job, name, is_stopped=False)

    def begin(self, job: Job, name: Name, is_stopped: bool) -> None:
        task = asyncio.ensure_future(self.hold(job, name, is_stopped))
        self.paused[job.id] = task
        task.add_done_callback(lambda task: self.on_over(job.id, task))

    def on_over(self, id: int, task: asyncio.Task[None]) -> None:
        if self.paused.get(id) is task:
            del self.paused[id]
        if not task.cancelled() and task.exception() is not None:
            self.engine.loop.call_exception_handler({"message": f"pausing job {id}", "exception": task.exception()})

    async def hold(self, job: Job, name: Name, is_stopped: bool) -> None:
        """From its stop to its going on."""
        holder, locking = self.locking.holder_of(job), self.locking
        claim = locking.stands_before(holder, [name])
        answer, facts = locking.table.ask(holder, [Want(name)], locking.now(), REASON)
        waiter = locking.expect(answer.request.ticket) if isinstance(answer, Queued) else None
        await locking.save(facts)
        if isinstance(answer, Queued) and waiter is not None:
            try:
                is_stopped = is_stopped or await self.stop(job, name, claim)
                why = await self.end_of(answer, waiter) if is_stopped else "it has ended"
            finally:
                locking.stop_waiting(answer.request.ticket, waiter)
                waiter.cancel()
                self.engine.spawn(locking.save(locking.table.give_up(answer.request.ticket, locking.now())))
        else:
            why = "granted" if isinstance(answer, Granted) else "it would wait for ever"
        if why != "granted":
            self.let_be.add((job.id, name))
        if is_stopped:
            await self.go_on(job, name, why)

    async def stop(self, job: Job, name: Name, claim: Claim | None) -> bool:
        path = self.attempt_dir(job)
        await asyncio.to_thread(jobdir.write, path, RECORD, {"name": [name.kind, name.scope, name.text]})
        if not await self.order(path, "stop"):
            jobdir.remove_quietly(f"{path}/{RECORD}")
            return False
        held = {} if claim is None else {"holder": texts.holder_text(claim.holder), "held": str(claim.name)}
        await self.tell(job, "lock.paused", {"name": str(name), "repo": name.scope, **held})
        return True

    async def end_of(self, queued: Queued, waiter: Waiter) -> str:
        try:
            answer = await self.locking.wait_for(queued, waiter, MOST_S)
        except AgentdError as error:
            return error.message
        if isinstance(answer, Granted):
            return "granted"
        await self.locking.save(self.locking.table.give_up(queued.request.ticket, self.locking.now()))
        return f"it was stopped for {MOST_S / 60:.0f} minutes"

    async def go_on(self, job: Job, name: Name, why: str) -> None:
        if self.is_there(job):
            await self.order(self.attempt_dir(job), "cont")
        await self.note_end(job, name, why)

    async def note_end(self, job: Job, name: Name, why: str) -> None:
        if self.is_there(job):
            await self.tell(job, "lock.continued", {"name": str(name), "repo": name.scope, "why": why})
        jobdir.remove_quietly(f"{self.attempt_dir(job)}/{RECORD}")

    def is_there(self, job: Job) -> bool:
        return os.path.isdir(self.attempt_dir(job)) and not self.engine.jobs[job.id].is_done

    async def order(self, path: str, what: str) -> bool:
        """``stop`` or ``cont``: the whole tree."""
        answer = await asyncio.to_thread(jobdir.ask_keeper, path, {what: True}, KEEPER_PATIENCE_S)
        return answer is not None and bool(answer.get("ok"))

    async def tell(self, job: Job, type: str, data: dict[str, object]) -> None:
        await self.locking.tell(Notice(type, data, (job.id, job.attempt, job.owner)))

    async def by_person(self, job: Job, signal: str) -> None:
        """Somebody stops or continues it: it is theirs from now on, and will not be stopped for this again."""
        record = jobdir.read(self.attempt_dir(job), RECORD)
        if signal not in ("STOP", "CONT") or job.id not in self.paused or record is None:
            return
        name = Name(*record["name"])
        self.let_be.add((job.id, name))
        self.paused.pop(job.id).cancel()
        await (self.go_on if signal == "CONT" else self.note_end)(job, name, f"a person sent {signal}")

    def recover(self) -> None:
        """What the last daemon had stopped."""
        for job in list(self.engine.jobs.live.values()):
            record = jobdir.read(self.attempt_dir(job), RECORD)
            if record is not None:
                self.begin(job, Name(*record["name"]), is_stopped=True)

    def close(self) -> None:
        for task in self.paused.values():
            task.cancel()
