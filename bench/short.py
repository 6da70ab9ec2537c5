"""Short verbs: what they cost, whole process, beside a Python that does nothing."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agentd import paths, process

from .delegate import HELLO, Delegating
from .figures import median, ms, percentile, ratio, ratio_text
from .lab import Lab, State, cli, make_repository, timed
from .report import Goal, Result, Table

GOAL = 2.0
NOTHING = "python -c pass"
HERE = {"AGENTD_WITHOUT": "resident"}


def measure(lab: Lab) -> Result:
    folder = lab.place("short")
    hello = folder / "hello.py"
    hello.write_text(HELLO)
    repository = make_repository(folder / "repo", 10)
    with lab.state("short") as state:
        done = str(state.run("true"))
        state.finish([int(done)])
        ours = verbs(state, done, repository)
        bring_up(state)
        beside: dict[str, Callable[[], float]] = {
            NOTHING: lambda: timed([sys.executable, "-c", "pass"]),
            "hello world with typer": lambda: timed([sys.executable, str(hello)]),
            "agentd ps, by itself": lambda: timed([*cli(), "ps"], environment=state.environment | HERE),
            **others(folder),
        }
        lab.interleaved(1, beside | ours)  # caches filled, bytecode written
        found = lab.interleaved(lab.pick(3, 30), beside | ours)
        is_resident = process.byte_held(f"{state.path}/{paths.RESIDENT_LOCK}", 0)
    if "tmux ls" in beside:
        subprocess.run(["tmux", "-S", str(folder / "tmux"), "kill-server"])
    if "tsp" in beside:
        subprocess.run(["tsp", "-K"], env=os.environ | tsp_environment(folder))
    missing = [name for name in ("tmux", "tsp") if not shutil.which(name)]
    bare = found[NOTHING]
    return Result(
        title="short: verbs at the speed of bare Python",
        how="Wall time of the whole process, from asking for it until it has been waited for. The console script calls"
        f" the resident process, which was {'there' if is_resident else 'NOT there'} to the end."
        f" {lab.pick(3, 30)} rounds, interleaved in changing order. *By itself*: AGENTD_WITHOUT=resident."
        " On a busy machine each of the processes of a call waits for its turn; the fastest call tells what it takes.",
        tables=[
            Table(
                "Milliseconds",
                ("", "median", "p90", f"÷ {NOTHING}", "fastest", "÷"),
                [
                    (
                        name,
                        ms(median(times)),
                        ms(percentile(times, 0.9)),
                        ratio_text(times, bare),
                        ms(min(times)),
                        f"{min(times) / min(bare):.2f}",
                    )
                    for name, times in found.items()
                ],
            )
        ],
        goals=[
            Goal(f"{name} over {NOTHING}", f"≤ {GOAL:g}", ratio_text(found[name], bare), is_met(found[name], bare))
            for name in ours
        ],
        notes=[f"{name} is not installed: skipped" for name in missing],
        raw=dict(found),
    )


def is_met(times: list[float], bare: list[float]) -> bool:
    return ratio(times, bare)[0] <= GOAL


def verbs(state: State, done: str, repository: Path) -> dict[str, Callable[[], float]]:
    def verb(*words: str) -> Callable[[], float]:
        return lambda: timed([*cli(), *words], environment=state.environment)

    delegate = Delegating(state, [*cli(), "delegate"], ["--", "true"])
    run = Delegating(state, [*cli(), "run", "-d"], ["true"])
    return {
        "agentd --help": verb("--help"),
        "agentd ps --help": verb("ps", "--help"),
        "agentd ps": verb("ps"),
        "agentd ps -aq (words to complete)": verb("ps", "-aq"),
        "agentd wait (a job that is done)": verb("wait", done),
        "agentd kill (a job that has ended)": verb("kill", "--ignore-missing", done),
        "agentd run -d": lambda: run(repository),
        "agentd delegate": lambda: delegate(repository),
    }


def bring_up(state: State) -> None:
    """By a first verb; until it answers."""
    timed([*cli(), "ps"], environment=state.environment)
    deadline = time.monotonic() + 30
    while not process.byte_held(f"{state.path}/{paths.RESIDENT_LOCK}", 0):
        if time.monotonic() > deadline:
            raise RuntimeError("the resident process does not come up")
        time.sleep(0.02)
    timed([*cli(), "ps"], environment=state.environment)


def others(folder: Path) -> dict[str, Callable[[], float]]:
    """What people know as fast: clients of servers, in C."""
    found: dict[str, Callable[[], float]] = {}
    if shutil.which("tmux"):
        tmux = ["tmux", "-S", str(folder / "tmux")]
        subprocess.run([*tmux, "-f", "/dev/null", "new-session", "-d", "sleep 1000"], check=True)
        found["tmux ls"] = lambda: timed([*tmux, "ls"])
    if shutil.which("tsp"):
        environment = os.environ | tsp_environment(folder)
        found["tsp"] = lambda: timed(["tsp"], environment=environment)
    return found


def tsp_environment(folder: Path) -> dict[str, str]:
    return {"TS_SOCKET": str(folder / "tsp.sock"), "TMPDIR": str(folder)}
