"""A laboratory: jobs whose every byte is known, processes killed at random moments, and the invariants after it.

The agent notes its nonce in a file that must not exist (so a second execution fails), writes numbered lines to both
streams, and ends in a way that its number decides. So log, status and number of executions can be checked exactly.
"""

import contextlib
import ctypes
import errno
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentd import jobdir, process
from agentd.client import Client, ConnectionLost, Job
from agentd.core.errors import AgentdError, NotNow

KINDS = ("daemon", "keeper", "zygote")
AGENT = """
set -C
: > "$PROOF/$AGENTD_NONCE" || exit 99
set +C
i=0
while [ $i -lt "$LINES_WANTED" ]; do
  echo "out $i"; echo "err $i" >&2; i=$((i+1))
  case $i in *0) sleep "$PAUSE";; esac
done
: > "$PROOF/$AGENTD_NONCE.end"
case $WAY in
  term) kill -TERM $$;;
  kill) kill -KILL $$;;
  *) exit "$WAY";;
esac
"""
WAYS = ("0", "1", "7", "42", "255", "term", "kill")


class Violation(AssertionError):
    """An invariant does not hold."""


class Lab:
    def __init__(self, folder: Path, seed: int, without: str = "") -> None:
        self.folder = folder
        self.state = str(folder / "state")
        self.proof = folder / "proof"
        self.proof.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(seed)
        self.mark = uuid.uuid4().hex
        os.environ["AGENTD_LAB"] = self.mark
        os.environ["AGENTD_WITHOUT"] = without
        self.client = Client(self.state, owner="lab")
        self.wanted: dict[int, dict[str, str]] = {}
        self.forgiven: set[int] = set()
        """Jobs whose agent ended while all that could know were dead: exact or lost, never wrong."""
        self.orphaned: set[int] = set()
        """Jobs whose agent may have become a child of process 1, where the kernel tells a non-parent nothing."""
        self.told: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.order: list[int] = []
        self.pauses = ("0", "0.01", "0.03")
        self.kills = 0
        self.is_over = False
        self.reader_fault: BaseException | None = None
        self.client.ask("events.subscribe", name="reader", follow=False)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    # --- jobs -----------------------------------------------------------------------------------------------

    def delegate(self) -> int:
        way = self.random.choice(WAYS)
        wanted = {
            "PROOF": str(self.proof),
            "LINES_WANTED": str(self.random.randrange(0, 400)),
            "PAUSE": self.random.choice(self.pauses),
            "WAY": way,
            "PATH": os.environ["PATH"],
        }
        job = self.client.delegate(
            ["/bin/sh", "-c", AGENT], environment=wanted, cwd=str(self.folder), in_place=True, limits={}
        )
        self.wanted[int(job["id"])] = wanted
        return int(job["id"])

    def live(self) -> list[int]:
        return [int(job["id"]) for job in self.client.jobs()]

    def wait_all(self, timeout: float = 120.0) -> None:
        answer = self.client.wait(sorted(self.wanted), timeout=timeout)
        if answer["timed_out"]:
            stuck = [(job["id"], job["state"]) for job in answer["jobs"] if job["state"] != "done"]
            raise Violation(f"jobs do not end: {stuck}")

    # --- the subscriber -------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take events, acknowledge some, be cut off with the daemon, come back."""
        with Client(self.state, start=False, owner="lab") as client:
            self._read_with(client)

    def _read_with(self, client: Client) -> None:
        choice = random.Random(1)
        while not self.is_over:
            try:
                for event in client.events(name="reader"):
                    if event["type"] == "job.completed":
                        self.told.setdefault((event["job"], event["attempt"]), []).append(event)
                    self.order.append(event["seq"])
                    if choice.random() < 0.5:
                        client.ack("reader", event["seq"])
            except NotNow:
                threading.Event().wait(0.02)  # nobody has started the next daemon yet
            except (AgentdError, ConnectionLost, ValueError) as error:
                self.reader_fault = error
                return

    # --- killing --------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, list[int]]:
        """Our own processes by kind, found by the mark in their environment."""
        found: dict[str, list[int]] = {kind: [] for kind in KINDS}
        mark = f"AGENTD_LAB={self.mark}".encode()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                title = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
                kind = next((k for k in KINDS if title.startswith(f"agentd-{k}")), None)
                if kind == "keeper" and parent_title(name).startswith("agentd-keeper"):
                    continue  # the agent's fork, before it is executed
                if kind and mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found[kind].append(int(name))
            except OSError:
                continue
        return found

    def kill(self, kinds: tuple[str, ...]) -> None:
        """kill -9 one process of each kind, at the same moment."""
        pids = self.pids()
        chosen = [self.random.choice(pids[kind]) for kind in kinds if pids[kind]]
        if len(chosen) < len(kinds):
            return
        forgetful = set(kinds) == set(KINDS)
        at_risk = self.unended() if forgetful else []
        if {"keeper", "zygote"} <= set(kinds) and process.without("pidfd-exit"):
            self.orphaned.update(self.unended())
        self.random.shuffle(chosen)
        for pid in chosen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.kills += 1
        if forgetful:
            self.wait_until_kept(at_risk)

    def unended(self) -> list[int]:
        return [id for id in self.wanted if jobdir.read(self.attempt(id), "exit.json") is None]

    def wait_until_kept(self, ids: list[int]) -> None:
        """All killed: forgive the jobs whose agent was gone before somebody could hold on to it again."""
        self.client.close()
        self.client.ask("daemon.status")
        for id in ids:
            path = self.attempt(id)
            until(lambda path=path: process.byte_held(f"{path}/life.lock", 0) or is_settled(path))
            agent = jobdir.read(path, "agent.json")
            if agent is None:
                continue
            pidfd = process.open_verified(agent["agent"])
            if pidfd is None or process.has_exited(pidfd):
                self.forgiven.add(id)
            if pidfd is not None:
                os.close(pidfd)

    def attempt(self, id: int) -> str:
        return f"{self.state}/jobs/{id}/1"

    # --- the invariants -------------------------------------------------------------------------------------

    def check(self) -> None:
        """I1 to I10 of what was promised, for every job of the lab."""
        self.wait_all()
        jobs = {int(job["id"]): job for job in self.client.jobs(all=True)}
        faults = [f"job {id} is not listed" for id in self.wanted if id not in jobs]
        newest = self.client.ask("daemon.status")["newest_seq"]
        until(lambda: (bool(self.order) and max(self.order) >= newest) or self.reader_fault is not None)
        if self.reader_fault is not None:
            raise self.reader_fault
        for id, wanted in self.wanted.items():
            faults += [f"job {id}: {fault}" for fault in self.faults_of(id, wanted, jobs[id])]
        faults += self.faults_of_feed(jobs)
        if faults:
            raise Violation("\n".join(faults))

    def faults_of(self, id: int, wanted: dict[str, str], job: dict[str, Any]) -> Iterator[str]:
        path = self.attempt(id)
        spec = jobdir.read(path, "spec.json") or {}
        ran = os.path.exists(self.proof / spec["nonce"])
        if job["outcome"] == "lost":
            if id not in self.forgiven | self.orphaned:
                yield f"lost, though its agent outlived us ({jobdir.read(path, 'exit.json')})"
            return
        expected = {"term": (None, 15), "kill": (None, 9)}.get(wanted["WAY"]) or (int(wanted["WAY"]), None)
        if (job["exit_code"], job["signal"]) != expected:
            yield f"ended {job['outcome']} {job['exit_code']} {job['signal']}, wanted {expected}"
        if not ran:
            yield "was never executed"
        for stream in jobdir.STREAMS:
            got = b"".join(data for _, data in jobdir.read_range(path, stream, 0, 1 << 40))
            want = b"".join(b"%s %d\n" % (stream.encode(), n) for n in range(int(wanted["LINES_WANTED"])))
            if got != want and not (id in self.forgiven and want.startswith(got)):
                yield f"{stream}: {len(got)} bytes, wanted {len(want)}; first difference at {difference(got, want)}"
        if process.byte_held(f"{path}/life.lock", 0) or process.byte_held(f"{path}/life.lock", 1):
            yield "its life.lock is still held"

    def faults_of_feed(self, jobs: dict[int, dict[str, Any]]) -> Iterator[str]:
        for id in self.wanted:
            completions = self.told.get((id, 1), [])
            if not completions:
                yield f"job {id}: no completion was told"
            if len({event["seq"] for event in completions}) > 1:
                yield f"job {id}: completions with different seq: {[event['seq'] for event in completions]}"
            for event in completions:
                if event["data"]["outcome"] != jobs[id]["outcome"]:
                    yield f"job {id}: told {event['data']['outcome']}, but is {jobs[id]['outcome']}"

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop everything and see that nothing is left."""
        self.is_over = True
        try:
            self.client.ask("daemon.stop", kill_jobs=True)
        finally:
            self.client.close()
        self.reader.join(30)
        until(lambda: not any(self.pids().values()), what=lambda: f"processes left behind: {self.pids()}")


def parent_title(pid: str) -> str:
    parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1].decode()
    return Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")


def is_settled(path: str) -> bool:
    return jobdir.read(path, "end.json") is not None


def difference(got: bytes, want: bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))


def until(
    is_so: Callable[[], bool], timeout: float = 30.0, what: Callable[[], str] = lambda: "it does not happen"
) -> None:
    """Wait for what no event announces: the state of processes after a kill."""
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            raise Violation(what())
        threading.Event().wait(0.005)


def random_kills(folder: Path, kinds: tuple[str, ...], count: int, seed: int, without: str = "") -> Lab:
    """Kill ``kinds`` together ``count`` times at random moments while jobs run, then check everything."""
    lab = Lab(folder, seed, without)
    if len(kinds) > 1:
        lab.pauses = ("0.01", "0.03", "0.1")  # longer lives: many an agent outlives all of ours
    if len(kinds) == len(KINDS):
        lab.pauses = ("0.05", "0.1", "0.2")
    try:
        while lab.kills < count:
            while len(lab.live()) < 5:
                lab.delegate()
            threading.Event().wait(lab.random.random() ** 2 * 0.06)
            before = lab.kills
            lab.kill(kinds)
            if lab.kills > before and lab.random.random() < 0.3:
                lab.delegate()  # a request in the middle of the ruins
        lab.check()
    finally:
        lab.close()
    return lab


# --- one fault at a time ------------------------------------------------------------------------------------

ONCE = 'set -C; : > "$PROOF/$AGENTD_NONCE" || exit 99; set +C\n'
"""The first line of every script: a second execution of an attempt fails, and is seen."""
ENOUGH_S = 5.0
"""How long a new delegate may take on a machine that is shared (the promise is 2 s on a quiet one)."""
is_long = bool(os.environ.get("AGENTD_LONG"))


class Scene:
    """A state folder and its processes, for one fault. At its end everything is stopped, and nothing may be left.

    ``without``: mechanisms to switch off. All processes are found by a mark in their environment.
    """

    def __init__(self, folder: Path, without: str = "", state: Path | None = None) -> None:
        self.folder = folder
        self.proof = folder / "proof"
        self.proof.mkdir(parents=True, exist_ok=True)
        self.state = str(state or folder / "state")
        self.mark = uuid.uuid4().hex
        self.before = {name: os.environ.get(name) for name in ("AGENTD_LAB", "AGENTD_WITHOUT")}
        os.environ["AGENTD_LAB"] = self.mark
        os.environ["AGENTD_WITHOUT"] = without
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
            for name, value in self.before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

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
            for pid in self.ours():
                os.kill(pid, signal.SIGCONT)
            if in_peace:
                self.client.ask("daemon.stop", kill_jobs=True)
        finally:
            self.client.close()
            if not in_peace:
                end_all(lambda: [*self.ours(), *self.agents()])
        try:
            until(lambda: not self.ours() and not self.agents(), what=self.leftovers)
        finally:
            end_all(lambda: [*self.ours(), *self.agents()])

    def leftovers(self) -> str:
        return "processes left behind: " + ", ".join(
            f"{pid} {command_of(pid)}" for pid in [*self.ours(), *self.agents()]
        )


def comes_true(is_so: Callable[[], bool], timeout: float = 5.0) -> bool:
    with contextlib.suppress(Violation):
        until(is_so, timeout)
    return is_so()


def end_all(who: Callable[[], list[int]]) -> None:
    """kill -9, each by its pid, until nobody is left."""
    while pids := who():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        threading.Event().wait(0.01)


def with_environment(pair: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if pair.encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


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


# --- the means of breaking things ---------------------------------------------------------------------------

CALLS = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink"),
    *("close", "mkdir", "sendto", "sendmsg"),
)
"""The system calls by which daemon and keeper change anything."""


class Strace:
    """strace attached to a live process: ``inject`` is "CALL:signal=KILL:when=3", "fsync:error=EIO:when=1" and so on.

    ``follow``: its other threads and its children too, each with a count of its own.
    """

    def __init__(self, pid: int, folder: Path, calls: Sequence[str], inject: str = "", follow: bool = True) -> None:
        self.out = folder / "trace.out"
        self.out.unlink(missing_ok=True)
        command = ["strace", "-qq", "-o", str(self.out), "-e", "trace=" + ",".join(calls)]
        command += ["-f"] if follow else []
        command += ["-e", f"inject={inject}"] if inject else []
        self.said = folder / "trace.err"
        with self.said.open("wb") as said:
            self.strace = subprocess.Popen([*command, "-p", str(pid)], stderr=said)
        self.pid = pid
        until(self.is_attached, 10.0, lambda: f"strace cannot attach: {self.said.read_text()}")

    def is_attached(self) -> bool:
        if self.strace.poll() is not None:
            raise Violation(f"strace ended: {self.said.read_text()}")
        return all(tracer_of(self.pid, tid) for tid in self.threads())

    def threads(self) -> list[str]:
        if "-f" not in self.strace.args:  # type: ignore[operator]
            return [str(self.pid)]
        try:
            return os.listdir(f"/proc/{self.pid}/task")
        except FileNotFoundError:
            return []

    def __enter__(self) -> "Strace":
        return self

    def __exit__(self, *_: object) -> None:
        self.strace.terminate()  # it detaches: the process goes on
        self.strace.wait()

    def counts(self) -> dict[str, int]:
        """The most often one thread made each call. Call it after the end."""
        found: dict[tuple[str, str], int] = {}
        for line in self.out.read_text(errors="replace").splitlines():
            who, _, rest = line.partition(" ")
            if not who.isdigit():
                who, rest = "", line
            name = rest.strip().partition("(")[0]
            if name.isidentifier() and "(" in rest:
                found[name, who] = found.get((name, who), 0) + 1
        most: dict[str, int] = {}
        for (name, _), count in found.items():
            most[name] = max(most.get(name, 0), count)
        return most


def tracer_of(pid: int, tid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    except OSError:
        return True  # that thread has just ended
    return "TracerPid:\t0\n" not in status


def can_trace() -> str | None:
    """Why strace cannot be attached to a process that is no child of it; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.getuid() != 0 and scope.exists() and scope.read_text().strip() != "0":
        return "needs root here: yama lets nobody else trace processes that are not its children"
    return None


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: mounts, control groups or another uid")
needs_trace = pytest.mark.skipif(can_trace() is not None, reason=str(can_trace()))


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own, as small as ``options`` say. Needs root."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    sh(f"mount -t tmpfs -o mode=0700,{options} tmpfs {place}")
    try:
        yield place
    finally:
        sh(f"umount {place} || umount -l {place}")


def fill(place: Path) -> Path:
    """A ballast file that leaves not a byte; delete it to give the room back."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return ballast


@contextlib.contextmanager
def group(kind: str, **settings: object) -> Iterator[Path]:
    """A version 1 control group (or a version 2 one, kind ``unified``) of this test alone. Needs root."""
    home = Path("/sys/fs/cgroup") / kind
    if not (home / "cgroup.procs").exists():
        pytest.skip(f"no {kind} control group hierarchy at {home}")
    place = home / f"agentd-faults-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        for name, value in settings.items():
            (place / name.replace("__", ".")).write_text(str(value))
        yield place
    finally:
        for folder, _, _ in os.walk(place, topdown=False):
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (home / "cgroup.procs").write_text(pid)
            until(lambda folder=folder: removed(folder), 10.0, lambda: f"{place} is still in use")


def removed(folder: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)


def join(place: Path, pid: int) -> None:
    (place / "cgroup.procs").write_text(str(pid))


def fork(run: Callable[[], None]) -> int:
    """A child of the test that runs a function and ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return pid


def in_own_pid_namespace(folder: Path, module: str, function: str) -> None:
    """Run ``module.function(folder)`` as process 1 of a PID namespace, where pids can be chosen. Needs root."""
    code = f"import sys, pathlib, {module} as m; m.{function}(pathlib.Path(sys.argv[1]))"
    command = ["unshare", "-pf", "--mount-proc", "--kill-child", sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=with_path())
    if done.returncode != 0:
        raise Violation(f"{function} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def as_ordinary_user(module: str, function: str) -> None:
    """Run ``module.function(folder)``, in a folder of its own, with a uid that nobody has; as itself if it is not root.

    Root may have a Python that nobody else can reach (in its home): then the system's, if it is the same version.
    """
    with tempfile.TemporaryDirectory(prefix="agentd-user-") as folder:
        code = f"import sys, pathlib, {module} as m; m.{function}(pathlib.Path(sys.argv[1]))"
        environment = with_path() | {"HOME": folder}
        drop = []
        if os.getuid() == 0:
            os.chown(folder, 54321, 54321)
            drop = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        for python in (sys.executable, f"/usr/bin/python{version}"):
            probe = [*drop, "/bin/sh", "-c", f"exec {python} -c 'import msgspec, filelock, pytest'"]
            if subprocess.run(probe, env=environment, cwd="/", capture_output=True).returncode == 0:
                break
        else:
            pytest.skip("no Python with our dependencies that an ordinary user could run")
        argv = [*drop, "/bin/sh", "-c", 'exec "$@"', "sh", python, "-c", code, folder]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=150, env=environment, cwd=folder)
        if done.returncode != 0:
            raise Violation(f"{function} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def with_path() -> dict[str, str]:
    """This environment, with our modules and those they need to be found in it."""
    here = Path(__file__).resolve().parent
    return {**os.environ, "PYTHONPATH": f"{here.parent}:{here}:{Path(pytest.__file__).parent.parent}"}


def fork_with_pid(want: int, run: Callable[[], None]) -> int:
    """A child that has exactly this pid. Only in a PID namespace of one's own."""
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(want - 1))
        pid = fork(run)
        if pid == want:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- killing a keeper at its nth system call ----------------------------------------------------------------

PTRACE_CONT, PTRACE_SYSCALL, PTRACE_DETACH = 7, 24, 17
PTRACE_SETOPTIONS, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GET_SYSCALL_INFO = 0x4200, 0x4206, 0x4207, 0x420E
O_SYSGOOD, O_FORKS = 1, 2 | 4 | 8
MUTATING = {
    # x86_64: number -> name. The calls by which a keeper changes a file, a process or a socket.
    **{1: "write", 18: "pwrite64", 20: "writev", 46: "sendmsg", 44: "sendto", 42: "connect", 49: "bind"},
    **{74: "fsync", 75: "fdatasync", 82: "rename", 87: "unlink", 133: "mknod", 259: "mknodat", 83: "mkdir"},
    **{84: "rmdir", 56: "clone", 57: "fork", 58: "vfork", 435: "clone3", 257: "openat", 2: "open", 3: "close"},
    **{
        275: "splice",
        247: "waitid",
        61: "wait4",
        424: "pidfd_send_signal",
        72: "fcntl",
        293: "pipe2",
        285: "fallocate",
    },
}


class KeeperTracer:
    """A process that kills the next keeper of a zygote as it enters its ``nth`` mutating call; 0: never.

    strace cannot do this: with -f it counts in the zygote and in the agent too. ``calls`` has the names of the calls
    that were made (the last one was not executed, if the keeper was killed).
    """

    def __init__(self, zygote: int, nth: int) -> None:
        self.read_end, write_end = os.pipe()
        attached, tell = os.pipe()
        self.zygote = zygote
        self.pid = fork(lambda: trace_next_keeper(zygote, nth, write_end, tell))
        os.close(write_end)
        os.close(tell)
        try:
            if os.read(attached, 1) != b"a":
                raise Violation("cannot trace the zygote")
        finally:
            os.close(attached)

    def __enter__(self) -> "KeeperTracer":
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)  # the kernel detaches what it traced
        os.waitpid(self.pid, 0)
        os.close(self.read_end)

    def calls(self) -> list[str]:
        """All calls so far, of a keeper that is known to have made its last one."""
        os.set_blocking(self.read_end, False)
        told = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.read_end, 65536):
                told += piece
        return told.decode().split()


def trace_next_keeper(zygote: int, nth: int, told: int, attached: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
        return int(libc.ptrace(request, pid, address, data))

    if ptrace(PTRACE_SEIZE, zygote, 0, O_SYSGOOD | O_FORKS) != 0:
        return
    os.write(attached, b"a")
    keeper, count = 0, 0
    info = ctypes.create_string_buffer(128)
    while True:
        pid, status = os.waitpid(-1, 0x40000000)  # __WALL
        if not os.WIFSTOPPED(status):
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        if pid == zygote or (keeper and pid != keeper):
            # The zygote goes on; of its children only the first is looked at, of the keeper's none.
            if pid == zygote:
                ptrace(PTRACE_CONT, pid, 0, 0 if event else number)
            else:
                ptrace(PTRACE_DETACH, pid, 0, 0)
            continue
        if not keeper:
            keeper = pid
            ptrace(PTRACE_SETOPTIONS, pid, 0, O_SYSGOOD)
        elif number == signal.SIGTRAP | 0x80:
            ptrace(PTRACE_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
            if info.raw[0] == 1:  # entry
                name = MUTATING.get(int.from_bytes(info.raw[24:32], sys.byteorder))
                if name is not None:
                    count += 1
                    os.write(told, f"{name}\n".encode())
                    if count == nth:
                        os.kill(pid, signal.SIGKILL)
                        continue
        ptrace(PTRACE_SYSCALL, pid, 0, 0 if event or number & 0x80 else number)


def main(argv: list[str]) -> int:
    """``faultlab KINDS COUNT SEED [WITHOUT]``: one batch, for scripts/faults."""
    import tempfile

    kinds = tuple(argv[0].split("+"))
    with tempfile.TemporaryDirectory(prefix="agentd-lab-") as folder:
        lab = random_kills(Path(folder), kinds, int(argv[1]), int(argv[2]), argv[3] if len(argv) > 3 else "")
        print(f"{lab.kills} kills of {argv[0]}, {len(lab.wanted)} jobs, {len(lab.forgiven)} forgiven")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
