"""``agentd daemon start|stop|status``. Every verb starts the daemon by itself; these are for those who care."""

import os
import select
from typing import Annotated, Any

import typer

from agentd.cli import options, render
from agentd.client import Client, ConnectionLost
from agentd.core.errors import Fault, NotNow

EXIT_DOWN = 3
PATIENCE_S = 90.0


def start(json: options.Json = False, quiet: options.Quiet = False, no_color: options.NoColor = False) -> None:
    """Start the daemon, if it is not running."""
    with Client() as client:
        status = client.ask("daemon.status")
    if json:
        options.print_json(status)
    elif not quiet:
        options.say(f"the daemon is running (pid {status['pid']}, version {status['version']})")


def stop(
    kill_jobs: Annotated[bool, typer.Option("--kill-jobs", help="End all jobs first.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Stop the daemon, and wait until it has gone. Jobs go on, and a later daemon finds them."""
    jobs = stop_daemon(kill_jobs)
    if json:
        options.print_json({"stopped": jobs is not None, "jobs": jobs or 0})
    elif quiet:
        return
    elif jobs is None:
        options.say("no daemon is running")
    elif jobs:
        options.say(f"stopped; {jobs} {'job goes' if jobs == 1 else 'jobs go'} on")


def stop_daemon(kill_jobs: bool) -> int | None:
    """How many jobs go on; None if there was no daemon."""
    with Client(start=False) as client:
        try:
            pid = int(client.ask("daemon.status")["pid"])
            pidfd = os.pidfd_open(pid)
        except NotNow as error:
            if error.code != "no_daemon":
                raise
            return None
        except ProcessLookupError:
            return None
        try:
            try:
                jobs = int(client.ask("daemon.stop", kill_jobs=kill_jobs)["jobs"])
            except (ConnectionLost, NotNow):
                jobs = 0  # it went before it could answer
            if not select.select([pidfd], [], [], PATIENCE_S)[0]:
                raise Fault(f"the daemon (pid {pid}) does not end; see {client.state_dir}/daemon.log", "daemon_stays")
        finally:
            os.close(pidfd)
    return jobs


def status(json: options.Json = False, quiet: options.Quiet = False, no_color: options.NoColor = False) -> int:
    """Is it running? 0: yes, 3: no. Starts none."""
    found = ask_status()
    if json:
        options.print_json({"running": found is not None, **(found or {})})
    elif quiet:
        pass
    elif found is None:
        print("not running")
    else:
        print("\n".join(status_lines(found)))
    return EXIT_DOWN if found is None else 0


def ask_status() -> dict[str, Any] | None:
    """What the daemon says of itself; None if there is none."""
    with Client(start=False) as client:
        try:
            return client.ask("daemon.status")
        except NotNow as error:
            if error.code != "no_daemon":
                raise
            return None


def status_lines(found: dict[str, Any]) -> list[str]:
    jobs = ", ".join(f"{count} {state}" for state, count in found["jobs"].items() if count)
    pairs = [
        ("running", f"pid {found['pid']}, version {found['version']}, since {found['started_at']}"),
        ("state", found["state_dir"]),
        ("socket", found["socket"]),
        ("jobs", jobs or "none"),
        ("epoch", f"{found['epoch']}, newest event {found['newest_seq']}"),
        ("trouble", found["trouble"] or "none"),
        *(("reader", f"{one['name']}: acknowledged up to {one['acked']}") for one in found["subscribers"]),
    ]
    return [f"{name + ':':<10}{render.one_line(str(value))}" for name, value in pairs]
