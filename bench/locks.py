"""Locks: claim and release, alone and contended, beside what gives no queue, no record and no owner."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.synchronize
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from agentd.client import Client

from .figures import ms, percentile, ratio_text
from .lab import Lab, State
from .report import Goal, Result, Table

HELD, CLIENTS, WANTED_MS = 300, 32, 20.0
GRANT = "agentd, asked by one client"
HANDED = "agentd, from release to the next one's grant"


def measure(lab: Lab) -> Result:
    rounds = lab.pick(20, 300)
    folder = lab.place("locks")
    with lab.state("locks") as state:
        alone = lab.interleaved(rounds, alternatives(state, folder))
        handed = hand_over(state, lab.pick(20, 300))
        with_globs, waits = under_load(state, folder, lab.pick(5, 60))
    p99 = percentile(with_globs, 0.99) * 1e3
    yardstick = alone["filelock.FileLock"]
    return Result(
        title="locks: what a claim costs",
        how=f"Claim and give back one name that nobody else wants, {rounds} rounds, interleaved: by a client that is"
        " connected (two requests, two commits), by filelock.FileLock in one process, and by flock(1) as a process."
        f" Hand-over: one client holds, another waits; from the first one's release to the second one's answer."
        f" Under load: {HELD} claims on patterns are held, and {CLIENTS} processes claim and give back names of their"
        " own all at once; the time of each claim.",
        tables=[
            Table(
                "Milliseconds, claim and release",
                ("", "median", "p90", "p99", "a second", "÷ filelock"),
                [
                    (
                        name,
                        *(ms(percentile(times, part)) for part in (0.5, 0.9, 0.99)),
                        f"{1 / percentile(times, 0.5):.0f}",
                        ratio_text(times, yardstick),
                    )
                    for name, times in alone.items()
                ],
            ),
            Table(
                "Milliseconds to a grant",
                ("", "median", "p90", "p99"),
                [
                    (name, *(ms(percentile(times, part)) for part in (0.5, 0.9, 0.99)))
                    for name, times in (
                        (HANDED, handed),
                        (f"with {HELD} patterns held, {CLIENTS} clients", with_globs),
                        ("the same: release", waits),
                    )
                ],
            ),
        ],
        goals=[
            Goal(
                f"a grant, p99, {HELD} patterns held, {CLIENTS} clients",
                f"< {WANTED_MS:.0f} ms",
                f"{p99:.1f} ms",
                p99 < WANTED_MS,
            )
        ],
        notes=[
            "A grant of agentd is on the disk (fsync) before it is answered, in the order of asking, with its holder"
            " and token; filelock and flock(1) keep nothing, and whoever polls first gets it."
        ],
        raw={**alone, "handed": handed, "under load": with_globs},
    )


def alternatives(state: State, folder: Path) -> dict[str, Callable[[], float]]:
    client = state.new_client()
    lock = filelock.FileLock(str(folder / "filelock"))
    found: dict[str, Callable[[], float]] = {
        GRANT: lambda: timed_claim(client),
        "filelock.FileLock": lambda: timed_filelock(lock),
    }
    if shutil.which("flock"):
        found["flock(1), a process"] = lambda: timed_flock(folder)
    return found


def timed_claim(client: Client, name: str = "res:bench") -> float:
    began = time.monotonic()
    client.lock([name], cwd="/", wait=None)
    client.unlock([name], cwd="/")
    return time.monotonic() - began


def timed_filelock(lock: filelock.BaseFileLock) -> float:
    began = time.monotonic()
    with lock:
        pass
    return time.monotonic() - began


def timed_flock(folder: Path) -> float:
    began = time.monotonic()
    subprocess.run(["flock", str(folder / "flock"), "true"], check=True)
    return time.monotonic() - began


def hand_over(state: State, rounds: int) -> list[float]:
    """From the release by one process to the answer that another one has been waiting for."""
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=wait_for_turns, args=(state.path, there, rounds))
    holder = Client(state.path, owner="holder")
    other.start()
    times = []
    for _ in range(rounds):
        holder.lock(["res:baton"], cwd="/", wait=None)
        here.send("ask")
        while not holder.locks()["waiting"]:
            pass
        began = time.monotonic()
        holder.unlock(["res:baton"], cwd="/")
        times.append(here.recv() - began)
        here.recv()
    other.join()
    holder.close()
    return times


def wait_for_turns(state_dir: str, link: "multiprocessing.connection.Connection", rounds: int) -> None:
    with Client(state_dir, owner="waiter") as client:
        for _ in range(rounds):
            link.recv()
            client.lock(["res:baton"], cwd="/", wait=None)
            link.send(time.monotonic())
            client.unlock(["res:baton"], cwd="/")
            link.send("done")


def under_load(state: State, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """The times of grants and of releases."""
    repo = folder / "repo"
    repo.mkdir()
    subprocess.run(["git", "init", "-q", str(repo)], check=True)
    with Client(state.path, owner="patterns") as client:
        for number in range(HELD):
            client.lock([f"path:src/d{number}/**/*_{number}.py"], cwd=str(repo), wait=0)
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        ready = context.Barrier(CLIENTS)
        workers = [
            context.Process(target=claim_often, args=(state.path, str(repo), number, rounds, ready, results))
            for number in range(CLIENTS)
        ]
        for worker in workers:
            worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        client.unlock(all=True)
    return [time for grants, _ in found for time in grants], [time for _, releases in found for time in releases]


def claim_often(
    state_dir: str,
    repo: str,
    number: int,
    rounds: int,
    ready: multiprocessing.synchronize.Barrier,
    results: "multiprocessing.SimpleQueue[tuple[list[float], list[float]]]",
) -> None:
    os.nice(5)  # the clients are the load, not what is measured
    grants, releases = [], []
    with Client(state_dir, owner=f"client-{number}") as client:
        client.locks()
        ready.wait()
        for turn in range(rounds):
            name = f"path:src/d{turn}/x/{number}.py"
            began = time.monotonic()
            client.lock([name], cwd=repo, wait=None)
            grants.append(time.monotonic() - began)
            began = time.monotonic()
            client.unlock([name], cwd=repo)
            releases.append(time.monotonic() - began)
    results.put((grants, releases))
