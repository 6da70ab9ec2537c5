"""``agentd send JOB [TEXT]``: to the standard input of a job that was started with -i."""

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
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Without it: standard input, as it is.")] = None,
    no_newline: Annotated[bool, typer.Option("-n", help="Add no newline to TEXT.")] = False,
    eof: Annotated[bool, typer.Option("--eof", help="Then close its input.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Send text to a job's standard input. It is queued durably; the job reads it when it likes."""
    if text is None and not eof and sys.stdin.isatty():
        raise Usage("send what? Give a TEXT, pipe something in, or use --eof; see: agentd send --help", "usage")
    queued = 0
    with Client() as client:
        if text is not None:
            queued += put(client, job, os.fsencode(text) + (b"" if no_newline else b"\n"), eof)
        elif sys.stdin.isatty():
            put(client, job, b"", True)
        else:
            while data := os.read(0, CHUNK):
                queued += put(client, job, data, False)
            if eof or not queued:
                put(client, job, b"", eof)
    if json:
        options.print_json({"queued": queued, "eof": eof})


def put(client: Client, job: str, data: bytes, eof: bool) -> int:
    text = base64.b64encode(data).decode()
    answer = client.ask("jobs.send", job=job, owner=client.owner, data=text, binary=True, eof=eof)
    return int(answer["queued"])
