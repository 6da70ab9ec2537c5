"""Faults of the machine: pids that come again, memory that runs out, processes that cannot be killed (F28 F34 F44)."""

import contextlib
import os
import signal
import time
from pathlib import Path

import faultlab
import pytest
from breaking import fork, fork_with_pid, group, in_own_pid_namespace, join, needs_root
from faultlab import WAITS, Scene, until

from agentd import process
from agentd.client import Client, ConnectionLost
from agentd.core.errors import AgentdError


@needs_root
def test_f34_pid_of_a_dead_agent_is_a_strangers_now(tmp_path: Path) -> None:
    in_own_pid_namespace(tmp_path, "test_faults_machine", "among_strangers")


def among_strangers(folder: Path) -> None:
    """Process 1 of a namespace. The stranger even leads a session of the same number as the agent did."""

    def stranger() -> None:
        os.setsid()
        signal.pause()

    def ended(pid: int) -> None:
        until(lambda: faultlab.state_of(pid) != "R")  # it may not have come to its pause yet
        assert faultlab.state_of(pid) == "S", "the stranger was signalled"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    first = fork(signal.pause)
    who = process.identity(first)
    assert who is not None
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    second = fork_with_pid(first, stranger)
    now = process.identity(second)
    assert now is not None and now["pid"] == who["pid"] and now["inode"] != who["inode"]
    print("start ticks equal:", now["start"] == who["start"])
    assert process.open_verified(who) is None
    ended(second)
    for without in ("", "cgroup"):
        with Scene(folder / (without or "cgroup"), without) as scene:
            # The daemon hangs while the agent ends: it believes it to run still, and is asked to kill it.
            id = scene.running("ready; exec sleep 1000")
            leader, daemon = scene.leader(id), scene.daemon()
            os.kill(daemon, signal.SIGSTOP)
            os.kill(leader, signal.SIGTERM)
            until(lambda scene=scene, id=id: bool(scene.record(id, "end")))
            pid = fork_with_pid(leader, stranger)
            os.kill(daemon, signal.SIGCONT)
            with contextlib.suppress(AgentdError):
                scene.client.kill([id], signal="KILL")
            scene.wait(id)
            ended(pid)
            # All of ours are dead when it ends: process 1 reaps it, and the order to kill comes after.
            lost = scene.running("ready; exec sleep 1000")
            leader = scene.leader(lost)
            for ours in (scene.zygote(), scene.keeper(lost), scene.daemon()):
                os.kill(ours, signal.SIGKILL)
            scene.client.close()
            os.kill(leader, signal.SIGTERM)
            until(lambda leader=leader: faultlab.state_of(leader) in ("", "Z"))
            while True:
                with contextlib.suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
                if faultlab.state_of(leader) == "":
                    break
            pid = fork_with_pid(leader, stranger)
            with contextlib.suppress(AgentdError):
                scene.client.kill([lost], signal="KILL")
            scene.wait(lost)
            ended(pid)
            scene.check({id: -signal.SIGTERM, lost: "lost"})


@needs_root
def test_f28_oom_kill_of_the_daemon(tmp_path: Path) -> None:
    """A real one, by a version 1 group around the daemon alone. (A keeper's is a kill -9 like any other: F21.)"""
    with Scene(tmp_path) as scene, group("memory", memory__limit_in_bytes=2 << 20) as place:
        id = scene.running(WAITS)
        daemon = scene.daemon()
        join(place, daemon)
        with contextlib.suppress(ConnectionLost), Client(scene.state, owner="lab") as other:
            while True:
                with contextlib.suppress(AgentdError):
                    other._ask_once("jobs.resolve", jobs=["x" * 1000] * 900)
        assert "oom_kill 0" not in (place / "memory.oom_control").read_text()
        scene.client.close()
        (scene.proof / "go").touch()
        scene.wait(id)
        assert scene.daemon() != daemon
        scene.check({id: 5})


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("without", ["", "cgroup"], ids=["cgroup", "sweep"])
def test_f44_agent_that_cannot_be_killed(tmp_path: Path, without: str) -> None:
    """Frozen by a version 1 freezer, a killed process stays in state D until it is thawed. Takes 30 s."""
    with Scene(tmp_path, without) as scene, group("freezer") as place:
        id = scene.running("ready; exec sleep 1000")
        leader = scene.leader(id)
        join(place, leader)
        (place / "freezer.state").write_text("FROZEN")
        until(lambda: (place / "freezer.state").read_text().strip() == "FROZEN")
        began = time.monotonic()
        scene.client.kill([id], signal="KILL")
        other = scene.delegate("exit 5")
        scene.wait(other, timeout=10)
        until(lambda: bool(scene.events("job.unkillable")), 60.0)
        assert 29.0 < time.monotonic() - began < 45.0
        (event,) = scene.events("job.unkillable")
        assert [one["pid"] for one in event["data"]["processes"]] == [leader]
        assert scene.client.job(id)["job"]["state"] == "stopping"
        (place / "freezer.state").write_text("THAWED")
        scene.wait(id)
        scene.check({id: -9, other: 5})
