"""transcript.ndjson: one JSON object a line, append-only, written by the runner alone. agentd-transcript(5) lists them.

Each record is one write(2) with O_APPEND, so kill -9 loses at most the record that is being written, and tears at most
the last line. A reader leaves a torn line out; the next writer cuts it off. :func:`sync` is called once per answered
request: what was paid for survives a power cut, and a record costs microseconds.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator

from agentd import jobdir
from agentd.jobdir import Record

NAME = "transcript.ndjson"
FORMAT = 1
PARTIAL_EVERY = 1.0


class Damaged(Exception):
    """A transcript that cannot be gone on from; the text says which line."""


class Transcript:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = cut_torn_line(self.fd)
        self.streamed: list[str] = []
        self.streamed_at = 0.0

    def write(self, kind: str, /, **fields: object) -> Record:
        """Append a record. Returns it as a reader will see it, so that living on and resuming are the same."""
        if kind == "request":
            self.streamed, self.streamed_at = [], time.monotonic()
        record = {"type": kind, "at": round(time.time(), 3), **fields}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._append(line + b"\n")
        return _object(line)

    def partial(self, piece: str) -> None:
        """Text of an answer as it comes in, at most once a second: for who follows, not for resuming."""
        self.streamed.append(piece)
        now = time.monotonic()
        if now - self.streamed_at >= PARTIAL_EVERY:
            self.write("partial", text="".join(self.streamed))
            self.streamed, self.streamed_at = [], now

    def _append(self, line: bytes) -> None:
        told = False
        while True:
            try:
                written = os.write(self.fd, line)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                written = 0
            if written == len(line):
                self.size += written
                return
            os.ftruncate(self.fd, self.size)  # half a record would spoil the next one
            if not told:
                print("agentd: cannot write the transcript: the disk is full; waiting for room", file=sys.stderr)
                told = True
            time.sleep(1.0)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def cut_torn_line(fd: int) -> int:
    """Cut off what stands after the last newline. Returns the size."""
    size = end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
    return end


def read(path: str) -> Iterator[Record]:
    """The whole records of one file; nothing if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _object(line)
            except ValueError:
                raise Damaged(f"cannot read {path}: line {number} is no record") from None


def _object(line: bytes) -> Record:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def chain(path: str) -> list[str]:
    """The transcripts that the one at ``path`` goes on from, oldest first, itself last."""
    paths: list[str] = []
    following: str | None = path
    while following is not None and following not in paths:
        paths.append(following)
        following = predecessor(following)
    return paths[::-1]


def predecessor(path: str) -> str | None:
    """What it resumes. An attempt that was killed before its first record has only its spec.json to say so."""
    first = next(read(path), None) or jobdir.read(os.path.dirname(path), "spec.json") or {}
    resumed = first.get("resume")
    return resumed if isinstance(resumed, str) else None
