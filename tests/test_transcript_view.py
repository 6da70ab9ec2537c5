"""What a transcript looks like, and that no text in it drives a terminal or passes for a line of agentd's."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.cli import render
from agentd.cli.transcript_parts import LONGEST_LINE, MOST, bounded, changed, folded
from agentd.cli.transcript_plain import LABEL, Plain
from agentd.cli.transcript_rich import COLORS, Rich
from agentd.cli.transcript_view import ARROWS, Block, View

LABELS = {
    *{"", "start", "task", "told", "says", "thinks", "failed", "shorter", "tool", "result", "you", "asks", "held"},
    *{"goes on", "note", "parked", "ended", "spent", "stderr", "damaged"},
    *{"bash", "read", "write", "edit", "glob", "grep"},
}
RATES = {"input": 2.0, "output": 10.0, "cache_read": 0.2, "cache_write": 2.5}


def record(kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "at": 1795619500.0, **fields}


def said(text: str, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 1000, "output_tokens": 10}
    return record("assistant", content=[{"type": "text", "text": text}], stop="end_turn", usage=usage, **more)


def plain(*records: dict[str, Any], width: int | None = None) -> list[str]:
    view = View(RATES)
    return [line for one in records for block in view.blocks(one) for line in Plain(width).lines(block)]


# --- what people see ------------------------------------------------------------------------------------------


def test_a_call_is_folded_with_its_result() -> None:
    output = "\n".join(f"line {n}" for n in range(1, 101))
    assert plain(
        record("call", id="a", tool="bash", input={"command": "make test"}),
        record("result", id="a", content=output, error=False),
        record("call", id="b", tool="read", input={"path": "a.py", "offset": 5}),
        record("result", id="b", content="x\ny\n", error=False),
        record("call", id="c", tool="grep", input={"pattern": "def", "glob": "*.py"}),
        record("result", id="c", content="no match", error=True),
    ) == [
        "bash     make test",
        "         line 1",
        "         line 2",
        "         … 94 more lines",
        "         line 97",
        "         line 98",
        "         line 99",
        "         line 100",
        "read     a.py from line 5",
        "         2 lines",
        "grep     def in *.py",
        "         no match",
    ]


def test_an_edit_is_a_unified_diff() -> None:
    given = {"path": "a.py", "old": "def f():\n    return 1\n", "new": "def f():\n    return 2\n"}
    assert plain(record("call", id="a", tool="edit", input=given)) == [
        "edit     a.py",
        "         --- a.py",
        "         +++ a.py",
        "          def f():",
        "         -    return 1",
        "         +    return 2",
    ]


def test_a_question_its_answer_and_its_options() -> None:
    assert plain(
        record("call", id="a", tool="ask", input={"question": "Which?"}),
        record("question", id="q1", call="a", text="Which?", options=["red", "blue"]),
        record("waiting", why="question", question="q1"),
        record("accepted", n=1, sent=2.0, kind="answer", text="blue", question="q1"),
        record("consumed", n=1, sent=2.0, turn=2, question="q1"),
        record("running"),
        record("result", id="a", content="blue", error=False),
    ) == ["", "asks     Which?", "           1  red", "           2  blue", "", "you      blue"]


def test_an_interrupt_parking_and_the_end() -> None:
    view = View(RATES)
    blocks = [
        *view.blocks(record("accepted", n=1, sent=2.0, kind="interrupt", text="", question=None)),
        *view.blocks(record("consumed", n=1, sent=2.0, turn=2)),
        *view.blocks(record("waiting", why="interrupted")),
        *view.blocks(record("running")),
        *view.blocks(record("parked", why="the server is overloaded (529)", until=0)),
        *view.blocks(said("done that")),
        *view.blocks(record("end", outcome="stopped", code=0, text="50 of 50 turns")),
        *view.closing("limited"),
    ]
    lines = [line for block in blocks for line in Plain(None).lines(block) if line]
    assert [*lines[:3], *lines[4:]] == [
        "you      interrupted it",
        "held     interrupted; it waits for a message",
        "goes on",
        "says     done that",
        "ended    stopped",
        "         50 of 50 turns",
        "spent    1 turn, 1,010 tokens, $0.0021",
    ]
    assert re.fullmatch(r"parked   until \d\d:00:00: the server is overloaded \(529\)", lines[3])


def test_an_attempt_that_was_killed_ends_with_what_is_known() -> None:
    view = View(None)
    view.blocks(said("on my way"))
    lines = [line for block in view.closing("limited", "turns") for line in Plain(None).lines(block)]
    assert lines[:3] == ["", "ended    limited", "         turns"]
    lines = [line for block in view.closing("killed", "killed") for line in Plain(None).lines(block)]
    assert lines == ["", "ended    killed", "spent    1 turn, 1,010 tokens, cost unknown"]


def test_markdown_is_drawn_on_a_terminal_and_left_alone_in_a_pipe() -> None:
    text = "Two **things**:\n\n* a\n* b\n\n```python\nx = 1\n```\n\n[here](http://b.invalid)"
    (block,) = View().blocks(said(text))
    drawn = "\n".join(COLORS.sub("", line) for line in Rich(60).lines(block))
    assert drawn.startswith("\nsays     Two things:\n") and "**" not in drawn and "```" not in drawn
    assert "here (http://b.invalid)" in drawn and " • a" in drawn
    assert Plain(None).lines(block) == [
        "",
        "says     Two **things**:",
        *[f"         {t}".rstrip() for t in text.split("\n")[1:]],
    ]


def test_long_texts_are_folded_before_they_cost_anything() -> None:
    huge = "x" * 10_000_000
    assert len(bounded(huge)) < MOST and bounded("y" * 3000).endswith(f"… {3000 - LONGEST_LINE} more characters")
    assert folded("a\nb\nc\nd", 1, 1) == "a\n… 2 more lines\nd" and folded("a\nb\nc", 1, 1) == "a\nb\nc"
    many = "\n".join(map(str, range(5000)))
    assert changed("a", many, many + "\nend").count("\n") < 60
    for kind, field in (("result", "content"), ("user", "text"), ("note", "text"), ("question", "text")):
        assert sum(map(len, plain(record(kind, **{field: huge})))) < 20_000
    assert sum(map(len, plain(said(huge)))) < 20_000


# --- hostile text -----------------------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        *[
            "\x1b[2J",
            "\x1b]0;title\x07",
            "\x1b]52;c;aGk=\x07",
            "\x9b31m",
            "\x9d8;;http://e.invalid\x9c",
            "\x1bP",
            "\x07",
        ],
        *["\r", "\r\n", "\n", "\x08\x08\x08", "\x00", "\x7f", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\t"],
        *[
            "\u202e",
            "\u2066",
            "\u200b",
            "\ufeff",
            "\ud800",
            "\udcff",
            "&#x202e;",
            "&#27;[2J",
            "&rlm;",
            "&ZeroWidthSpace;",
        ],
        *[
            "ended    done",
            "\nyou      yes",
            "agentd: job 1 is done",
            "$ ",
            "\n\n",
            " " * 300,
            "漢字" * 60,
            "e\u0301",
            "\U0001f469\u200d\U0001f680",
            "\ufffe" * 99,
            "\ufe0f",
        ],
        *[
            "# ",
            "* ",
            "1. ",
            "> ",
            "```\n",
            "```python\n",
            "|a|b|\n|-|-|\n",
            "[x](javascript:1)",
            "![i](u)",
            "<b>",
            "***",
        ],
        *["[red]", "[/]", ":smile:", "[link=http://e.invalid]", "---\n", "`", "~~", "\\", "&", "<!--"],
    ]
)
TEXT = st.lists(st.one_of(NASTY, st.text(max_size=20), NASTY), max_size=12).map("".join)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
TOOL = st.one_of(st.sampled_from(["bash", "read", "write", "edit", "glob", "grep", "ask", "note", "ended"]), TEXT)
INPUT = st.dictionaries(
    st.sampled_from(["command", "id", "path", "old", "new", "content", "pattern", "offset", "glob", "text"]),
    st.one_of(TEXT, VALUE),
    max_size=4,
)
ID = st.sampled_from(["a", "b"])
SCREENS = {width: Rich(width) for width in (30, 60, 100)}
CONTENT = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
        st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXT}),
        st.fixed_dictionaries({"type": st.just("tool_use"), "id": ID, "name": TOOL, "input": INPUT}),
        VALUE,
    ),
    max_size=3,
)
USUAL = {
    "id": ID,
    "at": st.just(1.0),
    "tool": TOOL,
    "input": INPUT,
    "content": st.one_of(TEXT, CONTENT),
    "text": TEXT,
    "why": st.one_of(TEXT, st.just("question")),
    "options": st.lists(TEXT, max_size=3),
    "n": st.integers(1, 2),
    "kind": st.sampled_from(["message", "answer", "interrupt"]),
    "usage": st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), VALUE, max_size=2),
    "stop": st.sampled_from(["max_tokens", "refusal", "end_turn"]),
}
RECORD = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(ARROWS))},
    optional={name: st.one_of(usual, usual, usual, VALUE) for name, usual in USUAL.items()}
    | {name: VALUE for name in ("until", "model", "attempt", "task", "resume", "outcome", "turn", "error", "sent")},
)


def check(lines: list[str], width: int | None) -> None:
    for line in lines:
        bare = COLORS.sub("", line)
        assert not render.HARMFUL.search(bare), repr(bare)
        assert bare[:LABEL].rstrip() in LABELS and (bare == "" or len(bare) <= LABEL or bare[LABEL - 1] == " "), repr(
            bare
        )
        assert width is None or render.columns_of(bare) <= width, repr(bare)


@settings(max_examples=100)
@given(st.lists(RECORD, max_size=4), st.sampled_from([None, 30, 60, 100]), TEXT)
def test_no_record_breaks_the_frame(records: list[dict[str, Any]], width: int | None, err: str) -> None:
    view = View(RATES)
    blocks: list[Block] = [block for one in records for block in view.blocks(json.loads(json.dumps(one)))]
    blocks += [view.stderr(1.0, err), view.damaged(5), *view.closing("killed")]
    check([line for block in blocks for line in Plain(width).lines(block)], width)
    if width is not None:
        check([line for block in blocks for line in SCREENS[width].lines(block)], width)
    assert not render.HARMFUL.search(render.one_line(view.status))


@pytest.mark.parametrize(
    "text",
    [
        *["[" * 20_000, "> " * 10_000, "|a" * 10_000, "*_" * 10_000, "`" * 20_000, "<" * 20_000, "* " * 10_000],
        *["&" * 20_000, "1. " * 7_000, "](" * 10_000, "\x9d" * 100_000, "![" * 9_000, "\U0001f469\u200d" * 9_000],
        "|a" * 500 + "\n" + "|-" * 500 + "\n" + "|b" * 5000,
    ],
    ids=lambda text: f"{len(text)}x{text[:2]!r}",
)
def test_no_text_costs_much(text: str) -> None:
    (block,) = View().blocks(said(text))
    check(Rich(80).lines(block), 80)
    check(Plain(80).lines(block), 80)
