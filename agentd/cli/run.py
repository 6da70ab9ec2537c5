"""``agentd run [-d] CMD…``: a command where one stands. In the foreground it looks as if the shell had run it."""

import os
from typing import Annotated

import typer

from agentd.cli import options
from agentd.cli.foreground import Foreground, say_waiting
from agentd.client import Client
from agentd.core.errors import Usage


def run(
    command: Annotated[list[str] | None, typer.Argument(metavar="CMD…", help="The command and its words.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="In the background: print the id.")] = False,
    workdir: Annotated[str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Run it there.")] = None,
    name: options.Name = None,
    env: options.Env = None,
    timeout: options.Timeout = None,
    idle_timeout: options.IdleTimeout = None,
    owner: options.Owner = None,
    leave: options.Leave = None,
    input: Annotated[bool, typer.Option("-i", "--input", help="Pass standard input on to it.")] = False,
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
) -> int:
    """Run a command in place; options end at its first word.

    In the foreground: its output, its exit code; Ctrl-C interrupts it, twice within 2 seconds kills it; Ctrl-Z stops
    it and Ctrl-B lets it run on, and both give the prompt back. If the terminal is closed it goes on.
    """
    if not command:
        raise Usage("run what? Give a command, such as: agentd run make test", "no_command")
    if json and not detach:
        raise Usage("--json goes with -d only: in the foreground stdout is the command's own; add -d", "usage")
    asked = options.limits(name, env, timeout, idle_timeout, leave, memory, processes, log_max, restart)
    asked["claims"] = options.claims(claim, res)
    size = options.terminal_size(tty, is_here=not detach)
    asked["notify"] = options.notify(notify)
    if workdir == "":
        raise Usage("--workdir: an empty name is no folder; leave it out for this one", "bad_cwd")
    with Client(owner=options.owner_name(owner)) as client:
        asked |= {"input": input, "tty": size}
        place = workdir if workdir and os.path.isabs(workdir) else os.path.normpath(f"{options.here()}/{workdir or ''}")
        if not detach:
            foreground = Foreground(client, quiet)
            return (foreground.run_with_terminal if tty else foreground.run)(command, place, asked)
        job = client.delegate(command, cwd=place, in_place=True, **asked)
    if json:
        options.print_json(job)
    else:
        print(job["id"], flush=True)
        say_waiting(job, quiet)
    return 0
