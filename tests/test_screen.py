"""What a terminal is made to show: modes, where the screen begins, what is left out, keys. Bytes in, bytes out."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.screen import HOME, TOKEN, Filter, Keys, Modes, beginning, is_drawn, is_harmless, parse_keys


def modes(*pieces: bytes) -> Modes:
    found = Modes()
    for piece in pieces:
        found.feed(piece)
    return found


def test_modes_are_known_and_taken_back() -> None:
    found = modes(b"\x1b[?1049;2004h\x1b[?25l\x1b=text\x1b[2;5r\x1b[4h\x1b(0\x1b[3 q\x1b[>4;2m")
    assert found.is_alternate
    assert found.enter() == b"\x1b[?2004h\x1b[?25l\x1b=\x1b[4h\x1b(0\x1b[3 q\x1b[>4;2m"
    left = found.leave()
    assert left.endswith(b"\x1b[?1049l\x1b[m\x1b[?25h")
    for code in (b"\x1b[?2004l", b"\x1b[?25h", b"\x1b>", b"\x1b7\x1b[r\x1b8", b"\x1b[4l", b"\x1b(B", b"\x1b[0 q"):
        assert code in left


@pytest.mark.parametrize(
    "undo",
    [b"\x1b[?1049l\x1b[?25h\x1b>", b"\x1bc"],
)
def test_modes_that_a_program_took_back_are_not_there(undo: bytes) -> None:
    found = modes(b"\x1b[?1049h\x1b[?25l\x1b=", undo)
    assert not found.is_alternate
    assert (found.enter(), found.leave()) == (b"", b"\x1b[m\x1b[?25h")


def test_what_a_person_has_set_is_left_alone() -> None:
    assert modes(b"\x1b[?12h\x1b[?7l\x1b[?1034h").leave() == b"\x1b[?7h\x1b[m\x1b[?25h"


def test_modes_may_come_in_pieces() -> None:
    whole = b"a\x1b[?1049h\x1b[?1000;1006hb\x1b(0c\x1b[?25l"
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    assert modes(*pieces).leave() == modes(whole).leave()


@pytest.mark.parametrize(
    ("tail", "drawn", "shown"),
    [
        (b"1\n2\n3\n4\n5\n", False, b"5\n"),
        (b"1\n2\n3\n4\n5", False, b"4\n5"),
        (b"1\n", False, b"1\n"),
        (b"1\n2\n3\x1b[H\x1b[J4\n", False, b"\x1b[H\x1b[J4\n"),
        (b"old\x1b[?1049hnew\n\n\n\n", True, b"\x1b[?1049hnew\n\n\n\n"),
        (b"vim\x1b[?1049lafter", False, b"\x1b[?1049lafter"),
        (b"no clear\n\n\n\n", True, b"no clear\n\n\n\n"),
    ],
)
def test_where_the_screen_begins(tail: bytes, drawn: bool, shown: bytes) -> None:
    assert tail[beginning(tail, drawn, 2) :] == shown


def test_a_program_that_draws_is_told_by_its_way_home() -> None:
    assert is_drawn(b"\x1b[H1\n2\n3\n", 24) and is_drawn(b"\x1b[1;1H", 24)
    assert not is_drawn(b"1\n2\n", 24) and not is_drawn(b"\x1b[H" + b"\n" * 24, 24)
    assert not HOME.search(b"\x1b[5;1H")


# --- what only draws ----------------------------------------------------------------------------------------

TRICKS = [
    b"\x1b]0;title\x07",
    b"\x1b]2;title\x1b\\",
    b"\x1b]52;c;aGk=\x07",
    b"\x1b]9;notice\x07",
    b"\x1b]1337;File=:aGk=\x07",
    b"\x1b[21t",
    b"\x1b[8;50;200t",
    b"\x1bP$qm\x1b\\",
    b"\x1bPtmux;\x1b\\",
    b"\x1b_Gi=1;\x1b\\",
    b"\x1b^pm\x1b\\",
    b"\x1bXsos\x1b\\",
    b"\xc2\x9d",
    b"\x05",
]
QUESTIONS = [b"\x1b[c", b"\x1b[>c", b"\x1b[6n", b"\x1b[5n", b"\x1b[?2026$p", b"\x1b[>q", b"\x1b[?u", b"\x1bZ"]
QUESTIONS += [b"\x1b]11;?\x07"]
DRAWING = [
    b"\x1b[31m",
    b"\x1b[2J",
    b"\x1b[?1049h",
    b"\x1b(0",
    b"\x1b7",
    b"\x1bM",
    b"\x1b]8;;http://x\x1b\\",
    b"\x1bPq#0~\x1b\\",
    "é©日".encode(),
    b"\r\n\t\b\x07\x0e",
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("may_ask", [True, False])
def test_tricks_are_left_out(trick: bytes, may_ask: bool) -> None:
    assert Filter().feed(b"a" + trick + b"b", may_ask) == b"ab"


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_for_who_may_answer(question: bytes) -> None:
    assert Filter().feed(b"a" + question + b"b", True) == b"a" + question + b"b"
    assert Filter().feed(b"a" + question + b"b", False) == b"ab"


@pytest.mark.parametrize("drawing", DRAWING)
def test_drawing_goes_through(drawing: bytes) -> None:
    assert Filter().feed(b"a" + drawing + b"b", False) == b"a" + drawing + b"b"


@pytest.mark.parametrize("hidden", [b"\x1b[2\n1t", b"\x1b]52;c;x\x18", b"\x1b\x1b]0;t\x07", b"\x1b[\x1b[21t"])
def test_what_hides_in_half_a_sequence_does_not_get_through(hidden: bytes) -> None:
    assert b"\x1b" not in Filter().feed(hidden + b".", True)


@given(st.lists(st.sampled_from([*TRICKS, *QUESTIONS, *DRAWING, b"\x1b", b"\x1b[", b"\x1b]", b"1", b"x", b"\x9b"])))
def test_however_it_is_cut_nothing_but_drawing_comes_out(pieces: list[bytes]) -> None:
    whole, cut = Filter(), Filter()
    data = b"".join(pieces)
    out = whole.feed(data, False) + whole.feed(b"\x18", False)
    bit = b"".join(cut.feed(data[at : at + 1], False) for at in range(len(data))) + cut.feed(b"\x18", False)
    for said in (out, bit):
        assert all(is_harmless(found[0], False) for found in TOKEN.finditer(said)), (said, data)


def test_an_endless_sequence_costs_no_memory_and_no_time() -> None:
    begun = time.monotonic()
    filter = Filter()
    for _ in range(2000):
        assert filter.feed(b"\x1b]0;" + b"x" * 1000, True) == b""
        assert len(filter.rest) <= 1 << 16
    filter.feed(b"\x07", True)
    filter.feed(b"\x1b]0;", True)
    for _ in range(2000):
        assert filter.feed(b"x" * 1000, True) == b""
        assert len(filter.rest) <= 1 << 16
    assert filter.feed(b"\x07seen", True) == b"seen"
    Filter().feed(b"\x1b]" * 300_000, True)
    assert time.monotonic() - begun < 30


# --- keys ---------------------------------------------------------------------------------------------------


def feed(keys: Keys, *typed: bytes) -> list[tuple[bytes, str]]:
    return [found for data in typed for found in keys.feed(data)]


def test_keys_are_found_in_what_is_typed() -> None:
    keys = {b"\x10\x11": "leave", b"\x1a": "stop"}
    assert feed(Keys(keys), b"abc") == [(b"abc", "")]
    assert feed(Keys(keys), b"a\x10", b"\x11") == [(b"a", ""), (b"", "leave")]
    assert feed(Keys(keys), b"a\x10", b"b") == [(b"a", ""), (b"\x10b", "")]
    assert feed(Keys(keys), b"\x10\x10\x11x") == [(b"\x10", "leave")]
    assert feed(Keys(keys), b"a\x1ab") == [(b"a", "stop")]
    assert feed(Keys({}), b"\x10\x11") == [(b"\x10\x11", "")]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("CTRL-A,d", b"\x01d"),
        ("ctrl-@", b"\0"),
        ("ctrl-[", b"\x1b"),
        ("ctrl-_", b"\x1f"),
        ("q", b"q"),
        ("", None),
        (",", None),
        ("ctrl-", None),
        ("ctrl-1", None),
        ("ctrl-é", None),
        ("f1", None),
        ("é", None),
        ("\x1b", None),
    ],
)
def test_keys_as_people_write_them(text: str, keys: bytes | None) -> None:
    assert parse_keys(text) == keys
