"""``agentd events``: what has happened, from the store; with a name, until it is acknowledged."""

import json as jsonlib
import sys
from typing import Annotated

import typer

from agentd.cli import options, render
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
    mine: Annotated[bool, typer.Option("--mine", help="Only of your own jobs.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show what has happened, each event once, in order. --json: one object a line."""
    if ack is not None and name is None:
        raise Usage("--ack needs --as NAME: whose acknowledgement is it?", "usage")
    done_with, after = options.number("--ack", ack), options.number("--since", since)
    with Client() as client:
        if done_with is not None:
            assert name is not None
            acked = client.ack(name, done_with)
            if not is_following:
                return options.print_json(acked) if json else None
        first = 0 if after is None and name is None and not is_following else after
        for event in client.events(name, first, mine, is_following):
            if json:
                sys.stdout.write(jsonlib.dumps(event) + "\n")
            elif quiet:
                sys.stdout.write(f"{event['seq']}\n")
            else:
                sys.stdout.write(render.event_line(event) + "\n")
            if is_following:
                sys.stdout.flush()
