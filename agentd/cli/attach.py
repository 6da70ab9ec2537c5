"""``agentd attach JOB``: at the terminal of a job, while its daemon is dead too."""

import os
import signal
from typing import Annotated

import typer

from agentd import attach as terminal
from agentd import follow, screen
from agentd.cli import options, render
from agentd.cli.logs import resolve
from agentd.client import Client
from agentd.core.errors import EXIT_FAULT, Refused, Usage

DETACH = "detach"


def attach(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    read_only: Annotated[bool, typer.Option("-r", "--read-only", help="Only look.")] = False,
    steal: Annotated[bool, typer.Option("--steal", help="Type, even if somebody else does.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Only look, and read no key.")] = False,
    detach_keys: Annotated[
        str, typer.Option("--detach-keys", metavar="KEYS", help="How to leave; default: ctrl-p,ctrl-q.")
    ] = "ctrl-p,ctrl-q",
    raw: Annotated[bool, typer.Option("--raw", help="What is no drawing too: titles, the clipboard.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Be at the terminal of a job that was started with -t: its screen as it is, its keys, its size.

    Ctrl-P Ctrl-Q leaves it; the job goes on. One may type, others look on. Exits as the job did; 0 when left.
    """
    options.refuse_json("attach", json)
    keys = screen.parse_keys(detach_keys)
    if not keys:
        what = f'--detach-keys: keys such as ctrl-p,ctrl-q or ctrl-a,d, not "{render.one_line(detach_keys, 80)}"'
        raise Usage(what, "bad_keys")
    if steal and (read_only or no_stdin):
        raise Usage("--steal is for who types, and you only want to look; leave one of them out", "usage")
    may_type = not read_only and not no_stdin
    if may_type and not (os.isatty(0) and os.isatty(1)):
        which = "input" if not os.isatty(0) else "output"
        what = f"attach needs a terminal, and standard {which} is none"
        raise Usage(f"{what}; to only look: agentd attach --no-stdin, or agentd logs -f", "no_tty")
    with Client(start=False) as client:
        id = resolve(client, job)
        path = follow.attempt_path(client.state_dir, id, None)
    check(id, path)
    bindings = {} if no_stdin else {keys: DETACH}
    with terminal.Attachment(path, bindings, may_type, steal, raw) as attachment:
        if not quiet:
            tell(id, attachment, detach_keys, has_keys=not no_stdin and os.isatty(0))
        how = attachment.run()
    if how == terminal.ENDED:
        code = follow.code_of(path)
        return EXIT_FAULT if code is None else code
    if how == terminal.GONE:
        return 128 + signal.SIGHUP
    options.say(f"detached from job {id}, which goes on; agentd attach {id} brings you back")
    return 0


def check(id: int, path: str) -> None:
    if follow.has_ended(path):
        raise Refused(f"job {id} has already ended; what it wrote: agentd logs {id}", "already_ended")
    if not (follow.record(path, "spec.json") or {}).get("tty"):
        what = f"job {id} has no terminal, as it was started without -t"
        raise Refused(f"{what}; its output: agentd logs -f {id}", "no_terminal")


def tell(id: int, attachment: terminal.Attachment, detach_keys: str, has_keys: bool) -> None:
    """Before the screen is drawn: it is seen until then, and again afterwards."""
    leave = f"{detach_keys} leaves it" if has_keys else "Ctrl-C leaves it"
    if not attachment.may_type or attachment.types or not attachment.attached:
        options.say(f"at the terminal of job {id}; {leave}" + ("" if attachment.may_type else "; you only look on"))
    else:
        options.say(f"at the terminal of job {id}, where somebody else types: you look on; {leave}; --steal to type")
    rows, columns = attachment.attached.get("size") or (0, 0)
    own = terminal.own_size()
    if own is not None and rows and (own[0] < rows or own[1] < columns):
        options.say(f"it has {columns} columns and {rows} rows, and yours is smaller: what you see may be torn")
