"""``agentd events``: what has happened, from the store; with a name, until it is acknowledged."""

import json as jsonlib
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from agentd.cli import event_sheet, options, render
from agentd.client import Client
from agentd.core.errors import Usage


def events(
    is_following: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes.")] = False,
    since: Annotated[str | None, typer.Option("--since", metavar="SEQ", help="Those after this one.")] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="A durable reader: what it has not acknowledged.")
    ] = None,
    ack: Annotated[
        str | None, typer.Option("--ack", metavar="SEQ", help="With --as: all up to this one is dealt with.")
    ] = None,
    forget: Annotated[str | None, typer.Option("--forget", metavar="NAME", help="Retire a durable reader.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only of your own jobs.")] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="PATTERN", help="Only such, as 'job.*'; repeatable.")
    ] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only of this job.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show what has happened, each event once, in order. --json: one object a line."""
    if ack is not None and name is None:
        raise Usage("--ack needs --as NAME: whose acknowledgement is it?", "usage")
    if forget is not None and name is not None:
        raise Usage("--forget names the reader itself; leave --as out", "usage")
    done_with, after = options.number("--ack", ack), options.number("--since", since)
    with Client() as client:
        if forget is not None:
            gone = client.forget_reader(forget)
            return options.print_json(gone) if json else None
        if name is not None and not quiet:
            tell_if_new(client, name, after if done_with is None else done_with)
        if done_with is not None:
            assert name is not None
            acked = client.ack(name, done_with)
            if not is_following:
                return options.print_json(acked) if json else None
        id = None if job is None else client.ask("jobs.resolve", jobs=[job], owner=client.owner)["ids"][0]
        first = 0 if after is None and name is None and not is_following else after
        show = shower(client, json, quiet, name is not None, options.has_color(no_color))
        for event in client.events(name, first, mine, is_following):
            if not is_wanted(event, types or ["*"], id):
                continue
            show(event)
            if is_following:
                sys.stdout.flush()


def shower(
    client: Client, json: bool, quiet: bool, is_reader: bool, is_colored: bool
) -> Callable[[render.View], object]:
    """Whole lines for programs, and for who has to acknowledge a number; sentences for people."""
    width = options.width()

    def put(text: str) -> None:
        sys.stdout.write(text + "\n")

    if json:
        return lambda event: put(jsonlib.dumps(event))
    if quiet:
        return lambda event: put(str(event["seq"]))
    if width is None:
        return lambda event: put(event_sheet.event_line(event))
    if is_reader:
        return lambda event: put(render.cut(event_sheet.event_line(event), width))
    names = {job["id"]: job["name"] for job in client.jobs(all=True)}
    teller = event_sheet.Teller(width, is_colored, names)
    return lambda event: put("\n".join(teller.lines(event, time.strftime("%Y-%m-%d"))))


def is_wanted(event: render.View, types: Sequence[str], id: int | None) -> bool:
    return id in (None, event["job"]) and any(fnmatchcase(event["type"], pattern) for pattern in types)


def tell_if_new(client: Client, name: str, since: int | None) -> None:
    """A name that was mistyped makes a reader, too."""
    known = [str(one["name"]) for one in client.ask("daemon.status")["subscribers"]]
    if name in known or not (0 < len(name) <= 100 and name.isprintable()):
        return  # or it is refused
    where = "here" if since is None else f"after {since}"
    others = f"; there are: {', '.join(render.one_line(one, 100) for one in sorted(known))}" if known else ""
    options.say(f'"{render.one_line(name, 100)}" is new: it begins {where}{others}')
