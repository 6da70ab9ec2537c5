"""What a measurement found, and the report made of it: report.md, its plots, report.json."""

import datetime
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import agentd

from . import lab as laboratory

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Goal:
    """A promise with its number. ``is_met`` None: it could not be measured."""

    what: str
    wanted: str
    found: str
    is_met: bool | None


@dataclass
class Table:
    caption: str
    head: Sequence[str]
    rows: list[Sequence[str]]


@dataclass
class Plot:
    """``draw(figure)`` draws it with matplotlib, if that is there."""

    name: str
    caption: str
    draw: Callable[[Any], None]


@dataclass
class Result:
    title: str
    how: str
    """How it was taken, in one paragraph."""
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    is_broken: bool = False


def write(folder: Path, results: dict[str, Result], lab: "laboratory.Lab", seconds: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe(lab)
    text = [f"# agentd {agentd.__version__}: what it costs", "", machine_text(machine), ""]
    if lab.is_quick:
        text += ["**A quick run: few samples, small numbers. It shows that everything works, not how fast it is.**", ""]
    text += ["A ratio is of medians, with the bounds of 95 % of it (bootstrap) in brackets.", ""]
    goals = [goal for result in results.values() for goal in result.goals]
    if goals:
        text += ["## Goals", "", *table_text(goals_table(goals)), ""]
    for name, result in results.items():
        text += section(folder, name, result)
    text += ["## The run", "", f"It took {seconds:.0f} s.", *left_behind(lab)]
    path = folder / "report.md"
    path.write_text("\n".join(text) + "\n")
    (folder / "report.json").write_text(json.dumps(as_json(machine, results, lab, seconds), indent=1) + "\n")
    return path


def section(folder: Path, name: str, result: Result) -> list[str]:
    text = [f"## {result.title}", "", result.how, ""]
    for table in result.tables:
        text += [*([f"**{table.caption}**", ""] if table.caption else []), *table_text(table), ""]
    for plot in result.plots:
        file = f"{name}-{plot.name}.svg"
        text += [f"![{plot.caption}]({file})" if draw(plot, folder / file) else "(no plot: matplotlib is missing)", ""]
    if result.notes:
        text += [*(f"* {note}" for note in result.notes), ""]
    return text


def table_text(table: Table) -> list[str]:
    """Markdown, its columns aligned for those who read it as it is."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in [table.head, *table.rows]]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def goals_table(goals: list[Goal]) -> Table:
    words = {True: "met", False: "**missed**", None: "not measured"}
    return Table("", ("what", "wanted", "found", ""), [(g.what, g.wanted, g.found, words[g.is_met]) for g in goals])


def draw(plot: Plot, path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                            "grid.alpha": 0.3, "svg.fonttype": "none"}):  # fmt: skip
        figure = pyplot.figure(figsize=(8, 3.6), layout="constrained")
        plot.draw(figure)
        figure.savefig(path)
        pyplot.close(figure)
    return True


def as_json(machine: dict[str, Any], results: dict[str, Result], lab: "laboratory.Lab", seconds: float) -> Any:
    return {
        "format": 1,
        "quick": lab.is_quick,
        "machine": machine,
        "seconds": round(seconds, 1),
        "left_behind": lab.left_behind,
        "results": {
            name: {
                "title": result.title,
                "seconds": round(result.seconds, 1),
                "broken": result.is_broken,
                "goals": [asdict(goal) for goal in result.goals],
                "tables": [asdict(table) for table in result.tables],
                "notes": result.notes,
                "raw": result.raw,
            }
            for name, result in results.items()
        },
    }


def left_behind(lab: "laboratory.Lab") -> list[str]:
    if not lab.left_behind:
        return ["No process was left behind."]
    return ["**Left behind, and ended by us:**", "", *(f"* `{line}`" for line in lab.left_behind)]


# --- the machine --------------------------------------------------------------------------------------------


def describe(lab: "laboratory.Lab") -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "agentd": agentd.__version__,
        "commit": said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "cpu": field_of("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((field_of("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / (1 << 20), 1),
        "kernel": platform.release(),
        "system": f"{platform.system()} {platform.machine()}",
        "file_system": laboratory.file_system(lab.folder),
        "folder": str(lab.folder.parent),
        "load_before": lab.load_before,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "command_line": " ".join(laboratory.cli()),
        "libraries": {name: version(name) for name in ("msgspec", "filelock", "psutil", "typer", "rich", "matplotlib")},
        "programs": {
            "git": said("git", "--version"),
            "task-spooler": said("tsp", "-V"),
            "nq": said("dpkg-query", "-W", "-f", "${Version}", "nq") if shutil.which("nq") else None,
            "tmux": said("tmux", "-V"),
            "supervisord": said("supervisord", "--version"),
            "programs run": "C" if len(lab.stamp) == 1 else "Python (no C compiler): times include its start",
        },
    }


def machine_text(m: dict[str, Any]) -> str:
    found = ", ".join(f"{name} {text or 'missing'}" for name, text in m["programs"].items())
    libraries = ", ".join(f"{name} {text or 'missing'}" for name, text in m["libraries"].items())
    return "\n".join(
        (
            f"{m['date']}, commit {m['commit'] or 'unknown'}  ",
            f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']} {m['kernel']};"
            f" {m['file_system']} at {m['folder']}; load before: {m['load_before']:.2f}  ",
            f"Python {m['python']}, sqlite {m['sqlite']}, {libraries}  ",
            f"{found}  ",
            f"command line: `{m['command_line']}`",
        )
    )


def said(*argv: str) -> str | None:
    """The first line that a program prints; None if it is not there."""
    if shutil.which(argv[0]) is None:
        return None
    done = subprocess.run(argv, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def field_of(path: str, name: str) -> str | None:
    with open(path) as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith(name)), None)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
