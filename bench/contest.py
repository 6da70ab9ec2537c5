"""Agents run against the instant model server: ours as a job of a real daemon, theirs as a process."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil

from agentd import jobdir, paths
from agentd.runners import transcript

from .lab import Lab, State
from .vendors import Vendor

TASK = "Look at this folder, and say in a word that you have seen it."
READER = "bench"
PATIENCE_S = 120.0
LOOK_EVERY_S = 0.02
Request = dict[str, Any]


class Served:
    """A script, served by a process of its own."""

    def __init__(self, lab: Lab, name: str, turns: list[dict[str, Any]]) -> None:
        folder = lab.place(name)
        self.turns = turns
        (folder / "script.json").write_text(json.dumps(turns))
        (folder / "record").touch()
        argv = [sys.executable, "-m", "bench.instant", str(folder / "script.json"), str(folder / "record")]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.record = (folder / "record").open()
        self.refused: set[str] = set()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()
        self.record.close()

    def requests(self) -> list[Request]:
        """Those since the last look."""
        lines = [json.loads(line) for line in self.record]
        self.refused |= {line["refused"] for line in lines if "refused" in line}
        return [line for line in lines if "refused" not in line]

    def whole_run(self, who: str) -> list[Request]:
        """The requests of one run that came to its end: each turn of the script was asked for."""
        requests = self.requests()
        asked = [request["turn"] for request in requests if request["tools"]]
        if asked != list(range(len(self.turns))):
            raise RuntimeError(f"{who} asked for turns {asked}, not for all {len(self.turns)} of the script")
        return requests


class Took(NamedTuple):
    whole: float
    to_request: float
    """From the start of its process (of ours: before its keeper is forked) to its first request at the server."""
    moments: Mapping[str, float] = MappingProxyType({})
    """The wall clock at each step of a job of ours."""


class Look(NamedTuple):
    """Bytes of each process of a tree, at one moment: ``{pid: (private, proportional)}``."""

    at: float
    sizes: dict[int, tuple[int, int]]

    def private(self) -> int:
        return sum(private for private, _ in self.sizes.values())

    def proportional(self) -> int:
        return sum(shared for _, shared in self.sizes.values())


class Theirs:
    def __init__(self, lab: Lab, vendor: Vendor, path: str, repository: Path) -> None:
        self.name = vendor.command
        self.vendor = vendor
        self.path = path
        self.repository = repository
        self.home = lab.place(f"home-{vendor.name}")

    def begin(self, server: Served, said: Any) -> "subprocess.Popen[bytes]":
        self.vendor.prepare(self.home, server.url, self.repository)
        run = self.vendor.run(self.path, self.home, server.url, TASK)
        with tempfile.TemporaryFile() as stdin:
            stdin.write(run.stdin.encode())
            stdin.seek(0)
            return subprocess.Popen(
                run.argv, env=run.environment, cwd=self.repository, stdin=stdin, stdout=said, stderr=said
            )

    def run(self, server: Served) -> tuple[Took, list[Request]]:
        with tempfile.TemporaryFile() as said:
            began = time.time()
            process = self.begin(server, said)
            code = wait(process)
            ended = time.time()
            self.check(code, said)
        requests = server.whole_run(self.name)
        first = next(request["at"] for request in requests if request["tools"])
        return Took(ended - began, first - began), requests

    def watched(self, server: Served) -> list[Look]:
        with tempfile.TemporaryFile() as said:
            process = self.begin(server, said)
            looks = watched(lambda: process.pid, lambda: process.poll() is not None)
            self.check(process.wait(), said)
        return looks

    def check(self, code: int, said: Any) -> None:
        if code != 0:
            said.seek(0)
            raise RuntimeError(f"{self.name} ended with {code}: {said.read().decode(errors='replace')[-500:]}")


class Ours:
    def __init__(self, state: State, name: str, repository: Path, is_in_place: bool) -> None:
        self.state = state
        self.name = name
        self.repository = repository
        self.is_in_place = is_in_place
        self.client = state.new_client()
        self.client.ask("events.subscribe", name=READER, follow=False)
        self.events = self.client.events(name=READER)

    def begin(self, server: Served) -> int:
        environment = {**os.environ, "ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "sk-bench"}
        job = self.state.client.delegate(
            [], task=TASK, agent="builtin", model="script", cwd=str(self.repository), environment=environment,
            in_place=self.is_in_place,
        )  # fmt: skip
        return int(job["id"])

    def run(self, server: Served) -> tuple[Took, list[Request]]:
        asked = time.time()
        id = self.begin(server)
        moments = {"asked": asked, "answered": time.time()}
        moments |= self.told(id)
        requests = server.whole_run(self.name)
        moments["at the server"] = requests[0]["at"]
        moments |= self.noted(id)
        launched = moments["job.starting" if self.is_in_place else "worktree.made"]
        return Took(moments["told"] - asked, requests[0]["at"] - launched, moments), requests

    def told(self, id: int) -> dict[str, float]:
        """When each event of a job happened, and when we had read its completion; back when it is settled."""
        moments: dict[str, float] = {}
        for event in self.events:
            if event["job"] != id:
                continue
            name = f"{event['type']} {event['data'].get('phase', '')}".strip()
            moments.setdefault(name, datetime.fromisoformat(event["at"]).timestamp())
            if event["type"] == "job.completed":
                moments["told"] = time.time()
                if event["data"]["outcome"] != "succeeded":
                    raise RuntimeError(f"job {id} ended as {event['data']['outcome']}")
            if event["type"] == "job.result":
                self.client.ack(READER, event["seq"])
                return moments
        raise RuntimeError("the events ended")

    def noted(self, id: int) -> dict[str, float]:
        """What the attempt's own files say of when."""
        path = paths.attempt_dir(self.state.path, id, 1)
        records = {name: jobdir.read(path, f"{name}.json") or {} for name in ("agent", "exit", "end")}
        said = {record["type"]: record["at"] for record in transcript.read(f"{path}/{transcript.NAME}")}
        return {
            "forked": records["agent"]["started_at"],
            **{f"transcript {name}": said[name] for name in ("start", "request", "assistant", "end")},
            "exit.json": records["exit"]["at"],
            "end.json": records["end"]["at"],
        }

    def watched(self, server: Served) -> tuple[list[Look], int]:
        """And the agent's own process."""
        path = paths.attempt_dir(self.state.path, self.begin(server), 1)

        def keeper() -> int | None:
            return (jobdir.read(path, "agent.json") or {}).get("keeper")

        looks = watched(keeper, lambda: os.path.exists(f"{path}/end.json"))
        return looks, int((jobdir.read(path, "agent.json") or {})["agent"]["pid"])

    def shared(self) -> Look:
        """The daemon and its zygotes: there once, whatever the number of jobs."""
        daemon = psutil.Process(self.state.status()["pid"])
        return look_at([daemon, *daemon.children()])

    def close(self) -> None:
        self.events.close()  # type: ignore[attr-defined]
        self.client.close()


def wait(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise RuntimeError(f"{process.args!r} does not end") from None


def watched(root: Callable[[], int | None], is_over: Callable[[], bool]) -> list[Look]:
    """Looks at the tree below a process, until it is over."""
    looks = []
    deadline = time.monotonic() + PATIENCE_S
    while not is_over():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the tree of process {root()} does not end")
        pid = root()
        if pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                looks.append(look_at([process, *process.children(recursive=True)]))
        time.sleep(LOOK_EVERY_S)
    return looks


def look_at(processes: list[psutil.Process]) -> Look:
    sizes = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            sizes[process.pid] = (memory.uss, memory.pss)
    return Look(time.time(), sizes)
