"""``agentd result JOB``: what came of it, as agentd saw it."""

from typing import Annotated

import typer

from agentd.cli import options, work
from agentd.client import Client


def result(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show how a job ended, what it committed and changed, and where that was merged: facts that agentd saw itself.

    What the agent says of its work is shown apart from them.
    """
    with Client() as client:
        found = client.result(job)
    if json:
        options.print_json(found)
    elif quiet:
        print(found["id"])
    else:
        print("\n".join(work.result_sheet(found)))
