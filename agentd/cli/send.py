"""``agentd send JOB [TEXT]``: to an agent, or to the standard input of a command that was started with -i."""

import base64
import os
import sys
from typing import Annotated

import typer

from agentd.cli import options
from agentd.client import Client
from agentd.core.errors import Usage

CHUNK = 1 << 18


def send(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Without it: standard input.")] = None,
    no_newline: Annotated[bool, typer.Option("-n", help="Add no newline to TEXT.")] = False,
    eof: Annotated[bool, typer.Option("--eof", help="Then close its input.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Send text to an agent, or to a job's standard input.

    It is queued durably. An agent reads it before its next turn; a command when it likes.
    """
    if text is None and not eof and sys.stdin.isatty():
        raise Usage("send what? Give a TEXT, pipe something in, or use --eof; see: agentd send --help", "usage")
    with Client() as client:
        is_agent = client.job(job)["job"]["progress"] is not None
        answer = to_agent(client, job, text, eof) if is_agent else to_command(client, job, text, no_newline, eof)
    if json:
        options.print_json(answer)


def to_agent(client: Client, job: str, text: str | None, eof: bool) -> dict[str, object]:
    if eof:
        raise Usage("--eof is for commands: the input of an agent has no end", "usage")
    message = options.text_or_input(text, "send what? The text is empty")
    return client.send(job, message)


def to_command(client: Client, job: str, text: str | None, no_newline: bool, eof: bool) -> dict[str, object]:
    queued = 0
    if text is not None:
        queued += put(client, job, os.fsencode(text) + (b"" if no_newline else b"\n"), eof)
    elif sys.stdin.isatty():
        put(client, job, b"", True)
    else:
        while data := os.read(0, CHUNK):
            queued += put(client, job, data, False)
        if eof or not queued:
            put(client, job, b"", eof)
    return {"queued": queued, "eof": eof}


def put(client: Client, job: str, data: bytes, eof: bool) -> int:
    text = base64.b64encode(data).decode()
    answer = client.ask("jobs.send", job=job, owner=client.owner, data=text, binary=True, eof=eof)
    return int(answer["queued"])
