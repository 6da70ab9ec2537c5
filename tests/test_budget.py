"""What a transcript tells, and what it costs: also if somebody else has written into it. Pure, but for the file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agentd.budget import Spending, silent_for
from agentd.core.job import Progress
from agentd.daemon import transcripts

RATES = {"input": 1.0, "output": 10.0, "cache_read": 0.1, "cache_write": 1.0}
ANSWER = {"type": "assistant", "at": 1.0, "usage": {"input_tokens": 100, "output_tokens": 10}}
NOT_OURS: list[bytes] = [
    b"no JSON",
    b"\xff\xfe",
    b"[" * 100_000,
    b"[]",
    b'"usage"',
    b"{}",
    b'{"type": 5, "usage": {"output_tokens": "many"}}',
    b'{"type": "assistant", "usage": {"output_tokens": 1e999}}',
    b'{"type": "assistant", "usage": {"output_tokens": [1]}}',
    b'{"type": ["note"]}',
    b'{"type": "note"}',
    b'{"type": "note", "text": 5, "at": 1.0}',
    b'{"type": "call", "tool": "bash", "input": "ls"}',
    b'{"type": "question", "id": 5, "text": "x", "at": 1.0}',
    b'{"type": "question", "id": "q1", "text": "x", "options": [1], "at": 1.0}',
    b'{"type": "question", "id": "q1", "text": "x", "at": 1e300}',
    b'{"type": "question", "id": "q1", "text": "x", "at": "now"}',
    b'{"type": "waiting"}',
    b'{"type": "parked", "why": [], "until": 2.0}',
    b'{"type": "parked", "why": "x", "until": NaN}',
    b'{"type": "consumed"}',
]


def written(path: Path, *lines: bytes) -> str:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize("line", NOT_OURS, ids=range(len(NOT_OURS)))
def test_what_is_no_record_of_a_runners_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "transcript.ndjson", as_line(ANSWER), line, as_line(ANSWER))
    records, offset = transcripts.read(path, 0)
    assert offset == (tmp_path / "transcript.ndjson").stat().st_size
    progress, told = transcripts.after(Progress(), records, RATES)
    assert progress == Progress(turns=2, tokens=220, cost=progress.cost) and progress.cost == pytest.approx(4e-4)
    assert [one.type for one in told] == ["job.progress"]
    spending = Spending(path, {"turns": 2}, RATES)
    spending.look()
    assert spending.spent == {"turns": 2, "tokens": 220, "cost": pytest.approx(4e-4)}
    assert spending.exceeded() == "turns"


def test_nobody_wins_back_what_is_spent(tmp_path: Path) -> None:
    back = {"type": "assistant", "usage": {"input_tokens": -1000, "output_tokens": -1000}}
    path = written(tmp_path / "transcript.ndjson", as_line(ANSWER), as_line(back))
    spending = Spending(path, {"tokens": 110}, RATES)
    spending.look()
    assert spending.spent["tokens"] == 110 and spending.exceeded() == "tokens"


@pytest.mark.parametrize("kind", ["nothing", "a pipe", "a folder"])
def test_what_is_no_file_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "transcript.ndjson"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    assert transcripts.read(str(path), 0) == ([], 0)
    spending = Spending(str(path), {"turns": 1}, RATES)
    spending.look()
    assert spending.exceeded() is None


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "transcript.ndjson"
    whole, half = as_line(ANSWER) + b"\n", as_line(ANSWER)[:20]
    path.write_bytes(whole + half)
    spending = Spending(str(path), {}, RATES, before={"turns": 3, "tokens": 5, "cost": None})
    spending.look()
    assert spending.spent["turns"] == 4 and transcripts.read(str(path), 0)[1] == len(whole)
    path.write_bytes(whole * 2)
    spending.look()
    assert (spending.spent["turns"], spending.spent["tokens"]) == (5, 225)
    assert len(transcripts.read(str(path), len(whole))[0]) == 1


def test_of_each_limit_one_warning_at_four_fifths(tmp_path: Path) -> None:
    path = written(tmp_path / "transcript.ndjson", *[as_line(ANSWER)] * 8)
    spending = Spending(path, {"turns": 10, "cost": 100.0}, RATES)
    spending.look()
    warning = spending.warning()
    assert warning is not None and warning.startswith("8 of 10 turns are used up.")
    assert spending.warning() is None


def test_turns_that_nobody_can_see_are_not_spent_on(tmp_path: Path) -> None:
    path = written(tmp_path / "transcript.ndjson", *[as_line(ANSWER)] * 3)
    limited, unlimited = Spending(path, {"turns": 10}, RATES), Spending(path, {}, RATES)
    limited.look()
    assert limited.exceeded(turn=4) is None
    assert limited.exceeded(turn=5) == "spending: its transcript lacks turns"
    assert unlimited.exceeded(turn=5) is None


def test_an_agent_that_waits_or_is_parked_is_not_silent(tmp_path: Path) -> None:
    records = [ANSWER, {"type": "parked", "why": "429", "until": 2.0}, {"type": "running"}, {"type": "waiting"}]
    lines = [json.dumps(record, separators=(",", ":")).encode() for record in records]
    for count, is_resting in enumerate((False, True, False, True), 1):
        path = written(tmp_path / "transcript.ndjson", *lines[:count])
        os.utime(path, (1e9, 1e9))
        assert (silent_for(path) == 0.0) is is_resting
    assert silent_for(str(tmp_path / "none")) == float("inf")
