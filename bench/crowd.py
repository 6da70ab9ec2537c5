"""How many built-in agents does a machine carry? Ten, thirty, a hundred at once, each in a worktree of its own."""

import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .figures import mib
from .lab import Lab, State, command_of, output, wait_gone
from .report import Goal, Result, Table
from .runner import STEP, served

TURNS = 10
KINDS = ("builtin", "keeper", "zygote", "daemon")
MODEL = "claude-haiku-5-5"
Row = dict[str, float]


def measure(lab: Lab) -> Result:
    rows = [agents_at(lab, count) for count in ((2, 5, 10) if lab.is_quick else (10, 30, 100))]
    last = rows[-1]
    return Result(
        title="agents: many built-in agents at once",
        how="Each is delegated by one client, one after another, to a worktree of its own of one repository, and has"
        f" {TURNS} turns with a scripted model server on loopback, which answers at once: read, grep, bash and edit in"
        f" {TURNS - 2} of them; in the next all wait for each other, so that all are there when memory is looked at."
        " Memory is PSS: what processes share counts once. Times are from the first request to the daemon on, after one"
        " agent has warmed the zygote up, and without the time that looking at memory took.",
        tables=[table(rows)],
        goals=[
            Goal(f"of {last['agents']:.0f} agents at once, failed", "0", f"{last['failed']:.0f}", not last["failed"]),
        ],
        raw={"rows": rows},
    )


def agents_at(lab: Lab, count: int) -> Row:
    folder = lab.place(f"agents-{count}")
    repository = make_repository(folder / "repo")
    (folder / "here").mkdir()
    wait = f"touch {folder}/here/$AGENTD_JOB; flock --shared {folder}/door true"
    meeting = {"calls": [{"tool": "bash", "input": {"command": wait, "timeout": 600}}]}
    with (
        (folder / "door").open("w") as door,
        served(folder, "requests", [*[STEP] * (TURNS - 2), meeting, {"say": "Done."}]) as server,
        lab.state("agents") as state,
    ):
        state.finish([delegate(state, "warm-up", repository, server.url)])
        before = len(requests_of(server))
        fcntl.flock(door, fcntl.LOCK_EX)
        began = time.perf_counter()
        ids = [delegate(state, f"agent-{n}", repository, server.url) for n in range(count)]
        asked = time.perf_counter() - began
        while len(os.listdir(folder / "here")) < count + 1:
            time.sleep(0.01)
        met = time.perf_counter() - began
        processes = ours(lab)
        memory = memory_of(processes)
        opened = time.perf_counter()
        fcntl.flock(door, fcntl.LOCK_UN)
        jobs = state.finish(ids)
        took = met + time.perf_counter() - opened
        requests = len(requests_of(server)) - before
    wait_gone(list(processes))
    failed = sum(job["outcome"] != "succeeded" for job in jobs)
    return {"agents": count, "failed": failed, "asked": asked, "met": met, "took": took, "requests": requests, **memory}


def make_repository(path: Path) -> Path:
    path.mkdir()
    (path / "file.py").write_text("".join(f"def f{n}():\n    return {n}\n\n\n" for n in range(100)))
    output("git", "init", "-q", cwd=path)
    output("git", "add", ".", cwd=path)
    output("git", "commit", "-q", "-m", "first", cwd=path)
    return path


def requests_of(server: served) -> list[str]:
    return server.record.read_text().splitlines()


def delegate(state: State, name: str, repository: Path, url: str) -> int:
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    environment |= {"ANTHROPIC_API_KEY": "sk-bench", "ANTHROPIC_BASE_URL": url}
    options = {"agent": "builtin", "model": MODEL, "name": name, "cwd": str(repository)}
    return int(state.client.delegate([], task=f"You are {name}.", environment=environment, **options)["id"])


def ours(lab: Lab) -> dict[int, str]:
    """Our processes, and the kind of each."""
    found = {}
    for pid in lab.marked():
        with contextlib.suppress(OSError):  # a tool of an agent's has just ended
            kind = command_of(pid).partition(" ")[0].removeprefix("agentd-")
            found |= {pid: kind} if kind in KINDS else {}
    return found


def memory_of(processes: dict[int, str]) -> Row:
    """PSS by kind, in bytes."""
    found: Counter[str] = Counter()
    for pid, kind in processes.items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found[kind] += next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
    return {kind: float(found[kind]) for kind in KINDS}


def table(rows: Sequence[Row]) -> Table:
    lines: list[tuple[str, Callable[[Row], str]]] = [
        ("failed", lambda r: f"{r['failed']:.0f}"),
        ("delegates answered, s", lambda r: f"{r['asked']:.2f}"),
        ("until all have met, s", lambda r: f"{r['met']:.1f}"),
        ("until all are done, s", lambda r: f"{r['took']:.1f}"),
        ("turns a second", lambda r: f"{r['requests'] / r['took']:.0f}"),
        ("agents, MiB", lambda r: mib(r["builtin"])),
        ("their keepers, MiB", lambda r: mib(r["keeper"])),
        ("zygotes, MiB", lambda r: mib(r["zygote"])),
        ("daemon, MiB", lambda r: mib(r["daemon"])),
        ("an agent with its keeper, MiB", lambda r: mib((r["builtin"] + r["keeper"]) / r["agents"])),
    ]
    head = ("agents at once", *(f"{row['agents']:.0f}" for row in rows))
    return Table("", head, [(name, *(text(row) for row in rows)) for name, text in lines])
