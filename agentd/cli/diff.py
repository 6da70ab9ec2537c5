"""``agentd diff JOB``: what it changed. Coloured and paged on a terminal; in a pipe byte for byte, for git apply."""

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from agentd.cli import options, work
from agentd.client import Client
from agentd.core.errors import Usage


def diff(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    stat: Annotated[bool, typer.Option("--stat", help="Only how much in which file.")] = False,
    name_only: Annotated[bool, typer.Option("--name-only", help="Only the names of the files.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show what a job changed since its base, untracked files included; also while it runs."""
    if stat and name_only:
        raise Usage("--stat and --name-only do not go together", "usage")
    form = "stat" if stat else "names" if name_only else "patch"
    is_terminal = sys.stdout.isatty() and not json
    with Client() as client:
        pieces = client.diff(job, form, binary=not is_terminal and form == "patch")
        if json:
            options.print_json({"diff": "".join(pieces)})
        elif is_terminal:
            lines = work.diff_lines("".join(pieces), form, options.has_color(no_color))
            page(lines) if lines else options.say("no changes")
        else:
            for piece in pieces:
                write(os.fsencode(piece))


def write(data: bytes, to: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(to, view) :]


def page(lines: Iterable[str]) -> None:
    """Through the pager that git would take, as it would be run."""
    import subprocess

    text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
    command = next((os.environ[name] for name in ("GIT_PAGER", "PAGER") if name in os.environ), "less")
    if command in ("", "cat"):
        return write(text)
    environment = {"LESS": "FRX", "LV": "-c", **os.environ}
    pager = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, env=environment, bufsize=0)
    assert pager.stdin is not None
    with contextlib.suppress(
        BrokenPipeError, KeyboardInterrupt
    ):  # whoever reads has seen enough; Ctrl-C is the pager's
        write(text, pager.stdin.fileno())
    pager.stdin.close()
    while pager.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):
            pager.wait()
    if pager.returncode == 127:
        write(text)  # there is no such pager
