"""Random kills: jobs whose every byte is known, ours killed at random moments, and the invariants after it.

The agent notes its nonce in a file that must not exist (so a second execution fails), writes numbered lines to both
streams, and ends in a way that its number decides. So log, status and number of executions can be checked exactly.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faultlab import Violation, also_without, comes_true, environ, parent_title, until

from agentd import jobdir, process
from agentd.client import Client, ConnectionLost
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


class Lab:
    def __init__(self, folder: Path, seed: int, without: str = "", has_terminals: bool = False) -> None:
        self.folder = folder
        self.has_terminals = has_terminals
        self.state = str(folder / "state")
        self.proof = folder / "proof"
        self.proof.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(seed)
        self.mark = uuid.uuid4().hex
        self.environ = environ(AGENTD_LAB=self.mark, AGENTD_WITHOUT=also_without(without))
        self.environ.__enter__()
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
            ["/bin/sh", "-c", AGENT],
            environment=wanted,
            cwd=str(self.folder),
            in_place=True,
            limits={},
            tty=[24, 80] if self.has_terminals else None,
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
            want = self.output_wanted(stream, int(wanted["LINES_WANTED"]))
            if got != want and not (id in self.forgiven and want.startswith(got)):
                yield f"{stream}: {len(got)} bytes, wanted {len(want)}; first difference at {difference(got, want)}"
        # A keeper tells of the end, and then goes.
        if not comes_true(lambda: not any(process.byte_held(f"{path}/life.lock", byte) for byte in (0, 1))):
            yield "its life.lock is still held"

    def output_wanted(self, stream: str, lines: int) -> bytes:
        if not self.has_terminals:
            return b"".join(b"%s %d\n" % (stream.encode(), n) for n in range(lines))
        return b"".join(b"out %d\r\nerr %d\r\n" % (n, n) for n in range(lines)) if stream == "out" else b""

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
            self.environ.__exit__(None, None, None)
        self.reader.join(30)
        until(lambda: not any(self.pids().values()), what=lambda: f"processes left behind: {self.pids()}")


def is_settled(path: str) -> bool:
    return jobdir.read(path, "end.json") is not None


def difference(got: bytes, want: bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))


def random_kills(folder: Path, kinds: tuple[str, ...], count: int, seed: int, without: str = "") -> Lab:
    """Kill ``kinds`` together ``count`` times at random moments while jobs run, then check everything. With ``pty``
    among them the jobs have terminals."""
    lab = Lab(folder, seed, without, "pty" in kinds)
    kinds = tuple(kind for kind in kinds if kind != "pty")
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


def main(argv: list[str]) -> int:
    """``randomkills KINDS COUNT SEED [WITHOUT]``: one batch, for scripts/faults."""
    kinds = tuple(argv[0].split("+"))
    with tempfile.TemporaryDirectory(prefix="agentd-lab-") as folder:
        lab = random_kills(Path(folder), kinds, int(argv[1]), int(argv[2]), argv[3] if len(argv) > 3 else "")
        print(f"{lab.kills} kills of {argv[0]}, {len(lab.wanted)} jobs, {len(lab.forgiven)} forgiven")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
