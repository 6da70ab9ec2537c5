"""What is said about locks: whole texts, each command in which can be typed."""

import shlex

import pytest

from agentd.core import lock_texts as say
from agentd.core.claims import Broken, Busy, Contested, Deadlock, Granted, Holder, Mode, Name, Queued, Want
from agentd.core.errors import Usage
from agentd.core.locknames import name_of
from agentd.core.locks import Table
from agentd.core.patterns import refuse_broad

SEVEN, NINE, TWELVE = Holder("job", "7", "fix-login"), Holder("job", "9", "add-2fa"), Holder("job", "12", "docs")


def path(text: str, mode: Mode = "X") -> Want:
    return Want(Name("path", "repo", text), mode)


def clock(at: float) -> str:
    return f"12:{int(at) // 60:02d}"


@pytest.fixture
def table() -> Table:
    table = Table()
    table.ask(SEVEN, [path("src/auth/**")], 60.0)
    table.ask(NINE, [path("src/auth/login.py")], 130.0)
    table.ask(TWELVE, [path("src/**", "S")], 200.0)
    return table


def test_locked(table: Table) -> None:
    busy, _ = table.ask(Holder("job", "4"), [path("src/auth/login.py")], 312.0, wait=False)
    assert isinstance(busy, Busy)
    assert say.locked(busy, 312.0, clock).splitlines() == [
        '[agentd:locked] src/auth/login.py is claimed by job 7 "fix-login" (path:src/auth/**, exclusive)'
        " since 12:01, 4m12s; 2 waiting.",
        "This is coordination, not a fault. Do not write the file through the shell or another tool:"
        " the merge gate would send it back.",
        "Do one of:  agentd lock path:src/auth/login.py --wait 60s    (wait; you would be 3rd)",
        "            agentd lock path:src/auth/login.py --wait 1s     (keeps your place 10 min; work on)",
        "            agentd locks why path:src/auth/login.py",
    ]


def test_locked_by_work_that_waits_for_a_person(table: Table) -> None:
    table.end(SEVEN, 300.0)
    queued, _ = table.ask(Holder("session", "me"), [path("src/auth/a b.py")], 312.0)
    assert isinstance(queued, Queued)
    lines = say.locked(queued, 312.0, clock, is_person=True).splitlines()
    assert lines[2] == "Job 7 has ended and its work is neither merged nor removed: you wait for a person."
    assert lines[3:] == [
        "Do one of:  agentd lock 'path:src/auth/a b.py' --wait 60s    (wait; you are 2nd, ticket 3)",
        "            agentd lock 'path:src/auth/a b.py' --wait 1s     (keeps your place 10 min; work on)",
        "            agentd locks why 'path:src/auth/a b.py'",
        "            agentd merge 7    (frees it, as does: agentd rm 7)",
        "            agentd locks break 'path:src/auth/**' --reason TEXT    (its holder is told)",
    ]


def test_locked_by_who_only_waits_and_by_several() -> None:
    table = Table()
    port = Want(Name("res", "", "port-3000"), "S")
    for holder in (SEVEN, NINE):
        table.ask(holder, [port], 0.0, reason="dev server\n\x1b[31m")
    table.ask(TWELVE, [Want(port.name)], 1.0)
    busy, _ = table.ask(Holder("command", "k", "make test"), [Want(port.name)], 5.0, wait=False)
    assert isinstance(busy, Busy)
    assert say.locked(busy, 5.0, clock).splitlines()[:2] == [
        '[agentd:locked] res:port-3000 is claimed by job 7 "fix-login" (res:port-3000, shared)'
        ' for "dev server\\x0a\\x1b[31m" since 12:00, 5s; 1 more hold of it; 1 waiting.',
        "This is coordination, not a fault. Do not use it all the same: somebody else does.",
    ]
    reader, _ = table.ask(Holder("command", "k", "make test"), [port], 5.0, wait=False)
    assert isinstance(reader, Busy)
    lines = say.locked(reader, 5.0, clock).splitlines()
    asked = 'was asked for earlier by job 12 "docs" (res:port-3000, exclusive) since 12:00, 4s; 1 waiting.'
    assert lines[0] == f"[agentd:locked] res:port-3000 {asked}"
    assert lines[2].startswith("Do one of:  agentd lock res:port-3000 --shared --wait 60s ")


def test_granted() -> None:
    table = Table()
    table.note(SEVEN, [path("a").name], 1.0)
    fact, _ = table.ask(NINE, [path("a"), path("b")], 2.0)
    assert isinstance(fact, Granted)
    assert say.granted(fact, ("job 5", "3fa9c1e", "main")) == (
        '[agentd:granted] path:a (token 2), path:b (token 3). Job 7 "fix-login" wrote there and does not block you;'
        " the changes are compared at merge. Job 5 changed it since you began (landed 3fa9c1e):\n"
        "run `git merge main` before you edit, or your change will be sent back."
    )
    fact, _ = table.ask(NINE, [path("b")], 2.0)
    assert isinstance(fact, Granted)
    assert say.granted(fact) == "[agentd:granted] path:b (token 3)."


def test_deadlock() -> None:
    table = Table()
    for holder, name in ((SEVEN, "a.py"), (TWELVE, "c.py"), (NINE, "b.py")):
        table.ask(holder, [path(name)], 1.0)
    table.ask(SEVEN, [path("c.py")], 2.0)
    table.ask(TWELVE, [path("b.py")], 2.0)
    fact, _ = table.ask(NINE, [path("a.py")], 3.0)
    assert isinstance(fact, Deadlock)
    assert say.deadlock(fact) == (
        '[agentd:deadlock] you (job 9 "add-2fa") hold path:b.py and ask path:a.py;'
        ' job 7 "fix-login" holds path:a.py and waits for path:c.py;'
        ' job 12 "docs" holds path:c.py and waits for path:b.py. Refused; nothing lost.\n'
        "Release one: agentd unlock path:b.py   - or finish and commit without path:a.py."
    )


def test_lost() -> None:
    table = Table()
    table.ask(SEVEN, [path("src/auth/**"), Want(Name("res", "", "db"))], 1.0)
    first, second = table.break_(
        [path("src/auth/**").name, Name("res", "", "db")], 2400.0, "the user", "urgent\nhotfix"
    )
    assert isinstance(first, Broken) and isinstance(second, Broken)
    assert say.lost(first, clock) == (
        '[agentd:lost] your claim on path:src/auth/** (token 1) was broken by the user at 12:40: "urgent\\x0ahotfix".'
        " Keep your work; it is checked again at merge."
    )
    assert say.lost(second, clock).endswith("Stop using it: somebody else may have it now.")


def test_contested() -> None:
    table = Table()
    table.ask(SEVEN, [path("src/**")], 1.0)
    (fact,) = table.note(NINE, [path("src/a.py").name], 2.0)
    assert isinstance(fact, Contested)
    assert say.contested(fact).splitlines() == [
        '[agentd:contested] you wrote path:src/a.py, which job 7 "fix-login" (path:src/**) claimed before you. Go on;'
        " the changes are compared at merge, and what meets a claim that blocks is sent back.",
        "See:  agentd locks why path:src/a.py",
    ]


def test_withdrawn(table: Table) -> None:
    (fact,) = table.give_up(1, 300.0)
    assert say.withdrawn(fact) == "[agentd:expired] ticket 1 was given up."  # type: ignore[arg-type]
    (fact,) = table.expire(900.0)
    assert say.withdrawn(fact) == (  # type: ignore[arg-type]
        "[agentd:expired] ticket 2 was not asked for in 10 min, and its place is gone.\n"
        "Ask again:  agentd lock 'path:src/**' --shared --wait 60s"
    )


def test_unavailable() -> None:
    assert say.unavailable("/run/agentd\n.sock") == (
        "[agentd:unavailable] the lock service did not answer in 1 s (socket /run/agentd\\x0a.sock)."
        " Policy advisory: go on; overlap is checked at merge."
    )


@pytest.mark.parametrize(
    "name",
    [
        *(
            Name("path", "r", text)
            for text in ("a", "a b", "-x", "res:db", "it's", "src/**", "~", "$HOME", "caf\u00e9")
        ),
        *(Name("res", "", "gpu:1"), Name("file", "", "/tmp/a b"), Name("integrate", "r", "feature/x")),
    ],
)
def test_the_word_for_a_name_means_it_again(name: Name) -> None:
    (word,) = shlex.split(say.name_word(name))
    assert not word.startswith("-")
    assert name_of(word, "r") == name


def test_a_word_with_characters_that_drive_a_terminal_is_still_a_word() -> None:
    assert say.name_word(Name("path", "r", "a\x1b[1m'\\\n")) == "$'path:a\\x1b?1m\\'\\\\\\x0a'"


@pytest.mark.parametrize(
    ("number", "shown"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")]
)
def test_ordinals(number: int, shown: str) -> None:
    assert say.ordinal(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (59.9, "59s"), (252, "4m12s"), (3723, "1h02m"), (90000, "25h00m")]
)
def test_spans(seconds: float, shown: str) -> None:
    assert say.span(seconds) == shown


def test_a_broad_claim_is_refused_with_its_count() -> None:
    refuse_broad("src/**", 50, 100)
    refuse_broad("a.py", 1, 1)
    with pytest.raises(Usage, match=r"^\*\* claims all 1,204 files; add --broad if meant$"):
        refuse_broad("**", 1204, 1204)
    with pytest.raises(Usage, match="claims 1,000 of 1,204 files"):
        refuse_broad("**/*.py", 1000, 1204)
