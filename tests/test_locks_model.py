"""The lock table against a model that lists paths and tries everything; invariants after each step."""

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from lockmodel import Model

from agentd.core.claims import Busy, Deadlock, Granted, Holder, LockFact, Mode, Name, Queued, Request, Want
from agentd.core.errors import Usage
from agentd.core.locks import Table

PATTERNS = ["a", "b", "a/**", "a/b", "a/b/c", "**/c", "*/b", "a/*/c", "**", "b/?", "?/**/c", "a/**/b/**", "c/a*", "*"]
PATHS = [Name("path", "r", text) for text in PATTERNS]
OTHERS = [
    *(Name("path", "q", text) for text in ("a", "**")),
    *(Name("res", "", text) for text in ("db", "gpu", "gpu", "gpu:1", "gpu:2")),
    *(Name("file", "", "/x"), Name("integrate", "r", "main")),
]
POOL = Name("res", "", "gpu")
NAMES = [*PATHS, *OTHERS]
HOT = [PATHS[0], PATHS[3], PATHS[6], POOL, Name("res", "", "db")]
WRITTEN = [Name("path", "r", text) for text in ("a", "a/b", "a/b/c", "c/a")]
HOLDERS = [
    *(Holder("job", key) for key in ("1", "2", "3", "4")),
    *(Holder("command", "1"), Holder("session", "me")),
]
MODES: list[Mode] = ["X", "X", "S", "A"]

holders = some.sampled_from(HOLDERS)
names = some.sampled_from(NAMES)
modes = some.sampled_from(MODES)


def want(name: Name, mode: Mode) -> Want:
    return Want(name, "X" if name.text.startswith("gpu") else mode)


wants = some.lists(some.builds(want, names, modes), min_size=1, max_size=3)
hot_wants = some.lists(some.builds(want, some.sampled_from(HOT), modes), min_size=1, max_size=2)


IS_LONG = bool(os.environ.get("AGENTD_LONG"))


class LockTable(RuleBasedStateMachine):
    """Each operation is done by the table and by one that was loaded from what the facts said before: they must tell
    the same. The model judges each fact, in the order told."""

    steps = 0
    told: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.table = Table({"gpu": 2})
        self.model = Model({"gpu": 2})
        self.at = 0.0

    def do(self, deed: Callable[[Table], tuple[LockFact, ...]], asker: Request | None = None) -> None:
        self.at += 1.0
        twin = self.loaded()
        facts = deed(self.table)
        assert deed(twin) == facts
        for fact in facts:
            self.model.check_fact(fact, asker)
            self.model.apply(fact)
            LockTable.told[type(fact).__name__] += 1
        LockTable.steps += 1
        self.model.check()
        assert self.table.claims() == twin.claims() == self.loaded().claims()
        assert self.table.waiting() == twin.waiting() == tuple(self.model.requests.values())
        assert self.table.check() == twin.check() == []

    def loaded(self) -> Table:
        stored, table = self.model, self.table
        claims, requests = stored.claims.values(), stored.requests.values()
        return Table.load(claims, requests, table.last_token, table.last_ticket, stored.pools)

    @rule(holder=holders, wants=wants, wait=some.sampled_from([True, True, True, False]))
    def ask(self, holder: Holder, wants: list[Want], wait: bool) -> None:
        self.ask_for(holder, wants, wait)

    @rule(holder=holders, wants=hot_wants)
    def ask_for_what_many_want(self, holder: Holder, wants: list[Want]) -> None:
        self.ask_for(holder, wants, wait=True)

    @rule(holder=holders, wants=some.lists(some.builds(want, names, modes), min_size=1, max_size=1))
    def ask_for_one(self, holder: Holder, wants: list[Want]) -> None:
        self.ask_for(holder, wants, wait=True)

    def ask_for(self, holder: Holder, wants: list[Want], wait: bool) -> None:
        wanted = tuple(sorted(self.merged(wants)))
        waiting = [r for r in self.model.requests.values() if r.holder.id == holder.id and r.wants == wanted]
        asker = waiting[0] if waiting else Request(self.table.last_ticket + 1, holder, wanted, self.at, self.at)
        before = (self.table.claims(), self.table.waiting())

        def asked(table: Table) -> tuple[LockFact, ...]:
            answer, facts = table.ask(holder, wants, self.at, wait=wait)
            if isinstance(answer, Granted | Deadlock | Queued | Busy) and answer not in facts:
                self.model.check_fact(answer, asker)
                assert isinstance(answer, Busy) or not isinstance(answer, Deadlock)
                if not waiting:
                    assert (table.claims(), table.waiting()) == before
            return facts

        try:
            self.do(asked, asker)
        except Usage:
            assert not self.model.could_ever(wanted)

    def merged(self, wants: list[Want]) -> list[Want]:
        pools = [want for want in wants if self.model.is_pool(want.name)]
        modes: dict[Name, set[Mode]] = {}
        for want in wants:
            if want not in pools:
                modes.setdefault(want.name, set()).add(want.mode)
        return [*pools, *(Want(name, "X" if len(both) > 1 else both.pop()) for name, both in modes.items())]

    @precondition(lambda self: self.model.requests)
    @rule(data=some.data(), wait=some.booleans())
    def ask_again(self, data: some.DataObject, wait: bool) -> None:
        request = data.draw(some.sampled_from([*self.model.requests.values()]))

        def asked(table: Table) -> tuple[LockFact, ...]:
            answer, facts = table.ask(request.holder, request.wants, self.at, ticket=request.ticket, wait=wait)
            assert isinstance(answer, Queued if wait else Busy)
            self.model.check_fact(answer, request)
            return facts

        self.do(asked, request)
        assert self.model.requests[request.ticket].asked == self.at

    @rule(holder=holders, written=some.lists(some.sampled_from(WRITTEN), min_size=1, max_size=2), mode=modes)
    def note(self, holder: Holder, written: list[Name], mode: Mode) -> None:
        self.do(lambda table: table.note(holder, written, self.at, mode))

    @precondition(lambda self: self.model.claims)
    @rule(data=some.data())
    def release_one(self, data: some.DataObject) -> None:
        claim = data.draw(some.sampled_from([*self.model.claims.values()]))
        self.do(lambda table: table.release(claim.holder, [claim.name], self.at))
        assert claim.key not in self.model.claims or self.model.claims[claim.key].token > claim.token

    @rule(holder=holders, deed=some.sampled_from(["release", "end", "resume", "land", "drop"]))
    def let_go(self, holder: Holder, deed: str) -> None:
        paths = {key for key, c in self.model.claims.items() if key[0] == holder.id and c.name.kind == "path"}
        if deed == "release":
            self.do(lambda table: table.release(holder, None, self.at))
        else:
            self.do(lambda table: getattr(table, deed)(holder, self.at))
        if deed == "end":
            assert not [r for r in self.model.requests.values() if r.holder.id == holder.id]
            left = [claim for claim in self.model.claims.values() if claim.holder.id == holder.id]
            assert {claim.key for claim in left} == (paths if holder.kind == "job" else set())
            assert all(claim.state == "pending" for claim in left)

    @rule(deed=some.sampled_from(["break", "give_up", "touch", "set_pools", "restart"]), data=some.data())
    def rare(self, deed: str, data: some.DataObject) -> None:
        ticket = data.draw(some.sampled_from([*self.model.requests, 99]))
        if deed == "break":
            broken = data.draw(some.lists(names, max_size=2))
            self.do(lambda table: table.break_(broken, self.at, "me", "urgent"))
        elif deed == "give_up":
            self.do(lambda table: table.give_up(ticket, self.at))
            assert ticket not in self.model.requests
        elif deed == "touch":
            self.do(lambda table: table.touch([ticket], self.at))
        elif deed == "set_pools":
            self.set_pools(data.draw(some.integers(1, 3)))
        else:
            self.table = self.loaded()

    def set_pools(self, size: int) -> None:
        def changed(table: Table) -> tuple[LockFact, ...]:
            self.model.pools = {"gpu": size}
            return table.set_pools({"gpu": size}, self.at)

        self.do(changed)

    @precondition(lambda self: self.model.requests)
    @rule(data=some.data(), passed=some.sampled_from([1.0, 590.0, 600.0]))
    def expire(self, data: some.DataObject, passed: float) -> None:
        self.at += passed
        in_use = data.draw(some.sets(some.sampled_from([*self.model.requests])))
        late = {r.ticket for r in self.model.requests.values() if r.asked <= self.at + 1 - 600} - in_use
        due = self.table.next_expiry(in_use)
        assert bool(late) == (due is not None and due <= self.at + 1)
        self.do(lambda table: table.expire(self.at, in_use))
        assert not late & set(self.model.requests)

    def teardown(self) -> None:
        """Nobody starves: when all who wait for nothing let go, somebody is served, until all are. (Who has several
        requests may be refused one on the way: two of them may each have got what the other wants next.)"""
        while self.model.requests:
            left = set(self.model.requests)
            waiting = {request.holder.id for request in self.model.requests.values()}
            for holder in (one for one in HOLDERS if one.id not in waiting):
                self.do(partial(_release_all, holder=holder, at=self.at))
            assert set(self.model.requests) < left, "some starve"


def _release_all(table: Table, holder: Holder, at: float) -> tuple[LockFact, ...]:
    return table.release(holder, None, at)


@pytest.mark.timeout(7200 if IS_LONG else 180)
def test_the_table_does_what_the_model_says() -> None:
    LockTable.steps, LockTable.told = 0, Counter()
    sizes = settings(
        max_examples=3000 if IS_LONG else 120,
        stateful_step_count=50 if IS_LONG else 30,
        phases=[Phase.explicit, Phase.reuse, Phase.generate] if IS_LONG else list(Phase),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(LockTable, settings=sizes)
    print(LockTable.steps, "steps;", dict(sorted(LockTable.told.items())))
    assert LockTable.steps >= (100_000 if IS_LONG else 500)
