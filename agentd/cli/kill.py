"""``agentd kill JOB…``: ask, then wait until every process of the job is gone."""

import os
import signal
from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import EXIT_NO, AgentdError, Refused, Usage

GONE = ("unknown_job", "already_ended")
ENDING = ("HUP", "INT", "QUIT", "TERM", "KILL", "ABRT")


def kill(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB…", help="Ids, whole names, %n, %+, %-.")] = None,
    name: Annotated[
        str | None, typer.Option("-s", "--signal", metavar="SIG", help="Begin with it; also -9, -KILL, -USR1.")
    ] = None,
    is_listing: Annotated[bool, typer.Option("-l", "--list", help="List signals, or name a number.")] = False,
    grace: Annotated[str | None, typer.Option("--grace", metavar="TIME", help="From the first signal to KILL.")] = None,
    ignore_missing: Annotated[bool, typer.Option("--ignore-missing", help="Gone already is fine.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """End jobs with all their processes: INT, after 5 s TERM, after 10 more KILL.

    Returns when the last process is gone. Signals that end nothing (USR1, STOP, CONT …) are only delivered.
    """
    if is_listing:
        return list_signals(jobs or [])
    if not jobs:
        raise Usage("kill what? Name a job, such as: agentd kill 7; agentd ps lists them", "usage")
    seconds = options.seconds("--grace", grace)
    with Client() as client:
        seq = int(client.ask("daemon.status")["newest_seq"])  # what happens from here on is not missed
        killed: list[render.View] = []
        problems: list[AgentdError] = []
        for ref in jobs:
            try:
                killed.append(client.kill([ref], name, seconds)[0])
            except Refused as error:
                if error.code not in GONE or not ignore_missing:
                    problems.append(error)
        if name is None or is_ending(name):
            problems += see_off(client, seq, {job["id"]: job["attempt"] for job in killed if job["state"] != "done"})
        views = [client.job(job["id"])["job"] for job in killed] if json else []
    for problem in problems[:-1]:
        options.say(render.one_line(problem.message))
    if problems:
        raise problems[-1]
    if json:
        options.print_json(views)
    return 0


def see_off(client: Client, since: int, ids: dict[int, int]) -> list[AgentdError]:
    """Wait for the end of these; what cannot be ended is told."""
    problems: list[AgentdError] = []
    if not ids:
        return problems
    for event in client.events(since=since):
        if event["job"] not in ids or event["attempt"] != ids[event["job"]]:
            continue
        if event["type"] == "job.completed":
            del ids[event["job"]]
        elif event["type"] == "job.unkillable":
            id = event["job"]
            names = "; ".join(
                f"{p['pid']} {render.one_line(str(p['command']), 80)}" for p in event["data"]["processes"]
            )
            text = f"cannot end job {id}: these processes survive SIGKILL: {names}; it ends when they do"
            problems.append(AgentdError(text, "unkillable", EXIT_NO))
            del ids[id]
        if not ids:
            break
    return problems


def is_ending(name: str) -> bool:
    word = name.upper().removeprefix("SIG")
    return word in ENDING or (word.isascii() and word.isdigit() and signal.Signals(int(word)).name[3:] in ENDING)


def list_signals(words: list[str]) -> int:
    if not words:
        print(" ".join(s.name.removeprefix("SIG") for s in sorted(signal.Signals)))
        return 0
    for word in words:
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 6 else None
        try:
            if number is None:
                print(int(signal.Signals[f"SIG{word.upper().removeprefix('SIG')}"]))
            else:
                print(signal.Signals(number - 128 if number > 128 else number).name.removeprefix("SIG"))
        except (KeyError, ValueError):
            what = f'there is no signal "{render.one_line(word, 80)}"; agentd kill -l lists them'
            raise Refused(what, "bad_signal") from None
    return os.EX_OK
