"""``agentd restart JOB``: a new attempt in the same worktree, from the same base, with the same environment."""

from typing import Annotated

import typer

from agentd.cli import options
from agentd.client import Client


def restart(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Start an ended job again; prints its id. Gives a waiting job the secrets it needs."""
    with Client() as client:
        view = client.restart(job)
    if json:
        options.print_json(view)
        return
    print(view["id"], flush=True)
    if not quiet:
        options.say(f"job {view['id']} ({view['name']}): attempt {view['attempt']}")
