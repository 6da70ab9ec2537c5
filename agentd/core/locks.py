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

Whoever waits *watches* one thing it waits for, a claim or a request before it, and is looked at again only when that
is gone. So a release costs what it lets go, however many wait.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from agentd.core import lockwaits
from agentd.core.claims import (
    ACTIVE,
    APPEND,
    CONTESTED,
    EXCLUSIVE,
    PENDING,
    SHARED,
    Answer,
    Blocker,
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
    Touched,
    Want,
    Withdrawn,
)
from agentd.core.errors import Refused, Usage
from agentd.core.lockindex import ByName
from agentd.core.lockwaits import Wait

TICKET_S = 600.0
"""A ticket that was not asked for so long is dropped."""
BLOCKERS_SHOWN = 10

GOES_WITH: dict[Mode, Mode | None] = {EXCLUSIVE: None, SHARED: SHARED, APPEND: APPEND}
"""The one mode of others that a mode bears beside it."""

Facts = tuple[LockFact, ...]
Thing = ClaimKey | int | Name
"""What one watches: a claim, a request by its ticket, or any slot of a pool."""


def clash(held: Mode, asked: Mode) -> bool:
    return GOES_WITH[held] != asked


def both(one: Mode, other: Mode) -> Mode:
    """What a holder has who has two modes on one name."""
    return one if one == other else EXCLUSIVE


class Clash(msgspec.Struct, frozen=True):
    """``claims`` stand before ``want``, and ``need`` of them must go."""

    want: Want
    claims: tuple[Claim, ...]
    need: int


class Table:
    """``pools``: how many slots each counted resource has. It may be replaced when the configuration changes."""

    def __init__(self, pools: Mapping[str, int] | None = None) -> None:
        self.pools = dict(pools or {})
        self.last_token = 0
        self.last_ticket = 0
        self._claims: dict[str, dict[Name, Claim]] = {}
        """By holder."""
        self._blocking: ByName[str, Claim] = ByName()
        self._seen: ByName[str, Claim] = ByName()
        """Automatic and contested claims."""
        self._requests: dict[int, Request] = {}
        """The queue, oldest first."""
        self._tickets: dict[str, dict[int, None]] = {}
        """By holder."""
        self._lines: ByName[Mode, dict[int, str]] = ByName()
        """For each name and mode, the tickets that want it, oldest first, and their holders."""
        self._watched: dict[Thing, dict[int, None]] = {}
        self._watching: dict[int, Thing] = {}

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
        wanted = self._normal(wants)
        if (held := self._held(holder.id, wanted)) is not None:
            return self._hold_on(holder, held, at)
        if (waiting := self._waiting_as(holder, wanted, ticket)) is not None:
            touched = self._replace(waiting, asked=at)
            fact = self._answer_waiting(touched, at)
            return (fact if wait else Busy(at, fact.position, fact.blockers)), (Touched(at, touched),)
        return self._ask_anew(Request(self.last_ticket + 1, holder, wanted, at, at, reason), wait, at)

    def _ask_anew(self, request: Request, wait: bool, at: float) -> tuple[Answer, Facts]:
        is_free = not self._clashes(request.holder.id, request.wants)
        if is_free and self._thing_before(request) is None:
            return self._granted(request, at, is_queued=False)
        if not wait and not is_free:
            busy = self._answer_waiting(request, at)
            return Busy(at, busy.position, busy.blockers), ()
        self._enqueue(request)
        facts, woken = self._untangle(request.holder.id, at)
        if facts and isinstance(refusal := facts[0], Deadlock):
            answer = msgspec.structs.replace(refusal, ticket=0)
            return answer, (answer,)
        request = self._requests[request.ticket]
        facts = [fact for fact in facts if isinstance(fact, Touched) and fact.request.ticket != request.ticket]
        if is_free and self._thing_before(request) is None:
            self._dequeue(request)
            granted, first = self._granted(request, at, is_queued=False)
            return granted, (*first, *facts, *self._settle(woken, at))
        answer = self._answer_waiting(request, at)
        if not wait:
            self._dequeue(request)
            return Busy(at, answer.position, answer.blockers), ()
        self.last_ticket = request.ticket
        self._watch(request)
        return answer, (answer, *facts, *self._settle(woken, at))
