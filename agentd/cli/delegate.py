"""``agentd delegate [TASK] [-- CMD…]``: the id alone on stdout, once the job is durable."""

import re
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
    tty: options.Tty = False,
    memory: options.Memory = None,
    processes: options.Processes = None,
    log_max: options.LogMax = None,
    claim: options.Claim = None,
    res: options.HeldRes = None,
    restart: options.Restart = None,
    notify: options.Notify = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Hand over a task or a command, in a git worktree of its own.

    TASK is for the built-in agent; a command stands after --, such as: agentd delegate "run the tests" -- make test
    """
    if more:
        what = f'what is "{render.one_line(more[0], 80)}"? A task is one word in quotes, and a command stands after --'
        raise Usage(f"{what}: agentd delegate -- {render.one_line(' '.join([task, *more]), 200)}", "usage")
    argv: list[str] | None = ctx.meta.get("command")
    if not argv and not task and name is None:  # a bad name is told first, by the daemon
        what = "Give a task in quotes, or a command after --"
        raise Usage(f"delegate what? {what}, such as: agentd delegate -- make test", "no_command")
    check_place(base, with_changes, in_place)
    if tty and argv is None and agent in (None, "builtin"):
        raise Usage("-t gives a command a terminal, and the built-in agent has no use for one; leave it out", "usage")
    check_task(task, timeout, idle_timeout)
    asked = options.of_the_agent(profile, model, max_turns, max_tokens, max_cost, argv)
    asked |= options.limits(name, env, timeout, idle_timeout, leave, memory, processes, log_max, restart)
    # In place nothing else keeps others from the same files.
    claims = options.claims([*(claim or []), *(["file:./"] if in_place else [])], res)
    with Client(owner=options.owner_name(owner)) as client:
        answer = client.delegate_answer(
            argv or [],
            task=task,
            cwd=options.here(),
            agent=agent or ("builtin" if argv is None else "command"),
            base=base,
            with_changes=with_changes,
            in_place=in_place,
            input=input,
            claims=claims,
            tty=options.terminal_size(tty, is_here=False),
            notify=options.notify(notify),
            **asked,
        )
    if base not in (None, "HEAD", "@", (answer["base_ref"] or "").removeprefix("refs/heads/")):
        answer["base_ref"] = None  # the branch of the calling tree may stand elsewhere
    job, excluded = answer["job"], answer["excluded"]
    if json:
        return options.print_json({**job, "excluded": excluded})
    print(job["id"], flush=True)
    if quiet:
        return
    if job["base"]:
        options.say(render.base_sentence(answer, with_changes))
    if sentence := render.lock_sentence(job):
        options.say(sentence)
    if not answer["is_tree_known"]:
        options.say(f"what you have not committed, if anything, is not in job {job['id']}; use --with-changes")
    if excluded:
        options.say(render.excluded_sentence(job["id"], excluded))


UNIT = re.compile(r"(?:[smhd]|secs?|seconds?|mins?|minutes?|hrs?|hours?|days?)", re.I)


def check_task(task: str, *times: str | None) -> None:
    """``--timeout 5 minutes``: half of a time is no task."""
    given = next((text for text in times if text is not None), None)
    if given is not None and UNIT.fullmatch(task):
        right = f"{given}{task[0].lower()}" if given.isdigit() else given
        what = f'is "{task}" the task? A time is one word, such as {right}'
        raise Usage(f"{what}; leave {task} out, or say more of the task", "usage")


def check_place(base: str | None, with_changes: bool, in_place: bool) -> None:
    """Options that contradict each other: none of them is passed over in silence."""
    for option, is_given in (("--base", base is not None), ("--with-changes", with_changes)):
        if in_place and is_given:
            raise Usage(f"--in-place makes no worktree, so {option} means nothing; leave one of them out", "usage")
    if with_changes and base is not None:
        raise Usage("--with-changes starts from your tree as it is, so --base means nothing; leave one out", "usage")
