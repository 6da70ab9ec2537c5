"""``agentd ps`` for people and programs; ``agentd jobs`` as a shell shows them."""

import os
import sys
import time
from typing import Annotated

import typer

from agentd.cli import options, paint, render
from agentd.cli import tree as drawn
from agentd.client import Client

All = Annotated[bool, typer.Option("-a", "--all", help="Those that have ended, too.")]
Last = Annotated[str | None, typer.Option("-n", "--last", metavar="N", help="The N newest, ended ones too.")]
Latest = Annotated[bool, typer.Option("-l", "--latest", help="The newest one.")]


def ps(
    all: All = False,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own.")] = False,
    last: Last = None,
    latest: Latest = False,
    is_tree: Annotated[bool, typer.Option("--tree", help="Each under the one that delegated it.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew whenever something happens.")] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Whole commands, whatever the width.")] = False,
    no_color: options.NoColor = False,
) -> None:
    """List jobs that have not ended; -a: all."""
    count = 1 if latest else options.number("--last", last)

    def show() -> None:
        jobs, ended = chosen(client, all, mine, count)
        if is_tree and not {job["parent"] for job in jobs} <= {None, *(job["id"] for job in jobs)}:
            jobs = drawn.with_parents(jobs, {job["id"]: job for job in client.jobs(all=True)})
        if json:
            options.print_json(jobs)
        elif quiet:
            print_lines([str(job["id"]) for job in jobs])
        else:
            print_table(jobs, None if no_trunc else options.width(), options.has_color(no_color), is_tree)
            if not watch and not all and count is None:
                tell_of_hidden(ended, bool(jobs), mine)

    with Client() as client:
        if not watch:
            return show()
        seen = newest(client)
        draw(show)
        for event in client.events(since=seen):
            if event["seq"] > seen:  # what came while we drew is on the screen already
                seen = newest(client)
                draw(show)


def newest(client: Client) -> int:
    return int(client.ask("daemon.status")["newest_seq"])


def draw(show: object) -> None:
    if options.is_screen():
        print("\x1b[H\x1b[2J", end="")
    assert callable(show)
    show()
    sys.stdout.flush()


def chosen(client: Client, all: bool, mine: bool, count: int | None) -> tuple[list[render.View], int]:
    """The jobs to be shown, and how many have ended."""
    owner = client.owner if mine else None
    answer = client.ask("jobs.list", all=all or count is not None, owner=owner)
    jobs = answer["jobs"]
    return jobs if count is None else jobs[len(jobs) - min(count, len(jobs)) :], answer["ended"]


def tell_of_hidden(ended: int, is_any_shown: bool, mine: bool) -> None:
    """To a person, and to whoever got an empty list."""
    if is_any_shown and not (ended and sys.stderr.isatty()):
        return
    if ended:
        whose, them = " --mine" if mine else "", "it" if ended == 1 else "them"
        options.say(f"{render.count(ended, 'job has', 'jobs have')} ended; agentd ps --all{whose} shows {them}")
    else:
        options.say("there are no jobs yet; agentd delegate --help says how to start one")


def print_table(jobs: list[render.View], width: int | None, is_colored: bool, is_tree: bool) -> None:
    branches = None
    if is_tree:
        nodes = drawn.tree(jobs, drawn.DRAWN if is_drawable() else drawn.PLAIN)
        branches, jobs = [branch for branch, _ in nodes], [job for _, job in nodes]
    style = paint.of_jobs(jobs) if is_colored else None
    print_lines(render.job_table(jobs, time.time(), width, style, branches))


def is_drawable() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" and os.environ.get("TERM") != "dumb"


def print_lines(lines: list[str]) -> None:
    if lines:
        print("\n".join(lines))


def jobs(
    pids: Annotated[bool, typer.Option("-p", help="Only the pids.")] = False,
    long: Annotated[bool, typer.Option("-l", help="With the pids.")] = False,
    running: Annotated[bool, typer.Option("-r", help="Only running ones.")] = False,
    stopped: Annotated[bool, typer.Option("-s", help="Only stopped ones.")] = False,
    all: All = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
    no_color: options.NoColor = False,
) -> None:
    """List your own jobs as a shell does: [1]+  Running   make &"""
    with Client() as client:
        mine = client.jobs(all=all, mine=True)
        everything = client.jobs(all=True, mine=True)
    if running or stopped:
        states = {state for state, is_asked in (("running", running), ("stopped", stopped)) if is_asked}
        mine = [job for job in mine if job["state"] in states]
    if json:
        return options.print_json(mine)
    if quiet:
        return print_lines([str(job["id"]) for job in mine])
    if pids:
        return print_lines([str(job["pid"]) for job in mine if job["pid"] and job["state"] != "done"])
    marks = render.bash_marks(everything)
    print_lines([render.bash_line(job, marks.get(job["id"], ""), long) for job in mine])
