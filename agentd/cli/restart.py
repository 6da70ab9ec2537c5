"""``agentd restart JOB``: a new attempt in the same worktree, from the same base, with the same environment."""

from typing import Annotated

import typer

from agentd.cli import options
from agentd.client import Client


def restart(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    resume: Annotated[bool, typer.Option("--resume", help="An agent goes on with its conversation.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Start an ended job again; prints the number of the attempt. Gives a waiting job the secrets it needs."""
    with Client() as client:
        before = client.job(job)["job"]
        view = client.restart(before["id"], resume)
    begins_anew = before["state"] == "done" and before["restart"] == "no" and not resume
    if before["progress"] and begins_anew and not quiet:
        options.say(f"job {view['id']} begins its conversation anew; restart --resume would go on with it")
    if json:
        options.print_json(view)
    else:
        print(view["attempt"])
