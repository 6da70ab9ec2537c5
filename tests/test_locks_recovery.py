"""Locks after deaths of all kinds: exactly those of what still lives, whatever files and store say."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import faultlab
import gitrepo
import pytest
from breaking import fill, needs_root, small_disk
from faultlab import Scene, until
from gitrepo import make_repo
from test_locks import PEOPLE, agentd, held_by, locked_command, names, person, ran

from agentd import claimfile, process
from agentd.core.errors import NotNow

WAITER = (
    "import sys; from agentd.client import Client; from agentd import process\n"
    "client = Client(sys.argv[1], owner=sys.argv[2])\n"
    "print('asks', flush=True)\n"
    "client.lock([sys.argv[3]], wait=None, session=process.identity(int(sys.argv[4])))\n"
    "print('has it', flush=True); sys.stdin.read()"
)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path / "scene") as scene:
        yield scene
        while PEOPLE:
            PEOPLE.pop().close()


def waiter(scene: Scene, owner: str, name: str) -> "subprocess.Popen[bytes]":
    """Somebody at this terminal who asks for ``name``, when they wait."""
    before = len(scene.client.locks()["waiting"])
    asking = scene.python(
        WAITER, scene.state, owner, name, str(os.getpid()),
        env=faultlab.with_path(), stdout=subprocess.PIPE, stdin=subprocess.PIPE,
    )  # fmt: skip
    assert asking.stdout is not None and asking.stdout.readline() == b"asks\n"
    until(lambda: len(scene.client.locks()["waiting"]) == before + 1)
    return asking


def kill_daemon(scene: Scene) -> None:
    pid = scene.daemon()
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    process.has_exited(pidfd, 10_000)
    os.close(pidfd)


def waiting(scene: Scene) -> list[str]:
    return [one["holder"]["owner"] for one in scene.client.locks()["waiting"]]


# --- who waits ------------------------------------------------------------------------------------------------


def test_who_is_gone_waits_no_more(scene: Scene) -> None:
    one = person(scene, "one")
    one.lock(["res:db"])
    gone = waiter(scene, "two", "res:db")
    gone.kill()
    until(lambda: waiting(scene) == [])
    one.unlock(all=True)
    assert names(scene) == []


def test_a_grant_that_nobody_takes_is_given_back(scene: Scene) -> None:
    """The grant and the end of who waits for it reach the daemon together."""
    one = person(scene, "one")
    one.lock(["res:db"])
    gone = waiter(scene, "two", "res:db")
    daemon = scene.daemon()
    os.kill(daemon, signal.SIGSTOP)
    one._send("lock.release", {"names": ["res:db"], "cwd": "/", "owner": "one"})
    gone.kill()
    gone.wait()
    os.kill(daemon, signal.SIGCONT)
    until(lambda: names(scene) == [] and waiting(scene) == [])


@pytest.mark.parametrize("leaves_by", ["death", "time"])
def test_two_of_one_holder_wait_each_for_itself(scene: Scene, leaves_by: str) -> None:
    one = person(scene, "one")
    one.lock(["res:db"])
    stays = waiter(scene, "two", "res:db")
    if leaves_by == "time":
        with pytest.raises(NotNow):
            person(scene, "two").lock(["res:db"], wait=0.01, session=process.identity(os.getpid()))
    else:
        gone = scene.python(
            WAITER, scene.state, "two", "res:db", str(os.getpid()), env=faultlab.with_path(), stdout=subprocess.PIPE
        )
        assert gone.stdout is not None and gone.stdout.readline() == b"asks\n"
        until(lambda: len([e for e in scene.events("lock.queued")]) == 1)
        gone.kill()
        gone.wait()
    assert waiting(scene) == ["two"]
    one.unlock(all=True)
    assert stays.stdout is not None and stays.stdout.readline() == b"has it\n"
    assert held_by(scene, "two") == [["exclusive", "res:db"]]


def test_who_waited_long_keeps_the_place_over_a_restart(scene: Scene) -> None:
    one = person(scene, "one")
    one.lock(["res:db"])
    with pytest.raises(NotNow):
        person(scene, "two").lock(["res:db"], wait=0.01)
    kill_daemon(scene)
    with contextlib.closing(sqlite3.connect(f"{scene.state}/agentd.db")) as db, db:
        ((ticket, doc),) = db.execute("SELECT ticket, doc FROM requests").fetchall()
        request = json.loads(doc)
        request["asked"] -= 3600
        db.execute("UPDATE requests SET doc = ? WHERE ticket = ?", (json.dumps(request).encode(), ticket))
    assert waiting(scene) == ["two"]
    until(lambda: bool(scene.client.ask("daemon.status")))
    assert [event["type"] for event in scene.events("lock.expired")] == []


def test_a_pool_that_grew_while_no_daemon_was_there_serves_who_waits(scene: Scene) -> None:
    config = Path(os.environ["HOME"]) / ".config/agentd/agentd.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[locks.pools]\ngpu = 1\n")
    kill_daemon(scene)
    one = scene.running("ready; sleep 1000", claims=[{"name": "res:gpu"}])
    two = scene.delegate("true", claims=[{"name": "res:gpu"}])
    assert scene.client.job(two)["job"]["state"] == "queued"
    config.write_text("[locks.pools]\ngpu = 2\n")
    kill_daemon(scene)
    scene.wait(two)
    scene.client.kill([one], signal="KILL")


# --- files ----------------------------------------------------------------------------------------------------


def test_what_stands_among_the_claim_files_does_no_harm(scene: Scene, tmp_path: Path) -> None:
    command = locked_command(scene, "res:db", "exec sleep 1000", str(tmp_path))
    folder = Path(claimfile.folder(scene.state))
    kill_daemon(scene)
    own = dict(process.identity(os.getpid()) or {})
    reused = {**own, "start": 1, "inode": 1}
    contents: list[object] = ["", "{", "[]", "null", {"wants": 1, "token": "x"}, {"who": 7, "owner": [], "until": "x"}]
    contents += [{"wants": [], "who": reused, "token": 3, "granted": [{"name": ["res", "", "x"], "mode": "X"}]}]
    contents += [{"owner": "me", "who": reused}, {"owner": "me", "who": {"pid": "x"}}]
    for number, content in enumerate(contents):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{number:032x}.json").write_text(text)
    os.mkfifo(folder / f"{100:032x}.json")
    (folder / f"{101:032x}.json").mkdir()
    (folder / f"{102:032x}.json").symlink_to("/nonexistent")
    (folder / "notes.json").write_text("not ours")
    assert names(scene) == ["exclusive res:db active"]
    assert (folder / "notes.json").read_text() == "not ours"
    command.kill()
    until(lambda: names(scene) == [])


@pytest.mark.parametrize("content", ["", '{"format": 1, "who"'])
def test_a_living_command_keeps_its_lock_whatever_its_file_says(scene: Scene, tmp_path: Path, content: str) -> None:
    command = locked_command(scene, "res:db", "exec sleep 1000", str(tmp_path))
    (file,) = Path(claimfile.folder(scene.state)).iterdir()
    file.write_text(content)
    kill_daemon(scene)
    assert names(scene) == ["exclusive res:db active"]
    kill_daemon(scene)
    command.kill()
    until(lambda: names(scene) == [])


def test_a_lost_store_loses_no_lock_of_what_lives(scene: Scene, tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    gitrepo.write(f"{repo}/a.py", "a\n")
    gitrepo.run(repo, "add", ".")
    gitrepo.run(repo, "commit", "-qm", "a")
    done = scene.delegate("echo more >>a.py", in_place=False, cwd=repo, claims=[{"name": "a.py"}])
    scene.wait(done)
    scene.client.result(done)
    running = scene.running("ready; sleep 1000", claims=[{"name": "res:port"}])
    command = locked_command(scene, "res:db", "exec sleep 1000", str(tmp_path))
    before = ["exclusive path:a.py pending", "exclusive res:db active", "exclusive res:port active"]
    assert names(scene) == before
    tokens = [row["token"] for row in scene.client.locks()["claims"] if row["name"] == "res:db"]
    kill_daemon(scene)
    for name in os.listdir(scene.state):
        if name.startswith("agentd.db"):
            os.unlink(f"{scene.state}/{name}")
    assert names(scene) == before
    kill_daemon(scene)
    assert names(scene) == before  # and it is claimed again once only
    granted = person(scene, "me").lock(["res:more"])
    assert granted["token"] > tokens[0], "a token is given out once"
    scene.client.kill([running], signal="KILL")
    command.kill()
    until(lambda: names(scene) == ["exclusive path:a.py pending", "exclusive res:more active"])


@needs_root
def test_a_full_disk_refuses_locks_and_lets_go_of_them(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk, Scene(tmp_path / "scene", state=disk / "state") as scene:
        one, two = person(scene, "one"), person(scene, "two")
        one.lock(["res:a"])
        command = locked_command(scene, "res:b", "exec sleep 1000", str(tmp_path))
        ballast = fill(disk)
        for somebody in (one, two):
            with pytest.raises(NotNow):
                somebody.lock(["res:c"], wait=0)
        late = agentd(scene, "lock", "res:d", "--", "touch", str(tmp_path / "ran"), cwd=tmp_path)
        assert ran(late) == 75
        assert not (tmp_path / "ran").exists()
        command.kill()
        until(lambda: names(scene) == ["exclusive res:a active"])
        ballast.unlink()
        one.unlock(all=True)
        assert two.lock(["res:a", "res:b", "res:c", "res:d"])["is_new"]
        kill_daemon(scene)
        assert len(held_by(scene, "two")) == 4
        while PEOPLE:
            PEOPLE.pop().close()


def test_a_claim_that_cannot_be_written_is_refused(scene: Scene, tmp_path: Path) -> None:
    Path(claimfile.folder(scene.state)).write_text("no folder")
    with pytest.raises(NotNow, match="cannot write a claim"):
        person(scene, "me").lock(["res:a"])
    assert ran(agentd(scene, "lock", "res:a", "--", "touch", str(tmp_path / "ran"), cwd=tmp_path)) == 75
    assert not (tmp_path / "ran").exists()
    assert names(scene) == []


# --- merges and helpers -----------------------------------------------------------------------------------------


def test_a_merge_that_died_with_its_daemon_holds_nothing(scene: Scene, tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    script = 'echo x >new; setsid sleep 1000 & echo $! >"$PROOF/helper"; sleep 0.1'
    job = scene.delegate(script, in_place=False, cwd=repo, leave=["sleep 1000"], claims=[{"name": "res:db"}])
    scene.wait(job)
    scene.client.result(job)
    person(scene, "one").lock(["integrate:main"], cwd=repo)
    merging = agentd(scene, "merge", str(job), cwd=repo, stderr=subprocess.DEVNULL)
    until(lambda: len(scene.client.locks()["waiting"]) == 1)
    merging.kill()
    merging.wait()
    kill_daemon(scene)
    assert scene.client.locks()["waiting"] == []
    assert names(scene) == ["exclusive integrate:main active", "exclusive res:db active"]
    os.kill(int((scene.proof / "helper").read_text()), signal.SIGKILL)
    until(lambda: names(scene) == ["exclusive integrate:main active"])


def test_a_session_that_has_ended_gets_nothing(scene: Scene) -> None:
    ended = scene.spawn(["true"])
    who = process.identity(ended.pid)
    ended.wait()
    with pytest.raises(Exception, match="has ended"):
        person(scene, "me").lock(["res:db"], session=who)
    assert names(scene) == []


# --- how soon ---------------------------------------------------------------------------------------------------


def test_locks_follow_deaths_at_once(scene: Scene, tmp_path: Path) -> None:
    """Holders are killed while the daemon lives, and with it; printed is how soon their locks were gone."""
    rounds = 30 if faultlab.is_long else 3
    times: dict[str, list[float]] = {"its death": [], "the next daemon's start": []}
    for number in range(2 * rounds):
        job = scene.running("ready; exec sleep 1000", claims=[{"name": "res:job"}])
        command = locked_command(scene, "res:command", "exec sleep 1000", str(tmp_path))
        pids = [scene.leader(job), command.pid]
        is_daemon_there = number % 2 == 0
        if not is_daemon_there:
            kill_daemon(scene)
        for pid in pids:
            assert os.path.exists(f"/proc/{pid}"), f"{pid} of {pids} ended by itself: {scene.client.job(job)['job']}"
            os.kill(pid, signal.SIGKILL)
        command.wait()
        if not is_daemon_there:
            scene.client.ask("daemon.status")
        since = time.monotonic()
        until(lambda: names(scene) == [])
        times["its death" if is_daemon_there else "the next daemon's start"].append(time.monotonic() - since)
        scene.wait(job)
    for what, found in times.items():
        found.sort()
        p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
        print(f"locks were gone after {what}: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, {len(found)} times")
        assert p50 < 10.0


def test_a_stopped_holder_keeps_its_lock(scene: Scene, tmp_path: Path) -> None:
    command = locked_command(scene, "res:db", "exec sleep 1000", str(tmp_path))
    os.kill(command.pid, signal.SIGSTOP)
    with pytest.raises(NotNow):
        person(scene, "me").lock(["res:db"], wait=0)
    kill_daemon(scene)
    with pytest.raises(NotNow):
        person(scene, "me").lock(["res:db"], wait=0)
    command.kill()
    assert ran(command) == -signal.SIGKILL
    until(lambda: names(scene) == [])
