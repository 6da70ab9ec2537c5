"""scripts/bench [--quick] [--only NAME ...] [--out DIR] [--work DIR] [--clis DIR]: one readable report."""

import argparse
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from . import agents, crowd, delegate, latency, locks, peers, report, scale, short, start, throughput, watch, worktrees
from .lab import Lab

# Its order is the report's. To add a measurement: write the module, add the line.
MEASUREMENTS = {
    "delegate": delegate.measure,
    "start": start.measure,
    "short": short.measure,
    "latency": latency.measure,
    "throughput": throughput.measure,
    "worktrees": worktrees.measure,
    "watch": watch.measure,
    "locks": locks.measure,
    "scale": scale.measure,
    "peers": peers.measure,
    "agents": agents.measure,
    "crowd": crowd.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure agentd beside its alternatives.")
    parser.add_argument("--quick", action="store_true", help="few samples, small numbers: does everything work?")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME",
                        help=f"some of: {', '.join(MEASUREMENTS)}")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="where the report goes")
    parser.add_argument("--work", help="a folder on the disk to measure on; default: a temporary one")
    parser.add_argument("--clis", default=os.environ.get("BENCH_CLIS"), metavar="DIR",
                        help="where npm has put the vendors' command lines; else BENCH_CLIS, else PATH")  # fmt: skip
    options = parser.parse_args()
    out = options.out.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    load_before = os.getloadavg()[0]
    lab = Lab(options.quick, options.work, options.clis)
    lab.load_before = load_before
    results: dict[str, report.Result] = {}
    try:
        for name in [name for name in MEASUREMENTS if name in options.only]:
            report.progress(f"{name} …")
            started = time.monotonic()
            results[name] = attempt(name, lab)
            results[name].seconds = time.monotonic() - started
            report.progress(f"{name}: {results[name].seconds:.0f} s")
        lab.end_processes()
        path = report.write(out, results, lab, time.monotonic() - began)  # matplotlib writes into the lab's home
    finally:
        lab.close()
    print(path)
    return 1 if any(result.is_broken for result in results.values()) else 0


def attempt(name: str, lab: Lab) -> report.Result:
    """A measurement that breaks is told in the report, and costs none of the others."""
    try:
        return MEASUREMENTS[name](lab)
    except Exception as error:
        traceback.print_exc()
        how = f"**It broke, and measured nothing:** {type(error).__name__}: {error}"
        return report.Result(title=name, how=how, is_broken=True)


if __name__ == "__main__":
    raise SystemExit(main())
