"""``agentd delegate [TASK] [-- CMD…]``: the id alone on stdout, once the job is durable."""

from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import Usage


def delegate(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(metavar="[TASK]", help="What is to be done; with a command: its label.")] = "",
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    name: options.Name = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="KIND", help="Who does it.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="COMMIT", help="Where to start; default: HEAD.")] = None,
    env: options.Env = None,
    timeout: options.Timeout = None,
    idle_timeout: options.IdleTimeout = None,
    with_changes: Annotated[bool, typer.Option("--with-changes", help="Take your uncommitted changes along.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Work in this folder, not in a worktree.")] = False,
    profile: options.Profile = None,
    model: options.Model = None,
    max_turns: options.MaxTurns = None,
    max_tokens: options.MaxTokens = None,
    max_cost: options.MaxCost = None,
    owner: options.Owner = None,
    leave: options.Leave = None,
    input: options.Input = False,
    memory: options.Memory = None,
    processes: options.Processes = None,
    log_max: options.LogMax = None,
    restart: options.Restart = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Hand over a task or a command, in a git worktree of its own.

    TASK is for the built-in agent; a command stands after --, such as: agentd delegate "run the tests" -- make test
    """
    if more:
        word = render.one_line(more[0], 80)
        raise Usage(f'what is "{word}"? A task is one word in quotes, and a command stands after --', "usage")
    argv: list[str] | None = ctx.meta.get("command")
    asked = options.of_the_agent(profile, model, max_turns, max_tokens, max_cost, argv)
    asked |= options.limits(name, env, timeout, idle_timeout, leave, memory, processes, log_max, restart)
    with Client(owner=owner) as client:
        answer = client.delegate_answer(
            argv or [],
            task=task,
            agent=agent or ("builtin" if argv is None else "command"),
            base=base,
            with_changes=with_changes,
            in_place=in_place,
            input=input,
            **asked,
        )
    job, excluded = answer["job"], answer["excluded"]
    if json:
        return options.print_json({**job, "excluded": excluded})
    print(job["id"], flush=True)
    if quiet:
        return
    if job["base"]:
        options.say(render.base_sentence(job, answer.get("base_ref")))
    if excluded:
        options.say(render.excluded_sentence(job["id"], excluded))
