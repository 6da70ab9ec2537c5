"""How does it grow? Ten, a hundred, a thousand running jobs; a hundred to ten thousand finished ones."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .figures import median, mib, ms, ratio_text
from .lab import Lab, State, cli, timed
from .report import Goal, Plot, Result, Table

HANDS = 16
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
Row = dict[str, float]


def measure(lab: Lab) -> Result:
    running = [
        running_at(lab, state, count)
        for state, count in growing(lab, "running", (3, 10, 30) if lab.is_quick else (10, 100, 1_000))
    ]
    finished = []
    with lab.state("empty") as empty:
        for state, count in growing(lab, "finished", (20, 60, 200) if lab.is_quick else (100, 1_000, 10_000)):
            finished.append(finished_at(lab, state, empty, count))
    last = running[-1]
    woken = last["daemon_wakeups_per_s"] + last["zygote_wakeups_per_s"] + last["keeper_wakeups_per_s"]
    return Result(
        title="scale: many jobs",
        how="Running jobs are `sleep`, started in place through the client by"
        f" {HANDS} threads; finished ones are `true`, really run. Private memory is Private_Clean + Private_Dirty of"
        f" smaps_rollup. *At rest*: over {lab.pick(2, 10)} s without any request, the processor time (clock ticks of"
        f" {TICK_S * 1e3:.0f} ms) and the voluntary context switches, which even a poll too short for a"
        " tick cannot hide. Times of"
        " `ps` are medians of interleaved runs, the command line with its output read through a pipe; start-up is from"
        " asking a client whose daemon is not running to its first answer, beside the same with an empty state.",
        tables=[running_table(running), rest_table(running), finished_table(finished)],
        goals=[
            Goal(
                f"daemon CPU at rest, {last['jobs']:,.0f} running jobs",
                "0 (no polling)",
                f"{last['daemon_cpu_percent']:.2f} %",
                last["daemon_cpu_percent"] < 0.1,
            ),
            Goal(
                f"wake-ups at rest of daemon, zygote and {last['jobs']:,.0f} keepers together",
                "< 1 a second",
                f"{woken:.1f} a second",
                woken < 1,
            ),
        ],
        plots=[
            Plot("running", "Growth with running jobs", lambda figure: draw_running(figure, running)),
            Plot("finished", "Growth with finished jobs", lambda figure: draw_finished(figure, finished)),
        ],
        raw={"running": running, "finished": finished},
    )


def growing(lab: Lab, kind: str, counts: tuple[int, ...]) -> Iterator[tuple[State, int]]:
    """One state folder to which jobs are added: yielded once for each size it is to reach."""
    with lab.state(kind) as state:
        yield from ((state, count) for count in counts)


# --- running ------------------------------------------------------------------------------------------------


def running_at(lab: Lab, state: State, count: int) -> Row:
    new = count - len(state.client.jobs())
    began = time.perf_counter()
    ids = many(state, new, "sleep", "86400")
    asked = time.perf_counter() - began
    while state.client.wait(ids, until="running", timeout=600)["timed_out"]:
        raise RuntimeError(f"{count} jobs do not all run")
    started = time.perf_counter() - began
    jobs = state.client.jobs()
    keepers = [parent_of(job["pid"]) for job in jobs]
    status = state.status()
    daemon, zygote = status["pid"], status["zygote"]
    state.client.close()
    time.sleep(1)
    rest = at_rest({"daemon": [daemon], "zygote": [zygote], "keeper": keepers}, lab.pick(2, 10))
    ps = ps_times(lab, state, [])
    memory = [private(pid) for pid in keepers]
    return {
        "jobs": len(jobs),
        "new": new,
        "asked_per_s": new / asked,
        "started_per_s": new / started,
        "keeper_bytes": median(memory),
        "keepers_bytes": sum(memory),
        "daemon_bytes": private(daemon),
        "zygote_bytes": private(zygote),
        "daemon_fds": len(os.listdir(f"/proc/{daemon}/fd")),
        "zygote_fds": len(os.listdir(f"/proc/{zygote}/fd")),
        **rest,
        **{f"ps_{name}": median(times) for name, times in ps.items()},
    }


def many(state: State, count: int, *argv: str) -> list[int]:
    """Start so many jobs, several at a time."""
    ids: list[int] = []
    left = iter(range(count))
    faults: list[Exception] = []

    def work() -> None:
        try:
            with state.new_client() as client:
                for _ in left:
                    job = client.delegate(argv, cwd="/", environment={"PATH": os.environ["PATH"]}, in_place=True)
                    ids.append(int(job["id"]))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(HANDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return ids


def ps_times(lab: Lab, state: State, options: list[str]) -> dict[str, list[float]]:
    with state.new_client() as client:
        client.connect()
        return lab.interleaved(
            lab.pick(2, 9),
            {
                "cli": lambda: timed([*cli(), "ps", *options], environment=state.environment),
                "client": lambda: clock(lambda: client.jobs(all=bool(options))),
                "python": lambda: timed([sys.executable, "-c", "pass"]),
            },
        )


def clock(deed: Callable[[], object]) -> float:
    began = time.perf_counter()
    deed()
    return time.perf_counter() - began


def at_rest(groups: dict[str, list[int]], seconds: float) -> Row:
    before = {name: [usage(pid) for pid in pids] for name, pids in groups.items()}
    time.sleep(seconds)
    found: Row = {}
    for name, pids in groups.items():
        now = [usage(pid) for pid in pids]
        ticks = sum(after[0] - first[0] for first, after in zip(before[name], now, strict=True))
        switches = sum(after[1] - first[1] for first, after in zip(before[name], now, strict=True))
        found[f"{name}_cpu_percent"] = ticks * TICK_S / seconds * 100
        found[f"{name}_wakeups_per_s"] = switches / seconds
    return found


def usage(pid: int) -> tuple[int, int]:
    """Clock ticks used, and times it went to sleep by itself, over all its threads."""
    words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    switches = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as file:
            switches += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return int(words[11]) + int(words[12]), switches


def private(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("Private_Clean", "Private_Dirty")))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


# --- finished -----------------------------------------------------------------------------------------------


def finished_at(lab: Lab, state: State, empty: State, count: int) -> Row:
    new = count - len(state.client.jobs(all=True))
    began = time.perf_counter()
    many(state, new, "true")
    state.client.wait(all=True, timeout=600)
    took = time.perf_counter() - began
    live = ps_times(lab, state, [])
    everything = ps_times(lab, state, ["--all"])
    memory = private(state.status()["pid"])
    startup = lab.interleaved(lab.pick(2, 7), {"this": lambda: start_up(state), "empty": lambda: start_up(empty)})
    return {
        "jobs": count,
        "run_per_s": new / took,
        "daemon_bytes": memory,
        "python": median(live["python"]),
        **{f"ps_{name}": median(live[name]) for name in ("cli", "client")},
        **{f"ps_all_{name}": median(everything[name]) for name in ("cli", "client")},
        "startup": median(startup["this"]),
        "startup_empty": median(startup["empty"]),
        "startup_ratio": ratio_text(startup["this"], startup["empty"]),  # type: ignore[dict-item]
    }


def start_up(state: State) -> float:
    """Seconds from asking to the first answer of a daemon that was not running."""
    state.stop_daemon()
    return clock(state.status)


# --- tables and plots ---------------------------------------------------------------------------------------


def running_table(rows: Sequence[Row]) -> Table:
    """A column a size, so that growth reads from left to right."""
    lines: list[tuple[str, Callable[[Row], str]]] = [
        ("private memory of a job's keeper, median MiB", lambda r: mib(r["keeper_bytes"])),
        ("private memory of all keepers, MiB", lambda r: mib(r["keepers_bytes"])),
        ("private memory of the daemon, MiB", lambda r: mib(r["daemon_bytes"])),
        ("private memory of the zygote, MiB", lambda r: mib(r["zygote_bytes"])),
        ("daemon's descriptors", lambda r: f"{r['daemon_fds']:.0f}"),
        ("zygote's descriptors", lambda r: f"{r['zygote_fds']:.0f}"),
        ("jobs answered a second, while growing to it", lambda r: f"{r['asked_per_s']:.0f}"),
        ("jobs running a second, while growing to it", lambda r: f"{r['started_per_s']:.0f}"),
        ("`ps`, command line, ms", lambda r: ms(r["ps_cli"])),
        ("`python -c pass` beside it, ms", lambda r: ms(r["ps_python"])),
        ("`client.jobs()`, ms", lambda r: ms(r["ps_client"])),
    ]
    head = ("running jobs", *(f"{row['jobs']:,.0f}" for row in rows), "last ÷ first")
    return Table("Running", head, [grown(name, text, rows) for name, text in lines])


def rest_table(rows: Sequence[Row]) -> Table:
    lines: list[tuple[str, Callable[[Row], str]]] = [
        (f"{what} {where}", lambda r, key=f"{name}_{kind}": f"{r[key]:.2f}")  # type: ignore[misc]
        for name, where in (("daemon", "the daemon"), ("zygote", "the zygote"), ("keeper", "all keepers together"))
        for what, kind in (("processor time, %, of", "cpu_percent"), ("wake-ups a second of", "wakeups_per_s"))
    ]
    head = ("running jobs", *(f"{row['jobs']:,.0f}" for row in rows), "last ÷ first")
    return Table("At rest", head, [grown(name, text, rows) for name, text in lines])


def finished_table(rows: Sequence[Row]) -> Table:
    lines: list[tuple[str, Callable[[Row], str]]] = [
        ("`ps`, command line, ms", lambda r: ms(r["ps_cli"])),
        ("`client.jobs()`, ms", lambda r: ms(r["ps_client"])),
        ("`ps --all`, command line, ms", lambda r: ms(r["ps_all_cli"])),
        ("`client.jobs(all=True)`, ms", lambda r: ms(r["ps_all_client"])),
        ("`python -c pass` beside them, ms", lambda r: ms(r["python"])),
        ("start-up to the first answer, ms", lambda r: ms(r["startup"])),
        ("the same with an empty state, ms", lambda r: ms(r["startup_empty"])),
        ("private memory of the daemon, MiB", lambda r: mib(r["daemon_bytes"])),
        ("jobs run a second, while growing to it", lambda r: f"{r['run_per_s']:.0f}"),
    ]
    head = ("finished jobs", *(f"{row['jobs']:,.0f}" for row in rows), "last ÷ first")
    table = [grown(name, text, rows) for name, text in lines]
    table.insert(7, ("start-up ÷ empty", *(str(row["startup_ratio"]) for row in rows), ""))
    return Table("Finished", head, table)


def grown(name: str, text: Callable[[Row], str], rows: Sequence[Row]) -> tuple[str, ...]:
    cells = [text(row) for row in rows]
    first, last = float(cells[0]), float(cells[-1])
    return (name, *cells, f"{last / first:.2f}" if first else "–")


def draw_running(figure: Any, rows: Sequence[Row]) -> None:
    jobs = [row["jobs"] for row in rows]
    lines(
        figure.add_subplot(1, 2, 1), jobs, "running jobs", "MiB, private",
        {
            "all keepers": [row["keepers_bytes"] / (1 << 20) for row in rows],
            "daemon": [row["daemon_bytes"] / (1 << 20) for row in rows],
            "zygote": [row["zygote_bytes"] / (1 << 20) for row in rows],
        },
    )  # fmt: skip
    lines(
        figure.add_subplot(1, 2, 2), jobs, "running jobs", "ms",
        {
            "ps, command line": [row["ps_cli"] * 1e3 for row in rows],
            "client.jobs()": [row["ps_client"] * 1e3 for row in rows],
            "python -c pass": [row["ps_python"] * 1e3 for row in rows],
        },
    )  # fmt: skip


def draw_finished(figure: Any, rows: Sequence[Row]) -> None:
    named = {
        "start-up": "startup",
        "start-up, empty state": "startup_empty",
        "ps --all, command line": "ps_all_cli",
        "client.jobs(all=True)": "ps_all_client",
        "ps, command line": "ps_cli",
        "client.jobs()": "ps_client",
    }
    series = {name: [row[key] * 1e3 for row in rows] for name, key in named.items()}
    lines(figure.add_subplot(), [row["jobs"] for row in rows], "finished jobs", "ms", series)


def lines(axes: Any, xs: list[float], label: str, unit: str, series: dict[str, list[float]]) -> None:
    for name, ys in series.items():
        axes.plot(xs, ys, "o-", label=name, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(xs, [f"{x:,.0f}" for x in xs])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(f"{label} (log)")
    axes.set_ylabel(f"{unit} (log)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
