"""``agentd locks``: who holds what, who waits, and why."""

from typing import Annotated, Any

import typer

from agentd.cli import as_utf8, lock_sheet, options, render
from agentd.client import Client
from agentd.core.errors import Usage

Name = Annotated[str, typer.Argument(metavar="NAME", help="A path, res:NAME, file:PATH.")]


def locks(
    ctx: typer.Context,
    all: Annotated[bool, typer.Option("-a", "--all", help="Of all repositories.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew at each change.")] = False,
    json: options.Json = False,
    no_color: options.NoColor = False,
) -> None:
    """Show the locks of this repository, and those of no repository."""
    if ctx.invoked_subcommand is not None:
        return
    with Client() as client:
        show(client, all, json, no_color)
        if watch:
            for event in client.events():
                if event["type"].startswith("lock."):
                    show(client, all, json, no_color, again=True)


def show(client: Client, all: bool, json: bool, no_color: bool, again: bool = False) -> None:
    answer = client.locks(None if all else options.here())
    if json:
        return options.print_json(answer)
    if again:
        print("\x1b[H\x1b[2J" if options.has_color(no_color) else "", end="\n")
    for line in lock_sheet.table(answer, options.width(), client.owner):
        print(line, flush=True)


def why(name: Name, json: options.Json = False) -> None:
    """Show who holds what NAME meets, who waits for it, and what you can do."""
    with Client() as client:
        answer = client.ask("lock.explain", name=as_utf8(name), cwd=options.here(), owner=client.owner)
    if json:
        return options.print_json(answer)
    for line in lock_sheet.explained(answer, client.owner):
        print(line)


def graph(json: options.Json = False) -> None:
    """Show who waits for whom."""
    with Client() as client:
        answer = client.ask("lock.graph")
    if json:
        return options.print_json(answer)
    for edge in answer["edges"]:
        print(render.one_line(f"{edge['waiter']} wants {edge['wants']} and waits for {edge['for']} ({edge['holds']})"))


def history(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only what meets it.")] = None,
    all: Annotated[bool, typer.Option("-a", "--all", help="Of all repositories.")] = False,
    last: Annotated[str, typer.Option("-n", "--last", metavar="N", help="The newest so many.")] = "100",
    json: options.Json = False,
) -> None:
    """Show what happened to locks: granted, released, broken, by whom and why."""
    count = options.number("--last", last, 1, 10_000)
    with Client() as client:
        given = None if name is None else as_utf8(name)
        answer = client.ask("lock.history", name=given, all=all, cwd=options.here(), limit=count)
    for event in answer["events"]:
        if json:
            options.print_json(event)
        else:
            print(lock_sheet.told(event))


def break_(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; the holder is told.")] = "",
    kill: Annotated[bool, typer.Option("--kill", help="End the job that holds it, too.")] = False,
    owner: options.Owner = None,
    json: options.Json = False,
) -> None:
    """Take a lock away from who holds it. It destroys no work, only the right to land it."""
    if not reason.strip():
        raise Usage('why? The holder is told: agentd locks break NAME --reason "urgent fix"', "no_reason")
    with Client(owner=options.owner_name(owner)) as client:
        answer: dict[str, Any] = client.ask(
            "lock.break",
            name=as_utf8(name),
            cwd=options.here(),
            reason=as_utf8(reason),
            kill=kill,
            owner=client.owner,
        )
    if json:
        return options.print_json({"ok": True, **answer})
    for claim in answer["broken"]:
        options.say(render.one_line(f"{claim['name']} was taken from {claim['holder']}"))
