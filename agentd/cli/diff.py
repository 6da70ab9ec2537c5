"""``agentd diff JOB``: what it changed. Coloured and paged on a terminal; in a pipe byte for byte, for git apply."""

import os
import sys
from typing import Annotated

import typer

from agentd.cli import options, pager, work
from agentd.client import Client
from agentd.core.errors import Usage


def diff(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    stat: Annotated[bool, typer.Option("--stat", help="Only how much in which file.")] = False,
    name_only: Annotated[bool, typer.Option("--name-only", help="Only the names of the files.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show what a job changed since its base, untracked files included; also while it runs."""
    if stat and name_only:
        raise Usage("--stat and --name-only do not go together; leave one of them out", "usage")
    form = "stat" if stat else "names" if name_only else "patch"
    is_terminal = sys.stdout.isatty() and not json
    with Client() as client:
        pieces = client.diff(job, form, binary=not is_terminal and form == "patch")
        if json:
            options.print_json({"diff": "".join(pieces)})
        elif is_terminal:
            lines = work.diff_lines("".join(pieces), form, options.has_color(no_color))
            with pager.paged(is_wanted=True):
                pager.write("".join(f"{line}\n" for line in lines).encode(errors="replace"))
        else:
            for piece in pieces:
                pager.write(os.fsencode(piece))
