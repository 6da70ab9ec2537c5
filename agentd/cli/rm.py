"""``agentd rm JOB…``: into the trash, from where ``undo`` takes it back for 14 days."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import AgentdError, Refused


def rm(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids, whole names, %n, %+, %-.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="End it first if it runs.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Move ended jobs to the trash, with their worktrees; prints their ids."""
    removed: list[render.View] = []
    problems: list[AgentdError] = []
    with Client() as client:
        for ref in dict.fromkeys(jobs):
            try:
                removed.append(remove(client, ref, force))
            except Refused as error:
                problems.append(error)
                continue
            if not json:
                print(removed[-1]["id"], flush=True)
    for problem in problems[:-1]:
        options.say(render.one_line(problem.message))
    if problems:
        raise problems[-1]
    if json:
        options.print_json(removed)


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
