"""How soon is one told? From the job's exit to ``wait``'s return, and to a subscriber's reading of the completion."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .figures import ms, percentile, ratio_text
from .lab import Lab, State, cli, output, timed
from .report import Plot, Result, Table
from .start import read_stamp

CLIENT = "client.wait returns"
SUBSCRIBER = "subscriber told (client.events)"
WAIT = "agentd wait ends"
TSP = "tsp -w ends"
TMUX = "tmux wait-for ends"
READER = "bench"


class Turn:
    """One job that waits for a byte, sleeps 20 ms, reads the clock, and ends at once."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.file = folder / "stamp"
        self.fifo = folder / "go"
        self.file.unlink(missing_ok=True)
        if not self.fifo.exists():
            os.mkfifo(self.fifo)
        self.argv = [*lab.stamp, str(self.file), str(self.fifo)]

    def let_go(self) -> None:
        fd = os.open(self.fifo, os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)

    def since_exit(self, now: float) -> float:
        return now - read_stamp(self.file)


def measure(lab: Lab) -> Result:
    folder = lab.place("latency")
    rounds = lab.pick(8, 200)
    with lab.state("latency") as state:
        state.client.ask("events.subscribe", name=READER, follow=False)
        client = state.new_client()
        events = client.events(name=READER)
        ways: dict[str, Callable[[Turn], float]] = {
            CLIENT: lambda turn: by_client(state, turn),
            SUBSCRIBER: lambda turn: by_subscriber(state, events, turn),
            WAIT: lambda turn: by_command_line(state, turn),
        }
        if shutil.which("tsp"):
            tsp = {**os.environ, "TS_SOCKET": str(folder / "tsp.sock"), "TMPDIR": str(folder), "TS_MAXFINISHED": "9"}
            ways[TSP] = lambda turn: by_tsp(tsp, turn)
        if shutil.which("tmux"):
            tmux = ["tmux", "-L", f"bench-{lab.mark[:8]}", "-f", "/dev/null"]
            home = {**os.environ, "TMUX_TMPDIR": str(folder)}
            ways[TMUX] = lambda turn: by_tmux(tmux, home, turn)
            timed([*tmux, "new-session", "-d", "-s", "keep", "sleep 3600"], environment=home)
        try:
            found = lab.interleaved(rounds, {name: taken(lab, folder, way) for name, way in ways.items()})
        finally:
            events.close()
            if TSP in ways:
                subprocess.run(["tsp", "-K"], env=tsp)
            if TMUX in ways:
                subprocess.run([*tmux, "kill-server"], env=home)
    missing = [name for name in (TSP, TMUX) if name not in ways]
    yardstick = TSP if TSP in ways else CLIENT
    return Result(
        title="latency: from exit to being told",
        how="The same job for all: it waits for a byte in a FIFO, sleeps 20 ms, reads CLOCK_MONOTONIC,"
        " writes it to a file"
        " of its own (one write of some 20 bytes, part of the time measured) and calls _exit. Who waits reads the same"
        " clock when told. The three command lines (`agentd wait`, `tsp -w`, `tmux wait-for`) were blocked in their"
        " waiting before the byte was sent, and their time ends when their process has been waited for;"
        " `client.wait` and"
        f" the subscriber are calls in a process that runs already. {rounds} rounds, interleaved in changing order.",
        tables=[
            Table(
                "Milliseconds from exit",
                ("", "median", "p90", "p99", "max", f"÷ {yardstick.removesuffix(' ends')}"),
                [
                    (
                        name,
                        *(ms(percentile(times, part)) for part in (0.5, 0.9, 0.99, 1)),
                        ratio_text(times, found[yardstick]),
                    )
                    for name, times in found.items()
                ],
            )
        ],
        plots=[Plot("exit", "From exit to being told", lambda figure: draw(figure, found))],
        notes=[
            *(f"{name}: not installed, skipped" for name in missing),
            "When `wait` returns, agentd has the exit status, the log and the completion on disk (several"
            " fsyncs); tsp and"
            " tmux keep them in memory and lose them with their server (see the peers).",
            "tmux tells nobody of an exit: as its users do, the shell in its window runs `tmux wait-for -S`"
            " after the job.",
        ],
        raw=found,
    )


def taken(lab: Lab, folder: Path, way: Callable[[Turn], float]) -> Callable[[], float]:
    def once() -> float:
        turn = Turn(lab, folder)
        return turn.since_exit(way(turn))

    return once


def by_client(state: State, turn: Turn) -> float:
    id = state.run(*turn.argv)
    turn.let_go()
    state.client.wait([id])
    return time.monotonic()


def by_subscriber(state: State, events: Any, turn: Turn) -> float:
    id = state.run(*turn.argv)
    turn.let_go()
    for event in events:
        if event["type"] == "job.completed" and event["job"] == id:
            now = time.monotonic()
            state.client.ack(READER, event["seq"])
            return now
    raise RuntimeError("the events ended")


def by_command_line(state: State, turn: Turn) -> float:
    id = state.run(*turn.argv)
    return waited([*cli(), "wait", str(id)], state.environment, turn)


def by_tsp(environment: dict[str, str], turn: Turn) -> float:
    id = output("tsp", *turn.argv, environment=environment)
    return waited(["tsp", "-w", id], environment, turn)


def by_tmux(tmux: list[str], environment: dict[str, str], turn: Turn) -> float:
    command = f"{' '.join(turn.argv)}; {' '.join(tmux)} wait-for -S done"
    timed([*tmux, "new-window", "-d", command], environment=environment)
    return waited([*tmux, "wait-for", "done"], environment, turn)


def waited(argv: list[str], environment: dict[str, str], turn: Turn) -> float:
    with subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as waiter:
        until_blocked(waiter.pid)
        turn.let_go()
        waiter.wait()
        return time.monotonic()


def until_blocked(pid: int, quiet: float = 0.03) -> None:
    """It sleeps, and has not run for a while: it has come to its waiting."""
    before, since = "", time.monotonic()
    while time.monotonic() - since < quiet:
        status = Path(f"/proc/{pid}/status").read_text()
        now = "".join(line for line in status.splitlines() if "ctxt_switches" in line)
        if now != before or "State:\tS" not in status:
            before, since = now, time.monotonic()
        time.sleep(0.002)


def draw(figure: Any, found: dict[str, list[float]]) -> None:
    axes = figure.add_subplot()
    for name, times in found.items():
        ranked = sorted(t * 1e3 for t in times)
        axes.step(ranked, [(n + 1) / len(ranked) for n in range(len(ranked))], where="post", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("ms since exit (log)")
    axes.set_ylabel("told by then")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
