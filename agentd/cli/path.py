"""``agentd path JOB``: where its worktree is, and nothing else: ``cd "$(agentd path 7)"``."""

import os
from typing import Annotated

import typer

from agentd.cli import options, render, sheet
from agentd.client import Client
from agentd.core.errors import Refused


def path(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Print the path of a job's worktree; 1 if there is none, with where its files are."""
    with Client() as client:
        view = client.job(job)["job"]
    why = why_none(view)
    if why:
        raise Refused(f"job {view['id']} ({view['name']}) {why}", "no_worktree")
    if json:
        options.print_json({"id": view["id"], "worktree": view["worktree"]})
    else:
        print(view["worktree"])


def why_none(job: render.View) -> str | None:
    if job["base"] is None:
        return f"has no worktree: it works in {render.one_line(job['cwd'])}"
    if job["removed"]:
        return f"is in the trash, with its worktree; put it back: agentd undo {job['id']}"
    if job["worktree"] is None:
        return "has no worktree any more: it ended equal to its base"
    if os.path.isdir(job["worktree"]):
        return None
    if job["state"] != "done":
        return f"has no worktree yet: it is {job['state']}"
    return f"has no worktree any more; {render.one_line(' '.join(sheet.snapshot_lines(job)))}"
