"""The daemon and its watcher: what a job writes is told, whatever dies, and nobody is left in its worktree."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import gitrepo
import pytest
from faultlab import Scene

from agentd import process

DAEMON = Path(__file__).with_name("tolddaemon.py")


class Watched(Scene):
    """A scene whose daemon writes down what it is told."""

    def __enter__(self) -> "Watched":
        self.start_daemon()
        super().__enter__()
        return self

    def start_daemon(self) -> None:
        ready, theirs = os.pipe()
        os.makedirs(self.state, 0o700, exist_ok=True)
        command = [sys.executable, str(DAEMON), self.state, str(theirs)]
        secret = {"MY_SECRET": "hidden", "PYTHONUTF8": "1"}
        self.spawn(command, pass_fds=(theirs,), env=faultlab.with_path() | secret, stdin=subprocess.DEVNULL)
        os.close(theirs)
        with open(ready, "rb") as file:
            assert file.readline() == b"ready\n"

    @property
    def told(self) -> list[list[Any]]:
        path = Path(self.state, "told")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until_told(self, *line: object) -> None:
        faultlab.until(lambda: list(line) in self.told, 60.0, lambda: f"not told: {line}; {self.told}")

    def watchers(self) -> list[int]:
        return [pid for pid in self.ours() if faultlab.command_of(pid) == "agentd-watcher"]

    def watcher(self) -> int:
        faultlab.until(lambda: len(self.watchers()) == 1, what=lambda: f"watchers: {self.watchers()}")
        return self.watchers()[0]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path / "scene") as scene:
        yield scene


@pytest.fixture
def top(tmp_path: Path) -> str:
    return gitrepo.make_repo(tmp_path / "repo")


def test_what_a_job_writes_comes_to_the_daemon(scene: Watched, top: str) -> None:
    """While it works, and once more when it ends; then the watcher is gone, and the worktree as it was left."""
    script = "echo x > early; ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; mkdir a; echo x > a/late; exit 5"
    id = scene.running(script, in_place=False, cwd=top)
    scene.until_told(id, "early")
    scene.watcher()
    (scene.proof / "go").touch()
    scene.wait(id)
    scene.until_told(id, "a/late")
    faultlab.until(lambda: not scene.watchers())
    how = "polling" if process.without("inotify") else "inotify"
    assert [line[1] for line in scene.told if len(line) == 3] == [how]
    scene.check({id: 5})


def test_a_job_in_place_needs_no_watcher(scene: Watched, top: str) -> None:
    """Nor does one that is over at once."""
    in_place = scene.running(faultlab.WAITS, cwd=top)
    scene.wait(scene.delegate("exit 0", in_place=False, cwd=top))
    faultlab.until(lambda: bool(scene.events("job.result")))
    in_worktree = scene.running(faultlab.WAITS, in_place=False, cwd=top)
    scene.watcher()
    faultlab.until(lambda: {line[0] for line in scene.told} == {in_worktree})
    (scene.proof / "go").touch()
    scene.wait(in_place, in_worktree)


def test_a_worktree_without_work_is_removed_although_it_was_watched(scene: Watched, top: str) -> None:
    """Who is seen in a worktree keeps it. So the watcher lets go of it first, however long its git takes: here that
    waits in a filter, until it is stopped itself."""
    gate = scene.proof / "gate"
    waits = f'case "$PWD" in */worktrees/*) while [ ! -e {gate} ]; do sleep 0.02; done; esac; cat'
    gitrepo.run(top, "config", "filter.slow.clean", waits)
    gitrepo.write(f"{top}/.gitattributes", "src/* filter=slow\n")
    gitrepo.run(top, "-c", "filter.slow.clean=cat", "add", "-A")
    gitrepo.run(top, "-c", "filter.slow.clean=cat", "commit", "-qm", "slow")
    id = scene.running(f"touch -d @1 src/f0.txt; {faultlab.WAITS}", in_place=False, cwd=top)
    watcher = scene.watcher()
    faultlab.until(lambda: bool(gits_that_filter(watcher)))
    (git,) = gits_that_filter(watcher)
    os.kill(git, signal.SIGSTOP)
    gate.touch()
    (scene.proof / "go").touch()
    scene.wait(id)
    assert not faultlab.comes_true(lambda: bool(scene.events("job.result")), 1.0)
    os.kill(git, signal.SIGCONT)
    faultlab.until(lambda: bool(scene.events("job.result")))
    (result,) = scene.events("job.result")
    assert result["data"]["changed"] is False, result


def gits_that_filter(watcher: int) -> list[int]:
    return [pid for pid in process.children(watcher) if process.children(pid)]


def test_another_watcher_takes_over_and_tells_what_was_written_meanwhile(scene: Watched, top: str) -> None:
    script = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo x > meanwhile; while :; do sleep 1; done"
    id = scene.running(script, in_place=False, cwd=top)
    first = scene.watcher()
    os.kill(first, signal.SIGKILL)
    (scene.proof / "go").touch()
    scene.until_told(id, "meanwhile")
    assert scene.watcher() != first
    scene.client.kill([id], signal="KILL")
    scene.wait(id)


def test_the_watcher_ends_with_its_daemon_and_the_next_has_one_too(scene: Watched, top: str) -> None:
    script = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo x > meanwhile; while :; do sleep 1; done"
    id = scene.running(script, in_place=False, cwd=top)
    first = scene.watcher()
    os.kill(scene.daemon(), signal.SIGKILL)
    scene.client.close()
    faultlab.until(lambda: faultlab.state_of(first) in ("", "Z"))
    (scene.proof / "go").touch()
    scene.start_daemon()
    scene.until_told(id, "meanwhile")
    scene.client.kill([id], signal="KILL")
    scene.wait(id)


def test_it_has_no_descriptor_and_no_variable_that_it_does_not_need(scene: Watched, top: str) -> None:
    id = scene.running(faultlab.WAITS, in_place=False, cwd=top)
    faultlab.until(lambda: bool(scene.told))
    watcher = scene.watcher()
    environment = Path(f"/proc/{watcher}/environ").read_bytes()
    assert b"MY_SECRET" in Path(f"/proc/{scene.daemon()}/environ").read_bytes()
    assert b"MY_SECRET" not in environment and b"HOME=" in environment
    links = {os.readlink(f"/proc/{watcher}/fd/{fd}") for fd in os.listdir(f"/proc/{watcher}/fd")}
    kinds = {link.partition(":")[0] for link in links if not link.startswith("/dev/null")}
    assert kinds <= {"socket", "pipe", "anon_inode", os.readlink("/proc/self/fd/2").partition(":")[0]}
    assert os.readlink(f"/proc/{watcher}/cwd") == "/"
    (scene.proof / "go").touch()
    scene.wait(id)
