"""``agentd undo [ID]``: out of the trash."""

import time
from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import Usage


def undo(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="The job's id; without it: list the trash.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Put a removed job back, with its worktree and its changes; alone: list the trash."""
    if job is not None and not (job.isascii() and job.isdigit() and len(job) < 16):
        raise Usage(f'"{render.one_line(job, 80)}" is no id: in the trash a name may stand for several', "bad_id")
    with Client() as client:
        if job is None:
            trash = list(client.ask("jobs.undo", owner=client.owner)["trash"])
        else:
            view = client.undo(int(job))
    if job is not None:
        return options.print_json(view) if json else print(view["id"])
    if json:
        return options.print_json(trash)
    now = time.time()
    if quiet:
        lines = [str(one["id"]) for one in trash]
    else:
        lines = render.job_table(trash, now, options.width())
    if lines:
        print("\n".join(lines))
