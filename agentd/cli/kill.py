"""``agentd kill JOB…``: ask, then wait until every process of the job is gone."""

import os
import signal
import threading
from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.cli.several import Answers, ask_each, conclude
from agentd.client import Client
from agentd.core.errors import EXIT_NO, AgentdError, Refused, Usage
from agentd.core.ladder import ladder

GONE = ("unknown_job", "already_ended")
SILENCE_S = 1.5
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
        answers = ask_each(jobs, lambda ref: client.kill([ref], name, seconds)[0])
        if ignore_missing:
            answers = {ref: one for ref, one in answers.items() if getattr(one, "code", "") not in GONE}
        if name is None or is_ending(name):
            with Notice(ladder(name and short(name), seconds), is_silent=quiet or json) as notice:
                see_off(client, seq, answers, notice)
        if json:
            answers |= {ref: client.job(one["id"])["job"] for ref, one in answers.items() if isinstance(one, dict)}
    return conclude(answers, json)


def see_off(client: Client, since: int, answers: Answers, notice: "Notice") -> None:
    """Wait for the end of these; what cannot be ended is an answer."""
    awaited = {
        one["id"]: (ref, one["attempt"])
        for ref, one in answers.items()
        if isinstance(one, dict) and one["state"] != "done"
    }
    notice.ids = list(awaited)
    for event in client.events(since=since) if awaited else ():
        ref, attempt = awaited.get(event["job"], ("", 0))
        if event["attempt"] != attempt:
            continue
        if event["type"] == "job.unkillable":
            answers[ref] = unkillable(event)
        if event["type"] in ("job.completed", "job.unkillable"):
            del awaited[event["job"]]
            notice.ids = list(awaited)
        if not awaited:
            return


def unkillable(event: render.View) -> AgentdError:
    found = event["data"]["processes"]
    names = "; ".join(f"{p['pid']} {render.one_line(str(p['command']), 80)}" for p in found)
    text = f"cannot end job {event['job']}: these processes survive SIGKILL: {names}; it ends when they do"
    return AgentdError(text, "unkillable", EXIT_NO)


class Notice:
    """After a moment of silence: what is waited for, what follows, and how to have it at once."""

    def __init__(self, rungs: tuple[tuple[str, float], ...], is_silent: bool) -> None:
        self.ids: list[int] = []
        self.rungs = [f"{name} in {int(at - SILENCE_S)} s" for name, at in rungs if at > SILENCE_S + 0.5]
        self.timer = threading.Timer(SILENCE_S, self.tell)
        self.timer.daemon = True
        self.is_silent = is_silent or not self.rungs

    def __enter__(self) -> "Notice":
        if not self.is_silent:
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()

    def tell(self) -> None:
        ids = self.ids
        if ids:
            are = f"job {ids[0]} is" if len(ids) == 1 else f"jobs {', '.join(map(str, ids))} are"
            first, *rest = self.rungs
            follow = ", ".join([first.replace(" in ", " follows in "), *rest])
            options.say(f"{are} still there; {follow}; at once: agentd kill -9 {' '.join(map(str, ids))}")


def short(name: str) -> str:
    """``KILL`` of ``kill``, ``SIGKILL`` or ``9``."""
    word = name.upper().removeprefix("SIG")
    return signal.Signals(int(word)).name[3:] if word.isascii() and word.isdigit() else word


def is_ending(name: str) -> bool:
    return short(name) in ENDING


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
