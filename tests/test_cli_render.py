"""What people are shown: pure functions."""

from typing import Any

import pytest

from agentd.cli import profiles, render, verbs


def view(**changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "id": 7,
        "name": "fix",
        "state": "running",
        "outcome": None,
        "agent": "command",
        "task": "",
        "argv": ["sleep", "3"],
        "progress": None,
        "number": 1,
        "pid": 25400,
        "exit_code": None,
        "signal": None,
        "reason": None,
        "waiting": None,
        "created_at": "2026-01-01T00:00:00.000Z",
        "started_at": "2026-01-01T00:00:01.000Z",
        "ended_at": None,
        "again_at": None,
        "result": None,
        "worktree": None,
    }
    return job | changes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;aGk=\x1b\\x", "x"),
        ("\x9b31mx", "x"),
        ("a\rb\x00", "a\\x0db\\x00"),
        ("line\r\n", "line\n"),
        ("\x1b]0;never closed\nnext", "0;never closed\nnext"),
        ("a\u202eb\u200bc", "a\\u202eb\\u200bc"),
        ("\udcff", "\\udcff"),
        ("Ünïcode 漢字", "Ünïcode 漢字"),
    ],
)
def test_clean_leaves_nothing_that_drives_a_terminal(text: str, shown: str) -> None:
    assert render.clean(text) == shown


def test_a_long_run_of_openers_is_not_quadratic() -> None:
    assert len(render.clean("\x9d" * 100_000)) == 400_000


def test_a_line_stays_one_line() -> None:
    assert render.one_line(" a\n  b\tc\x1b[1m ") == "a b c\\x1b[1m"
    assert render.one_line("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (59.9, "59s"), (184, "3m04s"), (7500, "2h05m"), (356400, "4d03h")]
)
def test_spans(seconds: float, shown: str) -> None:
    assert render.span(seconds) == shown


def test_a_table_is_aligned_by_what_a_terminal_shows_and_cut_only_for_one() -> None:
    rows = [["1", "漢字", "a long task"], ["22", "b", "short"]]
    assert render.table(("ID", "NAME", "TASK"), rows) == [
        "ID  NAME  TASK",
        "1   漢字  a long task",
        "22  b     short",
    ]
    assert render.table(("ID", "NAME", "TASK"), rows, 20)[1] == "1   漢字  a long ta…"


def agent(id: int, **more: Any) -> dict[str, Any]:
    progress = {"turns": 12, "tokens": 3, "cost": 0.25, "doing": "bash: make test", "question": None} | more
    return view(id=id, name="mend-the-parser-of-dates", agent="builtin", task="mend it", progress=progress)


def test_ps_shows_what_agents_do_and_leaves_out_what_a_narrow_terminal_has_no_room_for() -> None:
    asks = {"id": "q1", "text": "Which\none?", "options": ["a", "b"]}
    jobs = [agent(1), agent(2, question=asks, cost=None) | {"state": "waiting", "waiting": "Which\none?"}]
    parked = agent(3) | {"state": "parked", "waiting": "overloaded, until noon"}
    assert [line.split("  ")[-1].strip() for line in render.job_table([*jobs, parked], 0.0)] == [
        *["TASK", "bash: make test", "asks: Which one? (1: a; 2: b)", "overloaded, until noon"]
    ]
    header = ["ID", "NAME", "STATE", "AGENT", "TIME", "EXIT", "TURNS", "COST", "TASK"]
    wide = render.job_table(jobs, 0.0)
    assert wide[0].split() == header and "  12     $0.2500  " in wide[1] and "  12     ?        " in wide[2]
    assert "TURNS" not in render.job_table([view()], 0.0)[0]
    before = len(header)
    for width in range(110, 35, -1):
        lines = render.job_table(jobs, 0.0, width)
        assert all(render.columns_of(line) <= width for line in lines), (width, lines)
        columns = lines[0].split()
        assert columns == [name for name in header if name in columns] and len(columns) <= before
        assert {"ID", "NAME", "STATE", "TASK"} <= set(columns)
        before = len(columns)


def test_who_waits_for_an_agent_that_failed_hears_where_it_says_why() -> None:
    failed = agent(4) | {"state": "done", "outcome": "failed", "exit_code": 1}
    assert render.outcome_sentence(failed) == f"job 4 ({failed['name']}) failed; what it says of it: agentd result 4"
    assert render.outcome_sentence(failed | {"progress": None}) is None


def test_a_profile_whose_key_is_missing_says_so_in_a_narrow_terminal() -> None:
    basis = {"name": "local", "is_default": False, "model": "my-model", "endpoint": "http://127.0.0.1:18733"}
    profile = basis | {"limits": {"turns": 100, "tokens": 0, "cost": 0}, "price_known": False}
    profile |= {"key": {"env": "ANTHROPIC_API_KEY", "file": None, "found": False}}
    narrow = profiles.table([profile], 80)
    assert narrow[2] == "    key: ANTHROPIC_API_KEY, not there"
    assert max(map(len, narrow)) <= 80
    assert profiles.table([profile], None)[1].endswith("ANTHROPIC_API_KEY, not there")


def test_no_line_of_a_text_begins_at_the_left_edge() -> None:
    assert render.indented("one\ttwo\n\x1b[2Jthree", "  ", None) == ["  one two", "  three"]
    assert render.indented("a long line of words", "  ", 14) == ["  a long line", "  of words"]
    for text in ("漢字" * 40, "x" * 99, "e\u0301" * 60, " " * 50 + "end", "\u202e" * 30):
        assert all(render.columns_of(line) <= 20 and line.startswith("  ") for line in render.indented(text, "  ", 20))


@pytest.mark.parametrize(
    ("job", "mark", "with_pid", "line"),
    [
        (view(), "-", False, "[1]-  Running                 sleep 3 &"),
        (view(progress={"turns": 1}, task="fix it"), "-", False, "[1]-  Running                 fix it &"),
        (view(state="stopped"), "+", False, "[1]+  Stopped                 sleep 3"),
        (view(), "-", True, "[1]- 25400 Running                 sleep 3 &"),
        (view(state="done", outcome="failed", exit_code=7), "", False, "[1]   Exit 7                  sleep 3"),
        (view(state="done", outcome="killed", signal=9), "", False, "[1]   Killed                  sleep 3"),
        (view(state="done", outcome="killed", exit_code=0), "", False, "[1]   Killed                  sleep 3"),
        (view(state="done", outcome="timed_out", exit_code=0), "", False, "[1]   Timed out               sleep 3"),
        (view(state="done", outcome="succeeded", exit_code=0), "+", False, "[1]+  Done                    sleep 3"),
    ],
)
def test_jobs_in_the_forms_of_bash(job: dict[str, Any], mark: str, with_pid: bool, line: str) -> None:
    assert render.bash_line(job, mark, with_pid) == line


def test_the_current_job_is_the_last_stopped_else_the_last_started() -> None:
    jobs = [
        view(id=1, started_at="2026-01-01T00:00:03.000Z"),
        view(id=2, state="stopped"),
        view(id=3, state="done", started_at="2026-01-01T00:00:09.000Z"),
    ]
    assert render.bash_marks(jobs) == {2: "+", 1: "-"}


def test_what_a_dirty_tree_keeps_from_a_job() -> None:
    found = {"modified": 3, "untracked": 2, "examples": ["a.py", "b\x1b[31m"]}
    assert render.excluded_sentence(7, found) == (
        "3 modified, 2 untracked files in your tree are not in job 7: a.py, b\\x1b[31m, …; use --with-changes"
    )


@pytest.mark.parametrize(
    ("words", "is_json"),
    [
        (["ps", "--json"], True),
        (["delegate", "x", "--", "ls", "--json"], False),
        (["run", "ls", "--json"], False),
        (["run", "-d", "--json", "ls"], True),
        (["run", "--name", "x", "--json", "ls"], True),
        (["run", "-e", "A=1", "ls", "--json"], False),
        (["run", "--timeout=5", "ls", "--json"], False),
    ],
)
def test_whose_json_it_is(words: list[str], is_json: bool) -> None:
    assert verbs.wants_json(words) is is_json
