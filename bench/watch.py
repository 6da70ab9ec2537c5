"""The worktree watcher beside watchdog's own observer: start, memory, the way of a write, a flood that git ignores."""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentd.watch import wire

from .figures import median, mib, ms, percentile
from .lab import Lab, file_system, make_repository, output
from .report import Goal, Result, Table

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE_S = 300.0
IGNORED_FOLDERS = 500
OURS, OBSERVER = "agentd's watcher", "watchdog's observer, one recursive watch a worktree"
Row = dict[str, float]

# Says a line when it watches, then one for each file event; ends with its input.
OBSERVER_PROGRAM = """
import sys
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
class Say(FileSystemEventHandler):
    def on_any_event(self, event):
        if event.event_type in ("created", "modified", "deleted", "moved"):
            print(event.src_path, flush=True)
observer = Observer()
for path in sys.argv[1:]:
    observer.schedule(Say(), path, recursive=True)
observer.start()
print("ready", flush=True)
try:
    sys.stdin.read()
except OSError:
    pass
"""


class Watcher:
    """One of the two, and what it says, as words in its stream."""

    def __init__(self, command: list[str], link: socket.socket, theirs: socket.socket, is_plain: bool) -> None:
        self.link = link
        self.began = time.perf_counter()
        streams = {"stdin": theirs, "stdout": theirs} if is_plain else {"pass_fds": (theirs.fileno(),)}
        self.process = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
        theirs.close()
        self.said = b""

    def until(self, is_said: Callable[[bytes], bool]) -> float:
        """Seconds since its start."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_said(self.said):
            if not select.select([self.link], [], [], deadline - time.monotonic())[0]:
                raise RuntimeError("the watcher says nothing")
            data = self.link.recv(1 << 20)
            if not data:
                raise RuntimeError(f"the watcher ended with {self.process.wait()}")
            self.said += data
        return time.perf_counter() - self.began

    def cpu(self) -> float:
        """With that of the gits that it has waited for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) * TICK_S

    def memory(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024

    def watches(self) -> int:
        infos = Path(f"/proc/{self.process.pid}/fdinfo").iterdir()
        return sum(info.read_text().count("inotify wd:") for info in infos)

    def close(self) -> None:
        self.link.close()
        self.process.wait()


def ours(trees: list[Path]) -> Watcher:
    link, theirs = socket.socketpair()
    watcher = Watcher([sys.executable, "-P", "-m", "agentd.watch", str(theirs.fileno())], link, theirs, False)
    for number, tree in enumerate(trees, 1):
        git_dir = Path(output("git", "rev-parse", "--absolute-git-dir", cwd=tree))
        base = output("git", "rev-parse", "HEAD", cwd=tree)
        common = str(git_dir.parent.parent)
        link.sendall(wire.line(wire.Watch(str(number), str(tree), common, git_dir.name, base)))
    return watcher


def observer(trees: list[Path]) -> Watcher:
    link, theirs = socket.socketpair()
    command = [sys.executable, "-c", OBSERVER_PROGRAM, *map(str, trees)]
    watcher = Watcher(command, link, theirs, True)
    return watcher


def measure(lab: Lab) -> Result:
    trees = worktrees(lab)
    found = {
        OURS: measured(lab, trees, ours, lambda said: said.count(b'"fact":"ready"') == len(trees)),
        OBSERVER: measured(lab, trees, observer, lambda said: b"ready\n" in said),
    }
    small, large, churn = sizes(lab)
    mine = found[OURS]
    head = ("", "watching after: s", "watches", "private MiB", "CPU until then: s")
    return Result(
        title="watch: who writes in which worktree",
        how=f"{len(trees) - 1} worktrees of {small:,} files and one of {large:,}, on {file_system(trees[0])}, each with"
        f" {IGNORED_FOLDERS} folders that git ignores (node_modules). *Watching after* is from the start of the process"
        " until it says so; ours has by then asked git twice what differs, and its processor time includes those gits."
        f" *The way of a write* is from a write to its being told, {lab.pick(10, 50)} times; ours gathers for 150 ms,"
        f" so that a build is one message. *Churn* is {churn:,} files made in an ignored folder, and one write"
        " beside it that is waited for.",
        tables=[
            Table("Start", head, [start_row(name, row) for name, row in found.items()]),
            Table(
                "At work",
                (
                    "",
                    "a write: median ms",
                    "p90 ms",
                    "churn: CPU s",
                    "lines told of it",
                    f"rest: ticks in {rest(lab)} s",
                ),
                [work_row(name, row) for name, row in found.items()],
            ),
        ],
        goals=[
            Goal("CPU of the watcher at rest", "0", f"{mine['rest']:.0f} ticks", mine["rest"] == 0),
            Goal("told of files that git ignores", "nothing", f"{mine['told']:.0f} lines", mine["told"] == 0),
            Goal("a write is told within", "1 s", f"{mine['p90'] * 1e3:.0f} ms (p90)", mine["p90"] < 1),
        ],
        raw={"found": found},
    )


def sizes(lab: Lab) -> tuple[int, int, int]:
    return lab.pick(100, 5_000), lab.pick(500, 50_000), lab.pick(500, 10_000)


def rest(lab: Lab) -> int:
    return lab.pick(2, 10)


def worktrees(lab: Lab) -> list[Path]:
    small, large, _ = sizes(lab)
    place, made = lab.place("watch"), []
    for name, files, count in (("small", small, lab.pick(3, 20)), ("large", large, 1)):
        repository = make_repository(place / name, files)
        (repository / ".gitignore").write_text("node_modules/\n")
        output("git", "add", ".gitignore", cwd=repository)
        output("git", "commit", "-q", "-m", "rules", cwd=repository)
        for number in range(count):
            tree = place / f"{name}-{number}"
            output("git", "worktree", "add", "-q", "-b", f"b{number}", str(tree), cwd=repository)
            for folder in range(IGNORED_FOLDERS):
                (tree / "node_modules" / f"{folder}").mkdir(parents=True)
            made.append(tree)
    return made


def measured(
    lab: Lab, trees: list[Path], begin: Callable[[list[Path]], Watcher], is_ready: Callable[[bytes], bool]
) -> Row:
    watcher = begin(trees)
    try:
        row: Row = {"ready": watcher.until(is_ready), "watches": watcher.watches(), "cpu": watcher.cpu()}
        row["memory"] = watcher.memory()
        time.sleep(1)
        before = watcher.cpu()
        time.sleep(rest(lab))
        row["rest"] = round((watcher.cpu() - before) / TICK_S)
        ways = [way_of_a_write(watcher, trees[n % len(trees)], n) for n in range(lab.pick(10, 50))]
        row |= {"median": median(ways), "p90": percentile(ways, 0.9)}
        return row | churn(watcher, trees[0], sizes(lab)[2])
    finally:
        watcher.close()


def way_of_a_write(watcher: Watcher, tree: Path, number: int) -> float:
    name = f"written-{number}-{watcher.process.pid}"
    time.sleep(0.2)
    began = time.perf_counter()
    (tree / name).write_text("x")
    watcher.until(lambda said: name.encode() in said)
    return time.perf_counter() - began


def churn(watcher: Watcher, tree: Path, count: int) -> dict[str, Any]:
    folder = tree / "node_modules" / "0"
    before = watcher.cpu()
    for n in range(count):
        (folder / f"churn-{n}").write_text("x")
    way_of_a_write(watcher, tree, count)
    told = watcher.said.count(b"churn-")
    for n in range(count):
        (folder / f"churn-{n}").unlink()
    return {"churn": watcher.cpu() - before, "told": told}


def start_row(name: str, row: Row) -> tuple[str, ...]:
    return (name, f"{row['ready']:.2f}", f"{row['watches']:,.0f}", mib(row["memory"]), f"{row['cpu']:.2f}")


def work_row(name: str, row: Row) -> tuple[str, ...]:
    told = (f"{row['churn']:.2f}", f"{row['told']:,.0f}", f"{row['rest']:.0f}")
    return (name, ms(row["median"]), ms(row["p90"]), *told)
