"""``agentd rm JOB…``: into the trash, from where ``undo`` takes it back for 14 days."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.cli.several import ask_each, conclude
from agentd.client import Client
from agentd.core.errors import Refused, Usage


def rm(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB…", help="Ids, whole names, %n, %+, %-.")] = None,
    done: Annotated[bool, typer.Option("--done", help="All of your own that have ended.")] = False,
    all: Annotated[bool, typer.Option("-a", "--all", help="With --done: everybody's.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="End it first if it runs.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Move ended jobs to the trash, with their worktrees; prints their ids."""
    refs = list(jobs or [])
    if all and not done:
        raise Usage("--all goes with --done: it means all jobs that have ended; give both", "usage")
    if done and (refs or force):
        raise Usage(
            "--done takes all jobs that have ended, so it goes without JOB and --force; leave them out", "usage"
        )
    if not refs and not done:
        raise Usage("rm what? Name a job, such as: agentd rm 7, or use --done; agentd ps --all lists them", "usage")
    with Client() as client:
        if done:
            refs = [str(job["id"]) for job in client.jobs(all=True, mine=not all) if job["state"] == "done"]

        def act(ref: str) -> render.View:
            view = remove(client, ref, force)
            if not json:
                print(view["id"], flush=True)
            return view

        return conclude(ask_each(refs, act), json)


def remove(client: Client, ref: str, force: bool) -> render.View:
    if force:
        (id,) = client.ask("jobs.resolve", jobs=[ref], owner=client.owner, exact=True)["ids"]
        try:
            client.kill([id])
        except Refused as error:
            if error.code != "already_ended":
                raise
        client.wait([id])
        return client.remove(id)
    return client.remove(ref)
