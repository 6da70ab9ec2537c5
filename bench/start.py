"""How soon does the command run? From the answer, and from the asking, to the agent's first instruction."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .figures import median, ms, percentile, ratio_text
from .lab import Lab, State, cli
from .report import Result, Table

DIRECT = "fork and exec, by Python's subprocess"
CLIENT = "Client.delegate in place"
RUN = "agentd run -d"
TSP = "tsp"
NQ = "nq"


def measure(lab: Lab) -> Result:
    asked: dict[str, list[float]] = {}
    answered: dict[str, list[float]] = {}
    folder = lab.place("start")
    with lab.state("start") as state:
        ways: dict[str, Callable[[Path], float]] = {
            DIRECT: lambda file: spawned([*lab.stamp, str(file)]),
            CLIENT: lambda file: delegated(state, [*lab.stamp, str(file)]),
            RUN: lambda file: told([*cli(), "run", "-d", *lab.stamp, str(file)], state.environment),
        }
        if shutil.which("tsp"):
            tsp = {**os.environ, "TS_SOCKET": str(folder / "tsp.sock"), "TMPDIR": str(folder), "TS_MAXFINISHED": "9"}
            ways[TSP] = lambda file: told(["tsp", *lab.stamp, str(file)], tsp)
        if shutil.which("nq"):
            nq = {**os.environ, "NQDIR": str(folder / "nq")}
            ways[NQ] = lambda file: told(["nq", *lab.stamp, str(file)], nq)
        rounds = lab.pick(5, 30)
        for way in ways.values():
            once(folder, way)
        try:
            for _ in range(rounds):
                for name in lab.random.sample(list(ways), len(ways)):
                    from_asked, from_answered = once(folder, ways[name])
                    asked.setdefault(name, []).append(from_asked)
                    answered.setdefault(name, []).append(from_answered)
        finally:
            if TSP in ways:
                subprocess.run(["tsp", "-K"], env=tsp)
    missing = [name for name, program in ((TSP, "tsp"), (NQ, "nq")) if not shutil.which(program)]
    return Result(
        title="start: from the answer to the agent executing",
        how="The agent reads the monotonic clock as the first thing it does and writes it to a file."
        " *Answered*: the call"
        " has returned, or the command line has printed its line and we have read it. A negative time means that it ran"
        f" before we had read the answer. {rounds} rounds, interleaved in changing order.",
        tables=[
            Table(
                "Milliseconds until the agent executes",
                ("", "from answered: median", "p99", "from asked: median", "p99", "asked ÷ fork and exec"),
                [
                    (
                        name,
                        ms(median(answered[name])) if name != DIRECT else "–",
                        ms(percentile(answered[name], 0.99)) if name != DIRECT else "–",
                        ms(median(asked[name])),
                        ms(percentile(asked[name], 0.99)),
                        ratio_text(asked[name], asked[DIRECT]),
                    )
                    for name in ways
                ],
            )
        ],
        notes=[f"{name} is not installed: skipped" for name in missing],
        raw={"from_asked": asked, "from_answered": answered},
    )


def once(folder: Path, way: Callable[[Path], float]) -> tuple[float, float]:
    """Seconds from asking, and from the answer, to the agent's clock."""
    file = folder / "stamp"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    answered = way(file)
    executed = read_stamp(file)
    return executed - began, executed - answered


def read_stamp(file: Path, timeout: float = 30.0) -> float:
    """The clock that ``stamp`` wrote; it comes in one write."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if text := file.read_text():
                return float(text)
        except FileNotFoundError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody wrote {file}")
        time.sleep(0.002)


def spawned(argv: list[str]) -> float:
    with subprocess.Popen(argv) as child:
        answered = time.monotonic()
        child.wait()
    return answered


def delegated(state: State, argv: list[str]) -> float:
    id = state.run(*argv)
    answered = time.monotonic()
    state.finish([id])
    return answered


def told(argv: list[str], environment: dict[str, str]) -> float:
    """A command line that prints a line and leaves the command to others."""
    with subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise RuntimeError(f"{argv} said nothing")
        answered = time.monotonic()
    if child.returncode != 0:
        raise RuntimeError(f"{argv} ended with {child.returncode}")
    return answered
