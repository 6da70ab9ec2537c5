"""``agentd interrupt JOB [TEXT]``: an agent drops what it does, and listens."""

from typing import Annotated

import typer

from agentd.cli import options
from agentd.client import Client


def interrupt(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its whole name, or %n, %+, %-.")],
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="What it is to do; without it, it waits.")] = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Break off what an agent does now. Without TEXT it then waits until it is sent one."""
    with Client() as client:
        receipt = client.interrupt(job, text)
        id = client.job(job)["job"]["id"]
    if json:
        options.print_json(receipt)
    elif not text.strip() and not quiet:
        options.say(f"job {id} waits until it is told how to go on: agentd send {id} TEXT")
