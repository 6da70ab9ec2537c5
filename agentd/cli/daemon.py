"""``agentd daemon start|stop|restart|status``. Every verb starts the daemon by itself; these are for those who care."""

import glob
import os
import select
from typing import Annotated, Any

import typer

from agentd import paths
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
    told = stop_daemon(kill_jobs)
    if json:
        options.print_json({"stopped": told is not None, **(told or {"jobs": 0, "killed": 0})})
    elif not quiet:
        options.say("no daemon is running" if told is None else stop_sentence(kill_jobs, told["jobs"], told["killed"]))


def restart(json: options.Json = False, quiet: options.Quiet = False, no_color: options.NoColor = False) -> None:
    """Stop the daemon, if it runs, and start it anew, with the settings as they are now. Jobs go on."""
    from agentd import config

    config.load(paths.config_file())  # with settings that are wrong it would stop, and not start
    stop_daemon(kill_jobs=False, handover=True)
    start(json, quiet, no_color)


def stop_sentence(kill_jobs: bool, jobs: int | None, killed: int | None) -> str:
    if jobs is None or killed is None:
        return "stopped; it went before it could say how many jobs there were"
    parts = [f"{render.count(killed, 'job was', 'jobs were')} ended"] if killed else []
    if jobs:
        parts.append(f"{render.count(jobs, 'job goes', 'jobs go')} on" + (", for they could not be ended" * kill_jobs))
    return "; ".join(["stopped", *(parts or ["no job was running"])])


def stop_daemon(kill_jobs: bool, handover: bool = False) -> dict[str, int | None] | None:
    """``handover``: to another that comes at once, so that whoever waits goes on waiting.

    How many jobs go on and how many were killed, each None if that cannot be told; None if there was no daemon."""
    with Client(start=False) as client:
        client.start = kill_jobs and has_jobs(client.state_dir)  # without a daemon nobody could end them
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
                told = client.ask("daemon.stop", kill_jobs=kill_jobs, handover=handover)
            except (ConnectionLost, NotNow):
                told = {"jobs": None, "killed": None}  # it went before it could answer
            if not select.select([pidfd], [], [], PATIENCE_S)[0]:
                raise Fault(f"the daemon (pid {pid}) does not end; see {client.state_dir}/daemon.log", "daemon_stays")
        finally:
            os.close(pidfd)
    return {"jobs": told.get("jobs"), "killed": told.get("killed")}


def has_jobs(state_dir: str) -> bool:
    """Some that have not ended, by their files."""
    return any(not os.path.exists(f"{path}/end.json") for path in glob.glob(f"{glob.escape(state_dir)}/jobs/*/*/"))


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
