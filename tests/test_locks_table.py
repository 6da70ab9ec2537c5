"""The lock table: one scene after another, with exactly what is told."""

from itertools import pairwise

import msgspec
import pytest

from agentd.core.claims import (
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
    Released,
    Resumed,
    Touched,
    Want,
    Withdrawn,
    as_json,
    changes,
)
from agentd.core.errors import Refused, Usage
from agentd.core.locks import TICKET_S, Table

A, B, C, D = (Holder("job", str(n), label) for n, label in enumerate(("fix", "add", "docs", "test"), 1))


def path(text: str, mode: Mode = "X") -> Want:
    return Want(Name("path", "repo", text), mode)


def res(text: str, mode: Mode = "X") -> Want:
    return Want(Name("res", "", text), mode)


class Scene:
    """A table, and a clock that goes on by one with each deed. After each, the table has no fault."""

    def __init__(self, **pools: int) -> None:
        self.table = Table(pools)
        self.at = 0.0
        self.facts: tuple[LockFact, ...] = ()

    def ask(self, holder: Holder, *wants: Want, wait: bool = True, ticket: int | None = None) -> object:
        self.at += 1
        answer, self.facts = self.table.ask(holder, wants, self.at, wait=wait, ticket=ticket)
        assert self.table.check() == []
        return answer

    def tokens(self, holder: Holder, *wants: Want) -> list[int]:
        answer = self.ask(holder, *wants)
        assert isinstance(answer, Granted), answer
        return [claim.token for claim in answer.claims]

    def ticket(self, holder: Holder, *wants: Want) -> int:
        answer = self.ask(holder, *wants)
        assert isinstance(answer, Queued), answer
        return answer.request.ticket

    def cycle(self, holder: Holder, *wants: Want) -> list[tuple[str, str, str, str]]:
        before = self.table.claims(), self.table.waiting()
        answer = self.ask(holder, *wants)
        assert isinstance(answer, Deadlock), answer
        assert (self.table.claims(), self.table.waiting()) == before
        return [(e.waiter.key, e.want.name.text, e.blocker.key, e.held.text) for e in answer.cycle]

    def granted(self, facts: tuple[LockFact, ...]) -> list[str]:
        """Who was granted something by this, in order."""
        self.facts = facts
        assert self.table.check() == []
        return [fact.holder.key for fact in facts if isinstance(fact, Granted)]

    def release(self, holder: Holder, *wants: Want) -> list[str]:
        names = [want.name for want in wants] or None
        return self.granted(self.table.release(holder, names, self.at))


@pytest.mark.parametrize(
    ("held", "asked", "is_granted"),
    [(h, a, h == a != "X") for h in ("X", "S", "A") for a in ("X", "S", "A")],
)
@pytest.mark.parametrize("name", ["src/**", "src/a.py"])
def test_which_modes_bear_each_other(held: Mode, asked: Mode, is_granted: bool, name: str) -> None:
    scene = Scene()
    scene.ask(A, path(name, held))
    assert isinstance(scene.ask(B, path("src/a.py", asked)), Granted if is_granted else Queued)


def test_names_of_two_kinds_or_repositories_never_meet() -> None:
    scene = Scene()
    names = [Name("path", "r", "x"), Name("path", "q", "x"), Name("res", "", "x"), Name("integrate", "r", "x")]
    names += [Name("file", "", "/x"), Name("integrate", "q", "x")]
    for holder, name in zip("abcdef", names, strict=True):
        scene.tokens(Holder("job", holder), Want(name))


def test_a_holder_is_who_it_is_whatever_is_shown() -> None:
    scene = Scene()
    scene.tokens(Holder("job", "1", "fix", attempt=1), path("a"))
    assert scene.tokens(Holder("job", "1", "fix again", attempt=2), path("**")) == [2]
    assert isinstance(scene.ask(Holder("command", "1"), path("a")), Queued)
    with pytest.raises(ValueError, match="without a key"):
        Holder("job", "")


def test_a_set_is_granted_whole_or_not_at_all() -> None:
    scene = Scene()
    scene.tokens(A, path("b"))
    ticket = scene.ticket(B, path("a"), path("b"), res("db"))
    assert [claim.holder.key for claim in scene.table.claims()] == ["1"]
    assert scene.release(A) == ["2"]
    (granted,) = [fact for fact in scene.facts if isinstance(fact, Granted)]
    assert (granted.ticket, [str(c.name) for c in granted.claims]) == (ticket, ["path:a", "path:b", "res:db"])


def test_nobody_overtakes() -> None:
    scene = Scene()
    readers = [Holder("job", f"r{n}") for n in range(3)]
    scene.tokens(readers[0], path("a", "S"))
    scene.ticket(A, path("**"))
    for reader in readers[1:]:
        scene.ticket(reader, path("a", "S"))  # else a stream of readers would keep the writer waiting
    scene.tokens(B, res("db"))
    scene.ticket(C, path("elsewhere"))
    assert scene.release(readers[0]) == ["1"]
    assert scene.release(A) == ["r1", "r2", "3"]


def test_fifty_wait_in_order() -> None:
    scene = Scene()
    holders = [Holder("job", f"{n}") for n in range(51)]
    scene.tokens(holders[0], path("a"))
    places = [scene.ask(holder, path("a")) for holder in holders[1:]]
    assert [queued.position for queued in places if isinstance(queued, Queued)] == [*range(1, 51)]
    for holder, after in pairwise(holders):
        assert scene.release(holder) == [after.key]


def test_whoever_holds_what_a_waiter_waits_for_passes_it() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.ticket(B, path("a"), path("b"))
    assert scene.tokens(A, path("b")) == [2]
    assert scene.release(A) == ["2"]


def test_a_circle_that_only_the_queue_closes_is_no_deadlock() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.tokens(B, path("b"))
    scene.ticket(C, path("a"), path("c"))
    scene.ticket(D, path("b"), path("c"))  # behind C in the queue for c
    # A waits for B, which holds b. D waits for B too, and for C, which waits for A.
    first = scene.ticket(A, path("b"))  # behind D, which waits for C, which waits for A: so A passes D
    assert [request.passes for request in scene.table.waiting() if request.ticket == first] == [(2,)]
    assert scene.release(B) == ["1"]
    assert scene.release(A) == ["3"]
    assert scene.release(C) == ["4"]


def test_who_holds_it_already_has_it_with_the_same_token() -> None:
    scene = Scene()
    (token,) = scene.tokens(A, path("a"))
    scene.ticket(B, path("a"))
    for mode in ("X", "S", "A"):
        answer = scene.ask(A, path("a", mode))
        assert isinstance(answer, Granted) and not answer.is_new and answer.claims[0].token == token
        assert (answer.claims[0].mode, scene.facts) == ("X", ())


def test_an_upgrade_has_a_new_token() -> None:
    scene = Scene()
    assert scene.tokens(A, path("a", "S")) == [1]
    assert scene.tokens(A, path("a")) == [2]
    assert [(claim.mode, claim.token) for claim in scene.table.claims()] == [("X", 2)]


def test_shared_and_append_together_are_exclusive() -> None:
    scene = Scene()
    scene.tokens(A, path("a", "S"), path("a", "A"))
    assert [claim.mode for claim in scene.table.claims()] == ["X"]
    scene.tokens(B, path("b", "S"))
    scene.tokens(B, path("b", "A"))
    assert isinstance(scene.ask(C, path("b", "S")), Queued)


# --- deadlocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [2, 3, 7])
def test_the_one_who_closes_the_circle_is_refused(parties: int) -> None:
    scene = Scene()
    holders = [Holder("job", str(n)) for n in range(parties)]
    for n, holder in enumerate(holders):
        scene.tokens(holder, path(f"p{n}"))
    for n, holder in enumerate(holders[:-1]):
        scene.ticket(holder, path(f"p{n + 1}"))
    assert scene.cycle(holders[-1], path("p0")) == [
        (str((n - 1) % parties), f"p{n}", str(n), f"p{n}") for n in range(parties)
    ]
    order = [key for holder in holders[::-1] for key in scene.release(holder)]  # the others go on
    assert order == [holder.key for holder in holders[:-1]][::-1]


def test_two_who_share_and_both_want_it_alone() -> None:
    scene = Scene()
    scene.tokens(A, path("a", "S"))
    scene.tokens(B, path("a", "S"))
    scene.ticket(A, path("a"))
    assert scene.cycle(B, path("a")) == [("2", "a", "1", "a"), ("1", "a", "2", "a")]
    assert scene.release(B) == ["1"]


def test_a_deadlock_over_patterns() -> None:
    scene = Scene()
    scene.tokens(A, path("src/**"))
    scene.tokens(B, path("docs/**"), res("db"))
    scene.ticket(A, res("db"))
    assert scene.cycle(B, path("src/*/x.py")) == [("2", "src/*/x.py", "1", "src/**"), ("1", "db", "2", "db")]


def test_a_deadlock_through_the_queue_is_found() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.tokens(B, path("b"), path("d"))
    scene.ticket(C, path("a"), path("c"))
    scene.ticket(B, path("c"), path("a"))  # behind C, and behind A
    assert scene.cycle(A, path("d")) == [("1", "d", "2", "d"), ("2", "a", "1", "a")]


def test_a_circle_that_a_grant_closes_is_opened_by_refusing_the_newest() -> None:
    """Who has two requests is granted one, and now holds what another waits for, for which the second waits."""
    scene = Scene()
    scene.tokens(A, path("k"))
    scene.ticket(B, path("k", "A"))
    scene.ticket(C, path("k", "A"))
    scene.ticket(B, path("k"))
    scene.ticket(C, path("k"), path("z"))
    assert scene.granted(scene.table.break_([path("k").name], 9.0, "the user", "urgent")) == ["2", "3"]
    refused = [(f.holder.key, f.ticket) for f in scene.facts if isinstance(f, Deadlock)]
    assert refused == [("3", 4)]
    assert scene.release(C) == ["2"]


def test_not_to_wait_is_no_deadlock() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.tokens(B, path("b"))
    scene.ticket(A, path("b"))
    answer = scene.ask(B, path("a"), wait=False)
    assert isinstance(answer, Busy) and [b.holder for b in answer.blockers] == [A]
    assert scene.facts == () and len(scene.table.waiting()) == 1


# --- tickets --------------------------------------------------------------------------------------


def test_a_ticket_keeps_its_place() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    ticket = scene.ticket(B, path("a"), path("b"))
    scene.ticket(C, path("a"))
    for again in (ticket, None):  # the same command from the same holder is the same request
        answer = scene.ask(B, path("b"), path("a"), ticket=again)
        assert isinstance(answer, Queued) and (answer.request.ticket, answer.position) == (ticket, 1)
        assert scene.facts == (Touched(scene.at, answer.request),) and answer.request.asked == scene.at
    assert isinstance(scene.ask(B, path("a"), path("b"), wait=False), Busy)
    assert [request.ticket for request in scene.table.waiting()] == [1, 2]


def test_a_ticket_is_of_one_holder_and_for_one_set() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    ticket = scene.ticket(B, path("a"))
    with pytest.raises(Refused, match="ticket 1 is of somebody else"):
        scene.ask(C, path("a"), ticket=ticket)
    with pytest.raises(Refused, match="ticket 1 is for other names"):
        scene.ask(B, path("a"), path("b"), ticket=ticket)
    assert scene.ticket(C, path("a")) == 2


def test_a_ticket_that_was_granted_meanwhile_is_answered_with_its_token() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    ticket = scene.ticket(B, path("a"))
    scene.release(A)
    answer = scene.ask(B, path("a"), ticket=ticket)
    assert isinstance(answer, Granted) and answer.claims[0].token == 2


def test_a_ticket_lasts_ten_minutes() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    late, kept, touched = (scene.ticket(holder, path("a")) for holder in (B, C, D))
    assert scene.table.next_expiry() == 2.0 + TICKET_S
    assert scene.table.touch([touched, 99], 5.0)
    assert scene.granted(scene.table.expire(601.9)) == []
    assert scene.facts == ()
    scene.granted(scene.table.expire(604.0, in_use={kept}))
    assert [(f.request.ticket, f.why) for f in scene.facts if isinstance(f, Withdrawn)] == [(late, "expired")]
    assert scene.table.next_expiry() == 3.0 + TICKET_S and scene.table.next_expiry({kept}) == 5.0 + TICKET_S
    assert scene.release(A) == ["3"]


def test_what_an_expired_ticket_held_up_goes_on() -> None:
    scene = Scene()
    scene.tokens(A, path("a", "S"))
    scene.ticket(B, path("a"))
    scene.ticket(C, path("a", "S"))
    scene.table.touch([2], 500.0)
    assert scene.granted(scene.table.expire(700.0)) == ["3"]


def test_a_ticket_is_given_up() -> None:
    scene = Scene()
    scene.tokens(A, path("a", "S"))
    ticket = scene.ticket(B, path("a"))
    scene.ticket(C, path("a", "S"))
    assert scene.granted(scene.table.give_up(ticket, 9.0)) == ["3"]
    assert scene.table.give_up(ticket, 9.0) == ()


# --- pools ----------------------------------------------------------------------------------------


def slots(scene: Scene, holder: Holder) -> list[str]:
    return [claim.name.text for claim in scene.table.claims(holder)]


def test_a_pool_has_so_many_slots() -> None:
    scene = Scene(gpu=2)
    for holder in (A, B):
        scene.tokens(holder, res("gpu"))
    scene.ticket(C, res("gpu"))
    assert (slots(scene, A), slots(scene, B)) == (["gpu:1"], ["gpu:2"])
    assert scene.tokens(A, res("gpu")) == [1]
    assert scene.release(B, res("gpu")) == ["3"]
    assert slots(scene, C) == ["gpu:2"]


def test_two_slots_or_one_of_them() -> None:
    scene = Scene(gpu=3)
    scene.tokens(A, res("gpu:2"))
    scene.tokens(B, res("gpu"), res("gpu"))
    assert slots(scene, B) == ["gpu:1", "gpu:3"]
    scene.ticket(C, res("gpu"), res("gpu:1"))
    assert scene.release(B, res("gpu:3")) == []
    assert scene.release(B, res("gpu:1")) == ["3"]
    assert slots(scene, C) == ["gpu:3", "gpu:1"]


def test_who_waits_for_one_of_two_is_not_stuck_while_one_of_them_goes_on() -> None:
    scene = Scene(gpu=2)
    scene.tokens(A, res("gpu"))
    scene.tokens(B, res("gpu"))
    scene.tokens(C, path("c"))
    scene.ticket(A, path("c"))
    scene.ticket(C, res("gpu"))  # A waits for C, but B may let go
    assert scene.cycle(B, path("c"))[0] == ("2", "c", "3", "c")
    assert scene.release(B) == ["3"]


def test_who_has_two_requests_is_refused_the_one_that_closes_the_circle() -> None:
    scene = Scene(gpu=1)
    scene.tokens(A, res("gpu"))
    scene.tokens(B, path("b"))
    scene.tokens(C, path("c"))
    scene.ticket(B, res("gpu"))  # no part of it
    scene.ticket(C, path("b"))
    assert scene.cycle(B, path("c")) == [("2", "c", "3", "c"), ("3", "b", "2", "b")]
    assert [request.wants for request in scene.table.waiting()] == [(res("gpu"),), (path("b"),)]


def test_a_slot_asked_for_by_its_number_is_not_any_other_slot_too() -> None:
    scene = Scene(gpu=2)
    scene.tokens(A, res("gpu:1"))
    scene.tokens(B, res("gpu:2"))
    scene.tokens(C, path("c"))
    scene.ticket(B, path("c"))
    assert scene.cycle(C, res("gpu"), res("gpu:1")) == [("3", "gpu", "2", "gpu:2"), ("2", "c", "3", "c")]


def test_a_pool_gets_another_size() -> None:
    scene = Scene(gpu=1)
    scene.tokens(A, res("gpu"))
    scene.ticket(B, res("gpu"))
    assert scene.granted(scene.table.set_pools({"gpu": 3}, 5.0)) == ["2"]
    scene.tokens(C, res("gpu"))
    scene.ticket(D, res("gpu"), res("gpu:2"))
    scene.granted(scene.table.set_pools({"gpu": 1}, 6.0))
    assert [(f.request.holder.key, f.why) for f in scene.facts if isinstance(f, Withdrawn)] == [("4", "impossible")]
    assert slots(scene, C) == ["gpu:3"]


@pytest.mark.parametrize(
    ("wants", "code", "sentence"),
    [
        ([], "empty", "nothing was asked for; name a path, such as src/a.py, or a resource, res:NAME"),
        ([res("gpu")] * 3, "bad_name", "res:gpu: 3 asked for, and there are 2"),
        ([res("gpu:3")], "bad_name", "res:gpu:3: there are gpu:1 to gpu:2"),
        ([res("db:1")], "bad_name", "res:db:1: db is no pool"),
        (
            [res("gpu", "S")],
            "bad_mode",
            "res:gpu: a slot of a pool is exclusive; ask without --shared and --append",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(wants: list[Want], code: str, sentence: str) -> None:
    scene = Scene(gpu=2)
    with pytest.raises(Usage) as refusal:
        scene.ask(A, *wants)
    assert (refusal.value.code, refusal.value.message) == (code, sentence)
    assert scene.table.waiting() == scene.table.claims() == ()


# --- the life of a claim --------------------------------------------------------------------------


def test_the_paths_of_a_job_outlive_it() -> None:
    scene = Scene()
    scene.tokens(A, path("a"), res("db"), Want(Name("file", "", "/f")))
    scene.ticket(B, path("a"))
    scene.ticket(C, res("db"))
    assert scene.granted(scene.table.end(A, 9.0)) == ["3"]
    pended, released = scene.facts[:2]
    assert isinstance(pended, Pended) and [(str(c.name), c.state) for c in pended.claims] == [("path:a", "pending")]
    assert isinstance(released, Released) and {c.name.kind for c in released.claims} == {"res", "file"}
    assert scene.granted(scene.table.land(A, 10.0)) == ["2"]
    assert scene.facts[0] == Released(10.0, pended.claims, "landed")


def test_work_that_was_dropped_frees_its_claims() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.ticket(B, path("a"))
    scene.table.end(A, 9.0)
    assert scene.granted(scene.table.drop(A, 9.0)) == ["2"]


def test_a_job_that_goes_on_has_its_claims_back() -> None:
    scene = Scene()
    scene.tokens(A, path("a"), path("b"))
    scene.table.end(A, 9.0)
    answer = scene.ask(A, path("a"))
    assert isinstance(answer, Granted) and answer.claims[0].state == "active" and scene.facts == (answer,)
    (resumed,) = scene.table.resume(A, 10.0)
    assert isinstance(resumed, Resumed) and [c.name.text for c in resumed.claims] == ["b"]
    assert scene.table.resume(A, 10.0) == ()


@pytest.mark.parametrize("kind", ["command", "session"])
def test_a_persons_claims_end_with_them(kind: str) -> None:
    scene = Scene()
    holder = msgspec.convert({"kind": kind, "key": "k"}, Holder)
    scene.tokens(holder, path("a"))
    scene.ticket(A, path("a"))
    assert scene.granted(scene.table.end(holder, 9.0)) == ["1"]


def test_the_requests_of_who_ends_go_with_it() -> None:
    scene = Scene()
    scene.tokens(A, path("a", "S"))
    scene.ticket(B, path("a"))
    scene.ticket(C, path("a", "S"))
    assert scene.granted(scene.table.end(B, 9.0)) == ["3"]


def test_to_release_what_one_does_not_hold_is_nothing() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    assert scene.table.release(B, [path("a").name], 2.0) == scene.table.release(A, [path("b").name], 2.0) == ()
    assert scene.table.release(B, None, 2.0) == scene.table.end(B, 2.0) == scene.table.land(B, 2.0) == ()


def test_a_break_has_a_number_of_its_own_and_serves_the_next() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    scene.ticket(B, path("a"))
    (claim,) = scene.table.claims()
    assert scene.granted(scene.table.break_([path("a").name], 9.0, "the user", "urgent")) == ["2"]
    assert scene.facts[0] == Broken(9.0, claim, 2, "the user", "urgent")
    assert [c.token for c in scene.table.claims()] == [3]
    assert scene.table.break_([path("nobody").name], 9.0, "the user", "urgent") == ()


# --- writes that were seen ------------------------------------------------------------------------


def test_the_first_to_write_has_a_claim_and_the_second_is_contested() -> None:
    scene = Scene()
    name = path("a").name
    assert scene.table.note(A, [name], 1.0) == (Noted(1.0, Claim(name, "X", A, 1, 1.0, is_automatic=True)),)
    assert scene.table.note(A, [name], 2.0) == ()
    (fact,) = scene.table.note(B, [name], 2.0)
    assert isinstance(fact, Contested) and fact.claim.is_contested
    assert [claim.holder.key for claim in fact.others] == ["1"]
    assert scene.table.note(B, [name], 3.0) == ()
    scene.table.end(B, 4.0)
    (released, noted) = scene.table.land(A, 5.0)
    assert isinstance(released, Released) and isinstance(noted, Noted)
    assert (noted.claim.holder, noted.claim.token, noted.claim.state) == (B, 2, "pending")
    assert scene.table.check() == []


def test_both_may_write_what_is_shared() -> None:
    scene = Scene()
    name = path("CHANGELOG.md").name
    for holder in (A, B):
        (fact,) = scene.table.note(holder, [name], 1.0, mode="A")
        assert isinstance(fact, Noted)


def test_an_automatic_claim_blocks_nobody_and_is_told() -> None:
    scene = Scene()
    scene.table.note(A, [path("src/a.py").name], 1.0)
    answer = scene.ask(B, path("src/**"))
    assert isinstance(answer, Granted) and [claim.holder for claim in answer.beside] == [A]
    (fact,) = scene.table.note(C, [path("src/b.py").name], 2.0)
    assert isinstance(fact, Contested) and [str(claim.name) for claim in fact.others] == ["path:src/**"]
    assert isinstance(scene.ask(A, path("src/a.py")), Queued)


def test_an_automatic_claim_becomes_one_that_blocks_when_it_is_asked_for() -> None:
    scene = Scene()
    scene.table.note(A, [path("a").name], 1.0)
    assert scene.tokens(A, path("a")) == [2]
    assert isinstance(scene.ask(B, path("a")), Queued)


# --- questions ------------------------------------------------------------------------------------


def test_what_keeps_a_change_from_landing() -> None:
    scene = Scene()
    scene.tokens(A, path("old"))
    scene.tokens(B, path("src/**"))
    scene.table.end(B, 3.0)
    scene.table.note(C, [path("c").name], 3.0)

    def blocked(job: Holder, *paths: str) -> list[tuple[str, str]]:
        return [(p, c.holder.key) for p, c in scene.table.blocking(job, paths, "repo")]

    assert blocked(C, "src/a.py", "old", "free") == [("src/a.py", "2"), ("old", "1")]
    assert blocked(B, "src/a.py") == []
    assert blocked(A, "c") == []  # an automatic claim does not block
    assert scene.table.blocking(C, ["src/a.py"], "another") == ()
    scene.table.break_([path("old").name], 4.0, "the user", "urgent")
    scene.tokens(D, path("old"))
    assert blocked(A, "old") == [("old", "4")]  # a claim that was broken never lands silently
    assert blocked(D, "old") == []


def test_who_appends_does_not_keep_an_appender_from_landing() -> None:
    scene = Scene()
    scene.tokens(A, path("CHANGELOG.md", "A"))
    scene.tokens(B, path("CHANGELOG.md", "A"))
    assert scene.table.blocking(A, ["CHANGELOG.md"], "repo") == ()
    assert [c.token for _, c in scene.table.blocking(C, ["CHANGELOG.md"], "repo")] == [1, 2]


def test_who_why_and_graph() -> None:
    scene = Scene(gpu=2)
    scene.tokens(A, path("src/**"))
    scene.ticket(B, path("src/a.py"))
    scene.tokens(C, res("gpu"))
    assert [c.holder for c in scene.table.who(path("src/x").name)] == [A]
    assert [c.holder for c in scene.table.who(res("gpu").name)] == [C]
    claims, requests = scene.table.why(path("src/a.py").name)
    assert ([c.holder for c in claims], [r.holder for r in requests]) == ([A], [B])
    (edge,) = scene.table.graph()
    assert (edge.waiter, edge.blocker, str(edge.held)) == (B, A, "path:src/**")


def test_what_is_told_is_enough_to_load_the_same_table() -> None:
    scene = Scene()
    scene.tokens(A, path("a"))
    stored = changes(scene.facts)
    scene.ticket(B, path("a"), path("b"))
    stored.requests.update(changes(scene.facts).requests)
    claims = [claim for claim in stored.claims.values() if claim]
    requests = [request for request in stored.requests.values() if request]
    again = msgspec.json.decode(msgspec.json.encode((claims, requests)), type=tuple[list[Claim], list[msgspec.Raw]])
    assert again[0] == claims
    table = Table.load(claims, requests, 1, 1)
    assert table.release(A, None, 3.0) == scene.table.release(A, None, 3.0)
    assert as_json(scene.table.ask(C, [path("c")], 4.0)[0])["kind"] == "Granted"


def test_a_long_queue_is_a_chain() -> None:
    """Each release wakes one, however many wait: also in a table that was loaded."""
    scene = Scene()
    scene.tokens(A, path("a"))
    holders = [Holder("job", f"w{n}") for n in range(500)]
    for holder in holders:
        scene.table.ask(holder, [path("a")], 2.0)
    loaded = Table.load(scene.table.claims(), scene.table.waiting(), 1, 500)
    for table in (scene.table, loaded):
        assert max(len(watchers) for watchers in table._watched.values()) == 1
        for holder, after in pairwise([A, *holders]):
            assert [f.holder for f in table.release(holder, None, 3.0) if isinstance(f, Granted)] == [after]
            assert max((len(watchers) for watchers in table._watched.values()), default=1) == 1
