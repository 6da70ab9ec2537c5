"""Faults of our own processes and of the machine under them: daemon, keeper, zygote, disk, store.

Each test is one row of the fault table; docs/faults.md has the results.
"""

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import faultlab
import pytest
from faultlab import KeeperTracer, Scene, Strace, fill, needs_root, needs_trace, small_disk, until

from agentd import jobdir, process
from agentd.core.errors import AgentdError

pytestmark = pytest.mark.slow

STEP = 1 if faultlab.is_long else 7
CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir", "sendto", "sendmsg")
WAITS = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; exit 5"


def verb(scene: Scene, name: str) -> dict[int, int | str]:
    """One of the four routines, through the client; how its job must end."""
    if name == "delegate":
        id = scene.delegate("exit 5")
        scene.wait(id)
        return {id: 5}
    if name == "complete":
        (scene.proof / "go").unlink(missing_ok=True)
        id = scene.running(WAITS)
        (scene.proof / "go").touch()
        scene.wait(id)
        return {id: 5}
    if name == "kill":
        id = scene.running("ready; exec sleep 1000")
        scene.client.kill([id], signal="KILL")
        scene.wait(id)
        return {id: -9}
    scene.client.ack("reader", scene.client.ask("daemon.status")["newest_seq"])
    return {}


@needs_trace
@pytest.mark.timeout(900 if faultlab.is_long else 150)
@pytest.mark.parametrize("name", ["delegate", "complete", "ack", "kill"])
def test_f10_daemon_killed_at_every_syscall(tmp_path: Path, name: str) -> None:
    with Scene(tmp_path) as scene:
        with Strace(scene.daemon(), tmp_path, CALLS) as dry:
            ended = verb(scene, name)
        points = [(call, k) for call, count in sorted(dry.counts().items()) for k in range(1, count + 1)]
        assert points
        for call, k in points[::STEP]:
            daemon = scene.daemon()
            with Strace(daemon, tmp_path, CALLS, f"{call}:signal=KILL:when={k}"):
                ended |= verb(scene, name)
        jobs = [job["id"] for job in scene.client.jobs(all=True)]
        assert sorted(ended) == sorted(jobs), "a job was lost, or made twice"
        scene.check(ended, told=name != "ack")


@needs_trace
@pytest.mark.timeout(900 if faultlab.is_long else 150)
def test_f23_f24_keeper_killed_at_every_syscall(tmp_path: Path) -> None:
    """From its first mutating call to its last: lock, record, go, exec, wait, exit record, reap, end record."""
    with Scene(tmp_path) as scene:
        with KeeperTracer(scene.zygote(), 0) as dry:
            id = scene.delegate("echo out; exit 5")
            scene.wait(id)
            count = len(dry.calls())
        assert count > 20
        ended: dict[int, int | str] = {id: 5}
        for nth in range(1, count + 1, STEP):
            with KeeperTracer(scene.zygote(), nth):
                id = scene.delegate("echo out; exit 5")
                scene.wait(id)
            ended[id] = 5
            assert scene.log(id) == b"out\n", f"killed at call {nth}"
        scene.check(ended)


@needs_root
def test_f14_disk_full_under_the_logs(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk, Scene(tmp_path, state=disk / "state") as scene:
        script = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; $PYTHON -c 'print(\"x\" * 2000000)'; exit 5"
        id = scene.running(script)
        ballast = fill(disk)
        (scene.proof / "go").touch()
        leader = scene.leader(id)
        until(lambda: any(state != "" for state in [faultlab.state_of(leader)]))
        until(lambda: jobdir.size(scene.attempt(id), "out") < 2_000_001 and not scene.record(id, "exit"))
        ballast.unlink()
        scene.wait(id)
        assert scene.log(id) == b"x" * 2_000_000 + b"\n"
        scene.check({id: 5})


@needs_root
def test_f15_disk_full_under_the_state(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running(WAITS)
        ballast = fill(disk)
        with pytest.raises(AgentdError) as refused:
            scene.delegate("exit 0")
        assert refused.value.exit == 75
        (scene.proof / "go").touch()
        until(lambda: bool(scene.record(id, "end")))
        assert scene.record(id, "exit")["code"] == 5
        ballast.unlink()
        scene.wait(id)
        scene.check({id: 5})


@needs_root
def test_f16_inodes_exhausted(tmp_path: Path) -> None:
    options = "size=16m,nr_inodes=200"
    with small_disk(tmp_path / "disk", options) as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running(WAITS)
        made = []
        with pytest.raises(OSError, match="No space left"):
            for number in range(1000):
                made.append(disk / f"f{number}")
                made[-1].touch()
        with pytest.raises(AgentdError) as refused:
            scene.delegate("exit 0")
        assert refused.value.exit == 75
        (scene.proof / "go").touch()
        until(lambda: bool(scene.record(id, "end")))
        for file in made:
            file.unlink(missing_ok=True)
        scene.wait(id)
        scene.check({id: 5})


def test_f36_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes end at once, and the boot id is another."""
    boot = tmp_path / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    monkeypatch.setenv("AGENTD_BOOT_ID_FILE", str(boot))
    with Scene(tmp_path) as scene:
        id = scene.running("ready; exec sleep 1000")
        faultlab.end_all(lambda: [*scene.ours(), *scene.agents()])
        scene.client.close()
        jobdir.remove_quietly(f"{scene.attempt(id)}/exit.json")
        boot.write_text("22222222-2222-2222-2222-222222222222\n")
        (job,) = scene.wait(id)
        assert (job["exit_code"], job["signal"]) == (None, None)
        assert "reboot" in f"{job['outcome']} {job['reason']}"
        scene.check({id: job["outcome"]})


@pytest.mark.parametrize("way", ["deleted", "corrupted"])
def test_f41_store_is_rebuilt(tmp_path: Path, way: str) -> None:
    with Scene(tmp_path) as scene:
        done, live = scene.delegate("exit 7"), scene.running(WAITS)
        scene.wait(done)
        seq = scene.client.ask("daemon.status")["newest_seq"]
        os.kill(scene.daemon(), signal.SIGKILL)
        scene.client.close()
        store = Path(scene.state) / "agentd.db"
        for suffix in ("-wal", "-shm"):
            Path(f"{store}{suffix}").unlink(missing_ok=True)
        if way == "deleted":
            store.unlink()
        else:
            store.write_bytes(os.urandom(64 << 10))
        scene.client.ask("events.subscribe", name="reader", follow=False)
        (scene.proof / "go").touch()
        scene.wait(done, live)
        assert scene.client.ask("daemon.status")["newest_seq"] > seq
        scene.check({done: 7, live: 5}, told=False)
        told = {event["job"] for event in scene.events("job.completed")}
        assert {done, live} <= told


def test_f41_store_is_locked_by_another(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        other = sqlite3.connect(f"{scene.state}/agentd.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(1.0, other.rollback)
        release.start()
        id = scene.delegate("exit 5")
        release.join()
        other.close()
        scene.wait(id)
        scene.check({id: 5})


def test_f42_daemon_hangs(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(WAITS)
        daemon = scene.daemon()
        os.kill(daemon, signal.SIGSTOP)
        (scene.proof / "go").touch()
        until(lambda: bool(scene.record(id, "end")))
        os.kill(daemon, signal.SIGCONT)
        scene.wait(id)
        assert scene.daemon() == daemon
        scene.check({id: 5})


def test_f43_keeper_hangs_and_is_killed(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        script = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; $PYTHON -c 'print(\"x\" * 1000000)'; exit 5"
        id = scene.running(script)
        keeper = scene.keeper(id)
        os.kill(keeper, signal.SIGSTOP)
        (scene.proof / "go").touch()
        assert process.byte_held(f"{scene.attempt(id)}/life.lock", 0)
        os.kill(keeper, signal.SIGKILL)
        scene.wait(id)
        assert scene.log(id) == b"x" * 1_000_000 + b"\n"
        scene.check({id: 5})


def test_f40_daemon_is_out_of_descriptors(tmp_path: Path) -> None:
    import resource

    with Scene(tmp_path) as scene:
        daemon, count = scene.base
        before = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon, resource.RLIMIT_NOFILE, (count, before[1]))
        used = faultlab.cpu_seconds(daemon)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            link = jobdir.connect(jobdir.read(scene.state, "daemon.json")["socket"])  # type: ignore[index]
            with link:
                link.settimeout(1.0)
                link.sendall(b'{"jsonrpc":"2.0","id":1,"method":"daemon.status","params":{}}\n')
                link.recv(1)
        assert faultlab.cpu_seconds(daemon) - used < 0.5 * (time.monotonic() - began)
        resource.prlimit(daemon, resource.RLIMIT_NOFILE, before)
        id = scene.delegate("exit 5")
        scene.wait(id)
        assert scene.daemon() == daemon
        scene.check({id: 5})
