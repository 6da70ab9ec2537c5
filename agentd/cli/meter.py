"""What jobs use: their process trees looked at with psutil, their logs by size. It looks once, when it is asked.

A process belongs to a job if it is the job's first one, bears the job's mark in its environment, or descends from one
that belongs to it. The nearest wins: a job that was delegated from inside another is not counted with it.
"""

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import psutil

from agentd import follow, process


class Use(NamedTuple):
    """``cpu`` (1.0: one processor) and ``log`` (bytes a second) are None until there have been two looks."""

    cpu: float | None
    memory: int
    processes: int
    log: float | None


Key = tuple[int, float]
"""A process: its pid, and when it began."""


class Look(NamedTuple):
    at: float
    """On the monotonic clock; ``on`` the calendar's."""
    on: float
    cpu: dict[Key, float]
    """Seconds that each process had spent."""
    logs: dict[str, int]


class Meter:
    def __init__(self) -> None:
        self.marks: dict[Key, str] = {}
        self.before: Look | None = None

    def look(self, attempts: Mapping[int, str]) -> dict[int, Use]:
        """By id. ``attempts``: the folder of each job's attempt."""
        before = self.before
        now = Look(time.monotonic(), time.time(), {}, {path: follow.written(path) for path in attempts.values()})
        trees = self.trees(*roots_and_nonces(attempts))
        found = {}
        for id, path in attempts.items():
            memory, spent, processes = 0, 0.0, 0
            for one in trees.get(id, ()):
                try:
                    with one.oneshot():
                        key, times, memory = (
                            (one.pid, one.create_time()),
                            one.cpu_times(),
                            memory + one.memory_info().rss,
                        )
                except psutil.Error:
                    continue
                processes += 1
                now.cpu[key] = times.user + times.system
                spent += now.cpu[key] - earlier(before, key, now.cpu[key])
            passed = now.at - before.at if before else 0.0
            log = None
            if before and path in before.logs and passed > 0:
                log = max(0, now.logs[path] - before.logs[path]) / passed
            found[id] = Use(spent / passed if passed > 0 else None, memory, processes, log)
        self.before = now
        return found

    def trees(self, roots: Mapping[int, int], nonces: Mapping[str, int]) -> dict[int, list[psutil.Process]]:
        """The processes of each job."""
        alive = {one.pid: one for one in psutil.process_iter(["ppid", "create_time", "uids", "status"])}
        marks = {}
        for pid, one in alive.items():
            key = (pid, one.info["create_time"] or 0.0)
            marks[key] = self.marks[key] if key in self.marks else mark_of(one)
        self.marks = marks
        owners: dict[int, int | None] = {}

        def owner(pid: int) -> int | None:
            line = []
            while pid in alive and pid not in owners:
                line.append(pid)
                one = alive[pid]
                mark = marks[(pid, one.info["create_time"] or 0.0)]
                if pid in roots or mark in nonces:
                    owners[pid] = roots.get(pid, nonces.get(mark))
                    break
                owners[pid] = None  # until its line is known
                pid = one.info["ppid"] or 0
            found = owners.get(pid)
            for descendant in line:
                owners[descendant] = found
            return found

        trees: dict[int, list[psutil.Process]] = {}
        for pid, one in alive.items():
            id = owner(pid)
            if id is not None and one.info["status"] != psutil.STATUS_ZOMBIE:
                trees.setdefault(id, []).append(one)
        return trees


def roots_and_nonces(attempts: Mapping[int, str]) -> tuple[dict[int, int], dict[str, int]]:
    """The first processes that are alive, and the marks, of jobs."""
    roots, nonces = {}, {}
    for id, path in attempts.items():
        record = follow.record(path, "agent.json") or {}
        agent = record.get("agent")
        if agent is not None and process.identity(int(agent["pid"])) == agent:
            roots[int(agent["pid"])] = id
        if record.get("nonce"):
            nonces[str(record["nonce"])] = id
    return roots, nonces


def earlier(before: Look | None, key: Key, now: float) -> float:
    """What the process had spent at the look before: nothing, if it has begun since."""
    if before is None:
        return now
    return before.cpu.get(key, 0.0 if key[1] >= before.on else now)


def mark_of(one: psutil.Process) -> str:
    """What agentd gave the process, or one that it comes from; empty of others, and of other users'."""
    uids = one.info["uids"]
    if uids is None or uids.real != os.getuid():
        return ""
    try:
        return str(one.environ().get("AGENTD_NONCE", ""))
    except (psutil.Error, OSError, ValueError):
        return ""
