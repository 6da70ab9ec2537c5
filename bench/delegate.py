"""``agentd delegate``: is the prompt back at once, whatever the repository's size, on a quiet and on a busy disk?"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentd.client import Client
from agentd.core.job import Job
from agentd.daemon import specs
from agentd.git import repository
from agentd.store import Change, Store

from .figures import median, ms, percentile, ratio, ratio_text
from .lab import Lab, State, cli, make_repository, timed
from .report import Goal, Plot, Result, Table

SIZE_GOAL = 1.2
HELLO_GOAL = 1.6
HELLO = """\
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    typer.echo(f"hello {name}")


app()
"""
BUSY = """\
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
piece = os.urandom(1 << 20)
written, began = 0, time.monotonic()
while True:
    for place in range(64):
        os.pwrite(fd, piece, place << 20)
        os.fsync(fd)
        written += 1
        if written % 16 == 0:
            os.pwrite(int(sys.argv[2]), b"%-20d" % (written / (time.monotonic() - began)), 0)
"""
NOTHING, TYPER, SMALL, LARGE, IN_PLACE = (
    "python -c pass",
    "hello world with typer",
    "delegate, 10 files",
    "delegate, {files} files",
    "run -d (no repository)",
)


def measure(lab: Lab) -> Result:
    files = lab.pick(2_000, 50_000)
    large_name = LARGE.format(files=f"{files:,}")
    small = make_repository(lab.place("small") / "repo", 10)
    large = make_repository(lab.place("large") / "repo", files)
    hello = lab.folder / "hello.py"
    hello.write_text(HELLO)
    with lab.state("delegate") as state:
        delegate = Delegating(state, [*cli(), "delegate"], ["--", "true"])
        alternatives: dict[str, Callable[[], float]] = {
            NOTHING: lambda: timed([sys.executable, "-c", "pass"]),
            TYPER: lambda: timed([sys.executable, str(hello)]),
            IN_PLACE: lambda: Delegating(state, [*cli(), "run", "-d"], ["true"])(small),
            SMALL: lambda: delegate(small),
            large_name: lambda: delegate(large),
        }
        lab.interleaved(1, alternatives)  # caches filled, bytecode written
        quiet = lab.interleaved(lab.pick(3, 15), alternatives)
        with busy_disk(lab.folder) as rate:
            busy = lab.interleaved(lab.pick(2, 9), alternatives)
            busy_rate = rate()
        steps = where_it_goes(lab, state, small, large, files)
    return Result(
        title="delegate: the prompt is back",
        how="Wall time of the whole process, from asking for it until it has been waited for:"
        f" `{' '.join(cli())} delegate"
        f" --name N -- true` in a repository of 10 files and in one of {files:,}, beside a Python that"
        " does nothing and a"
        " typer program that says hello. Interleaved in changing order. Before each one, the job of the one before has"
        " ended, its worktree is removed, and the disk is synced (but for the busy disk, where a second process writes"
        f" 1 MiB and fsyncs it, over and over: {busy_rate} times a second while we measured).",
        tables=[
            Table(
                "Milliseconds",
                ("", "quiet: median", "p90", "÷ typer", "busy: median", "p90", "÷ typer", "busy ÷ quiet"),
                [
                    (
                        name,
                        *(
                            text
                            for run in (quiet, busy)
                            for text in (
                                ms(median(run[name])),
                                ms(percentile(run[name], 0.9)),
                                ratio_text(run[name], run[TYPER]),
                            )
                        ),
                        f"{median(busy[name]) / median(quiet[name]):.2f}",
                    )
                    for name in alternatives
                ],
            ),
            steps.pop("table"),
            steps.pop("imports"),
        ],
        goals=[
            goal(f"delegate in {files:,} files over 10 files", SIZE_GOAL, quiet[large_name], quiet[SMALL]),
            goal("the same on a busy disk", SIZE_GOAL, busy[large_name], busy[SMALL]),
            goal("delegate over a typer program that says hello", HELLO_GOAL, quiet[SMALL], quiet[TYPER]),
        ],
        plots=[Plot("times", "Time until the prompt is back", lambda figure: draw(figure, quiet, busy))],
        raw={"quiet": quiet, "busy": busy, "files": files, "busy_writes_per_s": busy_rate, **steps},
    )


class Delegating:
    """Delegate once; then, off the clock, let the job end and go."""

    number = 0

    def __init__(self, state: State, before: list[str], after: list[str]) -> None:
        self.state = state
        self.before = before
        self.after = after

    def __call__(self, where: Path) -> float:
        Delegating.number += 1
        name = f"bench-{Delegating.number}"
        os.sync()
        took = timed([*self.before, "--name", name, *self.after], where, self.state.environment)
        self.state.finish([self.state.client.job(name)["job"]["id"]], remove=True)
        return took


@contextlib.contextmanager
def busy_disk(folder: Path) -> Iterator[Callable[[], int]]:
    """Somebody else writes to the disk and fsyncs. Yields a question: how often a second."""
    said = os.memfd_create("rate")
    writer = subprocess.Popen([sys.executable, "-c", BUSY, str(folder / "busy"), str(said)], pass_fds=[said])
    try:
        time.sleep(0.5)
        yield lambda: int(os.pread(said, 20, 0) or b"0")
    finally:
        writer.kill()
        writer.wait()
        os.close(said)
        os.remove(folder / "busy")


def goal(what: str, wanted: float, above: list[float], below: list[float]) -> Goal:
    return Goal(what, f"≤ {wanted}", ratio_text(above, below), ratio(above, below)[0] <= wanted)


# --- where it goes ------------------------------------------------------------------------------------------


def where_it_goes(lab: Lab, state: State, small: Path, large: Path, files: int) -> dict[str, Any]:
    """Each step of a delegate alone, in this process: the client's, and what the daemon does for it."""
    place = lab.place("steps")
    store = Store(str(place / "agentd.db"), lambda work, entries: work.done.set_result(entries))
    store.load()
    spec = state.client.job(state.run("true"))["spec"] | {"env": dict(os.environ)}
    numbers = iter(range(1, 1 << 30))
    job = a_job()

    def delegated(cwd: Path, **options: Any) -> float:
        os.sync()
        began = time.perf_counter()
        made = state.client.delegate(["true"], cwd=str(cwd), **options)
        took = time.perf_counter() - began
        state.finish([made["id"]], remove=True)
        return took

    steps: dict[str, Callable[[], float]] = {
        "connect": lambda: clock(lambda: connect(state)),
        "one question and its answer (connected)": lambda: clock(state.status),
        "the job's spec: file and folders fsynced": lambda: clock(
            lambda: specs.write(f"{place}/{next(numbers)}/1", spec)
        ),
        "the store: one commit": lambda: clock(lambda: store.append(Change(time.time(), job)).result()),
        "git: repository and base, 10 files": lambda: clock(lambda: repository.settle(str(small), None)),
        f"git: repository and base, {files:,} files": lambda: clock(lambda: repository.settle(str(large), None)),
        "git, by itself: rev-parse": lambda: timed(["git", "rev-parse", "HEAD"], small),
        "Client.delegate in place": lambda: delegated(small, in_place=True),
        "Client.delegate, 10 files": lambda: delegated(small),
        f"Client.delegate, {files:,} files": lambda: delegated(large),
    }
    found = lab.interleaved(lab.pick(3, 7), steps)
    store.close()
    rows = [(name, ms(median(times)), ms(percentile(times, 0.9))) for name, times in found.items()]
    imports = imported()
    return {
        "table": Table("Where the milliseconds go, quiet disk", ("step, alone", "median", "p90"), rows),
        "imports": Table(
            "What the command line imports (`-X importtime`, each module by itself)",
            ("package", "modules", "ms"),
            [(name, str(count), f"{took:.1f}") for name, count, took in imports],
        ),
        "steps": found,
        "importtime": imports,
    }


def connect(state: State) -> None:
    with Client(state.path, owner="bench") as client:
        client.connect()


def clock(deed: Callable[[], object]) -> float:
    began = time.perf_counter()
    deed()
    return time.perf_counter() - began


def a_job() -> Job:
    from agentd.core.job import InPlace, Queued

    return Job(
        id=1, name="one", agent="command", task="", argv=("true",), owner="bench", number=1, created=0.0,
        place=InPlace("/"), state=Queued(0.0), parent=None, depth=1, secrets=(), has_input=False, key="",
    )  # fmt: skip


def imported() -> list[tuple[str, int, float]]:
    """Milliseconds by top package, median of five; packages under half a millisecond are summed up."""
    code = "import agentd.cli, agentd.cli.verbs, agentd.cli.delegate"
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
        runs.append(by_package(done.stderr))
    names = {name for run in runs for name in run}
    found = [(name, runs[0].get(name, (0, 0.0))[0], median([r.get(name, (0, 0.0))[1] for r in runs])) for name in names]
    large = sorted((row for row in found if row[2] >= 0.5), key=lambda row: -row[2])
    small = [row for row in found if row[2] < 0.5]
    total = [("all", sum(row[1] for row in found), sum(row[2] for row in found))]
    return [*large, (f"{len(small)} others", sum(r[1] for r in small), sum(r[2] for r in small)), *total]


def by_package(text: str) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for match in re.finditer(r"^import time: +(\d+) \| +\d+ \| +(\S+)", text, re.MULTILINE):
        package = match[2].split(".")[0]
        count, took = found[package]
        found[package] = (count + 1, took + int(match[1]) / 1e3)
    return dict(found)


def draw(figure: Any, quiet: dict[str, list[float]], busy: dict[str, list[float]]) -> None:
    longest = max(max(times) for run in (quiet, busy) for times in run.values()) * 1e3
    for place, (title, run) in enumerate((("quiet disk", quiet), ("busy disk", busy)), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.boxplot(
            [[t * 1e3 for t in times] for times in reversed(run.values())],
            tick_labels=list(reversed(run)), orientation="horizontal", showfliers=True, widths=0.6,
        )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("ms")
        axes.set_xlim(0, longest * 1.05)
        if place == 2:
            axes.set_yticklabels([])
