"""transcript.ndjson: one JSON object a line, append-only, written by the runner alone. agentd-transcript(5) lists them.

Each record is one write(2) with O_APPEND, so kill -9 loses at most the record that is being written, and tears at most
the last line. A reader leaves a torn line out; the next writer cuts it off. :func:`sync` is called once per answered
request: what was paid for survives a power cut, and a record costs microseconds.

The agent's commands can write there, too. What they leave spoils no record of ours, and a reader passes over it.
"""

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator

from agentd import files, jobdir
from agentd.jobdir import Record

from . import records
from .conversation import Conversation

NAME = "transcript.ndjson"
FORMAT = 1
PARTIAL_EVERY = 1.0


class Taken(Exception):
    """Another process writes this transcript: a sentence."""


class Transcript:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.fd)
            raise Taken(f"cannot write {path}: another runner of this attempt does") from None
        self.size = cut_torn_line(self.fd)
        self.streamed: list[str] = []
        self.streamed_at = 0.0

    def write(self, kind: str, /, **fields: object) -> Record:
        """Append a record. Returns it as a reader will see it, so that living on and resuming are the same."""
        if kind == "request":
            self.streamed, self.streamed_at = [], time.monotonic()
        record = {"type": kind, "at": round(time.time(), 4), **fields}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._append(line + b"\n")
        read_back: Record = json.loads(line)
        return read_back

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
            size = os.fstat(self.fd).st_size
            data = line if size == self.size or is_whole(self.fd, size) else b"\n" + line
            try:
                written = os.write(self.fd, data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                written = 0
            if written == len(data):
                self.size = size + written
                return
            os.ftruncate(self.fd, size)  # half a record would spoil the next one
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


def is_whole(fd: int, size: int) -> bool:
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


def read(path: str) -> Iterator[Record]:
    """The whole records of one file; nothing if there is none."""
    return (record for _, record in lines(path) if record is not None)


def lines(path: str) -> Iterator[tuple[int, Record | None]]:
    """The number of each whole line, and its record: None if it is none."""
    try:
        file = files.open_file(path)
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, parsed(line)


def parsed(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if records.is_record(value) else None


def apply_all(paths: list[str], to: Conversation) -> Iterator[str]:
    """Go through the transcripts at ``paths``, oldest first. Yields a sentence for each that has lines that are left
    out: they are no records, or speak of what is not there."""
    for path in paths:
        left_out = []
        for number, record in lines(path):
            try:
                if record is None:
                    raise KeyError
                to.apply(record)
            except KeyError:
                left_out.append(number)
        if left_out:
            what = f"{len(left_out)} lines, from line {left_out[0]} on" if left_out[1:] else f"line {left_out[0]}"
            yield f"left out of {path} what is no record of a run: {what}"


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
    started = (record for record in read(path) if record["type"] == "start")
    first = next(started, None) or jobdir.read(os.path.dirname(path), "spec.json") or {}
    resumed = first.get("resume")
    return resumed if isinstance(resumed, str) else None
