"""What is said to an agent with a runner: appended to its input.ndjson, which it reads when it is told to look."""

import contextlib
import json
import os
import time

from agentd import jobdir

NAME = "input.ndjson"


def append(path: str, kind: str, text: str, question: str | None) -> int:
    """Durable when it returns the number of the line, from 1 on. A line that a full disk cut short is taken back."""
    fd = os.open(f"{path}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        number = os.pread(fd, size, 0).count(b"\n") + 1
        line = {"n": number, "kind": kind, "text": text, "question": question, "at": time.time()}
        try:
            jobdir.write_all(fd, json.dumps(line).encode() + b"\n")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
        return number
    finally:
        os.close(fd)


def nudge(path: str) -> None:
    """If no runner listens, the next one looks into the file."""
    with contextlib.suppress(OSError), jobdir.connect(f"{path}/runner.sock", blocking=False) as link:
        link.send(b"{}\n")
