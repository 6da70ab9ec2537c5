"""Faults at system calls: ours killed at each of them, and what the kernel may refuse (F10 F23 F24 F38 F39)."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import faultlab
import gitrepo
import pytest
from breaking import group, join, needs_root
from faultlab import WAITS, Scene, until
from tracing import Strace, Tracer, needs_trace, needs_tracer

from agentd.core.errors import AgentdError

STEP = 1 if faultlab.is_long else 5
WORKTREE_STEP = 1 if faultlab.is_long else 25


def before(scene: Scene, name: str) -> dict[int, int | str]:
    """An end that can be acknowledged."""
    if name != "ack":
        return {}
    id = scene.delegate("exit 5")
    scene.wait(id)
    return {id: 5}


def verb(scene: Scene, name: str, top: str) -> dict[int, int | str]:
    """One of the routines, through the client, until nothing of it is owed any more; how its job must end."""
    if name == "ack":
        newest = scene.client.ask("daemon.status")["newest_seq"]
        assert scene.client.ack("reader", newest)["acked"] == newest
        assert all(event["seq"] > newest for event in scene.client.events(name="reader", follow=False))
        return {}
    how, since = 5, scene.client.ask("daemon.status")["newest_seq"]
    if name == "delegate":
        id = scene.delegate("echo out; exit 5")
    elif name == "worktree":
        id = scene.delegate("echo out; test -f src/f2.txt || exit 9; exit 5", cwd=top, in_place=False)
    elif name == "complete":
        (scene.proof / "go").unlink(missing_ok=True)
        id = scene.running(WAITS)
        (scene.proof / "go").touch()
    else:
        id, how = scene.running("ready; exec sleep 1000"), -9
        scene.client.kill([id], signal="KILL")
    scene.wait(id)
    assert scene.log(id) == (b"out\n" if name in ("delegate", "worktree") else b"")
    next(event for event in scene.client.events(since=since) if (event["type"], event["job"]) == ("job.result", id))
    return {id: how}


@needs_tracer
@pytest.mark.timeout(1800 if faultlab.is_long else 150)
@pytest.mark.parametrize("name", ["delegate", "worktree", "complete", "ack", "kill"])
def test_f10_daemon_killed_at_every_syscall(tmp_path: Path, name: str) -> None:
    """Every mutating call of the daemon, in whichever of its threads, while it carries out one request to the end."""
    top = gitrepo.make_repo(tmp_path / "repo")
    with Scene(tmp_path) as scene:
        ended = before(scene, name) | verb(scene, name, top)  # so that the threads are there
        ended |= before(scene, name)
        with Tracer(scene.daemon(), 0) as dry:
            ended |= verb(scene, name, top)
        points = range(1, len(dry.names) + 1, WORKTREE_STEP if name == "worktree" else STEP)
        kills = 0
        for nth in points:
            ended |= before(scene, name)
            daemon = scene.daemon()
            with Tracer(daemon, nth) as tracer:
                ended |= verb(scene, name, top)
            assert tracer.has_killed() == (scene.daemon() != daemon)
            kills += tracer.has_killed()
            if name == "worktree":
                faultlab.check_repository(scene, top)
        print(f"{name}: {kills} kills at {len(points)} of {len(dry.names)} calls")
        assert kills >= 0.8 * len(points)
        jobs = [job["id"] for job in scene.client.jobs(all=True)]
        assert sorted(ended) == sorted(jobs), "a job was lost, or made twice"
        scene.check(ended, told=name != "ack")


@needs_tracer
@pytest.mark.timeout(900 if faultlab.is_long else 150)
def test_f23_f24_keeper_killed_at_every_syscall(tmp_path: Path) -> None:
    """From its first mutating call to its last: lock, record, go, exec, wait, exit record, reap, end record."""
    with Scene(tmp_path) as scene:
        with Tracer(scene.zygote(), 0, next_child=True) as dry:
            id = scene.delegate("echo out; exit 5")
            scene.wait(id)
        assert len(dry.names) > 20
        ended: dict[int, int | str] = {id: 5}
        points = range(1, len(dry.names) + 1, STEP)
        kills = 0
        for nth in points:
            with Tracer(scene.zygote(), nth, next_child=True) as tracer:
                id = scene.delegate("echo out; exit 5")
                scene.wait(id)
            ended[id] = 5
            kills += tracer.has_killed()
            assert scene.log(id) == b"out\n", f"killed at call {nth}"
        print(f"{kills} kills at {len(points)} of {len(dry.names)} calls")
        assert kills >= 0.8 * len(points)
        scene.check(ended)


@needs_trace
@pytest.mark.timeout(600 if faultlab.is_long else 150)
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_f38_fsync_fails_once_in_the_daemon(tmp_path: Path, call: str) -> None:
    """What was acknowledged is there after a kill. What was refused may be: a commit whose sync failed stands in the
    journal all the same, until the next one overwrites it. Then it is a whole job, which runs once."""
    with Scene(tmp_path) as scene:
        ended: dict[int, int | str] = {}
        refused = 0
        for k in range(1, 13, 1 if faultlab.is_long else 3):
            with Strace(scene.daemon(), tmp_path, [call], f"{call}:error=EIO:when={k}"):
                for n in range(3):
                    try:
                        ended[scene.delegate(f"exit {n}")] = n
                    except AgentdError as error:
                        refused += 1
                        assert error.exit in (1, 75), error
                        assert re.search("cannot (save|be saved)", str(error)), error
                        print(f"{call} {k}: {error}")
            with contextlib.suppress(AgentdError):
                os.kill(scene.daemon(), signal.SIGKILL)
            scene.client.close()
            scene.wait(*ended)
            listed = {job["id"] for job in scene.client.jobs(all=True)}
            assert set(ended) <= listed, "a job that was acknowledged is not there"
            assert len(listed - set(ended)) <= refused
        scene.check(ended)


@needs_trace
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_f38_fsync_fails_once_in_a_keeper(tmp_path: Path, call: str) -> None:
    """The status is exact all the same, and the error stands in daemon.log."""
    with Scene(tmp_path) as scene:
        ended: dict[int, int | str] = {}
        for k in (1, 2, 3):
            (scene.proof / "go").unlink(missing_ok=True)
            id = scene.running(f"echo out; {WAITS}")
            with Strace(scene.keeper(id), tmp_path, [call], f"{call}:error=EIO:when={k}", follow=False):
                (scene.proof / "go").touch()
                scene.wait(id)
            ended[id] = 5
            assert scene.log(id) == b"out\n"
            if "EIO" in (tmp_path / "trace.out").read_text():
                assert "Input/output error" in Path(f"{scene.state}/daemon.log").read_text()
        scene.check(ended)


@needs_trace
def test_f39_no_keeper_can_be_forked(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        forks = ("clone", "clone3", "fork", "vfork")
        with Strace(scene.zygote(), tmp_path, forks, "clone,clone3,fork,vfork:error=EAGAIN", follow=False):
            id = scene.delegate("exit 5")
            (job,) = scene.wait(id)
        assert (job["outcome"], job["wait_code"]) == ("unstarted", 125)
        assert "cannot start a keeper" in job["reason"]
        scene.check({id: "unstarted"})


@needs_root
def test_f39_no_agent_can_be_forked_for_a_while(tmp_path: Path) -> None:
    """pids.max of the zygote's group lets the keeper in and not the agent. When there is room, it runs, once."""
    with Scene(tmp_path) as scene, group("pids") as place:
        join(place, scene.zygote())
        (place / "pids.max").write_text("2")
        used = faultlab.cpu_seconds(scene.zygote())
        began = time.monotonic()
        id = scene.delegate("exit 5")
        until(lambda: "Resource temporarily unavailable" in Path(f"{scene.state}/daemon.log").read_text())
        refused = re.compile(r"max ([3-9]|\d\d)")  # it is tried again and again
        until(lambda: refused.search((place / "pids.events").read_text()) is not None)
        assert scene.client.job(id)["job"]["state"] == "starting"
        print(f"zygote: {(faultlab.cpu_seconds(scene.zygote()) - used) / (time.monotonic() - began):.2f} of a CPU")
        (place / "pids.max").write_text("max")
        scene.wait(id)
        scene.check({id: 5})


@needs_root
def test_f39_the_daemon_can_make_no_thread(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene, group("pids") as place:
        daemon = scene.daemon()
        join(place, daemon)
        (place / "pids.max").write_text((place / "pids.current").read_text())
        ended: dict[int, int | str] = {}
        try:
            ended[scene.delegate("exit 5")] = 5
        except AgentdError as error:
            print(error)
            assert error.exit in (75, 125)
        assert scene.daemon() == daemon
        (place / "pids.max").write_text("max")
        if ended:
            scene.wait(*ended)
        scene.check(ended)
        assert len(scene.client.jobs(all=True)) == len(ended) + 1  # and the one that the check made
