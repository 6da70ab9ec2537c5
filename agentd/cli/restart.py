"""``agentd restart JOB…``: a new attempt in the same worktree, from the same base, with the same environment."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.cli.several import ask_each, conclude
from agentd.client import Client


def restart(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids, names, %n, %+, %-.")],
    resume: Annotated[bool, typer.Option("--resume", help="An agent goes on with its conversation.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Start ended jobs again; prints their ids. Gives a waiting job the secrets it needs."""
    with Client() as client:

        def act(ref: str) -> render.View:
            before = client.job(ref)["job"]
            view = client.restart(before["id"], resume)
            if not json:
                print(view["id"], flush=True)
            if not json and not quiet:
                options.say(f"job {view['id']} ({view['name']}): attempt {view['attempt']}")
            begins_anew = before["state"] == "done" and before["restart"] == "no" and not resume
            if before["outcome"] == "limited" and resume and not quiet:
                reason = render.one_line(before["reason"] or "", 60)
                options.say(f"its limit of {reason} holds for all attempts together, so it may end there again")
            if before["progress"] and begins_anew and not quiet:
                options.say(f"job {view['id']} begins its conversation anew; restart --resume would go on with it")
            return view

        return conclude(ask_each(jobs, act), json)
