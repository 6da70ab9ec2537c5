"""``agentd undo [JOB…]``: out of the trash."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.cli.several import ask_each, conclude
from agentd.client import Client
from agentd.core.errors import Refused


def undo(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB…", help="Ids or names; without any: list the trash.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Put removed jobs back, with their worktrees and changes; alone: list the trash."""
    with Client() as client:
        if not jobs:
            return show(client.ask("jobs.undo", owner=client.owner), json, quiet)

        def act(ref: str) -> render.View:
            view = client.undo(id_of(client, ref))
            if not json:
                print(view["id"], flush=True)
            return view

        return conclude(ask_each(jobs, act), json)


def id_of(client: Client, ref: str) -> int:
    """Several jobs in the trash may have had the same name."""
    if ref.isascii() and ref.isdigit() and len(ref) < 16:
        return int(ref)
    trash = client.ask("jobs.undo", owner=client.owner)["trash"]
    ids = [int(job["id"]) for job in trash if job["name"] == ref]
    if not ids:
        hint = options.nearest(ref, [str(job["name"]) for job in trash], "agentd undo lists it")
        raise Refused(f'no job "{render.one_line(ref, 80)}" is in the trash; {hint}', "unknown_job")
    if len(ids) > 1:
        which = f"agentd undo {ids[-1]} takes the newest"
        raise Refused(
            f'"{render.one_line(ref, 80)}" is {len(ids)} jobs in the trash: {", ".join(map(str, ids))}; {which}',
            "ambiguous",
        )
    return ids[0]


def show(answer: render.View, json: bool, quiet: bool) -> int:
    trash = answer["trash"]
    if json:
        options.print_json(trash)
    elif quiet:
        print("".join(f"{one['id']}\n" for one in trash), end="")
    else:
        print("\n".join(render.trash_table(trash, answer["days"], options.width())))
    return 0
