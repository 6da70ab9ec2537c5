"""The laboratory: a state folder and its processes, for one fault at a time, and what must hold after it.

What breaks things is in :mod:`breaking` (disks, control groups, pids, users) and :mod:`tracing` (system calls).
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gitrepo
import pytest

from agentd import jobdir, process
from agentd.client import Client, Job

ONCE = 'set -C; : > "$PROOF/$AGENTD_NONCE" || exit 99; set +C\n'
"""The first line of every script: a second execution of an attempt fails, and is seen."""
WAITS = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; exit 5"
"""A script that ends when the test says so. (``ready`` is what :meth:`Scene.running` waits for.)"""
ENOUGH_S = 5.0
"""How long a new delegate may take on a machine that is shared (the promise is 2 s on a quiet one)."""
is_long = bool(os.environ.get("AGENTD_LONG"))


class Violation(AssertionError):
    """An invariant does not hold."""


class Scene:
    """A state folder and its processes, for one fault. At its end everything is stopped, and nothing may be left.

    ``without``: mechanisms to switch off, besides those that are off for the whole run. All processes are found by a
    mark in their environment.
    """

    def __init__(self, folder: Path, without: str = "", state: Path | None = None) -> None:
        self.folder = folder
        self.proof = folder / "proof"
        self.proof.mkdir(parents=True, exist_ok=True)
        self.state = str(state or folder / "state")
        self.mark = uuid.uuid4().hex
        self.environ = environ(AGENTD_LAB=self.mark, AGENTD_WITHOUT=also_without(without))
        self.environ.__enter__()
        self.client = Client(self.state, owner="lab")
        self.mine: list[subprocess.Popen[bytes]] = []
        self.base: tuple[int, int] = (0, 0)
        """The daemon's pid, and how many descriptors it has when it has nothing to do."""

    def __enter__(self) -> "Scene":
        try:
            self.client.ask("events.subscribe", name="reader", follow=False)
            self.base = self.idle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close(in_peace=kind is None)
        finally:
            self.environ.__exit__(None, None, None)

    # --- jobs -----------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        return {"PROOF": str(self.proof), "LAB": self.mark, "PATH": os.environ["PATH"], "PYTHON": sys.executable}

    def delegate(self, script: str, **options: Any) -> int:
        """A job that runs a shell script: in place, if it is not said otherwise."""
        options = {"in_place": True, "limits": {}, "cwd": str(self.folder), **options}
        job = self.client.delegate(["/bin/sh", "-c", ONCE + script], environment=self.environment(), **options)
        return int(job["id"])

    def running(self, script: str, **options: Any) -> int:
        """A job whose script has come to a line that calls ``ready``."""
        id = self.delegate(f'ready() {{ : > "$PROOF/ready.$AGENTD_JOB"; }}\n{script}', **options)
        self.client.wait([id], until="running", timeout=60)  # whoever asks has a dead daemon replaced
        until(lambda: (self.proof / f"ready.{id}").exists(), what=lambda: f"job {id} does not run")
        return id

    def wait(self, *ids: int, timeout: float = 60.0) -> list[Job]:
        answer = self.client.wait(ids, timeout=timeout)
        if answer["timed_out"]:
            raise Violation(f"jobs do not end: {[(job['id'], job['state']) for job in answer['jobs']]}")
        return list(answer["jobs"])

    def attempt(self, id: int) -> str:
        return f"{self.state}/jobs/{id}/1"

    def record(self, id: int, name: str) -> dict[str, Any]:
        return jobdir.read(self.attempt(id), f"{name}.json") or {}

    def log(self, id: int, stream: str = "out") -> bytes:
        return b"".join(data for _, data in jobdir.read_range(self.attempt(id), stream, 0, 1 << 50))

    def events(self, type: str = "", since: int = 0) -> list[dict[str, Any]]:
        return [e for e in self.client.events(since=since, follow=False) if e["type"].startswith(type)]

    # --- processes ------------------------------------------------------------------------------------------

    def daemon(self) -> int:
        return int(self.client.ask("daemon.status")["pid"])

    def zygote(self) -> int:
        return int(self.client.ask("daemon.status")["zygote"])

    def keeper(self, id: int) -> int:
        """Who holds the attempt now: waited for, if nobody does."""
        title = f"agentd-keeper {id}.1"
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [pid for pid in self.ours() if command_of(pid).startswith(title)]
            found[:] = [pid for pid in found if not parent_title(str(pid)).startswith("agentd-keeper")]
            return bool(found) and os.path.exists(f"{self.attempt(id)}/keeper.sock")

        until(is_there, what=lambda: f"job {id} has no keeper")
        return found[0]

    def leader(self, id: int) -> int:
        until(lambda: bool(self.record(id, "agent")), what=lambda: f"job {id} has no agent")
        return int(self.record(id, "agent")["agent"]["pid"])

    def ours(self) -> list[int]:
        return with_environment(f"AGENTD_LAB={self.mark}")

    def agents(self) -> list[int]:
        return with_environment(f"LAB={self.mark}")

    def spawn(self, argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        """A helper of the test, ended with the scene."""
        child = subprocess.Popen(argv, **options)
        self.mine.append(child)
        return child

    def python(self, code: str, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        return self.spawn([sys.executable, "-c", code, *words], **options)

    def idle(self) -> tuple[int, int]:
        """The daemon's pid and descriptors, when this client's is its only connection."""
        pid = self.daemon()
        return pid, len(os.listdir(f"/proc/{pid}/fd"))

    # --- what must hold after every fault -------------------------------------------------------------------

    def check(self, ended: dict[int, int | str], told: bool = True) -> None:
        """I1 to I11, as far as one fault can touch them. ``ended``: how each job must have ended: its exit code,
        the negative of its signal, or an outcome. ``told``: the reader "reader" was told each completion."""
        jobs = {int(job["id"]): job for job in self.client.jobs(all=True)}
        faults: list[str] = []
        for id, how in ended.items():
            if id not in jobs:
                faults.append(f"I1: job {id} is not listed")
            else:
                faults += [f"job {id}: {fault}" for fault in self.faults_of(jobs[id], how)]
        faults += self.faults_of_feed(ended) if told else []
        faults += [f"I6: process {pid} is left: {command_of(pid)}" for pid in self.agents()]
        faults += [f"I6: zombie {pid} of process {parent}" for pid, parent in zombies(self.ours())]
        cgroup = self.client.ask("daemon.doctor")["cgroup"]
        until(lambda: not groups_below(cgroup), 5.0, lambda: f"I6: control groups are left: {groups_below(cgroup)}")
        faults += self.faults_of_a_new_job()
        until(self.is_at_base, 5.0, lambda: f"I10: the daemon had {self.base} descriptors and has {self.idle()}")
        if faults:
            raise Violation("\n".join(faults))

    def faults_of(self, job: Job, how: int | str) -> Iterator[str]:
        got = job["outcome"] if isinstance(how, str) else job["exit_code"]
        if isinstance(how, int) and job["signal"] is not None:
            got = -job["signal"]
        if job["state"] != "done" or got != how:
            is_now = [job[key] for key in ("state", "outcome", "exit_code", "signal", "reason")]
            yield f"I4: is {is_now}, not {how}"
        path = self.attempt(job["id"])
        nonce = (jobdir.read(path, "spec.json") or {}).get("nonce")
        if not os.path.exists(self.proof / str(nonce)) and job["pid"] is not None and how != "unstarted":
            yield "I2: was never executed"
        for byte in (0, 1):
            held = functools.partial(process.byte_held, f"{path}/life.lock", byte)
            if not job["left"] and not comes_true(lambda held=held: not held()):
                yield f"I8: byte {byte} of its life.lock is held"
        ends = [self.record(job["id"], "end").get("log", {}).get(s) for s in jobdir.STREAMS]
        sizes = [jobdir.size(path, s) for s in jobdir.STREAMS]
        if ends != [None, None] and ends != sizes:
            yield f"I3: its log is said to have {ends} bytes and has {sizes}"

    def faults_of_feed(self, ended: dict[int, int | str]) -> Iterator[str]:
        completions: dict[int, set[int]] = {}
        seqs = []
        for event in self.client.events(name="reader", follow=False):
            seqs.append(event["seq"])
            if event["type"] == "job.completed":
                completions.setdefault(event["job"], set()).add(event["seq"])
        if seqs != sorted(set(seqs)):
            yield f"I5: events out of order: {seqs}"
        for id in ended:
            if len(completions.get(id, ())) != 1:
                yield f"I5: job {id} was completed {len(completions.get(id, ()))} times"

    def faults_of_a_new_job(self) -> Iterator[str]:
        began = time.monotonic()
        id = self.delegate("exit 3")
        (job,) = self.wait(id)
        took = time.monotonic() - began
        if job["exit_code"] != 3:
            yield f"I9: a new job ended {job['outcome']} {job['exit_code']} {job['reason']}"
        if took > ENOUGH_S:
            yield f"I9: a new job took {took:.1f} s"

    def is_at_base(self) -> bool:
        pid, count = self.idle()
        return pid != self.base[0] or count <= self.base[1] + 1  # the store's journal may have been opened since

    # --- the end --------------------------------------------------------------------------------------------

    def close(self, in_peace: bool = True) -> None:
        """Stop everything; ``in_peace``: and see that nothing is left."""
        try:
            for child in self.mine:
                if child.poll() is None:
                    child.kill()
                child.wait()
                for pipe in (child.stdin, child.stdout, child.stderr):
                    if pipe is not None:
                        pipe.close()
            signal_marked([f"AGENTD_LAB={self.mark}"], signal.SIGCONT)
            cgroup = None
            # After a failure too: what escapes and forks is ended by its keeper, and by nobody else.
            with contextlib.ExitStack() as stack:
                if not in_peace:
                    stack.enter_context(contextlib.suppress(Exception))
                cgroup = self.client.ask("daemon.doctor")["cgroup"]
                self.client.ask("daemon.stop", kill_jobs=True)
        finally:
            self.client.close()
            if not in_peace:
                self.end_all()
        try:
            until(lambda: not self.ours() and not self.agents(), what=self.leftovers)
            if in_peace and cgroup and "AGENTD_CGROUP_HOME" not in os.environ and os.path.isdir(cgroup):
                raise Violation(f"control group left behind: {cgroup}")
        finally:
            self.end_all()

    def end_all(self) -> None:
        """kill -9 of everything, ours and the agents'; given up after a minute."""
        deadline = time.monotonic() + 60
        marks = [f"AGENTD_LAB={self.mark}", f"LAB={self.mark}"]
        while signal_marked(marks, signal.SIGKILL) and time.monotonic() < deadline:
            threading.Event().wait(0.01)

    def leftovers(self) -> str:
        return "processes left behind: " + ", ".join(
            f"{pid} {command_of(pid)}" for pid in [*self.ours(), *self.agents()]
        )


def check_repository(scene: Scene, top: str) -> None:
    """I7: git's list of worktrees is the store's; no lock, no stray branch."""
    until(lambda: all(job["result"] is not None for job in scene.client.jobs(all=True)))
    here = [job for job in scene.client.jobs(all=True) if job["worktree"] and os.path.isdir(job["worktree"])]
    listed = gitrepo.run(top, "worktree", "list", "--porcelain").splitlines()
    found = {
        "worktrees": [line.split(" ", 1)[1] for line in listed if line.startswith("worktree ")],
        "branches": gitrepo.run(top, "for-each-ref", "--format=%(refname:short)", "refs/heads").splitlines(),
        "locks": list(map(str, Path(top).joinpath(".git").rglob("*.lock"))),
    }
    wanted = {
        "worktrees": [top, *(job["worktree"] for job in here)],
        "branches": ["main", *(job["branch"] for job in here)],
        "locks": [],
    }
    for what, names in wanted.items():
        if sorted(found[what]) != sorted(names):
            raise Violation(f"I7: {what} are {sorted(found[what])}, not {sorted(names)}")


@contextlib.contextmanager
def environ(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def also_without(names: str) -> str:
    return ",".join(filter(None, [names, os.environ.get("AGENTD_WITHOUT")]))


def comes_true(is_so: Callable[[], bool], timeout: float = 5.0) -> bool:
    with contextlib.suppress(Violation):
        until(is_so, timeout)
    return is_so()


def signal_marked(pairs: Sequence[str], number: int) -> int:
    """Signal every process with one of ``pairs`` in its environment: looked at again when its pidfd is open, so that
    no stranger is hit that has the number by now. How many there were."""
    count = 0
    for pair in pairs:
        for pid in with_environment(pair):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if has_environment(pid, pair):
                        count += process.send(pidfd, number)
                finally:
                    os.close(pidfd)
    return count


def with_environment(pair: str) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and has_environment(pid, pair)]


def has_environment(pid: int, pair: str) -> bool:
    try:
        return pair.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def zombies(parents: list[int]) -> list[tuple[int, int]]:
    """Dead children that one of ``parents`` has not reaped, looked at twice: it may just be doing so."""

    def seen() -> set[tuple[int, int]]:
        return {(pid, parent) for parent in parents for pid in process.children(parent) if process.is_zombie(pid)}

    first = seen()
    deadline = time.monotonic() + 2.0
    while first and time.monotonic() < deadline:
        threading.Event().wait(0.01)
        first &= {pair for pair in seen() if os.path.exists(f"/proc/{pair[0]}")}
    return sorted(first)


def command_of(pid: int) -> str:
    return str(process.describe(pid)["command"]).rstrip("\0 ")


def groups_below(path: str | None) -> list[str]:
    """The control groups of jobs. The one for helpers that were let go stays while they live."""
    if path is None or not os.path.exists(f"{path}/cgroup.procs"):
        return []
    names = [name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]
    return [name for name in names if name != "left"]


def state_of(pid: int) -> str:
    """R, S, D, T, Z as in ps; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(
    is_so: Callable[[], bool], timeout: float = 30.0, what: Callable[[], str] = lambda: "it does not happen"
) -> None:
    """Wait for what no event announces: the state of processes after a kill."""
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            raise Violation(what())
        threading.Event().wait(0.005)


def parent_title(pid: str) -> str:
    parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1].decode()
    return Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")


def with_path() -> dict[str, str]:
    """This environment, with our modules and those they need to be found in it."""
    here = Path(__file__).resolve().parent
    return {**os.environ, "PYTHONPATH": f"{here.parent}:{here}:{Path(pytest.__file__).parent.parent}"}
