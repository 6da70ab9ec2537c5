"""What does a program pay for having its output kept? Written through agentd, and written to a file by itself."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agentd import jobdir, paths

from .figures import median, ratio, ratio_text
from .lab import Lab, State
from .report import Goal, Plot, Result, Table

GOAL = 0.95
PIECE = 4096
SUITE = ("test.test_json", "test.test_re", "test.test_textwrap", "test.test_dict")
AGENTD, FILE = "agentd", "> file"


def measure(lab: Lab) -> Result:
    size = lab.pick(16, 1600) << 20
    folder = lab.place("throughput")
    suite = [sys.executable, "-I", "-m", "unittest", "-v", *SUITE]
    has_suite = importlib.util.find_spec("test.test_json") is not None
    with lab.state("throughput") as state:
        spewing = Spewing(lab, state, folder, size)
        for way in (spewing.through_agentd, spewing.to_file):
            way()
        spewing.forget()
        lab.interleaved(lab.pick(2, 5), {AGENTD: spewing.through_agentd, FILE: spewing.to_file})
        fixed = lab.interleaved(
            lab.pick(3, 15),
            {AGENTD: lambda: suite_through_agentd(state, ["true"]), FILE: lambda: suite_to_file(folder, ["true"])},
        )
        suites: dict[str, list[float]] = {}
        if has_suite:
            ways = {
                AGENTD: lambda: suite_through_agentd(state, suite),
                FILE: lambda: suite_to_file(folder, suite),
            }
            lab.interleaved(1, ways)
            suites = lab.interleaved(lab.pick(1, 5), ways)
    whole, own = spewing.whole, spewing.own
    rows = [
        (f"{size >> 20} MiB in {PIECE // 1024} KiB writes: the program's own time", *speeds(size, own)),
        ("the same, until exit is known and all is on disk", *speeds(size, whole)),
    ]
    rows.append(("fixed cost of a job: `true`, until durable, s", *seconds(fixed)))
    goals = [
        goal("log throughput over `> file`, 4 KiB writes, until durable", whole[FILE], whole[AGENTD]),
        goal("the same, as the program itself sees it", own[FILE], own[AGENTD]),
    ]
    if has_suite:
        rows.append((f"a test suite (`unittest -v {' '.join(SUITE)}`), s", *seconds(suites)))
        goals.append(goal("a real test suite over the same one `> file`", suites[FILE], suites[AGENTD]))
    return Result(
        title="throughput: output that is kept",
        how=f"A program writes {size >> 20} MiB to stdout in writes of 4 KiB; through agentd (FIFO, spliced"
        " by the keeper"
        " into the log), and started directly with stdout redirected to a file on the same file system"
        f" ({lab_fs(lab)}). *Its own time*: first write to last, by its own clock. *Until durable*: from asking for it"
        " until its exit is known and the bytes are fsynced (agentd does so before it tells; for the file we do). Each"
        " log was checked to hold exactly the bytes. Interleaved; the disk synced before each.",
        tables=[Table("", ("", AGENTD, FILE, "agentd ÷ file (throughput)"), rows)],
        goals=goals,
        plots=[Plot("log", "Throughput of 4 KiB writes", lambda figure: draw(figure, size, own, whole))],
        notes=[] if has_suite else ["this Python comes without its own tests: no test suite was run"],
        raw={"bytes": size, "own": own, "until_durable": whole, "suite": suites, "fixed": fixed},
    )


class Spewing:
    def __init__(self, lab: Lab, state: State, folder: Path, size: int) -> None:
        self.state = state
        self.folder = folder
        self.size = size
        self.took = folder / "took"
        self.argv = [*lab.spew, str(self.took), str(size), str(PIECE)]
        self.forget()

    def forget(self) -> None:
        self.own: dict[str, list[float]] = {AGENTD: [], FILE: []}
        self.whole: dict[str, list[float]] = {AGENTD: [], FILE: []}

    def through_agentd(self) -> float:
        os.sync()
        began = time.perf_counter()
        id = self.state.run(*self.argv, log_max=0)
        (job,) = self.state.finish([id])
        took = time.perf_counter() - began
        kept = jobdir.size(paths.attempt_dir(self.state.path, id, 1), "out")
        if job["exit_code"] != 0 or kept != self.size:
            raise RuntimeError(f"{job['outcome']} {job['exit_code']}, {kept} bytes of {self.size} in the log")
        shutil.rmtree(paths.attempt_dir(self.state.path, id, 1), ignore_errors=True)  # its socket goes by itself
        return self.note(AGENTD, took)

    def to_file(self) -> float:
        os.sync()
        path = self.folder / "output"
        began = time.perf_counter()
        to_file(self.argv, path)
        took = time.perf_counter() - began
        if path.stat().st_size != self.size:
            raise RuntimeError(f"{path.stat().st_size} bytes of {self.size} in the file")
        path.unlink()
        return self.note(FILE, took)

    def note(self, way: str, took: float) -> float:
        self.whole[way].append(took)
        self.own[way].append(float(self.took.read_text()))
        return took


def to_file(argv: list[str], path: Path) -> None:
    with path.open("wb") as file:
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)
        os.fsync(file.fileno())


def suite_through_agentd(state: State, argv: list[str]) -> float:
    began = time.perf_counter()
    (job,) = state.finish([state.run(*argv)])
    took = time.perf_counter() - began
    if job["exit_code"] != 0:
        raise RuntimeError(f"the test suite ended with {job['exit_code']} under agentd")
    return took


def suite_to_file(folder: Path, argv: list[str]) -> float:
    began = time.perf_counter()
    to_file(argv, folder / "suite")
    return time.perf_counter() - began


def goal(what: str, file: list[float], ours: list[float]) -> Goal:
    return Goal(what, f"≥ {GOAL}", ratio_text(file, ours), ratio(file, ours)[0] >= GOAL)


def speeds(size: int, took: dict[str, list[float]]) -> tuple[str, str, str]:
    def speed(times: list[float]) -> str:
        return f"{size / (1 << 20) / median(times):,.0f} MiB/s"

    return speed(took[AGENTD]), speed(took[FILE]), ratio_text(took[FILE], took[AGENTD])


def seconds(took: dict[str, list[float]]) -> tuple[str, str, str]:
    return f"{median(took[AGENTD]):.3f}", f"{median(took[FILE]):.3f}", ratio_text(took[FILE], took[AGENTD])


def lab_fs(lab: Lab) -> str:
    from .lab import file_system

    return file_system(lab.folder)


def draw(figure: Any, size: int, own: dict[str, list[float]], whole: dict[str, list[float]]) -> None:
    axes = figure.add_subplot()
    names = [
        (f"{way}\n{what}", times[way]) for what, times in (("own time", own), ("until durable", whole)) for way in times
    ]
    for place, (_, times) in enumerate(names):
        values = [size / (1 << 20) / t for t in times]
        axes.bar(place, median(values), width=0.6, color="C0" if place % 2 == 0 else "C7")
        axes.plot([place] * len(values), values, "k.", markersize=4, alpha=0.6)
    axes.set_xticks(range(len(names)), [name for name, _ in names])
    axes.set_ylabel("MiB/s (bar: median)")
