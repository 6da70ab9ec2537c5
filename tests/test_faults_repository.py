"""Faults of and in a repository that jobs share (F17 F19 F20 F47)."""

import os
import random
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import faultlab
import gitrepo
import pytest
from breaking import needs_root, small_disk
from faultlab import WAITS, Scene, state_of, until

from agentd import jobdir
from agentd.client import Client
from agentd.core.errors import NotNow
from agentd.git import run as git_run
from agentd.git.repository import settle


@needs_root
def test_f17_disk_full_inside_worktree_add(tmp_path: Path) -> None:
    """The disk of the worktrees has just more room than the reserve that is looked for before."""
    top = gitrepo.make_repo(tmp_path / "repo")
    (Path(top) / "big.bin").write_bytes(random.Random(1).randbytes(90 << 20))
    gitrepo.run(top, "add", "-A")
    gitrepo.run(top, "commit", "-q", "-m", "big")
    os.makedirs(tmp_path / "state", 0o700)
    with small_disk(tmp_path / "state" / "worktrees", "size=70m") as disk, Scene(tmp_path) as scene:
        id = scene.delegate("exit 0", in_place=False, cwd=top)
        (job,) = scene.wait(id)
        assert (job["outcome"], job["wait_code"], job["pid"]) == ("unstarted", 125, None)
        assert "disk is full" in job["reason"]
        scene.check({id: "unstarted"})
        assert gitrepo.run(top, "worktree", "list").count("\n") == 0
        assert gitrepo.run(top, "for-each-ref", "--format=%(refname)", "refs/heads") == "refs/heads/main"
        assert [path for path in disk.rglob("*") if not path.is_dir()] == []
        assert list(Path(top).joinpath(".git").rglob("*.lock")) == []


@pytest.mark.timeout(180)
def test_f19_sixteen_delegates_in_one_repository_at_once(tmp_path: Path) -> None:
    rounds = 50 if faultlab.is_long else 3
    top = gitrepo.make_repo(tmp_path / "repo", files=20)
    gitrepo.write(f"{top}/tool.sh", "#!/bin/sh\n")
    os.chmod(f"{top}/tool.sh", 0o755)
    gitrepo.run(top, "add", "-A")
    gitrepo.run(top, "commit", "-q", "-m", "a program")
    with Scene(tmp_path) as scene:
        ended: dict[int, int | str] = {}
        for round in range(rounds):
            gate = threading.Barrier(16)
            faults: list[BaseException] = []

            def delegate(n: int, gate: threading.Barrier = gate, faults: list[BaseException] = faults) -> None:
                # Every fourth changes something, so that its worktree stays.
                change = "echo new > new.txt;" if n % 4 == 0 else ""
                script = f"test -f src/f19.txt && test -x tool.sh || exit 99; {change} exit {n}"
                try:
                    with Client(scene.state, owner="lab") as client:
                        gate.wait()
                        argv = ["/bin/sh", "-c", faultlab.ONCE + script]
                        job = client.delegate(argv, environment=scene.environment(), cwd=top)
                        ended[job["id"]] = n
                except BaseException as fault:
                    faults.append(fault)

            threads = [threading.Thread(target=delegate, args=(n,)) for n in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert faults == []
            scene.wait(*ended, timeout=120)
            assert len(ended) == 16 * (round + 1)
        faultlab.check_repository(scene, top)
        assert gitrepo.run(top, "status", "--porcelain") == ""
        scene.check(ended)


def test_f19_opening_a_socket_gives_no_other_thread_another_umask(tmp_path: Path) -> None:
    """The umask is the whole process's: folders made, and gits started, by others meanwhile would lack bits."""
    seen: set[int] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            with open("/proc/self/status") as file:
                seen.update(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2000):
        with jobdir.listen(str(tmp_path / f"{number}.sock")):
            pass
    is_over.set()
    thread.join()
    assert len(seen) == 1
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.sock")} == {0o600}


def test_f20_worktree_and_branch_deleted_under_a_running_agent(tmp_path: Path) -> None:
    top = gitrepo.make_repo(tmp_path / "repo")
    with Scene(tmp_path) as scene:
        id = scene.running(f"echo before; {WAITS.replace('exit 5', 'echo after; exit 5')}", in_place=False, cwd=top)
        job = scene.client.job(id)["job"]
        leader = scene.leader(id)
        assert os.readlink(f"/proc/{leader}/cwd") == job["worktree"]
        shutil.rmtree(job["worktree"])
        gitrepo.run(top, "update-ref", "-d", f"refs/heads/{job['branch']}")
        assert os.readlink(f"/proc/{leader}/cwd") == f"{job['worktree']} (deleted)"
        (scene.proof / "go").touch()
        scene.wait(id)
        assert scene.log(id) == b"before\nafter\n"
        until(lambda: scene.client.job(id)["job"]["result"] is not None)
        (told,) = scene.events("job.result")
        assert "missing" in told["data"], told
        scene.client.remove(id)
        assert "agentd/" not in gitrepo.run(top, "worktree", "list", "--porcelain")
        scene.client.undo(id)
        scene.check({id: 5})


HOLDS = """
import subprocess, sys, time
from agentd.git import run
from agentd.git.repository import settle
print("trying", flush=True)
with run.mutex(settle(sys.argv[1], None).repo) as lock:
    kept = (lock,) if sys.argv[2] == "holding" else ()
    child = subprocess.Popen(["sleep", "1000"], pass_fds=kept, stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("way", ["plain", "holding"])
def test_f47_holder_of_the_repository_mutex_killed(tmp_path: Path, way: str) -> None:
    """Freed at once, whatever children the holder had; but not before a git that writes under it has ended."""
    repo = settle(gitrepo.make_repo(tmp_path / "repo"), None).repo
    with Scene(tmp_path) as scene:
        holder = scene.python(HOLDS, repo.common, way, stdout=subprocess.PIPE, env=faultlab.with_path(), cwd=repo.top)
        assert holder.stdout and holder.stdout.readline() == b"trying\n"
        child = int(holder.stdout.readline())
        assert not can_take(repo)
        holder.kill()
        holder.wait()
        until(lambda: state_of(child) == "S")
        assert can_take(repo) == (way == "plain")
        os.kill(child, signal.SIGKILL)
        until(lambda: can_take(repo), 5.0)
        scene.check({})


def test_f47_mutex_file_removed_under_its_holder(tmp_path: Path) -> None:
    """Who waited for the removed file does not believe that it has the mutex: it takes the one that is there."""
    repo = settle(gitrepo.make_repo(tmp_path / "repo"), None).repo
    path = Path(repo.common) / "agentd.mutex"
    with Scene(tmp_path) as scene:
        argv = (HOLDS, repo.common, "plain")
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "env": faultlab.with_path(), "cwd": repo.top}
        first = scene.python(*argv, **options)
        assert first.stdout and first.stdout.readline() == b"trying\n"
        children = [int(first.stdout.readline())]
        second = scene.python(*argv, **options)
        assert second.stdout and second.stdout.readline() == b"trying\n"
        path.unlink()
        first.kill()
        children.append(int(second.stdout.readline()))
        assert path.exists()
        assert not can_take(repo), "two have it"
        second.kill()
        second.wait()
        assert can_take(repo)
        for child in children:
            os.kill(child, signal.SIGKILL)
        scene.check({})


def can_take(repo: git_run.Repo) -> bool:
    before, git_run.MUTEX_WAIT = git_run.MUTEX_WAIT, 0.0
    try:
        with git_run.mutex(repo):
            return True
    except NotNow:
        return False
    finally:
        git_run.MUTEX_WAIT = before
