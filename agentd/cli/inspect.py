"""``agentd inspect JOB``: everything that is known about it."""

import os
import time
from typing import Annotated

import typer

from agentd.cli import options, pager, sheet
from agentd.client import Client


def inspect(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_pager: options.NoPager = False,
    no_color: options.NoColor = False,
) -> None:
    """Show everything about a job; --json: whole, with its files' records and its last 100 events."""
    with Client() as client:
        document = client.job(job)
    if json:
        options.print_json(document)
    elif quiet:
        print(document["job"]["id"])
    else:
        is_there = os.path.isdir(document["job"]["worktree"] or "")
        lines = sheet.sheet(document, time.time(), is_there, options.width(), options.has_color(no_color))
        with pager.paged(not no_pager):
            print("\n".join(lines))
