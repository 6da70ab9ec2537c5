"""What is held and what waits, and every question about it. Who changes it is told in :mod:`agentd.core.locks`.

Whoever waits *watches* one thing it waits for, a claim or a request before it, and is looked at again only when that
is gone. So a release costs what it lets go, however many wait.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from agentd.core.claims import (
    APPEND,
    EXCLUSIVE,
    SHARED,
    Blocker,
    Claim,
    ClaimKey,
    Edge,
    Holder,
    Mode,
    Name,
    Request,
    Want,
)
from agentd.core.lockindex import ByName
from agentd.core.lockpools import Pools
from agentd.core.lockwaits import Wait

BLOCKERS_SHOWN = 10

GOES_WITH: dict[Mode, Mode | None] = {EXCLUSIVE: None, SHARED: SHARED, APPEND: APPEND}
"""The one mode of others that a mode bears beside it."""

Thing = ClaimKey | int | Name
"""What one watches: a claim, a request by its ticket, or any slot of a pool."""


def clash(held: Mode, asked: Mode) -> bool:
    return GOES_WITH[held] != asked


def by_token(claim: Claim) -> tuple[int, float, str, Name]:
    """An order of claims; contested ones, which have no token, come first."""
    return claim.token, claim.since, claim.holder.id, claim.name


class Clash(msgspec.Struct, frozen=True):
    """``claims`` stand before ``want``, and ``need`` of them must go."""

    want: Want
    claims: tuple[Claim, ...]
    need: int


class Book:
    """``pools``: how many slots each counted resource has."""

    def __init__(self, pools: Mapping[str, int] | None = None) -> None:
        self.pools = Pools(pools or {})
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

    # --- looking ------------------------------------------------------------------------------------------------

    def claims(self, holder: Holder | None = None) -> tuple[Claim, ...]:
        """Of all, or of one: contested ones first, then by token."""
        if holder is not None:
            return tuple(self._claims_of(holder))
        return tuple(sorted((claim for held in self._claims.values() for claim in held.values()), key=by_token))

    def waiting(self) -> tuple[Request, ...]:
        """The queue, oldest first."""
        return tuple(self._requests.values())

    def who(self, name: Name) -> tuple[Claim, ...]:
        """All claims that meet it."""
        met = [claim for _, held in self._all_meeting(name) for claim in held.values()]
        return tuple(sorted(met, key=by_token))

    def why(self, name: Name) -> tuple[tuple[Claim, ...], tuple[Request, ...]]:
        """All claims and all waiting requests that meet it."""
        tickets = {t for _, lines in self._lines_meeting(name) for line in lines.values() for t in line}
        return self.who(name), tuple(self._requests[ticket] for ticket in sorted(tickets))

    def blockers(self, request: Request) -> tuple[Blocker, ...]:
        """Who holds what it waits for, and the first few that came before it."""
        clashes = self._clashes(request.holder.id, request.wants)
        held = [
            Blocker(clash.want, c.holder, c.name, c.mode, c.since, c.state, c.token, reason=c.reason)
            for clash in clashes
            for c in clash.claims
        ]
        queued = [
            Blocker(want, r.holder, named.name, named.mode, r.since, "waiting", ticket=r.ticket, reason=r.reason)
            for r in map(self._requests.__getitem__, heapq.nsmallest(BLOCKERS_SHOWN, self._before(request)))
            for want, named in self._meeting_wants(request, r)
        ]
        return (*held, *queued)

    def graph(self) -> tuple[Edge, ...]:
        """Who waits for whom, over what."""
        return tuple(
            edge
            for request in self._requests.values()
            for wait in self._waits(request, through_queue=True)
            for edge in wait.edges
        )

    def blocking(self, job: Holder, paths: Iterable[str], scope: str) -> tuple[tuple[str, Claim], ...]:
        """What keeps a change of these paths from landing: claims of others that block, newer than the job's own. No
        claim is older than any."""
        found: list[tuple[str, Claim]] = []
        for path in paths:
            met = self.who(Name("path", scope, path))
            mine = [claim for claim in met if claim.holder.id == job.id and not claim.is_contested]
            newest = max((claim.token for claim in mine), default=0)
            found += [
                (path, claim)
                for claim in met
                if not claim.is_automatic and claim.holder.id != job.id and claim.token > newest
                if not mine or any(clash(claim.mode, own.mode) for own in mine)
            ]
        return tuple(found)

    # --- what stands before a request -------------------------------------------------------------------------------

    def _clashes(self, id: str, wants: tuple[Want, ...]) -> list[Clash]:
        found: list[Clash] = []
        for want in wants:
            if not self.pools.has(want.name):
                claims = self._held_by_others(id, want)
                if claims:
                    found.append(Clash(want, claims, len(claims)))
        _, short = self._choose_slots(id, wants)
        for name, count in short.items():
            # A slot that is asked for by its number is not any other slot, too.
            others = [Want(slot) for slot in self.pools.slots(name) if Want(slot) not in wants]
            taken = [claim for slot in others for claim in self._held_by_others(id, slot)]
            found.append(Clash(Want(name), tuple(taken), count))
        return found

    def _held_by_others(self, id: str, want: Want) -> tuple[Claim, ...]:
        found = [
            claim
            for _, held in self._blocking.meeting(want.name)
            for other, claim in held.items()
            if other != id and clash(claim.mode, want.mode)
        ]
        return tuple(sorted(found, key=by_token)) if len(found) > 1 else tuple(found)

    def _choose_slots(self, id: str, wants: tuple[Want, ...]) -> tuple[dict[Name, list[Name]], dict[Name, int]]:
        """For each pool that is wanted, the slots it would get, its own first; and how many it is short of."""
        chosen: dict[Name, list[Name]] = {}
        short: dict[Name, int] = {}
        counts = Counter(want.name for want in wants if self.pools.has(want.name))
        for name, count in counts.items():
            slots = [slot for slot in self.pools.slots(name) if Want(slot) not in wants]
            mine = [slot for slot in slots if id in self._blocking.at(slot)]
            free = [slot for slot in slots if not self._blocking.at(slot)]
            chosen[name] = [*mine, *free][:count]
            if len(chosen[name]) < count:
                short[name] = count - len(chosen[name])
        return chosen, short

    def _with_slots(self, wants: tuple[Want, ...], chosen: Mapping[Name, list[Name]]) -> Iterator[Want]:
        left = {name: iter(slots) for name, slots in chosen.items()}
        for want in wants:
            yield Want(next(left[want.name])) if want.name in left else want

    def check(self) -> list[str]:
        """What is wrong with it: nothing, ever."""
        wrong = [
            f"{claim.holder.id} and {other.holder.id} both hold {claim.name}"
            for claim in self.claims()
            if not claim.is_automatic
            for other in self._held_by_others(claim.holder.id, Want(claim.name, claim.mode))
        ]
        for claim in self.claims():
            if self._shelf(claim).at(claim.name).get(claim.holder.id) != claim:
                wrong.append(f"{claim.name} of {claim.holder.id} is not found")
        for ticket, request in self._requests.items():
            thing = self._watching.get(ticket)
            if self._thing_before(request) is None:
                wrong.append(f"ticket {ticket} waits for nothing")
            if thing is None or ticket not in self._watched[thing]:
                wrong.append(f"ticket {ticket} watches nothing")
            elif not self._is_before(thing, request):
                wrong.append(f"ticket {ticket} watches {thing}, which does not stand before it")
        return wrong

    def _is_before(self, thing: Thing, request: Request) -> bool:
        clashes = self._clashes(request.holder.id, request.wants)
        things: set[Thing] = {claim.key for clash in clashes for claim in clash.claims}
        return thing in things | self._before(request) | {clash.want.name for clash in clashes}

    # --- requests before it --------------------------------------------------------------------------------------

    def _lines_meeting(self, name: Name) -> Iterator[tuple[Name, dict[Mode, dict[int, str]]]]:
        for one in self.pools.family(name):
            yield from self._lines.meeting(one)

    def _clashing_lines(self, want: Want) -> Iterator[dict[int, str]]:
        for _, lines in self._lines_meeting(want.name):
            for mode, line in lines.items():
                if clash(mode, want.mode):
                    yield line

    def _before(self, request: Request) -> set[int]:
        """The tickets it waits for: of clashing requests of others that came earlier and that it does not pass."""
        found: set[int] = set()
        for want in request.wants:
            for line in self._clashing_lines(want):
                found.update(line)
        if request.ticket <= self.last_ticket:
            found = {ticket for ticket in found if ticket < request.ticket}
        found.difference_update(self._tickets.get(request.holder.id, ()), request.passes)
        return found

    def _ticket_before(self, request: Request) -> int | None:
        """One of :meth:`_before`: for the last in the queue the nearest, so that a long queue is a chain, in which one
        watches another. For one that is looked at again the oldest, which is quickly found."""
        id, passes = request.holder.id, set(request.passes)
        is_last = next(reversed(self._requests), 0) <= request.ticket
        for want in request.wants:
            for line in self._clashing_lines(want):
                for ticket in reversed(line) if is_last else line:
                    if ticket > request.ticket and not is_last:
                        break
                    if line[ticket] != id and ticket not in passes:
                        return ticket
        return None

    def _meeting_wants(self, request: Request, other: Request) -> list[tuple[Want, Want]]:
        """Each want of the request that waits for one of the other's, and that."""
        return sorted(
            (want, Want(name, mode))
            for want in dict.fromkeys(request.wants)
            for name, lines in self._lines_meeting(want.name)
            for mode, line in lines.items()
            if other.ticket in line and clash(mode, want.mode)
        )

    def _waits(self, request: Request, through_queue: bool) -> list[Wait]:
        """All it waits for; ``through_queue``: for requests before it too."""
        asker = request.holder
        waits = [
            Wait(request.ticket, clash.need, tuple(Edge(asker, clash.want, c.holder, c.name) for c in clash.claims))
            for clash in self._clashes(asker.id, request.wants)
        ]
        for ticket in sorted(self._before(request)) if through_queue else ():
            other = self._requests[ticket]
            want, named = self._meeting_wants(request, other)[0]
            waits.append(Wait(request.ticket, 1, (Edge(asker, want, other.holder, named.name, ticket),)))
        return waits

    # --- claims ----------------------------------------------------------------------------------------------------

    def _requests_of(self, id: str) -> list[Request]:
        return [self._requests[ticket] for ticket in self._tickets.get(id, ())]

    def _claims_of(self, holder: Holder) -> list[Claim]:
        return sorted(self._claims.get(holder.id, {}).values(), key=by_token)

    def _paths_of(self, holder: Holder) -> list[Claim]:
        return [claim for claim in self._claims_of(holder) if claim.name.kind == "path"]

    def _all_meeting(self, name: Name) -> Iterator[tuple[Name, dict[str, Claim]]]:
        for one in self.pools.family(name):
            yield from self._blocking.meeting(one)
            yield from self._seen.meeting(one)

    def _seen_by_others(self, id: str, name: Name) -> list[Claim]:
        return [c for _, held in self._seen.meeting(name) for other, c in held.items() if other != id]

    def _others(self, id: str, name: Name, mode: Mode) -> tuple[Claim, ...]:
        """Claims of others, automatic ones too, that clash with this mode on this name."""
        return tuple(
            claim
            for claim in self.who(name)
            if claim.holder.id != id and not claim.is_contested and clash(claim.mode, mode)
        )

    def _put(self, claim: Claim) -> None:
        held = self._claims.setdefault(claim.holder.id, {})
        if claim.name in held:
            self._shelf(held[claim.name]).remove(claim.name, claim.holder.id)
        held[claim.name] = claim
        self._shelf(claim).put(claim.name, claim.holder.id, claim)

    def _take_away(self, claim: Claim) -> None:
        held = self._claims[claim.holder.id]
        del held[claim.name]
        if not held:
            del self._claims[claim.holder.id]
        self._shelf(claim).remove(claim.name, claim.holder.id)

    def _shelf(self, claim: Claim) -> ByName[str, Claim]:
        return self._seen if claim.is_automatic else self._blocking

    # --- the queue -------------------------------------------------------------------------------------------------

    def _enqueue(self, request: Request) -> None:
        """As the last."""
        self._requests[request.ticket] = request
        self._tickets.setdefault(request.holder.id, {})[request.ticket] = None
        for want in dict.fromkeys(request.wants):
            line = self._lines.at(want.name).get(want.mode)
            if line is None:
                self._lines.put(want.name, want.mode, line := {})
            line[request.ticket] = request.holder.id

    def _dequeue(self, request: Request) -> list[int]:
        """The tickets that watched it."""
        del self._requests[request.ticket]
        mine = self._tickets[request.holder.id]
        del mine[request.ticket]
        if not mine:
            del self._tickets[request.holder.id]
        for want in dict.fromkeys(request.wants):
            line = self._lines.at(want.name)[want.mode]
            del line[request.ticket]
            if not line:
                self._lines.remove(want.name, want.mode)
        self._unwatch(request.ticket)
        return self._watchers(request.ticket)

    def _thing_before(self, request: Request) -> Thing | None:
        """Something it waits for; None if it can be granted."""
        ticket = self._ticket_before(request)
        if ticket is not None:
            return ticket
        for clash in self._clashes(request.holder.id, request.wants):
            return clash.want.name if self.pools.has(clash.want.name) else clash.claims[0].key
        return None

    def _watch(self, request: Request) -> bool:
        """False if there is nothing to watch: it can be granted."""
        thing = self._thing_before(request)
        if thing is not None:
            self._watched.setdefault(thing, {})[request.ticket] = None
            self._watching[request.ticket] = thing
        return thing is not None

    def _unwatch(self, ticket: int) -> None:
        thing = self._watching.pop(ticket, None)
        if thing is not None:
            watchers = self._watched[thing]
            del watchers[ticket]
            if not watchers:
                del self._watched[thing]

    def _watchers(self, thing: Thing) -> list[int]:
        return list(self._watched.get(thing, ()))
