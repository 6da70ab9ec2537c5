"""fg, bg, stop, cont, and the keys that give the prompt back: on bare PTYs."""

import json
import os
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import pytest
from clishell import Shell
from terminals import Terminal

COUNTS = "echo ready; while [ ! -e go ]; do sleep 0.05; done; echo done; exit 6"
CTRL_B, CTRL_C, CTRL_Z = b"\x02", b"\x03", b"\x1a"


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("AGENTD_OWNER", "me")
    for shell in clishell.serve(tmp_path, monkeypatch):
        monkeypatch.chdir(shell.cwd)
        yield shell


def state(agentd: Shell, ref: str = "%+") -> str:
    return str(agentd.json("inspect", "--json", ref)["job"]["state"])


def leader_state(agentd: Shell, id: str) -> str:
    return faultlab.state_of(agentd.record(id, "agent.json")["agent"]["pid"])


# --- stop and cont ------------------------------------------------------------------------------------------


def test_stop_and_cont_are_for_the_whole_tree(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", "sleep 1000 & echo $!; wait")
    faultlab.until(lambda: agentd("logs", id).out.endswith("\n"), 60.0)
    child = int(agentd.ok("logs", id))
    assert agentd("stop", id) == (0, "", "")
    assert state(agentd, id) == "stopped"
    assert agentd.ok("jobs") == "[1]+  Stopped                 sh -c sleep 1000 & echo $!; wait\n"
    faultlab.until(lambda: faultlab.state_of(child) == leader_state(agentd, id) == "T")
    assert agentd("stop", id) == (0, "", f"agentd: job {id} is stopped already\n")
    assert agentd("cont", id) == (0, "", "")
    assert state(agentd, id) == "running"
    faultlab.until(lambda: "T" not in faultlab.state_of(child) + leader_state(agentd, id))
    assert agentd("cont", id) == (0, "", f"agentd: job {id} is running already\n")


def test_bg_is_for_what_is_stopped(agentd: Shell) -> None:
    id = agentd.job("sleep", "1000")
    agentd.ok("stop", id)
    assert agentd("bg") == (0, "[1]+ sleep 1000 &\n", "")
    assert agentd("bg", id) == (1, "", f"agentd: job {id} is not stopped: it is running\n")
    assert agentd("bg", "99").code == 1
    agentd.ok("kill", "-9", id)
    for verb in ("stop", "cont", "bg", "fg"):
        said = agentd(verb, id)
        assert said.code == 1 and f"agentd: job {id} has already ended" in said.err, said
    assert agentd("stop").code == agentd("cont").code == 2


def test_json_tells_each_jobs_answer(agentd: Shell) -> None:
    id = agentd.job("sleep", "1000")
    answers = agentd("stop", "--json", id, "99")
    found, missing = json.loads(answers.out)
    assert (found["id"], found["state"], found["ok"]) == (int(id), "stopped", True)
    assert (missing["id"], missing["ok"], missing["code"]) == (99, False, "unknown_job")
    assert answers.code == 1


def test_time_limits_wait_while_it_is_stopped(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", "echo ready; sleep 1000", flags=["--timeout", "4s"])
    faultlab.until(lambda: agentd("logs", id).out == "ready\n", 60.0)
    agentd.ok("stop", id)
    agentd.ok("run", "sleep", "6")
    assert state(agentd, id) == "stopped"
    agentd.ok("cont", id)
    assert agentd("wait", id).code == 124


def test_who_is_stopped_stays_so_when_its_keeper_is_killed_and_goes_on_with_the_next(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", COUNTS, flags=["-t"])
    faultlab.until(lambda: "ready" in agentd("logs", id).out, 60.0)
    agentd.ok("stop", id)
    os.kill(agentd.record(id, "agent.json")["keeper"], signal.SIGKILL)
    agentd.ok("cont", id)
    assert state(agentd, id) == "running"
    (agentd.cwd / "go").touch()
    assert agentd("wait", id).code == 6


# --- run in the foreground ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["-t"]])
def test_ctrl_z_stops_bg_goes_on_fg_brings_it_back(agentd: Shell, flags: list[str]) -> None:
    with Terminal() as terminal:
        terminal.start("run", *flags, "sh", "-c", COUNTS).until(b"ready")
        terminal.type(CTRL_Z)
        assert terminal.finish() == 148
        assert b"[1]+  Stopped                 sh -c echo ready;" in terminal.seen
        assert termios.tcgetattr(terminal.theirs) == terminal.modes
    assert state(agentd) == "stopped"
    assert agentd("bg").code == 0
    assert state(agentd) == "running"
    with Terminal() as terminal:
        terminal.start("fg").until(b"sh -c echo ready;")
        until_in_front(agentd, terminal)
        (agentd.cwd / "go").touch()
        terminal.until(b"done")
        assert terminal.finish() == 6
        assert termios.tcgetattr(terminal.theirs) == terminal.modes


def until_in_front(agentd: Shell, terminal: Terminal) -> None:
    """Until it has changed the terminal's modes, which comes last."""
    faultlab.until(lambda: termios.tcgetattr(terminal.theirs) != terminal.modes, 60.0)


@pytest.mark.parametrize("flags", [[], ["-t"]])
def test_ctrl_b_lets_it_run_on(agentd: Shell, flags: list[str]) -> None:
    with Terminal() as terminal:
        terminal.start("run", *flags, "sh", "-c", COUNTS).until(b"ready")
        terminal.type(CTRL_B)
        assert terminal.finish() == 0
        assert b"[1]+ sh -c echo ready;" in terminal.seen
        assert b"agentd fg 1 brings it back" in terminal.seen
        assert termios.tcgetattr(terminal.theirs) == terminal.modes
    assert state(agentd) == "running"
    (agentd.cwd / "go").touch()
    assert agentd("wait", "1").code == 6


@pytest.mark.parametrize("flags", [[], ["-t"]])
def test_fg_lets_a_stopped_job_go_on(agentd: Shell, flags: list[str]) -> None:
    id = agentd.job("sh", "-c", COUNTS, flags=flags)
    faultlab.until(lambda: "ready" in agentd("logs", id).out, 60.0)
    agentd.ok("stop", id)
    with Terminal() as terminal:
        terminal.start("fg", "%1")
        until_in_front(agentd, terminal)
        faultlab.until(lambda: state(agentd, id) == "running", 60.0)
        terminal.type(CTRL_Z)
        assert terminal.finish() == 148
    assert state(agentd, id) == "stopped"


def test_ctrl_c_in_fg_is_the_jobs(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", "trap 'exit 8' INT; echo ready; while :; do sleep 0.05; done")
    faultlab.until(lambda: "ready" in agentd("logs", id).out, 60.0)
    with Terminal() as terminal:
        terminal.start("fg", id)
        until_in_front(agentd, terminal)
        terminal.type(CTRL_C)
        assert terminal.finish() == 8


def test_what_is_typed_ahead_is_left_for_the_shell(agentd: Shell) -> None:
    with Terminal() as terminal:
        terminal.start("run", "sh", "-c", COUNTS).until(b"ready")
        terminal.type(b"next command\n")
        terminal.until(b"next command")
        (agentd.cwd / "go").touch()
        assert terminal.finish() == 6
        assert os.read(terminal.theirs, 100) == b"next command\n"


def test_where_no_terminal_is_nothing_changes(agentd: Shell) -> None:
    running = agentd.start("run", "sh", "-c", COUNTS, group=0)
    running.until(b"ready")
    running.process.send_signal(signal.SIGTSTP)
    faultlab.until(lambda: faultlab.state_of(running.process.pid) == "T")
    assert state(agentd) == "running"
    running.process.send_signal(signal.SIGCONT)
    (agentd.cwd / "go").touch()
    assert running.finish().code == 6


def test_fg_of_a_job_with_a_terminal_needs_one(agentd: Shell) -> None:
    id = agentd.job("sleep", "1000", flags=["-t"])
    said = agentd("fg", id)
    assert said.code == 2 and "needs a terminal" in said.err
    assert agentd("fg", "nobody").code == 1
