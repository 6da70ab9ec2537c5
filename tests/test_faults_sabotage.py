"""Somebody removes our files, or gives us too little: nothing hangs, nothing is invented, and the daemon stays one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import breaking
import faultlab
import pytest
from breaking import needs_root, small_disk
from faultlab import Scene, until

from agentd import jobdir
from agentd.client import Client
from agentd.core.errors import AgentdError, NotNow

WAITS = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; exit 5"


@pytest.mark.parametrize("way", ["kill", "by itself", "a new daemon"])
def test_the_folder_of_a_running_attempt_is_removed(tmp_path: Path, way: str) -> None:
    """Nobody can know how it ends any more: it is lost, at the latest when somebody looks."""
    with Scene(tmp_path) as scene:
        id = scene.running(WAITS)
        leader = scene.leader(id)
        shutil.rmtree(scene.attempt(id))
        if way == "kill":
            scene.client.kill([id])
        elif way == "by itself":
            (scene.proof / "go").touch()
        else:
            os.kill(scene.daemon(), signal.SIGKILL)
            scene.client.close()
        (job,) = scene.wait(id)
        assert (job["outcome"], job["wait_code"]) == ("lost", 125) and "was removed" in job["reason"]
        until(lambda: faultlab.state_of(leader) in ("", "Z"))
        until(lambda: scene.client.job(id)["job"]["result"] is not None)
        scene.client.remove(id)
        scene.check({}, told=False)


def test_the_spec_of_a_running_attempt_is_removed(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(f"echo out; {WAITS}")
        os.unlink(f"{scene.attempt(id)}/spec.json")
        os.kill(scene.keeper(id), signal.SIGKILL)
        (scene.proof / "go").touch()
        scene.wait(id)
        assert scene.log(id) == b"out\n"
        assert scene.record(id, "exit")["code"] == 5
        assert scene.client.jobs(all=True)[0]["exit_code"] == 5


def test_daemon_json_and_the_lock_are_removed(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        daemon = scene.daemon()
        for names in (
            ("daemon.json",),
            ("daemon.lock",),
            ("daemon.json", "daemon.lock"),
            ("daemon.json", "agentd.sock"),
        ):
            for name in names:
                Path(scene.state, name).unlink(missing_ok=True)
            scene.client.close()
            if "daemon.json" in names and "daemon.lock" in names:
                # Nothing leads to it any more but the kernel: it is told by its own successor's first look.
                record = {"pid": daemon, "identity": faultlab.process.identity(daemon), "socket": "/none"}
                jobdir.write(scene.state, "daemon.json", record)
            assert scene.client.ask("daemon.status")["pid"] == daemon
            second = [sys.executable, "-P", "-m", "agentd.daemon", scene.state]
            done = subprocess.run(second, env=faultlab.with_path(), capture_output=True, timeout=60)
            assert done.returncode == 3
            until(lambda: os.path.exists(f"{scene.state}/daemon.lock"))
        id = scene.delegate("exit 5")
        scene.wait(id)
        scene.check({id: 5})


@pytest.mark.parametrize("limit", ["-n 20", "-f 100", "-t 5"])
def test_a_daemon_has_limits_of_its_own(tmp_path: Path, limit: str) -> None:
    """They are raised; who may not do that is told, and no daemon is started that would fail its jobs."""
    state = str(tmp_path / "state")
    script = f'ulimit {limit} || exit 9; exec "$0" -m agentd run -d true'
    environment = faultlab.with_path() | {"AGENTD_STATE_DIR": state, "AGENTD_LAB": str(tmp_path)}
    done = subprocess.run(["/bin/sh", "-c", script, sys.executable], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        assert done.returncode == 75 and "cannot start a daemon from here" in done.stderr, done
        assert jobdir.read(state, "daemon.json") is None
        return
    with Client(state, owner="lab") as client:
        job = client.delegate(["/bin/sh", "-c", "head -c 1000000 /dev/zero; exit 5"], cwd="/", in_place=True, limits={})
        assert client.wait([job["id"]], timeout=30)["jobs"][0]["exit_code"] == 5
        client.ask("daemon.stop", kill_jobs=True)


def test_a_caller_whose_limits_leave_no_room_for_a_file(tmp_path: Path) -> None:
    """The note that its command could not be executed is written all the same."""
    with Scene(tmp_path) as scene:
        job = scene.client.delegate(
            ["/no/such/program"], cwd="/", in_place=True, limits={"RLIMIT_FSIZE": (0, 0)}, environment={}
        )
        (ended,) = scene.wait(job["id"])
        assert (ended["outcome"], ended["wait_code"]) == ("unstarted", 127)
        for bad in ({"limits": {"RLIMIT_BOGUS": (1, 2)}}, {"umask": 1 << 40}, {"owner": "\udfff"}):
            with pytest.raises(AgentdError) as refused:
                scene.client.delegate(["true"], cwd="/", in_place=True, **bad)
            assert refused.value.exit == 2
        scene.check({})


def test_what_a_keeper_is_told_cannot_end_it(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(WAITS)
        keeper = scene.keeper(id)
        for said in (
            b'{"follow": [1e999, 0]}\n',
            b"[" * 4000 + b"\n",
            b'{"signal": "X"}\n',
            b'{"follow": 1}\n',
            b"\xff\n",
        ):
            with jobdir.connect(f"{scene.attempt(id)}/keeper.sock") as link:
                link.sendall(said)
                assert b"not understood" in link.recv(4096)
        assert scene.keeper(id) == keeper
        (scene.proof / "go").touch()
        scene.wait(id)
        scene.check({id: 5})


def test_a_secret_of_a_refused_job_reaches_no_other(tmp_path: Path) -> None:
    """The daemon dies between sharing it with the zygote and saving the job; the next job has its id."""
    with Scene(tmp_path) as scene:
        scene.running("ready; exec sleep 1000")  # else the zygote ends with its daemon
        held = f"{scene.state}/jobs/2/1"
        fd = os.memfd_create("secrets")
        os.write(fd, b'{"MY_TOKEN": "of another"}')
        os.kill(scene.daemon(), signal.SIGKILL)
        scene.client.close()
        hold_as_a_daemon(scene, held, fd)
        id = scene.client.delegate(
            ["/bin/sh", "-c", "echo $MY_TOKEN"],
            cwd="/",
            in_place=True,
            environment={"MY_TOKEN": "mine", "PATH": "/bin"},
        )["id"]
        assert id == 2
        scene.wait(id)
        assert scene.log(id) == b"mine\n"


def hold_as_a_daemon(scene: Scene, path: str, fd: int) -> None:
    """What a daemon asks before it saves a job."""
    import json
    import socket

    until(lambda: os.path.exists(f"{scene.state}/zygote.sock"))
    with jobdir.connect(f"{scene.state}/zygote.sock", socket.SOCK_SEQPACKET) as link:
        order = {"op": "hold", "id": 1, "path": path, "fds": ["secrets"]}
        socket.send_fds(link, [json.dumps(order).encode()], [fd])
        assert json.loads(link.recv(65536))["id"] == 1


# --- disks that are full ------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("options", ["size=24m", "size=64m,nr_inodes=160"], ids=["blocks", "inodes"])
def test_a_job_that_filled_the_disk_can_be_ended(tmp_path: Path, options: str) -> None:
    with small_disk(tmp_path / "disk", options) as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running("ready; exec sleep 1000")
        leader = scene.leader(id)
        ballast = fill_up(disk)
        with pytest.raises(NotNow):
            scene.delegate("exit 0")
        scene.client.kill([id], signal="KILL")
        until(lambda: faultlab.state_of(leader) in ("", "Z"))
        until(lambda: bool(scene.record(id, "end")))
        for file in ballast:
            file.unlink()
        (job,) = scene.wait(id)
        assert (job["outcome"], job["signal"]) == ("killed", 9)
        scene.check({id: -9})


def fill_up(disk: Path) -> list[Path]:
    """Not a byte, and not an inode, is free."""
    made = []
    try:
        for number in range(1000):
            made.append(disk / f"f{number}")
            made[-1].touch()
    except OSError:
        made.pop()
        return made
    return [*made, breaking.fill(disk)]


@needs_root
def test_a_daemon_starts_on_a_full_disk(tmp_path: Path) -> None:
    """After a kill -9, with all its files there: what runs can be looked at, and ended."""
    with small_disk(tmp_path / "disk", "size=24m") as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running("ready; exec sleep 1000")
        os.kill(scene.daemon(), signal.SIGKILL)
        scene.client.close()
        ballast = breaking.fill(disk)
        assert scene.client.job(id)["job"]["state"] == "running"
        scene.client.kill([id], signal="KILL")
        until(lambda: bool(scene.record(id, "end")))
        ballast.unlink()
        scene.wait(id)
        scene.check({id: -9})
