"""What the lock table must do, said a second time and as plainly as can be: by listing paths and trying everything.

It knows nothing of the table but its facts. A pattern is the set of paths it matches in a small world; who can
finish is found by letting everybody finish who can.
"""

import re
from collections.abc import Iterable
from functools import cache
from itertools import product

from agentd.core.claims import (
    Broken,
    Busy,
    Claim,
    Contested,
    Deadlock,
    Granted,
    LockFact,
    Name,
    Noted,
    Queued,
    Request,
    Touched,
    Want,
    changes,
)

WORLD = ["/".join(path) for n in range(1, 6) for path in product("abc", repeat=n)]
BEARS = {("S", "S"), ("A", "A")}


@cache
def world(pattern: str) -> int:
    """The paths it matches, as bits."""
    plain = re.escape(pattern).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"/\*\*", "(?:/[^/]+)*")
    regex = re.compile(plain.replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))
    return sum(1 << n for n, path in enumerate(WORLD) if regex.fullmatch(path))


@cache
def meet(one: Name, other: Name) -> bool:
    if one.kind == other.kind == "path":
        return one.scope == other.scope and bool(world(one.text) & world(other.text))
    return one == other


def clash(one: Want | Claim, other: Want | Claim) -> bool:
    return meet(one.name, other.name) and (one.mode, other.mode) not in BEARS


class Model:
    """What facts have said so far."""

    def __init__(self, pools: dict[str, int]) -> None:
        self.pools = pools
        self.claims: dict[tuple[str, Name], Claim] = {}
        self.requests: dict[int, Request] = {}
        self.last_token = 0
        self.last_ticket = 0

    def copy(self) -> "Model":
        model = Model(self.pools)
        model.claims, model.requests = dict(self.claims), dict(self.requests)
        return model

    def apply(self, fact: LockFact) -> None:
        change = changes((fact,))
        for key, claim in change.claims.items():
            if claim is None:
                assert self.claims.pop(key).key == key
            else:
                self.claims[key] = claim
        for ticket, request in change.requests.items():
            if request is None:
                del self.requests[ticket]
            else:
                self.requests[ticket] = request

    # --- questions ---------------------------------------------------------------------------------------------

    def is_pool(self, name: Name) -> bool:
        return name.kind == "res" and name.text in self.pools

    def family(self, name: Name) -> str:
        return name.text.split(":")[0] if name.kind == "res" and name.text.split(":")[0] in self.pools else ""

    def could_ever(self, wants: Iterable[Want]) -> bool:
        wants = tuple(wants)
        for want in wants:
            if (
                want.name.kind == "res"
                and ":" in want.name.text
                and want.name not in self.slots(Name("res", "", "gpu"))
            ):
                return False
        return sum(self.family(want.name) == "gpu" for want in wants) <= self.pools["gpu"]

    def in_line(self, one: Want, other: Want) -> bool:
        """Does the later of two wants wait for the earlier? Any slot and a named slot do, two named ones do not."""
        if self.family(one.name) and self.family(one.name) == self.family(other.name):
            return one.name == other.name or self.is_pool(one.name) or self.is_pool(other.name)
        return clash(one, other)

    def blocking(self) -> list[Claim]:
        return [claim for claim in self.claims.values() if not claim.is_automatic]

    def standing(self, id: str, wants: Iterable[Want]) -> list[Claim]:
        """Claims of others that stand before the wants; of a pool without enough free slots, all."""
        others = [claim for claim in self.blocking() if claim.holder.id != id]
        wants = tuple(wants)
        found = [c for c in others for want in wants if not self.is_pool(want.name) and clash(c, want)]
        for name in {want.name for want in wants if self.is_pool(want.name)}:
            taken = [c for c in others if c.name in self.slots(name)]
            named = [want.name for want in wants if want.name in self.slots(name)]
            free = set(self.slots(name)) - {c.name for c in taken} - set(named)
            if len(free) < sum(want.name == name for want in wants):
                found += [c for c in taken if c.name not in named]
        return found

    def slots(self, name: Name) -> list[Name]:
        return [Name("res", "", f"{name.text}:{n + 1}") for n in range(self.pools[name.text])]

    def before(self, request: Request) -> list[Request]:
        """Of others, earlier and in line, passed or not."""
        return [
            other
            for other in self.requests.values()
            if other.ticket < request.ticket and other.holder.id != request.holder.id
            if any(self.in_line(mine, theirs) for mine in request.wants for theirs in other.wants)
        ]

    def unpassed(self, request: Request) -> list[Request]:
        return [other for other in self.before(request) if other.ticket not in request.passes]

    def can_be_granted(self, request: Request) -> bool:
        return not self.standing(request.holder.id, request.wants) and not self.unpassed(request)

    def waits_for(self, id: str) -> set[str]:
        """All whom a holder waits for, at the end."""
        found: set[str] = set()
        todo = [id]
        while todo:
            one = todo.pop()
            for request in self.requests.values():
                if request.holder.id == one:
                    near = [c.holder.id for c in self.standing(one, request.wants)]
                    near += [other.holder.id for other in self.unpassed(request)]
                    todo += [other for other in near if other not in found]
                    found.update(near)
        return found

    def stuck(self, in_order: bool) -> list[Request]:
        """Who never gets all it asks for, when all who wait for nothing go away with all they have, again and again."""
        trial = self.copy()
        while trial.requests:
            waiting = {
                r.holder.id
                for r in trial.requests.values()
                if trial.standing(r.holder.id, r.wants) or (in_order and trial.unpassed(r))
            }
            gone = {claim.holder.id for claim in trial.claims.values()} | {r.holder.id for r in trial.requests.values()}
            if gone <= waiting:
                return list(trial.requests.values())
            trial.claims = {key: claim for key, claim in trial.claims.items() if key[0] in waiting}
            trial.requests = {ticket: r for ticket, r in trial.requests.items() if r.holder.id in waiting}
        return []

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        blocking = self.blocking()
        for n, one in enumerate(blocking):
            for other in blocking[n + 1 :]:
                assert one.holder.id == other.holder.id or not clash(one, other), f"{one} and {other}"
        tokens = [claim.token for claim in self.claims.values() if claim.token]
        assert len(tokens) == len(set(tokens)), "a token was used twice"
        for request in self.requests.values():
            assert not self.can_be_granted(request), f"{request} waits for nothing"
        assert not self.stuck(in_order=True), "some wait for ever"

    def check_fact(self, fact: LockFact, asker: Request | None) -> None:
        """Is it right that this happens now? ``asker``: what was asked in this step, if it was."""
        self._check_tokens(fact)
        match fact:
            case Granted(is_new=True):
                request = self.requests[fact.ticket] if fact.ticket else asker
                assert request is not None
                self._check_grant(fact, request, is_asked=not fact.ticket)
            case Granted():
                assert not fact.ticket and all(self.claims[c.key].token == c.token for c in fact.claims)
            case Queued() | Busy():
                assert asker is not None
                assert self._must_wait(asker), "it could have been granted"
                if isinstance(fact, Queued):
                    assert fact.position == len(self.unpassed(fact.request)) + 1
                    passes = () if asker.ticket in self.requests else fact.request.passes
                    self._check_passes(fact.request, self.with_request(asker), set(passes))
            case Touched():
                was = self.requests[fact.request.ticket]
                new = set(fact.request.passes) - set(was.passes)
                self._check_passes(fact.request, self, new)
            case Deadlock():
                self._check_deadlock(fact, asker)
            case Noted(claim=claim) | Contested(claim=claim):
                others = [c for c in self.claims.values() if c.holder.id != claim.holder.id and c.token]
                met = {c.token for c in others if clash(c, claim)}
                assert {c.token for c in fact.others} == met if isinstance(fact, Contested) else not met

    def _must_wait(self, asker: Request) -> bool:
        if self.standing(asker.holder.id, asker.wants):
            return True
        before = self.unpassed(asker)
        if any(self.is_pool(want.name) for request in self.requests.values() for want in request.wants):
            return bool(before)  # another slot may come free: who waits for one does not surely wait for the asker
        clear = [r for r in before if asker.holder.id not in self.waits_for(r.holder.id)]
        return bool(clear) or (bool(before) and not self.with_request(asker).stuck(in_order=True))

    def with_request(self, request: Request) -> "Model":
        model = self.copy()
        model.requests.setdefault(request.ticket, request)
        return model

    def _check_tokens(self, fact: LockFact) -> None:
        claims = fact.claims if isinstance(fact, Granted) else (fact.claim,) if isinstance(fact, Noted) else ()
        given = [claim.token for claim in claims if self.claims.get(claim.key, claim).token != claim.token]
        given += [claim.token for claim in claims if claim.key not in self.claims]
        given += [fact.token] if isinstance(fact, Broken) else []
        for token in sorted(given):
            assert token > self.last_token, f"token {token} after {self.last_token}"
            self.last_token = token

    def _check_grant(self, fact: Granted, request: Request, is_asked: bool) -> None:
        id = request.holder.id
        assert fact.holder.id == id
        assert not self.standing(id, request.wants), "it clashes"
        passed = {r.ticket for r in self.unpassed(request)}
        if is_asked:
            passed -= {r.ticket for r in self.before(request) if id in self.waits_for(r.holder.id)}
        assert not passed, f"it overtakes {passed}"
        assert len(fact.claims) == len(request.wants), "all or nothing"
        assert len({claim.name for claim in fact.claims}) == len(fact.claims)
        for want, claim in zip(request.wants, fact.claims, strict=True):
            assert claim.name in self.slots(want.name) if self.is_pool(want.name) else claim.name == want.name
            assert claim.mode in (want.mode, "X") and claim.state == "active" and not claim.is_automatic

    def _check_passes(self, request: Request, model: "Model", new: set[int]) -> None:
        for ticket in new:
            if ticket in model.requests:
                assert request.holder.id in model.waits_for(model.requests[ticket].holder.id), "no right to pass"

    def _check_deadlock(self, fact: Deadlock, asker: Request | None) -> None:
        asked = self.requests.get(fact.ticket, asker)
        assert asked is not None and asked.wants == fact.wants
        model = self.with_request(asked)
        assert fact.cycle[0].waiter.id == fact.cycle[-1].blocker.id == fact.holder.id
        for edge, after in zip(fact.cycle, (*fact.cycle[1:], fact.cycle[0]), strict=True):
            assert edge.blocker.id == after.waiter.id and not edge.ticket
            mine = [r for r in model.requests.values() if r.holder.id == edge.waiter.id and edge.want in r.wants]
            assert any(
                c.name == edge.held and c.holder.id == edge.blocker.id
                for r in mine
                for c in model.standing(edge.waiter.id, r.wants)
            ), f"{edge} is not so"
        assert any(r.ticket == asked.ticket for r in model.stuck(in_order=False)), "it would have been served"
