"""Faults of the disk under jobs, store and logs (F14 F15 F16 F37 F46)."""

import contextlib
import fcntl
import hashlib
import os
import random
import signal
import sqlite3
import struct
import subprocess
import threading
import time
from pathlib import Path

import faultlab
import pytest
from breaking import fill, fill_but, needs_root, sh, small_disk
from faultlab import WAITS, Scene, until

from agentd import follow, jobdir
from agentd.client import Client, ConnectionLost
from agentd.core.errors import AgentdError


@needs_root
def test_f14_disk_full_under_the_logs(tmp_path: Path) -> None:
    """The folder of the jobs has a small disk of its own, so that the store can tell of it meanwhile."""
    (tmp_path / "state").mkdir(0o700)
    with small_disk(tmp_path / "state" / "jobs", "size=8m") as disk, Scene(tmp_path) as scene:
        say = "$PYTHON -c 'print(\"x\" * 2000000)'"
        id = scene.running(f"ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; {say}; exit 5")
        ballast = fill(disk)
        (scene.proof / "go").touch()
        until(lambda: bool(scene.events("job.log_blocked")))
        blocked = time.monotonic()
        assert scene.client.job(id)["job"]["state"] == "running"
        assert not scene.record(id, "exit")
        assert set(scene.log(id)) <= {ord("x")}
        until(lambda: time.monotonic() > blocked + 1.0)  # it has been looked at again some times
        ballast.unlink()
        scene.wait(id)
        assert scene.log(id) == b"x" * 2_000_000 + b"\n"
        assert [event["type"] for event in scene.events("job.log_")] == ["job.log_blocked", "job.log_unblocked"]
        scene.check({id: 5})


@needs_root
def test_f15_disk_full_under_the_state(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running(WAITS)
        ballast = fill(disk)
        with pytest.raises(AgentdError) as refused:
            scene.delegate("exit 0")
        assert refused.value.exit == 75
        ballast.unlink()
        other = scene.delegate("exit 6")
        scene.wait(other)
        ballast = fill(disk)
        (scene.proof / "go").touch()
        until(lambda: bool(scene.record(id, "end")))
        assert scene.record(id, "exit")["code"] == 5
        ballast.unlink()
        scene.wait(id)
        scene.check({id: 5, other: 6})


@needs_root
def test_f15_an_agent_fills_the_disk_of_the_state(tmp_path: Path) -> None:
    """That its log is blocked is a fact, which waits for room; requests do not wait behind it."""
    with small_disk(tmp_path / "disk", "size=8m") as disk, Scene(tmp_path, state=disk / "state") as scene:
        id = scene.running(f"{WAITS.replace('exit 5', '')} $PYTHON -c 'print(\"x\" * 2000000)'; exit 5")
        ballast = fill_but(disk, 1 << 20)
        (scene.proof / "go").touch()
        until(lambda: scene.client.ask("daemon.status")["trouble"] is not None)
        with pytest.raises(AgentdError, match="free some disk space") as refused:
            scene.delegate("exit 0")
        assert refused.value.exit == 75
        assert scene.client.job(id)["job"]["state"] == "running"
        assert scene.events("job.started")
        ballast.unlink()
        scene.wait(id)
        assert scene.log(id) == b"x" * 2_000_000 + b"\n"
        assert scene.client.ask("daemon.status")["trouble"] is None
        assert [event["type"] for event in scene.events("job.log_")] == ["job.log_blocked", "job.log_unblocked"]
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


def power_cut(place: Path) -> None:
    """EXT4_IOC_SHUTDOWN without flushing the log: what was not synced is gone, the journal's own tail too."""
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x8004587D, struct.pack("I", 2))
    finally:
        os.close(fd)


def is_unmounted(place: Path) -> bool:
    return subprocess.run(["umount", place], capture_output=True).returncode == 0


def mount_again(image: Path, place: Path) -> None:
    until(lambda: is_unmounted(place), 15.0, lambda: f"{place} is in use")
    sh(f"mount -o loop {image} {place}")


@needs_root
@pytest.mark.timeout(900 if faultlab.is_long else 150)
def test_f37_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, disk, boot = tmp_path / "disk.img", tmp_path / "disk", tmp_path / "boot_id"
    disk.mkdir()
    sh(f"truncate -s 64M {image} && PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F {image}")
    if subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True).returncode != 0:
        pytest.skip("no loop devices to be had")
    try:
        disk.chmod(0o700)
        monkeypatch.setenv("AGENTD_BOOT_ID_FILE", str(boot))
        boot.write_text("boot-0\n")
        choice = random.Random(37)
        with Scene(tmp_path, state=disk / "state") as scene:
            acknowledged: set[int] = set()
            told: dict[int, str] = {}
            for cut in range(50 if faultlab.is_long else 5):
                is_cut = threading.Event()
                seed = choice.randrange(1 << 30)
                thread = threading.Thread(target=use, args=(scene, seed, is_cut, acknowledged, told))
                before = len(acknowledged)
                thread.start()
                until(lambda before=before: len(acknowledged) > before + 2)
                threading.Event().wait(choice.random() * 0.3)  # the moment is what is random here
                power_cut(disk)
                is_cut.set()
                scene.end_all()
                thread.join()
                scene.client.close()
                mount_again(image, disk)
                boot.write_text(f"boot-{cut + 1}\n")
                look_after_the_cut(scene, acknowledged, told)
            print(f"{len(acknowledged)} acknowledged, {len(told)} of them told as ended before a cut")
            scene.client.ask("events.subscribe", name="reader", follow=False)
            scene.check({id: how for id, how in told.items()}, told=False)
    finally:
        until(lambda: is_unmounted(disk), 15.0)


def use(scene: Scene, seed: int, is_cut: threading.Event, acknowledged: set[int], told: dict[int, str]) -> None:
    """Delegate, and hear of ends, until the power goes."""
    choice = random.Random(seed)
    script = "i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); done; sleep $(($AGENTD_JOB % 3)); exit 0"
    with contextlib.suppress(AgentdError, ConnectionLost, OSError), Client(scene.state, owner="lab") as client:
        client.ask("daemon.status")
        client.start = False
        mine = []
        while not is_cut.is_set():
            argv = ["/bin/sh", "-c", faultlab.ONCE + script]
            job = client.delegate(argv, environment=scene.environment(), cwd="/", in_place=True, limits={})
            mine.append(job["id"])
            acknowledged.add(job["id"])
            if choice.random() < 0.3:
                for done in client.wait([choice.choice(mine)], timeout=1.0)["jobs"]:
                    if done["state"] == "done":
                        told[done["id"]] = done["outcome"]


def look_after_the_cut(scene: Scene, acknowledged: set[int], told: dict[int, str]) -> None:
    with contextlib.closing(sqlite3.connect(f"{scene.state}/agentd.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for id in acknowledged:
        for name in ("spec", "agent", "exit", "end"):
            file = Path(f"{scene.attempt(id)}/{name}.json")
            assert not file.exists() or scene.record(id, name), f"{file} is half a record: {file.read_bytes()!r}"
    scene.wait(*acknowledged, timeout=60)
    assert scene.client.ask("daemon.status")["epoch"] == 0, "the store was rebuilt"
    jobs = {job["id"]: job for job in scene.client.jobs(all=True)}
    assert acknowledged <= jobs.keys()
    whole = b"".join(b"line %d\n" % n for n in range(30))
    for id in acknowledged:
        job = jobs[id]
        known = (job["outcome"], job["exit_code"], job["signal"])
        assert known in (("succeeded", 0, None), ("rebooted", None, None)), job
        assert told.get(id, job["outcome"]) == job["outcome"], "another end than was told before the cut"
        log = scene.log(id)
        assert whole.startswith(log), log
        assert log == whole or job["outcome"] == "rebooted", "what was said before its end is as safe as its status"
        completions = {event["seq"] for event in scene.events("job.completed") if event["job"] == id}
        assert len(completions) == 1


# --- the log ------------------------------------------------------------------------------------------------

TALKS = """
import os
pace = os.open(os.environ["PROOF"] + "/pace", os.O_RDONLY)
for chunk in range(int(os.environ["CHUNKS"])):
    data = b"".join(b"%06d %04d %s\\n" % (chunk, line, b"x" * 51) for line in range(1024))
    assert len(data) == 65536
    while data:
        data = data[os.write(1, data):]
    assert os.read(pace, 1)
"""


@pytest.mark.timeout(170)
def test_f46_log_turned_over_a_thousand_times_while_it_is_followed(tmp_path: Path) -> None:
    """Segments of 64 KiB, eight kept. The agent waits for the follower after each, so none may be missed."""
    chunks = 1000
    (tmp_path / "talks.py").write_text(TALKS)
    with Scene(tmp_path) as scene:
        os.mkfifo(scene.proof / "pace")
        pace = os.open(scene.proof / "pace", os.O_RDWR)
        id = scene.delegate(f"export CHUNKS={chunks}; exec $PYTHON {tmp_path}/talks.py", log_max=512 << 10)
        until(lambda: os.path.isdir(scene.attempt(id)))
        seen, total, kills = hashlib.sha256(), 0, 0
        with follow.Reader(scene.attempt(id)) as reader:
            for piece in follow.follow(reader):
                assert piece.stream == "out", piece
                before, total = total, total + len(piece.data)
                seen.update(piece.data)
                for _ in range(total // 65536 - before // 65536):
                    os.write(pace, b"g")
                if total // 65536 >= (kills + 1) * 150:
                    kills += 1
                    os.kill(scene.keeper(id), signal.SIGKILL)
            assert reader.dropped == 0
        os.close(pace)
        wanted = hashlib.sha256()
        for chunk in range(chunks):
            wanted.update(b"".join(b"%06d %04d %s\n" % (chunk, line, b"x" * 51) for line in range(1024)))
        assert (total, kills) == (chunks * 65536, 6)
        assert seen.digest() == wanted.digest()
        pieces = jobdir.segments(scene.attempt(id), "out")
        assert len(pieces) <= 9 and pieces[-1].start > 900 * 65536
        for one in pieces:
            text = Path(one.path).read_bytes()[:12]
            assert text == b"%06d %04d " % (one.start // 65536, one.start % 65536 // 64), "an offset is not true"
        assert scene.record(id, "end")["log"]["out"] == total
        scene.wait(id)
        scene.check({id: 0})
