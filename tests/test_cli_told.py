"""What a person is told unasked: readers that are new, processes that were ended, settings that are wrong, and the
ways to ask for less."""

import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clishell
import gitrepo
import pytest
from clishell import Running, Shell
from test_cli_render import view

from agentd.cli import render
from agentd.cli.event_sheet import event_line
from agentd.core.ladder import ladder
from agentd.follow import Reader


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


# --- events ---------------------------------------------------------------------------------------------------


def test_a_new_reader_is_told_so_and_can_be_forgotten(agentd: Shell) -> None:
    assert agentd("events", "--as", "me") == (0, "", 'agentd: "me" is new: it begins here\n')
    assert agentd("events", "--as", "me") == (0, "", "")
    assert agentd("events", "--as", "mee").err == 'agentd: "mee" is new: it begins here; there are: me\n'
    assert agentd("events", "--as", "old", "--since", "0", "-q").err == ""
    assert agentd("events", "--forget", "mee") == (0, "", "")
    assert agentd.json("events", "--forget", "old", "--json")["name"] == "old"
    assert agentd("events", "--forget", "mee") == (1, "", 'agentd: there is no reader "mee"; there are: me\n')
    retired = [json.loads(line) for line in agentd.ok("events", "--json", "--type", "subscriber.*").splitlines()]
    assert [event["data"]["name"] for event in retired] == ["mee", "old"]
    agentd.ok("daemon", "restart", "-q")
    assert [one["name"] for one in agentd.json("daemon", "status", "--json")["subscribers"]] == ["me"]


def test_events_of_one_job_or_kind(agentd: Shell) -> None:
    agentd("run", "--name", "one", "true")
    agentd("run", "sh", "-c", "exit 3")
    ends = [json.loads(line) for line in agentd.ok("events", "--json", "--type", "job.completed").splitlines()]
    assert [event["job"] for event in ends] == [1, 2]
    both = agentd.ok("events", "--json", "--job", "one", "--type", "job.c*", "--type", "job.started").splitlines()
    told = [(json.loads(line)["job"], json.loads(line)["type"]) for line in both]
    assert told == [(1, "job.created"), (1, "job.started"), (1, "job.completed")]
    assert agentd("events", "--job", "99").code == 1


def test_an_event_says_how_it_ended_first() -> None:
    data = {"name": "fix", "owner": "me", "outcome": "failed", "exit_code": 3, "log_whole": True}
    event = {"seq": 8, "at": "2026-01-31T12:00:01.123Z", "job": 7, "attempt": 1, "type": "job.completed", "data": data}
    facts = "outcome=failed exit_code=3 name=fix owner=me log_whole=True"
    assert event_line(event) == f"     8  2026-01-31T12:00:01.123Z  job 7     job.completed      {facts}"


# --- ps -------------------------------------------------------------------------------------------------------


def test_a_narrow_terminal_has_room_for_the_task() -> None:
    job = view(name="a" * 40, result=None, worktree=None, merged=None)
    head, row = render.job_table([job], 0.0, 80)
    assert head.split() == ["ID", "NAME", "STATE", "TIME", "EXIT", "TASK"]
    assert row.startswith(f"7   {'a' * 19}…  running") and row.endswith("sleep 3")
    assert "a" * 40 in render.job_table([job], 0.0)[1]
    assert "AGENT" in render.job_table([job, job | {"agent": "codex"}], 0.0)[0]


# --- wait, run, kill ------------------------------------------------------------------------------------------


def test_wait_for_ones_own(agentd: Shell) -> None:
    agentd.job("sleep", "1000", flags=["--owner", "you"])
    assert agentd("wait", "--mine", AGENTD_OWNER="me") == (0, "", "")
    none = "agentd: there is no job of yours to wait for; agentd ps --all lists those that have ended\n"
    assert agentd("wait", "-n", "--mine", AGENTD_OWNER="me") == (127, "", none)
    agentd.job("sh", "-c", "sleep 0.5; exit 4", flags=["--owner", "me"])
    assert agentd("wait", "-n", "--mine", "--print", AGENTD_OWNER="me") == (4, "2\n", "")


def test_what_a_job_left_behind_is_told(agentd: Shell) -> None:
    script = "sleep 1000 & sleep 1000 & exit 3"
    told = "2 processes it left behind were ended: sleep 1000, sleep 1000; --leave PATTERN keeps such"
    assert agentd("run", "sh", "-c", script) == (3, "", f"agentd: job 1 (sh): {told}\n")
    assert agentd("wait", "1") == (3, "", f"agentd: job 1 (sh): {told}\n")
    assert agentd("wait", "-q", "1") == (3, "", "")
    killed = view(outcome="killed", swept=[{"pid": 1, "command": "x"}])
    assert render.swept_sentence(killed) is None


def said_on_stderr(verb: Running) -> str:
    assert verb.process.stderr is not None
    assert select.select([verb.process.stderr], [], [], clishell.PATIENCE_S)[0]
    return os.read(verb.process.stderr.fileno(), 1 << 16).decode()


def test_a_kill_that_takes_long_says_what_follows(agentd: Shell) -> None:
    job = agentd.start("run", "sh", "-c", "trap '' INT TERM; echo up; while :; do sleep 0.2; done")
    job.until(b"up\n")
    killing = agentd.start("kill", "1")
    told = "agentd: job 1 is still there; TERM follows in 3 s, KILL in 13 s; at once: agentd kill -9 1\n"
    assert said_on_stderr(killing) == told
    assert agentd("kill", "-9", "1").code == 0
    assert killing.finish().code == 0 and job.finish().code == 137


def test_the_ladder() -> None:
    assert ladder(None, None) == (("INT", 0.0), ("TERM", 5.0), ("KILL", 15.0))
    assert ladder(None, 3.0) == (("INT", 0.0), ("TERM", 1.0), ("KILL", 3.0))
    assert ladder("HUP", None) == (("HUP", 0.0), ("KILL", 10.0))
    assert ladder("KILL", 5.0) == (("KILL", 0.0),)


# --- delegate, logs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--timeout", "5", "minutes"], "5m"),
        (["--idle-timeout", "2", "h"], "2h"),
        (["--timeout", "90s", "Seconds"], "90s"),
    ],
)
def test_half_of_a_time_is_no_task(agentd: Shell, tmp_path: Path, words: list[str], right: str) -> None:
    repo = gitrepo.make_repo(tmp_path / "repo")
    said = agentd("delegate", *words, "--", "true", cwd=repo)
    assert said.code == 2 and f"A time is one word, such as {right};" in said.err
    assert agentd("delegate", "-q", "--timeout", "5", "count the minutes", "--", "true", cwd=repo).code == 0
    assert agentd("delegate", "-q", "minutes", "--", "true", cwd=repo).code == 0


def test_since_takes_what_its_help_says(agentd: Shell) -> None:
    agentd("run", "echo", "hello")
    assert agentd.ok("logs", "--since", "10m ago", "1") == agentd.ok("logs", "--since", "10m", "1") == "hello\n"
    assert agentd("logs", "--since", "ago", "1").code == agentd("logs", "--since", "10mago", "1").code == 2


def test_the_tail_of_one_long_line_costs_no_more_than_reading_it(tmp_path: Path) -> None:
    (tmp_path / "log.out.0").write_bytes(b"x" * (64 << 20))
    began = time.process_time()
    with Reader(str(tmp_path)) as reader:
        whole = sum(len(piece.data) for piece in reader.pieces())
    reading = time.process_time() - began
    began = time.process_time()
    with Reader(str(tmp_path)) as reader:
        reader.skip_to_tail(1)
    searching = time.process_time() - began
    assert whole == 64 << 20 and reader.offsets == {"out": 0, "err": 0}
    assert searching < 10 * reading + 0.5, (searching, reading)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_tail_begins_at_any_place_of_a_block(tmp_path: Path, end: str) -> None:
    lines = [f"{n:0{30_000 + n % 7}d}" for n in range(9)]
    text = "\n".join(lines) + end
    (tmp_path / "log.out.0").write_text(text)
    for count in range(11):
        with Reader(str(tmp_path)) as reader:
            reader.skip_to_tail(count)
            found = b"".join(piece.data for piece in reader.pieces()).decode()
        assert found == ("\n".join(lines[max(0, 9 - count) :]) + end if count else "")


# --- settings and the daemon ----------------------------------------------------------------------------------


def test_wrong_settings_are_a_finding_and_stop_no_daemon(agentd: Shell, tmp_path: Path) -> None:
    path = tmp_path / "agentd.toml"
    path.write_text("[trash]\ndays = 3\n\n[limits]\nqueued = 9\nruning = 2\n")
    said = agentd("doctor", "-q", AGENTD_CONFIG=str(path))
    told = f'cannot use {path}, line 6: [limits] has no key "runing"; there is running, queued'
    assert said.code == 1 and f"wrong   settings: {told}\n" in said.out
    agentd.ok("daemon", "start", "-q")
    pid = agentd.json("daemon", "status", "--json")["pid"]
    assert agentd("daemon", "restart", AGENTD_CONFIG=str(path)) == (2, "", f"agentd: {told}\n")
    assert agentd.json("daemon", "status", "--json")["pid"] == pid
    path.write_text("[limits]\nrunning = 2\n")
    checks: list[dict[str, Any]] = agentd.json("doctor", "--json", AGENTD_CONFIG=str(path))["checks"]
    assert {"check": "settings", "level": "ok", "what": f"{path} is in order", "remedy": ""} in checks


def test_a_restart_harms_neither_jobs_nor_those_who_wait(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", "read word; exit 7", flags=["-i"])
    agentd("wait", "--for", "running", id)
    waiting = agentd.start("wait", id)
    waiting.until_connected()
    before = agentd.json("daemon", "status", "--json")["pid"]
    said = agentd("daemon", "restart")
    after = agentd.json("daemon", "status", "--json")["pid"]
    assert said == (0, "", f"agentd: the daemon is running (pid {after}, version 0.1.0)\n") and after != before
    agentd.ok("send", id, "go")
    assert waiting.finish() == (7, "", "")


def test_help_and_version_have_several_spellings(agentd: Shell) -> None:
    assert agentd("help") == agentd("--help") and agentd("help", "logs") == agentd("logs", "--help")
    assert agentd("help", "daemon", "stop") == agentd("daemon", "stop", "-h")
    assert agentd("-V") == agentd("version") == agentd("--version") == (0, "agentd 0.1.0\n", "")
    assert agentd.ok("help", "delegate").startswith("Usage: agentd delegate [OPTIONS] [TASK] [-- CMD")
    assert agentd.ok("help", "rm").startswith("Usage: agentd rm [OPTIONS] [JOB")
    for verb in ("delegate", "run", "wait", "kill", "send", "undo"):
        assert "<" not in agentd.ok("help", verb)
