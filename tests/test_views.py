"""What people are shown: who delegated what, what jobs use, where one stands; and that no text from outside drives the
terminal in any of it."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_cli_render import agent, view

from agentd.cli import event_sheet, inbox, lock_sheet, paint, render, sheet, standing_sheet, top_sheet, work
from agentd.cli.logs import Cleaner
from agentd.cli.meter import Use
from agentd.cli.tree import DRAWN, PLAIN, tree, with_parents

FAST = settings(max_examples=100, phases=[Phase.explicit, Phase.reuse, Phase.generate])
"""What fails is long enough as it is: making it shorter takes minutes."""
NOW = 1767225700.0  # a little after what test_cli_render.view was created
OUR_CODES = re.compile(r"\x1b\[(?:0|1|2|31|32|33|35|36|1;33)?m")
WIDTHS = st.sampled_from([None, 20, 40, 80, 160])
View = dict[str, Any]


def job(id: int, parent: Any = None, **more: Any) -> View:
    common: View = {
        "id": id,
        "parent": parent,
        "name": f"job-{id}",
        "merged": None,
        "repo": None,
        "base": None,
        "cwd": "/w",
        "owner": "me",
    }
    return view(**common, waiting_since=None, attempt=1) | more


def harmless(lines: Sequence[str]) -> None:
    for line in lines:
        bare = OUR_CODES.sub("", line)
        assert not render.HARMFUL.search(bare), repr(line)


# --- who delegated what -------------------------------------------------------------------------------------------


def test_each_job_stands_under_the_one_that_delegated_it() -> None:
    jobs = [job(1), job(2, 1), job(3), job(4, 2), job(5, 1), job(6, 99), job(7, 5)]
    drawn = [f"{branch}{one['id']}" for branch, one in tree(jobs, DRAWN)]
    assert drawn == ["1", "├─ 2", "│  └─ 4", "└─ 5", "   └─ 7", "3", "6"]
    assert [branch for branch, _ in tree(jobs, PLAIN)] == ["", "|- ", "|  `- ", "`- ", "   `- ", "", ""]


def test_a_tree_has_the_parents_that_have_ended() -> None:
    everything = {id: job(id, parent) for id, parent in ((1, None), (2, 1), (3, 2), (4, None))}
    assert [one["id"] for one in with_parents([everything[3]], everything)] == [1, 2, 3]


@given(st.lists(st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 9))), unique_by=lambda one: one[0]))
def test_every_job_stands_in_the_tree_once_whatever_its_parent(pairs: list[tuple[int, int | None]]) -> None:
    drawn = [one["id"] for _, one in tree([job(id, parent) for id, parent in pairs])]
    assert sorted(drawn) == sorted(id for id, _ in pairs)


# --- times, widths, colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0, "just now"), (4.9, "just now"), (5, "5 s ago"), (59, "59 s ago"), (60, "1 min ago"), (200, "3 min ago")],
        *[(3600, "1 h ago"), (86399, "23 h ago"), (86400, "1 day ago"), (864000, "10 days ago"), (-200, "in 3 min")],
    ],
)
def test_ages(seconds: float, words: str) -> None:
    at = "2026-01-01T00:00:00.000Z"
    moment = render.moment(at)
    assert moment is not None and render.ago(at, moment + seconds) == words
    assert render.ago(None, 0.0) == "-"


@pytest.mark.parametrize("width", [40, 80, 160])
def test_tables_fit_their_terminal(width: int) -> None:
    asks = agent(4, question={"id": "q", "text": "Which?", "options": []}) | {"state": "waiting", "waiting": "Which?"}
    preparing = job(12345, state="preparing", waiting="checkout", name="n" * 40, task="漢字 " * 50)
    ended = job(7, state="done", outcome="failed", exit_code=3, ended_at="2026-01-01T00:01:00.000Z")
    jobs = [preparing, job(2, parent=1), ended, {**job(4), **asks}]
    uses = {one["id"]: Use(1.5, 1 << 30, 12, 1e6) for one in jobs}
    shown = render.job_table(jobs, NOW, width, None, ["├─ "] * 4)
    shown += top_sheet.sheet(jobs, uses, NOW, width=width)
    shown += sheet_of(preparing, width)
    assert [line for line in shown if render.columns_of(line) > width] == []


def sheet_of(one: View, width: int | None, is_colored: bool = False, events: Sequence[View] = ()) -> list[str]:
    document = {
        "job": {
            **one,
            **{"removed": False, "swept": [], "left": [], "branch": "agentd/1/x"},
        },
        "spec": {},
        "worktree": None,
        "attempts": [{"attempt": 1, "path": "/state/jobs/1/1", "log": {"out": 10, "err": 0}}],
        "events": list(events),
    }
    return sheet.sheet(document, NOW, True, width, is_colored)


def test_colours_are_of_our_palette_and_change_no_text() -> None:
    jobs = [job(1), job(2, state="waiting", waiting="needs KEY"), job(3, state="done", outcome="lost")]
    plain, colored = (render.job_table(jobs, NOW, 80, style) for style in (None, paint.of_jobs(jobs)))
    assert [OUR_CODES.sub("", line).rstrip() for line in colored] == plain
    assert "\x1b[32mrunning" in colored[1]
    assert "\x1b[1;33m" in colored[2] and "\x1b[31m" in colored[3]


def test_the_phases_of_a_worktree_are_told_in_words() -> None:
    states = [
        render.state_words(job(1, state="preparing", waiting=phase)) for phase in ("worktree", "checkout", "fill")
    ]
    assert states == [f"preparing ({words})" for words in render.PHASES.values()]


# --- what jobs use --------------------------------------------------------------------------------------------------


def test_top_puts_the_hungriest_first_and_sums() -> None:
    jobs = [job(1), {**job(2), **agent(2)}, job(3)]
    uses = {1: Use(0.5, 3 << 20, 1, 10.0), 2: Use(None, 5 << 30, 2, None), 3: Use(1.25, 900, 7, 2e6)}
    lines = top_sheet.sheet(jobs, uses, NOW, "cpu")
    assert lines[0] == "3 jobs  cpu 175%  memory 5.0G  cost $0.2500"
    assert [line.split()[0] for line in lines[3:]] == ["3", "1", "2"]
    assert lines[3].split()[4:8] == ["125%", "900", "7", "1.9M"]
    for sort, order in (("memory", "213"), ("log", "312"), ("cost", "213"), ("id", "123")):
        assert "".join(line.split()[0] for line in top_sheet.sheet(jobs, uses, NOW, sort)[3:]) == order
    assert top_sheet.sheet([], {}, NOW, is_online=False)[0].endswith("this is what the files tell")


# --- where one stands -----------------------------------------------------------------------------------------------


HERE = standing_sheet.Place("/w/sub", "/w", "me")


def test_the_next_things_have_real_ids_and_what_waits_comes_first() -> None:
    asks = {"id": "q", "text": "Which?", "options": ["a", "b"]}
    stat = {"diffstat": {"files": 1, "insertions": 12, "deletions": 3, "paths": []}}
    ended = {"state": "done", "ended_at": "2026-01-01T00:01:00.000Z"}
    jobs = [
        job(1, **ended, outcome="failed", exit_code=1, result=stat, worktree="/t"),
        job(2, **ended, outcome="succeeded", exit_code=0, result=stat, worktree="/t"),
        {**job(3), **agent(3, question=asks), "state": "waiting", "waiting": "Which?"},
        job(4, owner="you", cwd="/elsewhere"),
        job(5, owner="you", cwd="/w/deep"),
    ]
    lines = standing_sheet.sheet(jobs, HERE, True, NOW)
    assert lines[0].startswith("4 jobs: 1 failed, 1 succeeded, 1 waiting, 1 running, of this shell or of")
    assert "1 job goes on elsewhere: agentd ps" in lines
    place = lines.index("Next:")
    assert [line.strip().split("  ")[0] for line in lines[place + 1 :]] == [
        *["agentd answer 3 N", "agentd merge 2", "agentd logs 1"]
    ]
    nothing = standing_sheet.sheet([], HERE, False, NOW)
    assert nothing[0].startswith("No daemon is running") and len(nothing[nothing.index("Next:") + 1 :]) == 3


# --- events ---------------------------------------------------------------------------------------------------------


def event(type: str, id: int | None = 7, at: str = "2026-01-31T12:00:01.123Z", **data: Any) -> View:
    return {"seq": 8, "at": at, "job": id, "attempt": 1, "type": type, "data": data}


def test_events_are_sentences_for_people() -> None:
    teller = event_sheet.Teller(80, False, {})
    told = [
        event("job.created", name="fix", task="mend it", argv=["make"]),
        event("job.preparing", phase="checkout"),
        event("job.completed", name="fix", outcome="failed", exit_code=3, reason=None),
        event("job.nosuch", what="x"),
        event("job.completed", outcome="killed", signal=9),
        event("daemon.odd", None, at="2026-02-01T12:00:00.000Z"),
    ]
    lines = [line[10:] for one in told for line in teller.lines(one, "2026-01-31")]
    assert [re.sub(" {2,}", "  ", line) for line in lines] == [
        "7 fix  new: mend it",
        "7 fix  checking out files",
        "7 fix  failed, exit 3",
        "7 fix  job.nosuch what=x",
        "7 fix  killed by SIGKILL",
        "February 2026",  # the day, as it is another one
        "-  daemon.odd",
    ]


# --- hostile text ---------------------------------------------------------------------------------------------------

NASTY = [
    *["\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x1b\\", "\x9b31m", "\x90q\x9c", "\x1bc", "\x1b", "\x07", "\x08"],
    *["\x00", "\x7f", "\x85", "\r", "\n", "\r\n", "\t", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\xad"],
    *[
        "\udcff",
        "\ud800",
        "\U000e0041",
        "漢字",
        "ｗ",
        "e\u0301" * 9,
        "\U0001f469\u200d\U0001f467",
        "\x1b[0m",
        "\x1b[31m",
    ],
]
TEXT = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=6)), max_size=8).map("".join)
WORDS = st.lists(TEXT, max_size=3)
STATES = ["queued", "waiting", "preparing", "starting", "running", "stopped", "stopping", "parked", "done", "gone"]
MOMENT = st.sampled_from([None, "2026-01-01T00:00:01.000Z", "2027-01-01T00:00:01.000Z"])
QUESTION = st.one_of(st.none(), st.fixed_dictionaries({"id": TEXT, "text": TEXT, "options": WORDS}))
PROGRESS = st.fixed_dictionaries(
    {"turns": st.integers(0, 10**9), "tokens": st.integers(0, 10**9), "cost": st.sampled_from([None, 0.0, 12345.6])}
    | {name: TEXT for name in ("doing", "plan", "words")}
    | {"question": QUESTION}
)
PATHS = st.lists(st.tuples(TEXT, st.sampled_from([None, 3]), st.just(1)), max_size=3)
STAT = st.fixed_dictionaries(
    {"files": st.integers(0, 9), "insertions": st.just(1), "deletions": st.just(2), "paths": PATHS}
)
RESULT = st.one_of(
    st.none(), st.fixed_dictionaries({"diffstat": STAT, "left_out": WORDS}), st.fixed_dictionaries({"error": TEXT})
)
JOBS = st.lists(
    st.fixed_dictionaries(
        {name: TEXT for name in ("agent", "task", "cwd", "owner", "repo", "base")}
        | {name: st.one_of(st.none(), TEXT) for name in ("waiting", "reason", "worktree")}
        | {name: MOMENT for name in ("started_at", "ended_at", "waiting_since", "again_at")}
        | {"argv": WORDS, "state": st.sampled_from(STATES), "progress": st.one_of(st.none(), PROGRESS)}
        | {"result": RESULT, "outcome": st.sampled_from(["succeeded", "failed", "timed_out", "unstarted", "lost"])}
        | {"exit_code": st.sampled_from([None, 0, 300]), "signal": st.sampled_from([None, 9, 99])}
        | {"parent": st.sampled_from([None, 1, 2, 5])}
    ),
    min_size=1,
    max_size=4,
).map(lambda found: [job(id, **more) for id, more in enumerate(found, 1)])
VALUE = st.one_of(TEXT, WORDS, st.none(), st.integers(-5, 5), st.dictionaries(TEXT, TEXT, max_size=2))
FIELDS = (
    "name",
    "task",
    "argv",
    "phase",
    "pid",
    "why",
    "by",
    "text",
    "needs",
    "doing",
    "turns",
    "outcome",
    "exit_code",
)
DATA = st.dictionaries(
    st.one_of(st.sampled_from([*FIELDS, "signal", "reason", "words", "spent", "into", "state"]), TEXT), VALUE
)
EVENTS = st.lists(
    st.builds(
        lambda type, id, data: {**event(type, id), "data": data},
        st.one_of(st.sampled_from([*event_sheet.SENTENCES, "lock.granted"]), TEXT),
        st.sampled_from([None, 1]),
        DATA,
    ),
    max_size=3,
)


def fits(lines: Sequence[str], width: int | None) -> None:
    harmless(lines)
    if width is not None and width >= 40:
        assert [line for line in lines if render.columns_of(OUR_CODES.sub("", line)) > width] == []


@FAST
@given(JOBS, WIDTHS, st.booleans())
def test_no_text_of_a_job_drives_a_terminal(jobs: list[View], width: int | None, is_colored: bool) -> None:
    nodes = tree(jobs)
    in_order = [one for _, one in nodes]
    style = paint.of_jobs(in_order) if is_colored else None
    fits(render.job_table(in_order, NOW, width, style, [branch for branch, _ in nodes]), width)
    uses = {one["id"]: Use(0.7, 5 << 20, 3, 1e3) for one in jobs[:2]}
    fits(top_sheet.sheet(jobs, uses, NOW, "cpu", width, is_colored), width)
    fits(sheet_of(jobs[0], width, is_colored), None)
    place = standing_sheet.Place("/\x1b[2J", jobs[0]["cwd"] or None, "me")
    fits(standing_sheet.sheet(jobs, place, False, NOW, width, is_colored), width)
    for one in jobs:
        harmless(inbox.lines(inbox.entry({**one, "waiting": one["waiting"] or ""}), NOW, width))
        marked = {**one, "swept": [{"pid": 1, "command": one["task"]}]}
        told = [render.outcome_sentence(one), render.swept_sentence(marked), render.bash_line(one, "+", True)]
        harmless([words for words in told if words is not None])
    removed = [{**one, "removed_at": "2026-01-01T00:00:01.000Z"} for one in jobs]
    harmless(render.trash_table(removed, 14, width))


@FAST
@given(EVENTS, WIDTHS)
def test_no_text_of_an_event_drives_a_terminal(events: list[View], width: int | None) -> None:
    harmless([event_sheet.event_line(one) for one in events])
    teller = event_sheet.Teller(width or 100, True, {1: "fix"})
    fits([line for one in events for line in teller.lines(one, "2026-01-31")], width)
    harmless(sheet_of(job(1), width, True, events))


@FAST
@given(TEXT, WORDS, RESULT.filter(lambda one: bool(one) and "diffstat" in (one or {})), WIDTHS)
def test_no_text_of_a_result_a_diff_or_a_lock_drives_a_terminal(
    text: str, words: list[str], result: View, width: int | None
) -> None:
    commits = {"count": 9, "first": [{"commit": "c" * 40, "subject": text, "author": text}]}
    facts = {name: text for name in ("outcome", "state", "reason", "branch", "worktree", "snapshot", "error", "words")}
    lists = {"swept": [{"pid": 1, "command": text}], "left": [], "repository_changed": words}
    numbers = {"id": 1, "name": "fix", "attempt": 2, "duration": 1.0, "exit_code": None, "signal": 9, "changed": True}
    merged = {"into": text, "from": "a" * 40, "to": "b" * 40, "at": text}
    harmless(work.result_sheet({**facts, **lists, **numbers, **result, "commits": commits, "merged": merged}))
    for form in ("patch", "stat", "names"):
        shown = work.diff_lines(f"diff --git a b\n@@ -1 +1 @@ {text}\n+{text}\n", form, True)
        harmless([line.replace("\t", " ") for line in shown])
    holder = {"said": text, "job": 7}
    claim = {
        **{"name": text, "mode": "exclusive", "holder": holder, "state": "held", "seconds": 3, "queue": [], "token": 1},
        **{"enforced": [], "reason": text, "automatic": False},
    }
    wait = {"holder": holder, "wants": [{"name": text, "mode": "shared"}], "for": words, "ticket": 3, "since": text}
    harmless([*lock_sheet.table({"claims": [claim], "waiting": [wait]}, width)])
    harmless([*lock_sheet.explained({"name": text, "claims": [claim], "waiting": [wait]})])
    harmless([lock_sheet.told({**event("lock.granted"), "data": {"names": words, "why": text}})])


@FAST
@given(
    st.lists(st.one_of(st.binary(max_size=8), TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))), max_size=8)
)
def test_no_output_of_a_job_drives_a_terminal_however_it_is_cut(pieces: list[bytes]) -> None:
    cleaner = Cleaner()
    shown = b"".join(cleaner.feed(piece) for piece in pieces) + cleaner.feed(b"", is_last=True)
    harmless(shown.decode().replace("\t", " ").split("\n"))
