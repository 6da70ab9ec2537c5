"""The lock table: who holds what, who waits for what, and what follows when that changes.

1. Two holders never have clashing claims that block, active or pending. A holder never clashes with itself.
2. A request is granted whole or not at all.
3. A request waits for clashing claims, and for clashing requests that came before it: nobody overtakes. But it passes a
   request that waits, at the end, for the asker itself.
4. Nobody waits in a circle. The request that would close one is refused, and all else stays as it was.
5. Each grant has a new token, higher than all before. So has a break.
6. A claim made by a write that was seen (:meth:`Table.note`) blocks nobody and takes nothing that is held.

The table has no clock and does no I/O. Each operation tells what happened as facts; :func:`agentd.core.claims.changes`
says what they change in what is stored, and :meth:`Table.load` makes the same table of that again.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from agentd.core import lockwaits
from agentd.core.claims import (
    ACTIVE,
    EXCLUSIVE,
    PENDING,
    Answer,
    Broken,
    Busy,
    Claim,
    ClaimKey,
    Contested,
    Deadlock,
    Edge,
    Granted,
    Holder,
    LockFact,
    Mode,
    Name,
    Noted,
    Pended,
    Queued,
    Released,
    Request,
    Resumed,
    State,
    Touched,
    Want,
    Withdrawn,
)
from agentd.core.errors import Refused
from agentd.core.lockbook import Book, by_token
from agentd.core.lockpools import Pools, both
from agentd.core.lockwaits import Wait

TICKET_S = 600.0
"""A ticket that was not asked for so long is dropped."""

Facts = tuple[LockFact, ...]


class Table(Book):
    """``pools``: how many slots each counted resource has. It may be replaced when the configuration changes."""

    @classmethod
    def load(
        cls,
        claims: Iterable[Claim],
        requests: Iterable[Request],
        last_token: int,
        last_ticket: int,
        pools: Mapping[str, int] | None = None,
    ) -> "Table":
        """The table of which these were stored."""
        table = cls(pools)
        for claim in sorted(claims, key=lambda claim: (claim.token, claim.since, claim.holder.id)):
            table._put(claim)
        for request in sorted(requests, key=lambda request: request.ticket):
            table._enqueue(request)
        for request in table._requests.values():
            table._watch(request)
        table.last_token, table.last_ticket = last_token, last_ticket
        return table

    # --- asking -------------------------------------------------------------------------------------------------

    def ask(
        self,
        holder: Holder,
        wants: Iterable[Want],
        at: float,
        reason: str = "",
        ticket: int | None = None,
        wait: bool = True,
    ) -> tuple[Answer, Facts]:
        """The answer, and all facts that came of it, itself included (a refusal changes nothing).

        What waits already is not asked again: it keeps its place, with or without its ticket."""
        wanted = self.pools.normal(wants)
        if (held := self._held(holder.id, wanted)) is not None:
            return self._hold_on(holder, held, at)
        if (waiting := self._waiting_as(holder, wanted, ticket)) is not None:
            touched = self._replace(waiting, asked=at)
            return (self._queued(touched, at) if wait else self._busy(touched, at)), (Touched(at, touched),)
        return self._ask_anew(Request(self.last_ticket + 1, holder, wanted, at, at, reason), wait, at)

    def peek(self, holder: Holder, wants: Iterable[Want], at: float) -> Queued | Busy | None:
        """What stands before it; None if it could be granted. Nothing changes."""
        wanted = self.pools.normal(wants)
        waiting = self._waiting_as(holder, wanted, None)
        if waiting is not None:
            return self._queued(waiting, at)
        answer = self._busy(Request(self.last_ticket + 1, holder, wanted, at, at), at)
        return answer if answer.blockers else None

    def _ask_anew(self, request: Request, wait: bool, at: float) -> tuple[Answer, Facts]:
        has_clash = bool(self._clashes(request.holder.id, request.wants))
        if not has_clash and self._ticket_before(request) is None:
            return self._granted(request, at, is_queued=False)
        if has_clash and not wait:
            return self._busy(request, at), ()
        self._enqueue(request)
        facts, woken = self._untangle(request.holder.id, at)
        if facts and isinstance(first := facts[0], Deadlock):
            assert first.ticket == request.ticket, "without it nobody was stuck"
            refused = msgspec.structs.replace(first, ticket=0)
            return refused, (refused,)
        request = self._requests[request.ticket]
        is_free = self._thing_before(request) is None
        if is_free or not wait:
            self._dequeue(request)
            return self._granted(request, at, is_queued=False) if is_free else (self._busy(request, at), ())
        self.last_ticket = request.ticket
        self._watch(request)
        queued = self._queued(request, at)
        others = [fact for fact in facts if isinstance(fact, Touched) and fact.request.ticket != request.ticket]
        return queued, (queued, *others, *self._settle(woken, at))

    def note(self, holder: Holder, names: Iterable[Name], at: float, mode: Mode = EXCLUSIVE) -> Facts:
        """``holder`` was seen to write there: an automatic claim where nobody else has one, else it is contested."""
        facts: list[LockFact] = []
        for name in names:
            if any(holder.id in held for _, held in self._all_meeting(name)):
                continue
            others = self._others(holder.id, name, mode)
            if others:
                claim = Claim(name, mode, holder, 0, at, is_automatic=True)
                facts.append(Contested(at, claim, others))
            else:
                claim = Claim(name, mode, holder, self._next_token(), at, is_automatic=True)
                facts.append(Noted(at, claim))
            self._put(claim)
        return tuple(facts)

    # --- letting go ---------------------------------------------------------------------------------------------

    def release(self, holder: Holder, names: Iterable[Name] | None, at: float) -> Facts:
        """Names that it does not hold are passed over; None: all it holds."""
        held = self._claims.get(holder.id, {})
        if names is None:
            claims = self._claims_of(holder)
        else:
            wanted = dict.fromkeys(one for name in names for one in (name, *self.pools.slots(name)))
            claims = [held[name] for name in wanted if name in held]
        return self._let_go(claims, "unlocked", at)

    def end(self, holder: Holder, at: float) -> Facts:
        """It is gone, its requests with it. A job's path claims become pending."""
        facts, woken = self._withdraw(self._requests_of(holder.id), "ended", at)
        claims = self._claims_of(holder)
        keeps = [c for c in claims if holder.kind == "job" and c.name.kind == "path"]
        pended = self._to_state([c for c in keeps if c.state == ACTIVE], PENDING)
        facts += [Pended(at, pended)] if pended else []
        return (*facts, *self._let_go([c for c in claims if c not in keeps], "ended", at, woken))

    def resume(self, holder: Holder, at: float) -> Facts:
        """The job goes on in its worktree, with what it claimed."""
        pending = [claim for claim in self._claims_of(holder) if claim.state == PENDING]
        return (Resumed(at, self._to_state(pending, ACTIVE)),) if pending else ()

    def land(self, job: Holder, at: float) -> Facts:
        """Its work is merged."""
        return self._let_go(self._paths_of(job), "landed", at)

    def drop(self, job: Holder, at: float) -> Facts:
        """Its work was dropped."""
        return self._let_go(self._paths_of(job), "dropped", at)

    def break_(self, names: Iterable[Name], at: float, by: str, reason: str) -> Facts:
        """Every claim on exactly these names is taken away; nothing is told if there is none."""
        facts: list[LockFact] = []
        for name in dict.fromkeys(names):
            for claim in sorted((*self._blocking.at(name).values(), *self._seen.at(name).values()), key=by_token):
                if not claim.is_contested:
                    facts.append(Broken(at, claim, self._next_token(), by, reason))
        broken = [fact.claim for fact in facts if isinstance(fact, Broken)]
        return (*facts, *self._without(broken, at))

    def give_up(self, ticket: int, at: float) -> Facts:
        """Whoever asked does not want it any more. A ticket that is not known is passed over."""
        request = self._requests.get(ticket)
        facts, woken = self._withdraw([request] if request else [], "given_up", at)
        return (*facts, *self._settle(woken, at))

    def touch(self, tickets: Iterable[int], at: float) -> Facts:
        """They are asked for at this moment: to be said when a wait of somebody who is connected ends."""
        known = [self._requests[ticket] for ticket in tickets if ticket in self._requests]
        return tuple(Touched(at, self._replace(request, asked=at)) for request in known)

    def expire(self, at: float, in_use: Collection[int] = ()) -> Facts:
        """Tickets that nobody asked for in time are dropped, but for those that somebody is connected for."""
        late = [r for r in self._requests.values() if r.asked + TICKET_S <= at and r.ticket not in in_use]
        facts, woken = self._withdraw(late, "expired", at)
        return (*facts, *self._settle(woken, at))

    def next_expiry(self, in_use: Collection[int] = ()) -> float | None:
        """When :meth:`expire` has something to do, if nothing changes."""
        asked = (request.asked for request in self._requests.values() if request.ticket not in in_use)
        first = min(asked, default=None)
        return None if first is None else first + TICKET_S

    def set_pools(self, pools: Mapping[str, int], at: float) -> Facts:
        """The configuration has changed, perhaps while no table was there: slots that are held stay so."""
        self.pools = Pools(pools)
        too_much = [request for request in self._requests.values() if not self.pools.can_give(request.wants)]
        facts, _ = self._withdraw(too_much, "impossible", at)
        for ticket in self._requests:
            self._unwatch(ticket)
        for id in list(self._tickets):
            facts += self._untangle(id, at)[0]
        return (*facts, *self._settle(self._requests, at))

    # --- a request, before and after ------------------------------------------------------------------------------

    def _held(self, id: str, wants: tuple[Want, ...]) -> tuple[Claim, ...] | None:
        """The claims that are these wants, if it has them all."""
        held = self._claims.get(id, {})
        chosen, short = self._choose_slots(id, wants)
        if short:
            return None
        claims: list[Claim] = []
        for want in self._with_slots(wants, chosen):
            claim = held.get(want.name)
            if claim is None or claim.is_automatic or both(claim.mode, want.mode) != claim.mode:
                return None
            claims.append(claim)
        return tuple(claims)

    def _hold_on(self, holder: Holder, held: tuple[Claim, ...], at: float) -> tuple[Granted, Facts]:
        pending = [claim for claim in held if claim.state == PENDING]
        self._to_state(pending, ACTIVE)
        claims = tuple(self._claims[holder.id][claim.name] for claim in held)
        granted = Granted(at, holder, claims, is_new=False)
        return granted, (granted,) if pending else ()

    def _waiting_as(self, holder: Holder, wants: tuple[Want, ...], ticket: int | None) -> Request | None:
        known = None if ticket is None else self._requests.get(ticket)
        if known is not None and (known.holder.id != holder.id or known.wants != wants):
            whose = "of somebody else" if known.holder.id != holder.id else "for other names"
            raise Refused(f"ticket {ticket} is {whose}; ask again without --ticket", "bad_ticket")
        return known or next((r for r in self._requests_of(holder.id) if r.wants == wants), None)

    def _queued(self, request: Request, at: float) -> Queued:
        return Queued(at, request, len(self._before(request)) + 1, self.blockers(request))

    def _busy(self, request: Request, at: float) -> Busy:
        return Busy(at, request.wants, len(self._before(request)) + 1, self.blockers(request))

    def _granted(self, request: Request, at: float, is_queued: bool) -> tuple[Granted, Facts]:
        """Give it all it wants; it is not in the queue any more."""
        holder, id = request.holder, request.holder.id
        claims: list[Claim] = []
        beside: dict[ClaimKey, Claim] = {}
        chosen, _ = self._choose_slots(id, request.wants)
        for want in self._with_slots(request.wants, chosen):
            beside.update((c.key, c) for c in self._seen_by_others(id, want.name))
            had = self._claims.get(id, {}).get(want.name)
            claims.append(self._claim_of(had, want, holder, at, request.reason))
            self._put(claims[-1])
        granted = Granted(
            at,
            holder,
            tuple(claims),
            request.ticket if is_queued else 0,
            beside=tuple(sorted(beside.values(), key=by_token)),
        )
        return granted, (granted,)

    def _claim_of(self, had: Claim | None, want: Want, holder: Holder, at: float, reason: str) -> Claim:
        if had is None or had.is_automatic:
            return Claim(want.name, want.mode, holder, self._next_token(), at, reason=reason)
        mode = both(had.mode, want.mode)
        if mode == had.mode:
            return msgspec.structs.replace(had, state=ACTIVE)
        return Claim(want.name, mode, holder, self._next_token(), at, reason=reason or had.reason)

    def _next_token(self) -> int:
        self.last_token += 1
        return self.last_token

    # --- what follows ------------------------------------------------------------------------------------------------

    def _let_go(
        self,
        claims: list[Claim],
        why: Literal["unlocked", "ended", "landed", "dropped"],
        at: float,
        woken: Iterable[int] = (),
    ) -> Facts:
        facts = (Released(at, tuple(claims), why),) if claims else ()
        return (*facts, *self._without(claims, at, woken))

    def _without(self, claims: list[Claim], at: float, woken: Iterable[int] = ()) -> Facts:
        """Take them away and give what is free to those who wait for it, then to those who wrote there."""
        wake = list(woken)
        for claim in claims:
            self._take_away(claim)
            wake += self._watchers(claim.key)
            pool = self.pools.pool_of(claim.name)
            wake += [] if pool is None else self._watchers(pool)
        return (*self._settle(wake, at), *self._settle_contests(claims, at))

    def _withdraw(
        self, requests: Iterable[Request], why: Literal["given_up", "expired", "ended", "impossible"], at: float
    ) -> tuple[list[LockFact], list[int]]:
        facts: list[LockFact] = []
        woken: list[int] = []
        for request in requests:
            woken += self._dequeue(request)
            facts.append(Withdrawn(at, request, why))
        return facts, woken

    def _settle(self, woken: Iterable[int], at: float) -> Facts:
        """Look again at the tickets that waited for what is gone, oldest first, and grant what can be granted."""
        facts: list[LockFact] = []
        todo = list(woken)
        heapq.heapify(todo)
        while todo:
            request = self._requests.get(heapq.heappop(todo))
            if request is None:
                continue
            self._unwatch(request.ticket)
            if self._watch(request):
                continue
            watchers = self._dequeue(request)
            granted, _ = self._granted(request, at, is_queued=True)
            more, others = self._untangle(request.holder.id, at)
            facts += [granted, *more]
            for ticket in (*watchers, *others):
                heapq.heappush(todo, ticket)
        return tuple(facts)

    def _untangle(self, id: str, at: float) -> tuple[list[LockFact], list[int]]:
        """See to it that ``id``, which waits or holds something new, is in no circle. One that only the order of the
        queue closes is opened by letting the newest pass; else the newest in it is refused. The tickets to look at
        again come with the facts."""
        facts: list[LockFact] = []
        woken: list[int] = []
        while self._is_between(id):
            stuck = lockwaits.stuck_with(id, lambda one: self._waits_of(one, through_queue=True))
            if not stuck:
                break
            by_claims = lockwaits.stuck_with(id, lambda one: self._waits_of(one, through_queue=False))
            if not by_claims:
                request = self._let_pass(stuck)
                facts.append(Touched(at, request))
                woken.append(request.ticket)
                continue
            cycle = lockwaits.circle(by_claims)
            request = self._requests[cycle[0][0]]
            edges = tuple(edge for _, edge in cycle)
            woken += self._dequeue(request)
            facts.append(Deadlock(at, request.holder, request.wants, edges, request.ticket))
        return facts, woken

    def _is_between(self, id: str) -> bool:
        """Does it wait, and does anybody wait for it? Only then can it be in a circle."""
        mine = self._tickets.get(id)
        if not mine:
            return False
        held = self._claims.get(id, {})
        return len(mine) > 1 or any(True for name in held for _ in self._lines_meeting(name))

    def _waits_of(self, id: str, through_queue: bool) -> list[Wait]:
        return [wait for request in self._requests_of(id) for wait in self._waits(request, through_queue)]

    def _let_pass(self, stuck: dict[str, list[Wait]]) -> Request:
        """The newest request that stands behind others which wait for its holder need not wait for them."""
        behind: dict[int, list[Edge]] = {}
        for wait in (wait for waits in stuck.values() for wait in waits):
            behind.setdefault(wait.ticket, []).extend(edge for edge in wait.edges if edge.ticket)
        for ticket in sorted(behind, reverse=True):
            request = self._requests[ticket]
            waiters = lockwaits.who_reach(request.holder.id, stuck)
            passed = {edge.ticket for edge in behind[ticket] if edge.blocker.id in waiters}
            if passed:
                return self._replace(request, passes=tuple(sorted({*request.passes, *passed})))
        raise AssertionError(f"claims alone close a circle: {sorted(stuck)}")

    def _settle_contests(self, gone: list[Claim], at: float) -> Facts:
        """Who wrote where another had a claim gets one of its own when that is gone."""
        met = {c.key: c for claim in gone for _, held in self._seen.meeting(claim.name) for c in held.values()}
        facts: list[LockFact] = []
        for claim in sorted(met.values(), key=by_token):
            if claim.is_contested and not self._others(claim.holder.id, claim.name, claim.mode):
                own = msgspec.structs.replace(claim, token=self._next_token())
                self._put(own)
                facts.append(Noted(at, own))
        return tuple(facts)

    def _to_state(self, claims: list[Claim], state: State) -> tuple[Claim, ...]:
        changed = tuple(msgspec.structs.replace(claim, state=state) for claim in claims)
        for claim in changed:
            self._put(claim)
        return changed

    def _replace(self, request: Request, **changed: Any) -> Request:
        self._requests[request.ticket] = msgspec.structs.replace(request, **changed)
        return self._requests[request.ticket]
