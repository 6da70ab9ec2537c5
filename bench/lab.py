"""Where measurements happen: a temporary home on a real disk, a marked environment, and nothing left behind.

Every process we start inherits BENCH_MARK, so that what is left at the end can be found, told, and ended by pid.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentd.client import Client

from . import programs

GITCONFIG = "[user]\n\tname = Bench\n\temail = bench@example.invalid\n[init]\n\tdefaultBranch = main\n"
SETTINGS = "[limits]\nrunning = 2000\nqueued = 20000\n"
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


class Lab:
    def __init__(self, is_quick: bool, work: str | None = None, clis: str | None = None) -> None:
        self.is_quick = is_quick
        self.clis = None if clis is None else os.path.abspath(clis)
        """The folder of the vendors' command lines; None: they are looked for in PATH."""
        self.folder = Path(tempfile.mkdtemp(prefix="agentd-bench-", dir=work or a_disk())).resolve()
        self.mark = uuid.uuid4().hex
        self.random = random.Random(1)
        self.home = self.folder / "home"
        self.home.mkdir()
        (self.home / ".gitconfig").write_text(GITCONFIG)
        (self.folder / "agentd.toml").write_text(SETTINGS)
        self._scrub_environment()
        self.stamp, self.spew = programs.build(self.folder / "bin")
        self.left_behind: list[str] = []
        self.load_before = 0.0

    def _scrub_environment(self) -> None:
        for name in list(os.environ):
            if name.startswith(("GIT_", "AGENTD_", "XDG_", "TMUX", "TS_", "NQ")):
                del os.environ[name]
        os.environ |= {
            "HOME": str(self.home),
            "AGENTD_CONFIG": str(self.folder / "agentd.toml"),
            "AGENTD_STATE_DIR": str(self.folder / "no-such-state"),
            "BENCH_MARK": self.mark,
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
        }

    def pick(self, quick: int, full: int) -> int:
        return quick if self.is_quick else full

    def place(self, name: str) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    @contextlib.contextmanager
    def state(self, name: str) -> Iterator["State"]:
        """A daemon with a state folder of its own; its jobs end with the block."""
        state = State(self.place(name))
        try:
            yield state
        finally:
            state.close()

    def interleaved(self, rounds: int, alternatives: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Each alternative once a round, in an order that changes: what each of them returned."""
        found: dict[str, list[float]] = {name: [] for name in alternatives}
        for _ in range(rounds):
            for name in self.random.sample(list(alternatives), len(alternatives)):
                found[name].append(alternatives[name]())
        return found

    def end_processes(self) -> None:
        for pid in self.marked():
            with contextlib.suppress(OSError):
                self.left_behind.append(f"{pid} {command_of(pid)}")
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.marked() and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        self.end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)

    def marked(self) -> list[int]:
        """Processes that we started, or that those started; zombies have no environment and do not count."""
        mark = f"BENCH_MARK={self.mark}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if int(name) != os.getpid() and mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found


class State:
    """One state folder, its daemon, and a client of it. ``environment``: what the command line needs to meet it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self.client = Client(self.path, owner="bench")
        self.environment = {**os.environ, "AGENTD_STATE_DIR": self.path, "AGENTD_OWNER": "bench"}
        self.client.ask("daemon.status")

    def new_client(self) -> Client:
        return Client(self.path, owner="bench")

    def status(self) -> dict[str, Any]:
        return self.client.ask("daemon.status")

    def run(self, *argv: str, **options: Any) -> int:
        """Start a command in place; its job's id."""
        options = {"cwd": "/", "environment": dict(os.environ), "in_place": True} | options
        return int(self.client.delegate(argv, **options)["id"])

    def finish(self, ids: Sequence[int], remove: bool = False, timeout: float = 600.0) -> list[dict[str, Any]]:
        answer = self.client.wait(list(ids), timeout=timeout)
        if answer["timed_out"]:
            raise RuntimeError(
                f"jobs do not end: {[(j['id'], j['state']) for j in answer['jobs'] if not j['outcome']]}"
            )
        for id in ids if remove else ():
            self.client.remove(id)
        return list(answer["jobs"])

    def stop_daemon(self) -> None:
        """Jobs go on. Returns when the process is gone."""
        pid = self.status()["pid"]
        self.client.ask("daemon.stop")
        self.client.close()
        wait_gone([pid])

    def close(self) -> None:
        with contextlib.suppress(Exception):
            status = self.status()
            self.client.ask("daemon.stop", kill_jobs=True)
            self.client.close()
            wait_gone([status["pid"], status["zygote"]])


# --- commands -----------------------------------------------------------------------------------------------


def cli() -> list[str]:
    """The command line as users run it: the console script beside this Python, else the module."""
    script = Path(sys.executable).with_name("agentd")
    return [str(script)] if script.exists() else [sys.executable, "-m", "agentd"]


def timed(argv: Sequence[str], cwd: str | Path = "/", environment: dict[str, str] | None = None) -> float:
    """Seconds from asking for a process until it has ended and been waited for. It must succeed."""
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    took = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return took


def output(*argv: str, cwd: str | Path = "/", environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout.strip()


def make_repository(path: Path, files: int) -> Path:
    """One commit of so many small files, a hundred in a folder."""
    path.mkdir(parents=True)
    output("git", "init", "-q", cwd=path)
    output("git", "config", "gc.auto", "0", cwd=path)  # the one below is waited for
    output("git", "config", "maintenance.auto", "false", cwd=path)
    for n in range(files):
        folder = path / f"d{n // 100:03}"
        if n % 100 == 0:
            folder.mkdir()
        (folder / f"f{n % 100:02}.txt").write_text(f"file {n}\n")
    output("git", "add", "-A", cwd=path)
    output("git", "commit", "-q", "-m", "first", cwd=path)
    output("git", "gc", "-q", cwd=path)
    return path


# --- processes and places -----------------------------------------------------------------------------------


def wait_gone(pids: Sequence[int], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def a_disk() -> str:
    """The first usual folder that is not kept in memory; the usual one if all are."""
    for place in (tempfile.gettempdir(), "/var/tmp", os.getcwd()):
        if os.access(place, os.W_OK) and file_system(place) not in MEMORY_FILE_SYSTEMS:
            return place
    return tempfile.gettempdir()


def file_system(path: str | Path) -> str:
    """The type of the file system that holds ``path``."""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    holding = [m for m in mounts if m[4] == "/" or real == m[4] or real.startswith(m[4] + "/")]
    innermost = max(holding, key=lambda m: len(m[4]))
    return innermost[innermost.index("-") + 1]
