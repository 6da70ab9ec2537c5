"""Faults of our own processes: dead, hung, without descriptors or their store, rebooted (F11 F36 F40 to F43)."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import faultlab
import pytest
from faultlab import WAITS, Scene, until

from agentd import jobdir, process


def test_f11_agent_ends_while_the_daemon_is_dead(tmp_path: Path) -> None:
    """Nobody starts the next daemon before it has ended; then it is told once, with its true status."""
    with Scene(tmp_path) as scene:
        ends = {scene.running(f"echo out; {WAITS.replace('exit 5', how)}"): how for how in ("exit 5", "kill -TERM $$")}
        os.kill(scene.daemon(), signal.SIGKILL)
        (scene.proof / "go").touch()
        for id in ends:
            until(lambda id=id: bool(scene.record(id, "end")), what=lambda: "an end waits for the daemon")
        scene.client.close()
        assert scene.wait(*ends, timeout=faultlab.ENOUGH_S)
        for id in ends:
            assert scene.log(id) == b"out\n"
        scene.check({id: 5 if how == "exit 5" else -signal.SIGTERM for id, how in ends.items()})


def test_f36_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes end at once, and the boot id is another."""
    boot = tmp_path / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    monkeypatch.setenv("AGENTD_BOOT_ID_FILE", str(boot))
    with Scene(tmp_path) as scene:
        id = scene.running("ready; exec sleep 1000")
        scene.end_all()
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
    """SIGSTOP for 3 s: agents, and who follows their output, notice nothing."""
    with Scene(tmp_path) as scene:
        id = scene.running(f"ready; echo first; while [ ! -e $PROOF/more ]; do sleep 0.05; done; echo more; {WAITS}")
        daemon = scene.daemon()
        os.kill(daemon, signal.SIGSTOP)
        stopped = time.monotonic()
        environment = faultlab.with_path() | {"AGENTD_STATE_DIR": scene.state}
        argv = [sys.executable, "-m", "agentd", "logs", "-f", str(id)]
        client = scene.spawn(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert client.stdout and client.stdout.readline() == b"first\n"
        (scene.proof / "more").touch()
        assert client.stdout.readline() == b"more\n"
        (scene.proof / "go").touch()
        assert client.wait(20) in (0, 5)
        until(lambda: bool(scene.record(id, "end")))
        until(lambda: time.monotonic() - stopped > 3.0)
        os.kill(daemon, signal.SIGCONT)
        scene.wait(id, timeout=5)
        assert scene.daemon() == daemon
        scene.check({id: 5})


def test_f43_keeper_hangs_and_is_killed(tmp_path: Path) -> None:
    """The agent goes on until its pipe is full; a keeper that is killed then is replaced, and nothing is missing."""
    with Scene(tmp_path) as scene:
        small, large = "$PYTHON -c 'print(\"s\" * 50000)'", "$PYTHON -c 'print(\"x\" * 1000000)'"
        script = f"ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; {small}; : > $PROOF/small; {large}; exit 5"
        id = scene.running(script)
        keeper = scene.keeper(id)
        os.kill(keeper, signal.SIGSTOP)
        (scene.proof / "go").touch()
        until((scene.proof / "small").exists, what=lambda: "the agent blocks before its pipe is full")
        (writer,) = wait_for_child(scene.leader(id))
        until(lambda: blocks_in_write(writer), what=lambda: "the agent does not block")
        assert scene.client.job(id)["job"]["state"] == "running"
        os.kill(keeper, signal.SIGKILL)
        scene.wait(id)
        assert scene.log(id) == b"s" * 50_000 + b"\n" + b"x" * 1_000_000 + b"\n"
        scene.check({id: 5})


def wait_for_child(pid: int) -> list[int]:
    until(lambda: len(process.children(pid)) == 1)
    return process.children(pid)


def blocks_in_write(pid: int) -> bool:
    """Asleep in write(2) to descriptor 1."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[:2] in (["1", "0x1"], ["64", "0x1"])


def test_f40_daemon_is_out_of_descriptors(tmp_path: Path) -> None:
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


def test_f40_keeper_is_out_of_descriptors(tmp_path: Path) -> None:
    """Followers wait, the agent does not; no busy loop; and when it ends just then, its status is exact."""
    with Scene(tmp_path) as scene:
        id = scene.running(f"{WAITS.replace('exit 5', 'echo out; exit 5')}")
        keeper = scene.keeper(id)
        path = f"{scene.attempt(id)}/keeper.sock"
        before = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
        lowest = max(int(fd) for fd in os.listdir(f"/proc/{keeper}/fd")) + 1
        free = set(range(lowest)) - {int(fd) for fd in os.listdir(f"/proc/{keeper}/fd")}
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (lowest, before[1]))
        links = [jobdir.connect(path) for _ in range(len(free) + 3)]
        used, began = faultlab.cpu_seconds(keeper), time.monotonic()
        for link in links:
            link.sendall(b'{"follow": [0, 0]}\n')
        with pytest.raises(TimeoutError):
            links[-1].settimeout(1.5)
            links[-1].recv(1)
        share = (faultlab.cpu_seconds(keeper) - used) / (time.monotonic() - began)
        print(f"a keeper without descriptors: {share:.2f} of a CPU")
        assert share < 0.3
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, before)
        signalled = scene.client.kill([id], signal="CONT")
        assert signalled[0]["state"] == "running"
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (3, before[1]))
        (scene.proof / "go").touch()
        scene.wait(id)
        for link in links:
            link.close()
        assert scene.log(id) == b"out\n"
        scene.check({id: 5})
