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

from collections.abc import Collection, Iterable, Mapping

import msgspec

from agentd.core.claims import (
    ACTIVE,
    EXCLUSIVE,
    PENDING,
    Answer,
    Broken,
    Busy,
    Claim,
    Contested,
    Deadlock,
    Granted,
    Holder,
    LockFact,
    Mode,
    Name,
    Noted,
    Pended,
    Queued,
    Request,
    Resumed,
    Touched,
    Want,
)
from agentd.core.errors import Refused
from agentd.core.lockbook import by_token
from agentd.core.lockflow import Facts, Flow
from agentd.core.lockpools import Pools, both

TICKET_S = 600.0
"""A ticket that was not asked for so long is dropped."""


class Table(Flow):
    """``pools``: how many slots each counted resource has; :meth:`set_pools` changes it."""

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

    def queued(self, ticket: int, at: float) -> Queued | None:
        """How it stands with a request that waits."""
        request = self._requests.get(ticket)
        return None if request is None else self._queued(request, at)

    def _queued(self, request: Request, at: float) -> Queued:
        return Queued(at, request, len(self._before(request)) + 1, self.blockers(request))

    def _busy(self, request: Request, at: float) -> Busy:
        return Busy(at, request.wants, len(self._before(request)) + 1, self.blockers(request))
