"""``agentd merge JOB``: its work comes home."""

from typing import Annotated

import typer

from agentd.cli import options, work
from agentd.client import Client


def merge(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its whole name, or %n, %+, %-.")],
    into: Annotated[
        str | None, typer.Option("--into", metavar="BRANCH", help="Another branch than the one checked out here.")
    ] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Also if the job has not succeeded.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Merge what a job changed into the branch that is checked out here; prints the commit the branch is at.

    Nothing of yours is overwritten: a conflict, or a change of yours in a file that would change, is refused.
    """
    with Client() as client:
        answer = client.merge(job, into, force)
    if json:
        return options.print_json(answer)
    if not quiet:
        options.say(work.merge_sentence(answer))
    if answer["merged"]:
        print(answer["merged"]["to"])
