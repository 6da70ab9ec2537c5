"""Faults of the agent itself: how it ends, what it leaves behind, what it does to its neighbours (F01 to F07, F27 ...).

Each test is one row of the fault table; docs/faults.md has the results.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import faultlab
import pytest
from breaking import as_ordinary_user, group, join, needs_groups, needs_root
from faultlab import Scene, state_of, until

from agentd import jobdir, process
from agentd.core.errors import Refused

ESCAPE = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "1000"])
    os._exit(0)
os.wait()
"""
"""A child that leaves the session by a double fork and ignores every polite signal (ignored signals stay so)."""
ways = pytest.mark.parametrize("without", ["", "cgroup"], ids=["cgroup", "sweep"])


@pytest.mark.timeout(120)
def test_f01_exits_at_once_200_in_parallel(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        codes = {scene.delegate(f"echo {n}; echo e{n} >&2; exit {n % 256}"): n for n in range(200)}
        scene.wait(*codes)
        for id, n in codes.items():
            assert scene.log(id) == b"%d\n" % n
            assert scene.log(id, "err") == b"e%d\n" % n
        scene.check({id: n % 256 for id, n in codes.items()})


def test_f02_killed_by_a_signal(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        numbers = {scene.running("ready; exec sleep 1000"): n for n in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)}
        for id, number in numbers.items():
            os.kill(scene.leader(id), number)
        jobs = scene.wait(*numbers)
        assert [job["wait_code"] for job in jobs] == [128 + 9, 128 + 11, 128 + 15]
        assert [job["outcome"] for job in jobs] == ["failed"] * 3
        scene.check({id: -number for id, number in numbers.items()})


def test_f05_leaves_a_background_child_that_holds_stdout(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.delegate("echo before; sleep 99 & exit 0")
        until(lambda: bool(scene.record(id, "exit")))
        recorded = scene.record(id, "exit")["at"]
        scene.client.wait([id], until="stopping", timeout=10)
        (job,) = scene.wait(id)
        # The status at once; the child two seconds, then the ladder (a shell's background child ignores INT).
        assert recorded - scene.record(id, "agent")["started_at"] < 1.0
        assert 2.0 <= scene.record(id, "end")["at"] - recorded < 5.0
        assert [one["command"] for one in job["swept"]] == ["sleep 99"]
        (told,) = scene.events("job.completed")
        assert [one["command"] for one in told["data"]["swept"]] == ["sleep 99"]
        scene.check({id: 0})


@ways
def test_f06_an_escapee_is_gone_after_kill(tmp_path: Path, without: str) -> None:
    with Scene(tmp_path, without) as scene:
        id = scene.running(f"$PYTHON -c '{ESCAPE}'; ready; exec sleep 1000")
        until(lambda: len(scene.agents()) == 2)
        scene.client.kill([id], grace=0.3)
        (job,) = scene.wait(id)
        assert job["outcome"] == "killed"
        assert "sleep 1000" in [one["command"] for one in job["swept"]]
        scene.check({id: -signal.SIGINT})


@ways
def test_f06_an_escapee_is_gone_after_the_leaders_exit(tmp_path: Path, without: str) -> None:
    with Scene(tmp_path, without) as scene:
        id = scene.delegate(f"$PYTHON -c '{ESCAPE}'; exit 5")
        (job,) = scene.wait(id)
        assert [one["command"] for one in job["swept"]] == ["sleep 1000"]
        scene.check({id: 5})


@ways
def test_f06_an_escapee_stays_when_it_is_let_go(tmp_path: Path, without: str) -> None:
    with Scene(tmp_path, without) as scene:
        id = scene.delegate(f"$PYTHON -c '{ESCAPE}'; exit 0", leave=["sleep"])
        (job,) = scene.wait(id)
        assert job["swept"] == []
        assert [one["command"] for one in job["left"]] == ["sleep 1000"]
        (escapee,) = scene.agents()
        assert escapee == job["left"][0]["pid"]
        os.kill(escapee, signal.SIGKILL)
        until(lambda: not scene.agents())
        scene.check({id: 0})


@ways
def test_f07_ignores_int_and_term(tmp_path: Path, without: str) -> None:
    with Scene(tmp_path, without) as scene:
        id = scene.running("trap '' INT TERM; ready; while :; do sleep 1000; done")
        began = time.monotonic()
        scene.client.kill([id], grace=1.5)
        (job,) = scene.wait(id)
        assert 1.4 < time.monotonic() - began < 1.5 + faultlab.ENOUGH_S
        assert (job["outcome"], job["reason"]) == ("killed", "killed")
        scene.check({id: -signal.SIGKILL})


def test_f25_keeper_killed_while_its_agent_is_stopped(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running("ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo went; exit 4")
        scene.client.wait([id], until="running", timeout=10)
        leader = scene.leader(id)
        scene.client.kill([id], signal="STOP")
        scene.client.wait([id], until="stopped", timeout=10)
        keeper = scene.keeper(id)
        os.kill(keeper, signal.SIGKILL)
        until(lambda: scene.keeper(id) != keeper)
        assert state_of(leader) == "T"
        scene.client.kill([id], signal="CONT")
        (scene.proof / "go").touch()
        scene.wait(id)
        assert scene.log(id) == b"went\n"
        scene.check({id: 4})


GREEDY = "$PYTHON -c 'b = bytearray(200 << 20)'"


@needs_groups
def test_f27_out_of_memory_as_a_control_group_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version 2 memory controller is not mounted everywhere: a fixture's files stand in for the group's."""
    groups = tmp_path / "groups"
    groups.mkdir()
    monkeypatch.setenv("AGENTD_CGROUP_HOME", str(groups))
    with Scene(tmp_path) as scene:
        id = scene.running("ready; exec sleep 1000", memory=48 << 20)
        other = scene.running("ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done")
        place = Path(scene.record(id, "agent")["cgroup"])
        assert (place / "memory.max").read_text() == str(48 << 20)
        assert int((place / "cgroup.procs").read_text()) == scene.leader(id)
        (place / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
        os.kill(scene.leader(id), signal.SIGKILL)
        (job,) = scene.wait(id)
        assert (job["outcome"], job["reason"], job["signal"]) == ("failed", "out of memory", 9)
        (scene.proof / "go").touch()
        scene.wait(other)
        scene.check({id: -9, other: 0})


def test_f27_a_ceiling_without_control_groups(tmp_path: Path) -> None:
    """RLIMIT_AS is the ceiling where no group can be had: the agent is refused the memory, and others are not."""
    with Scene(tmp_path, "cgroup") as scene:
        greedy = scene.delegate(GREEDY, memory=100 << 20)
        modest = scene.delegate(GREEDY, memory=1 << 30)
        scene.wait(greedy, modest)
        assert b"MemoryError" in scene.log(greedy, "err")
        assert scene.record(greedy, "agent")["ceilings"] == {"cgroup": False, "by_rlimit": ["memory"]}
        scene.check({greedy: 1, modest: 0})


@needs_root
def test_f27_the_kernels_own_oom_kill(tmp_path: Path) -> None:
    """A real one, by a version 1 group that the test makes: for agentd a SIGKILL like any other, and said so."""
    with group("memory", memory__limit_in_bytes=48 << 20) as place, Scene(tmp_path) as scene:
        id = scene.running(f"ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; exec {GREEDY}")
        other = scene.running("ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; exit 6")
        join(place, scene.leader(id))
        (scene.proof / "go").touch()
        scene.wait(id, other)
        assert "oom_kill 1" in (place / "memory.oom_control").read_text()
        scene.check({id: -9, other: 6})


def test_f49_wrong_commands(tmp_path: Path) -> None:
    script = tmp_path / "not-executable"
    script.write_text("#!/bin/sh\n")
    with Scene(tmp_path) as scene:
        argvs = {
            ("/nowhere/at-all",): 127,
            ("no-such-program-here",): 127,
            (str(script),): 126,
            (str(tmp_path),): 126,
            ("/bin/sh", "-c", "x" * (200 << 10)): 126,  # E2BIG: one word is longer than the kernel takes
        }
        for argv, code in argvs.items():
            environment = scene.environment() | {"PATH": "/usr/bin:/bin"}  # each a folder that all may look into
            given = scene.client.delegate(argv, environment=environment, cwd=str(tmp_path), in_place=True)
            (job,) = scene.wait(given["id"])
            assert (job["outcome"], job["wait_code"]) == ("unstarted", code), job
            assert job["reason"] and job["pid"] is None and job["signal"] is None
            record = scene.record(given["id"], "exit")
            assert record["errno"], record
            assert record["at"] - scene.record(given["id"], "agent")["started_at"] < 1.0
            assert job["attempt"] == 1  # nothing is tried again
        with pytest.raises(Refused, match="no such folder"):
            scene.delegate("true", cwd=str(tmp_path / "nowhere"))
        scene.check({id: "unstarted" for id in range(1, 1 + len(argvs))})


def test_f52_no_descriptor_leaks_into_the_agent(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        others = [scene.running("ready; exec sleep 1000", input=n == 0) for n in range(3)]
        id = scene.running("ready; exec sleep 1000", input=True)
        path = scene.attempt(id)
        folder = f"/proc/{scene.leader(id)}/fd"
        open_files = {int(fd): os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
        assert open_files.pop(0).startswith("pipe:")
        assert [open_files.pop(1), open_files.pop(2)] == [f"{path}/out.fifo", f"{path}/err.fifo"]
        assert sorted(open_files.values()) == sorted([f"{path}/life.lock", f"{path}/out.fifo", f"{path}/err.fifo"])
        assert process.byte_held(f"{path}/life.lock", 1)
        scene.client.kill([id, *others], signal="KILL")
        scene.wait(id, *others)
        scene.check(dict.fromkeys([id, *others], -9))


def test_f56_reads_stdin_when_there_is_none(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.delegate("cat; echo eof; if read line </dev/tty; then exit 1; fi 2>/dev/null; exit 0")
        (job,) = scene.wait(id, timeout=20)
        assert scene.log(id) == b"eof\n"
        assert job["outcome"] == "succeeded"
        assert scene.events("job.stopped") == []  # no SIGTTIN
        scene.check({id: 0})


BOMB = """
import os, time
open(os.environ["PROOF"] + "/ready." + os.environ["AGENTD_JOB"], "w").close()
def burn():
    # Always another pid: each process forks its successor and ends, out of its session.
    for generation in range(800):
        if generation == 50:
            open(os.environ["PROOF"] + "/burning", "w").close()
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(0.003)
    os._exit(0)
for _ in range(12):
    if os.fork() == 0:
        burn()
while True:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    time.sleep(0.01)
"""
"""Bounded, as the machine is shared and has 32768 pids: 12 at any moment, none for longer than 3 ms, and all of it
is over after 9600, whoever fails to end it."""


@ways
def test_f57_fork_bomb_is_ended(tmp_path: Path, without: str) -> None:
    """With cgroup.kill, and without by the sweep that stops what it sees until there is nothing new."""
    (tmp_path / "bomb.py").write_text(BOMB)
    with Scene(tmp_path, without) as scene:
        id = scene.running(f"exec $PYTHON {tmp_path}/bomb.py")
        until((scene.proof / "burning").exists)
        began = time.monotonic()
        assert scene.client.ask("daemon.status")["jobs"]["running"] == 1
        assert time.monotonic() - began < 2.0
        scene.client.kill([id], signal="KILL")
        scene.wait(id)
        scene.check({id: -9})


def test_f57_a_ceiling_of_processes_as_an_ordinary_user() -> None:
    """RLIMIT_NPROC counts a user's processes and is void for root: root runs this as a uid that nobody has."""
    as_ordinary_user("test_faults_agent", "below_a_ceiling")


def below_a_ceiling(folder: Path) -> None:
    mine = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError):
            mine += os.stat(f"/proc/{pid}").st_uid == os.getuid()
    bomb = "i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; exit 0"
    with Scene(folder, "cgroup") as scene:
        id = scene.delegate(bomb, processes=mine + 40)
        until(lambda: bool(scene.record(id, "exit")))
        assert len(scene.agents()) <= 40
        began = time.monotonic()
        scene.client.ask("daemon.status")
        assert time.monotonic() - began < 2.0
        (job,) = scene.wait(id)
        assert job["exit_code"] != 0  # the shell could not fork
        assert b"fork" in scene.log(id, "err").lower()
        assert scene.record(id, "agent")["ceilings"]["by_rlimit"] == ["processes"]
        assert jobdir.size(scene.attempt(id), "out") == 0
        scene.check({id: job["exit_code"]})
