"""The daemon's side of locks: the table in memory, each change of it saved before anybody is told, waiters woken, and
claims let go when the kernel says that their holder is gone.

A job's claims end with its process tree, a command's with everything it started, a person's with the session of their
terminal. None of it depends on a daemon: the next one looks at what lives, and comes to the same table.
"""

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple

from agentd import config, jobdir, paths, process
from agentd.core import events as on
from agentd.core import lock_texts as texts
from agentd.core import patterns
from agentd.core.claims import (
    APPEND,
    EXCLUSIVE,
    Answer,
    Busy,
    Claim,
    Deadlock,
    Granted,
    Holder,
    LockFact,
    Mode,
    Name,
    Queued,
    Want,
    Withdrawn,
    changes,
)
from agentd.core.errors import EXIT_DEADLOCK, AgentdError, NotNow, Refused
from agentd.core.job import Job, Kept
from agentd.core.job import Queued as Queued_
from agentd.core.lock_policy import ONE_WRITER, Policy, policy_of
from agentd.core.lockbook import clash
from agentd.core.lockflow import Facts
from agentd.core.locks import Table
from agentd.core.machine import Notice
from agentd.daemon.engine import Engine
from agentd.daemon.holders import Holders
from agentd.daemon.lock_views import asked_view, day_time, has_work, is_barrier, is_blocking, is_person, notices
from agentd.store import Change, Locks

STARVED_S = 1800.0
MOST_SEEN = 1000
"""Claims of one job by writes that were seen. What it writes beyond is claimed only where it meets somebody else's."""
SERVED_KEPT = 1000


class Turn(NamedTuple):
    granted: Granted | None
    """None: the request is gone."""
    is_for_one: bool
    """Nobody else waited with the same ticket."""


Waiter = asyncio.Future[Turn]


class Locking:
    def __init__(self, state_dir: str, settings: config.Config, engine: Engine) -> None:
        self.state_dir = state_dir
        self.engine = engine
        saved = engine.store.load_locks()
        self.table = Table.load(
            (claim for claim in saved.claims.values() if claim is not None),
            (request for request in saved.requests.values() if request is not None),
            saved.tokens,
            saved.tickets,
            settings.locks.pools,
        )
        self.policy_of_path = functools.lru_cache(1 << 16)(
            functools.partial(policy_of, configured=settings.locks.policy)
        )
        self.claimed = {claim.key for claim in self.table.claims() if is_barrier(claim)}
        """Paths and files that somebody keeps others from."""
        self.is_marked = False
        self.mark()
        self.pools = settings.locks.pools
        self.is_rebuilt = not saved.is_of_this_epoch
        self.is_ready = asyncio.Event()
        """The table is what lives: nobody is answered before."""
        self.waiters: dict[int, list[Waiter]] = {}
        """Who is connected and waits, by ticket: a holder may ask for the same twice."""
        self.served: dict[int, tuple[Want, ...]] = {}
        """The last tickets that came to their turn."""
        self.holders = Holders(state_dir, engine.loop, lambda holder: engine.spawn(self.let_go(holder)))
        self.helpers: dict[int, set[int]] = {}
        """Of jobs that ended: pidfds of what was left on purpose, which keeps their claims."""
        self.started = time.time(), process.boottime()
        self.expiry: asyncio.TimerHandle | None = None
        engine.on_change.append(self.on_change)

    def now(self) -> float:
        """As the wall clock was at our start, and no jump of it since."""
        wall, boot = self.started
        return wall + process.boottime() - boot

    # --- asking ---------------------------------------------------------------------------------------------

    async def acquire(
        self,
        holder: Holder,
        wants: Sequence[Want],
        wait: float | None,
        reason: str,
        ticket: int | None = None,
        is_broad: bool = False,
    ) -> Granted:
        """Hold all of it when this returns; NotNow if it could not be had in ``wait`` seconds (None: no limit), with
        the ticket that keeps the place; exit 76 if it never could. ``is_broad``: said by the asker, who is told so."""
        if ticket is not None and not wants:
            wants = self.asked_with(ticket)
        had = {claim.name for claim in self.table.claims(holder)}
        answer, facts = self.table.ask(holder, wants, self.now(), reason, ticket, wait is None or wait > 0)
        waiter = self.expect(answer.request.ticket) if isinstance(answer, Queued) else None
        try:
            await asyncio.shield(self.save(facts, must=False))
            if isinstance(answer, Queued) and waiter is not None:
                answer = await self.wait_for(answer, waiter, wait)
        except BaseException:  # it could not be saved, or who asked has gone
            self.take_back(answer, waiter, holder, had)
            raise
        match answer:
            case Granted():
                return answer
            case Deadlock():
                raise AgentdError(texts.deadlock(answer), "deadlock", EXIT_DEADLOCK)
            case Busy() | Queued():
                said = texts.locked(answer, self.now(), day_time, is_person(holder), is_broad)
                if isinstance(answer, Busy):
                    raise NotNow(said, "busy")
                raise NotNow(said, "timeout")

    def asked_with(self, ticket: int) -> Sequence[Want]:
        """What a ticket is for, also when its turn has come meanwhile."""
        waiting = next((one.wants for one in self.table.waiting() if one.ticket == ticket), None)
        known = self.served.get(ticket) if waiting is None else waiting
        if known is None:
            raise Refused(f"there is no ticket {ticket}, or no longer; ask again by name", "bad_ticket")
        return known

    def take_back(self, answer: Answer, waiter: Waiter | None, holder: Holder, had: set[Name]) -> None:
        """As if it had not been asked; what it ``had`` before, it has. Others may wait with the same ticket."""
        if isinstance(answer, Granted) and answer.is_new:
            self.engine.spawn(self.release_new(answer, holder, had))
        elif isinstance(answer, Queued) and waiter is not None:
            ticket = answer.request.ticket
            is_granted = all(request.ticket != ticket for request in self.table.waiting())
            if is_granted and not waiter.done():  # it is being saved
                waiter.add_done_callback(lambda _: self.take_back(answer, waiter, holder, had))
                return
            is_last = self.stop_waiting(ticket, waiter)
            turn = waiter.result() if is_granted and waiter.exception() is None else None
            if turn is not None and turn.granted is not None and turn.is_for_one:
                self.engine.spawn(self.release_new(turn.granted, holder, had))
            elif is_last and not is_granted:
                self.engine.spawn(self.save(self.table.give_up(ticket, self.now())))

    def expect(self, ticket: int) -> Waiter:
        """Somebody will wait for it in a moment: what is answered until then is kept."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self.waiters.setdefault(ticket, []).append(waiter)
        return waiter

    async def release_new(self, granted: Granted, holder: Holder, had: set[Name]) -> None:
        names = [claim.name for claim in granted.claims if claim.name not in had]
        await self.save(self.table.release(holder, names, self.now()))

    def stop_waiting(self, ticket: int, waiter: Waiter) -> bool:
        """Has nobody else who is connected that ticket?"""
        waiters = self.waiters.get(ticket, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self.waiters.pop(ticket, None)
        return not waiters

    async def wait_for(self, queued: Queued, waiter: Waiter, wait: float | None) -> Answer:
        ticket = queued.request.ticket
        starving = asyncio.get_running_loop().call_later(STARVED_S, self.on_starved, ticket)
        try:
            await asyncio.wait([waiter], timeout=wait)
            late = self.table.queued(ticket, self.now())
            if late is None:  # it has just come to its turn, which is being saved
                await asyncio.wait([waiter])
        finally:
            starving.cancel()
        self.stop_waiting(ticket, waiter)
        if late is not None and not waiter.done():
            await self.save(self.table.touch([ticket], self.now()))
            return late
        granted = waiter.result().granted
        if granted is None:
            raise Refused("what you asked for was withdrawn; ask again", "withdrawn")
        return granted

    def on_starved(self, ticket: int) -> None:
        request = next((one for one in self.table.waiting() if one.ticket == ticket), None)
        if request is not None:
            data: dict[str, object] = {"ticket": ticket, **asked_view(request.wants)}
            notice = Notice("lock.starved", data, self.about(request.holder))
            self.engine.spawn(self.tell(notice))

    async def tell(self, *notices: Notice) -> None:
        await self.engine.commit(Change(time.time(), notices=notices, must=True))

    # --- what a writer meets --------------------------------------------------------------------------------

    def stands_before(self, writer: Holder, names: Iterable[Name]) -> Claim | None:
        """The first claim of somebody else that a write there goes against."""
        for name in names:
            mode = self.mode_of_write(name)
            for claim in self.table.who(name):
                if is_blocking(claim) and claim.holder.id != writer.id and clash(claim.mode, mode):
                    return claim
        return None

    def policy_of(self, name: Name) -> Policy:
        return self.policy_of_path(name.text) if name.kind == "path" else "warn"

    def mode_of_write(self, name: Name) -> Mode:
        return APPEND if self.policy_of(name) == "share" else EXCLUSIVE

    def wrote(self, writer: Holder, names: Iterable[Name]) -> Facts:
        """It was seen to write there. What nobody else has is claimed for it, where there is to be one writer against
        all others; what somebody has is contested."""
        facts: list[LockFact] = []
        room = MOST_SEEN - len(self.table.claims(writer))
        for name in names:
            if self.policy_of(name) in ONE_WRITER:
                answer, told = self.table.ask(writer, [Want(name)], self.now(), "it wrote there", wait=False)
                facts += told
                if isinstance(answer, Granted):
                    continue
            if room > 0 or any(claim.holder.id != writer.id for claim in self.table.who(name)):
                told = self.table.note(writer, [name], self.now(), self.mode_of_write(name))
                facts += told
                room -= len(told)
        return tuple(facts)

    async def after_its_end(self, id: int) -> None:
        """What was told of a job late, when it had ended: its claims are as if it had been told before."""
        job = self.engine.jobs[id]
        if job.is_done and id not in self.helpers:
            await self.drop_job(job)

    def mark(self) -> None:
        """While nobody claims a path or a file, writers and commits need not ask: they see it by this mark."""
        path, is_marked = paths.claimed_mark(self.state_dir), bool(self.claimed)
        try:
            if is_marked:
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif os.path.exists(path):
                os.unlink(path)
        except OSError as error:  # then they ask too often, or are sent back by the merge only
            with contextlib.suppress(OSError):  # nor the log
                print(f"agentd: cannot write {path}: {error.strerror}", file=sys.stderr, flush=True)
            return
        self.is_marked = is_marked

    # --- saving and telling ---------------------------------------------------------------------------------

    async def save(self, facts: Facts, must: bool = True) -> None:
        """Store what has changed with what is told of it; then wake those it concerns."""
        if not facts:
            return
        found = changes(facts)
        told = tuple(notice for fact in facts for notice in notices(fact, self.about))
        locks = Locks(found.claims, found.requests, self.table.last_token, self.table.last_ticket)
        await self.engine.commit(Change(time.time(), notices=told, locks=locks, must=must))
        for key, claim in found.claims.items():
            if claim is not None and is_barrier(claim):
                self.claimed.add(key)
            else:
                self.claimed.discard(key)
        if self.is_marked != bool(self.claimed):
            self.mark()
        for fact in facts:
            self.wake(fact)
        self.set_expiry()

    def wake(self, fact: LockFact) -> None:
        match fact:
            case Granted(holder=holder, claims=claims, ticket=ticket) if ticket:
                self.served[ticket] = tuple(Want(claim.name, claim.mode) for claim in claims)
                if len(self.served) > SERVED_KEPT:
                    del self.served[next(iter(self.served))]
                self.answer(ticket, fact)
                self.admit(holder)
            case Withdrawn(request=request):
                self.answer(request.ticket, None)
            case Deadlock(ticket=ticket, holder=holder) if ticket:
                for waiter in self.waiters.get(ticket, ()):
                    if not waiter.done():
                        waiter.set_exception(AgentdError(texts.deadlock(fact), "deadlock", EXIT_DEADLOCK))
            case _:
                pass

    def answer(self, ticket: int, granted: Granted | None) -> None:
        waiters = self.waiters.get(ticket, [])
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(Turn(granted, len(waiters) == 1))

    def about(self, holder: Holder) -> tuple[int, int, str]:
        """Job, attempt and owner, as an event has them."""
        if holder.kind != "job":
            return 0, 0, self.holders.owners.get(holder.id, holder.key if holder.kind == "session" else "")
        job = self.engine.jobs.get(int(holder.key))
        return (job.id, job.attempt, job.owner) if job is not None else (int(holder.key), 0, "")

    def set_expiry(self) -> None:
        """Tickets that nobody asks for any more."""
        at = self.table.next_expiry(self.waiters.keys() | self.inner_tickets())
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        if at is not None:
            self.expiry = self.engine.loop.call_later(max(0.0, at - self.now()) + 0.01, self.on_expiry)

    def on_expiry(self) -> None:
        in_use = self.waiters.keys() | self.inner_tickets()
        self.engine.spawn(self.save(self.table.expire(self.now(), in_use)))
        self.set_expiry()

    def inner_tickets(self) -> set[int]:
        """Of jobs that have not started: they wait here, and nobody is connected for them."""
        held_back = {f"job:{id}" for id in self.engine.held_back}
        return {request.ticket for request in self.table.waiting() if request.holder.id in held_back}

    # --- jobs -----------------------------------------------------------------------------------------------

    def holder_of(self, job: Job) -> Holder:
        return Holder("job", str(job.id), job.name, job.attempt, job.pid)

    def hold_back(self, job: Job) -> None:
        """It does not start before it has what it claims. Said before it can be admitted."""
        if job.claims:
            self.engine.held_back.add(job.id)

    async def claim_for(self, job: Job) -> None:
        """Ask for what a job claims from its start; it is admitted when it has it."""
        if not job.claims or job.is_done:
            self.admit_id(job.id)
            return
        try:
            answer, facts = self.table.ask(self.holder_of(job), job.claims, self.now(), "claimed at its start")
        except AgentdError as error:  # a pool that has become too small, say
            return await self.refuse(job, error.message)
        await self.save(facts)
        if isinstance(answer, Deadlock):
            await self.refuse(job, texts.deadlock(answer))
        elif isinstance(answer, Granted):
            self.admit_id(job.id)

    async def refuse(self, job: Job, why: str) -> None:
        """It can never have what it claims, so it is not started."""
        await self.engine.note(job.id, "lock.refused", {"error": why})
        await self.engine.apply(job.id, on.KillAsked(time.time(), "lock", ()))

    def admit(self, holder: Holder) -> None:
        if holder.kind == "job":
            self.admit_id(int(holder.key))

    def admit_id(self, id: int) -> None:
        if id in self.engine.held_back:
            self.engine.held_back.discard(id)
            self.engine.reschedule()

    def waits_for(self, job: Job) -> str | None:
        """What a job that has not started waits for, in words."""
        if job.id not in self.engine.held_back:
            return None
        for request in self.table.waiting():
            if request.holder.id == f"job:{job.id}":
                first = next(iter(self.table.blockers(request)), None)
                return "lock" if first is None else f"lock {texts.held_back(first)}"
        return "lock"

    def on_change(self, was: Job | None, job: Job) -> None:
        """A job has changed. Called in commit order."""
        if job.is_done and not (was is not None and was.is_done):
            self.engine.held_back.discard(job.id)
            if self.has_any(job):
                self.engine.spawn(self.end_job(job))
        elif was is not None and was.is_done and not job.is_done:
            if job.claims:
                self.engine.held_back.add(job.id)
            self.engine.spawn(self.resume(job))
        elif job.is_done and self.has_any(job):
            if was is not None and was.merged != job.merged:
                self.engine.spawn(self.save(self.table.land(self.holder_of(job), self.now())))
            elif not has_work(job):
                self.engine.spawn(self.save(self.table.drop(self.holder_of(job), self.now())))

    def has_any(self, job: Job) -> bool:
        holder = self.holder_of(job)
        return bool(self.table.claims(holder)) or any(one.holder.id == holder.id for one in self.table.waiting())

    async def resume(self, job: Job) -> None:
        await self.save(self.table.resume(self.holder_of(job), self.now()))
        if job.id in self.engine.held_back:
            await self.claim_for(job)

    async def end_job(self, job: Job) -> None:
        """Its tree is gone, but for what was left on purpose: that keeps its claims."""
        path = f"{self.state_dir}/jobs/{job.id}/{job.attempt}"
        end = jobdir.read(path, "end.json") or {}
        left = {fd for item in end.get("left") or () if (fd := process.open_verified(item["who"])) is not None}
        if not left and not self.helpers.get(job.id):
            return await self.drop_job(job)
        self.helpers.setdefault(job.id, set()).update(left)  # those of an earlier attempt may be there still
        for fd in left:
            self.engine.loop.add_reader(fd, self.on_helper_gone, job.id, fd)

    def on_helper_gone(self, id: int, fd: int) -> None:
        self.engine.loop.remove_reader(fd)
        os.close(fd)
        left = self.helpers[id]
        left.discard(fd)
        if not left:
            del self.helpers[id]
            if self.engine.jobs[id].is_done:
                self.engine.spawn(self.drop_job(self.engine.jobs[id]))

    async def drop_job(self, job: Job) -> None:
        await self.save(self.table.end(self.holder_of(job), self.now()))
        if not has_work(self.engine.jobs[job.id]):
            await self.save(self.table.drop(self.holder_of(job), self.now()))

    # --- merges ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def integrating(self, job: Job, common: str, ref: str) -> AsyncIterator[None]:
        """One merge into a branch at a time, first come, first served."""
        holder, name = self.holder_of(job), Name("integrate", common, ref.removeprefix("refs/heads/"))
        await self.acquire(holder, [Want(name)], None, "merge")
        try:
            yield
        finally:
            await self.save(self.table.release(holder, [name], self.now()))

    def refuse_contested(self, job: Job, common: str, changed: Iterable[str], folds_case: bool) -> None:
        """The final word: what another job, or somebody, has claimed for themselves since."""
        paths = [patterns.key(path, folds_case) for path in changed]
        found = self.table.blocking(self.holder_of(job), paths, common)
        if found:
            raise Refused(texts.refused_merge(str(job.id), found), "contested")

    # --- after a restart ------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Come to the table that is true, by looking at what lives."""
        await self.save(self.table.set_pools(self.pools, self.now()))
        await self.recover_others()
        known = {one.holder.id: one.holder for one in self.table.claims()}
        known |= {one.holder.id: one.holder for one in self.table.waiting()}
        for holder in known.values():
            if holder.kind == "job":
                await self.recover_job(holder)
            elif holder.id not in self.holders.keys:
                await self.save(self.table.end(holder, self.now()))
        # Nobody could ask again while no daemon was there.
        await self.save(self.table.touch([request.ticket for request in self.table.waiting()], self.now()))
        if self.is_rebuilt:
            await self.claim_again()
        for job in list(self.engine.jobs.live.values()):
            if job.id in self.engine.held_back:
                await self.claim_for(job)
        self.set_expiry()
        self.is_ready.set()

    async def recover_job(self, holder: Holder) -> None:
        job = self.engine.jobs.get(int(holder.key))
        if job is None or not isinstance(job.shelf, Kept):
            await self.save(self.table.end(holder, self.now()))
            await self.save(self.table.drop(holder, self.now()))
            return
        # Merges end with their daemon.
        merges = [claim.name for claim in self.table.claims(holder) if claim.name.kind == "integrate"]
        await self.save(self.table.release(holder, merges, self.now()))
        for request in self.table.waiting():
            if request.holder.id == holder.id and any(want.name.kind == "integrate" for want in request.wants):
                await self.save(self.table.give_up(request.ticket, self.now()))
        if job.is_done:
            await self.end_job(job)

    async def claim_again(self) -> None:
        """The store was lost, or is older than what lives: jobs claim what they did at their start."""
        for job in sorted(self.engine.jobs.values(), key=lambda job: job.id):
            if job.claims and job.id not in self.engine.held_back and (not job.is_done or has_work(job)):
                with contextlib.suppress(AgentdError):  # a pool that has become too small
                    _, facts = self.table.ask(self.holder_of(job), job.claims, self.now(), "claimed at its start")
                    await self.save(facts)
                if job.is_done:
                    await self.end_job(job)
        await self.save_numbers()

    async def save_numbers(self) -> None:
        locks = Locks({}, {}, self.table.last_token, self.table.last_ticket)
        await self.engine.commit(Change(time.time(), locks=locks, must=True))

    async def recover_others(self) -> None:
        """Commands and people that live. What a store that was lost, or is behind, does not know they have again."""
        self.table.last_token = max([self.table.last_token, *(one.token for one in self.holders.files().values())])
        for holder, claim in self.holders.take_up():
            if claim.granted and not self.table.claims(holder):
                wants = [Want(Name(*name), mode) for name, mode in claim.granted]
                _, facts = self.table.ask(holder, wants, self.now(), claim.reason)
                await self.save(facts)

    async def let_go(self, holder: Holder) -> None:
        """It is gone."""
        await self.save(self.table.end(holder, self.now()))
        self.holders.forget(holder)

    def hold_back_queued(self) -> None:
        """Before anything is admitted: jobs whose claims are not all granted."""
        for job in self.engine.jobs.live.values():
            if job.claims and isinstance(job.state, Queued_):
                self.engine.held_back.add(job.id)
