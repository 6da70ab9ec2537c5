"""What follows when a claim or a request comes or goes: who is served next, who may pass, who is refused."""

import heapq
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from agentd.core import lockwaits
from agentd.core.claims import (
    ACTIVE,
    Claim,
    ClaimKey,
    Deadlock,
    Edge,
    Granted,
    Holder,
    LockFact,
    Noted,
    Released,
    Request,
    State,
    Touched,
    Want,
    Withdrawn,
)
from agentd.core.lockbook import Book, by_token
from agentd.core.lockpools import both
from agentd.core.lockwaits import Wait

Facts = tuple[LockFact, ...]


class Flow(Book):
    """The book, and what changes in it by itself."""

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
