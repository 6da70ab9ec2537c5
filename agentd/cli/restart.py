"""``agentd restart JOB…``: a new attempt in the same worktree, from the same base, with the same environment."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.cli.several import ask_each, conclude
from agentd.client import Client


def restart(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids, names, %n, %+, %-.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Start ended jobs again; prints their ids. Gives a waiting job the secrets it needs."""
    with Client() as client:

        def act(ref: str) -> render.View:
            view = client.restart(ref)
            if not json:
                print(view["id"], flush=True)
            if not json and not quiet:
                options.say(f"job {view['id']} ({view['name']}): attempt {view['attempt']}")
            return view

        return conclude(ask_each(jobs, act), json)
