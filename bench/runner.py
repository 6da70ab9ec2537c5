"""python -m bench.runner [--jobs N]: what one built-in agent costs, forked from a warmed process, against a script.

Time: a whole job of one turn, from the fork to the exit, and where each millisecond of it goes (the transcript and the
model server note the moments). Memory: private pages after ten turns, read by the agent's own tool. Bytes: the first
request's body.
"""

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentd.runners import transcript

from .figures import median, percentile

ONE_TURN = [{"say": "Done."}]
LOOK = "grep ^Private_ /proc/$PPID/smaps_rollup"
STEP = {
    "say": "I go on with the next part of the work, and look at what is there.",
    "calls": [
        {"tool": "read", "input": {"path": "file.py"}},
        {"tool": "grep", "input": {"pattern": "def f1"}},
        {"tool": "bash", "input": {"command": "ls -la; wc -l file.py; echo step >> log"}},
        {"tool": "edit", "input": {"path": "file.py", "old": "def f1(", "new": "def f1(", "all": True}},
    ],
}
TEN_TURNS = [*[STEP] * 9, {"calls": [{"tool": "bash", "input": {"command": LOOK}}]}, {"say": "Done."}]
STEPS = ("fork to first record", "to request", "to the server", "to whole answer", "to last record", "to exit")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.runner")
    parser.add_argument("--jobs", type=int, default=40, help="one-turn jobs to measure")
    parser.add_argument("--at-once", type=int, default=100, help="ten-turn jobs to run at the same time")
    options = parser.parse_args()
    os.environ["ANTHROPIC_API_KEY"] = "sk-bench"

    began = time.perf_counter()
    from agentd.runners import builtin

    imported = time.perf_counter()
    builtin.warm()
    gc.collect()
    gc.freeze()
    warmed = time.perf_counter()
    print(f"import {1000 * (imported - began):.0f} ms, warm {1000 * (warmed - imported):.0f} ms, once per zygote")
    with tempfile.TemporaryDirectory() as work:
        report(Path(work), options.jobs, options.at_once)
    return 0


def report(work: Path, jobs: int, at_once: int) -> None:
    worktree = work / "worktree"
    worktree.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=worktree, check=True)
    (worktree / "file.py").write_text("".join(f"def f{n}(x):\n    return x + {n}\n\n\n" for n in range(200)))
    with served(work, "one", ONE_TURN) as server:
        times = [run(work, worktree, f"one-{n}", server) for n in range(jobs)][2:]
    total = [sum(one[:-1]) for one in times]
    print(
        f"a job of one turn, fork to exit: median {median(total):.1f} ms, p99 {percentile(total, 0.99):.1f} ms;"
        f" {median([one[-1] for one in times]):.1f} ms of processor time"
    )
    first = [sum(one[:3]) for one in times]
    print(
        f"fork to the first request at the server: median {median(first):.1f} ms, p99 {percentile(first, 0.99):.1f} ms"
    )
    for name, column in zip(STEPS, zip(*times, strict=True), strict=False):
        print(f"  {name:22} {median(column):5.1f} ms")
    sizes = [json.loads(line)["bytes"] for line in (work / "one").read_text().splitlines()]
    print(f"first request: {sizes[0]} bytes")
    with served(work, "ten", TEN_TURNS) as server:
        kept = [private(work, worktree, f"ten-{n}", server) for n in range(5)]
        print(f"private memory after ten turns: median {median(kept):.1f} MB (of {len(kept)} agents)")
        began = time.perf_counter()
        agents = [begin(work, worktree, f"many-{n}", server) for n in range(at_once)]
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid, _ in agents)
        took = time.perf_counter() - began
        memory = sum(private_of(path) for _, path in agents)
    print(f"{at_once} agents at once, ten turns each: {took:.1f} s, {memory:.0f} MB private in all, {failed} failed")


class served:
    """A script, served by a process of its own, as a real server would be."""

    def __init__(self, work: Path, name: str, turns: list[Any]) -> None:
        self.record = work / name
        script = work / f"{name}.json"
        script.write_text(json.dumps(turns))
        argv = [sys.executable, "-m", "agentd.scripted", str(script), "--record", str(self.record)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[0]

    def __enter__(self) -> "served":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def begin(work: Path, worktree: Path, name: str, server: served) -> tuple[int, Path]:
    """An agent's process and its folder."""
    path = work / name
    path.mkdir()
    spec = {
        "task": name,
        "worktree": str(worktree),
        "limits_asked": False,
        "profile": {"model": "script", "endpoint": server.url},
    }
    pid = os.fork()
    if pid == 0:
        try:
            from agentd.runners import builtin

            os.chdir(worktree)
            os._exit(builtin.main(str(path), spec))
        finally:
            os._exit(125)
    return pid, path


def run(work: Path, worktree: Path, name: str, server: served) -> tuple[float, ...]:
    """The milliseconds of each of :data:`STEPS`, and those of the processor in all."""
    forked = time.time()
    pid, path = begin(work, worktree, name, server)
    _, status, used = os.wait4(pid, 0)
    exited = time.time()
    assert status == 0, f"{name} ended with {os.waitstatus_to_exitcode(status)}"
    at = {record["type"]: record["at"] for record in transcript.read(f"{path}/{transcript.NAME}")}
    seen = json.loads(server.record.read_text().splitlines()[-1])["at"]
    moments = (forked, at["start"], at["request"], seen, at["assistant"], at["end"], exited)
    processor = 1000 * (used.ru_utime + used.ru_stime)
    return (*(1000 * (b - a) for a, b in itertools.pairwise(moments)), processor)


def private(work: Path, worktree: Path, name: str, server: served) -> float:
    pid, path = begin(work, worktree, name, server)
    os.waitpid(pid, 0)
    return private_of(path)


def private_of(path: Path) -> float:
    """Megabytes, as the agent's own tool saw them after ten turns."""
    results = [r["content"] for r in transcript.read(f"{path}/{transcript.NAME}") if r["type"] == "result"]
    return sum(int(line.split()[1]) for line in results[-1].splitlines()) / 1024


if __name__ == "__main__":
    sys.exit(main())
