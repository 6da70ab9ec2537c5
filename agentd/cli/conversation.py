"""``logs`` of an agent that is driven by a model: its transcript, and what its runner wrote to standard error."""

import heapq
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from agentd import follow
from agentd.cli import options, render
from agentd.cli.transcript_parts import is_moment
from agentd.cli.transcript_plain import Plain
from agentd.cli.transcript_view import Block, View
from agentd.core.job import outcome

NAME = "transcript.ndjson"
MOST = 32 << 20
"""Bytes of a line that is still read. Ours are far shorter."""


U = TypeVar("U")


class Shower(Protocol[U]):
    """How it is shown: for people or for programs."""

    def take(self, item: "Item") -> list[U]: ...
    def text(self, unit: U) -> list[str]: ...
    def closing(self) -> list[U]: ...
    def show_status(self) -> None: ...
    def clear_status(self) -> None: ...


class Screen(Protocol):
    def lines(self, block: Block) -> list[str]: ...


# --- reading ------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """A line of the transcript, or of standard error. ``record`` is None for one that is no record."""

    at: float
    line: bytes
    record: dict[str, Any] | None
    is_stderr: bool = False


class Records:
    """The transcript and standard error of an attempt, in order of time: a source for :func:`agentd.follow.follow`."""

    has_files = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.log = follow.Reader(path, ("err",))
        self.offsets = self.log.offsets
        self.offset = 0
        self.at = 0.0
        self.rest = b""
        self.is_skipping = False

    def pieces(self) -> Iterator[Item]:
        return heapq.merge(self.transcript(), self.stderr(), key=lambda item: item.at)

    def transcript(self) -> Iterator[Item]:
        """The whole lines that are new."""
        try:
            fd = os.open(f"{self.path}/{NAME}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            file.seek(self.offset)
            while line := file.readline(MOST):
                is_whole = line.endswith(b"\n")
                if not is_whole and len(line) < MOST:
                    return  # it is being written
                self.offset += len(line)
                was_skipping, self.is_skipping = self.is_skipping, not is_whole
                if not was_skipping:
                    yield self.item(line)

    def item(self, line: bytes) -> Item:
        record = parsed(line)
        at = record.get("at") if record else None
        if is_moment(at):
            self.at = float(at)
        return Item(self.at, line, record)

    def stderr(self) -> Iterator[Item]:
        for piece in self.log.pieces():
            *lines, self.rest = (self.rest + piece.data)[-MOST:].split(b"\n")
            yield from (Item(piece.at / 1e9, line, None, True) for line in lines)

    def last_words(self) -> Iterator[Item]:
        """A line of standard error that was not ended."""
        if self.rest:
            yield Item(self.at, self.rest, None, True)
        self.rest = b""


def parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- showing ------------------------------------------------------------------------------------------------


def show(records: Records, shower: Shower[U], is_following: bool, tail: int | None, begin: float) -> None:
    """``tail``: so many lines of what is there now. ``begin``: nothing older than that."""
    is_over = follow.has_ended(records.path)
    there: Iterator[U] = (unit for item in records.pieces() for unit in shower.take(item) if item.at >= begin)
    if is_over:
        there = itertools.chain(there, rest(records, shower))
    if tail is None:
        for unit in there:
            put(shower.text(unit))
    else:
        # What is shown has a line at least, so more units than lines are never needed.
        lines = [line for unit in deque(there, maxlen=tail) for line in shower.text(unit)]
        put(lines[max(0, len(lines) - tail) :])
    if not is_following or is_over:
        return
    shower.show_status()
    for item in follow.follow(records):
        shower.clear_status()
        for unit in shower.take(item):
            put(shower.text(unit))
        shower.show_status()
        sys.stdout.flush()
    shower.clear_status()
    for unit in rest(records, shower):
        put(shower.text(unit))


def rest(records: Records, shower: Shower[U]) -> Iterator[U]:
    """What is told when all has been read."""
    for item in records.last_words():
        yield from shower.take(item)
    yield from shower.closing()


def put(lines: list[str]) -> None:
    """Bytes that are no UTF-8 leave as they came."""
    sys.stdout.flush()
    sys.stdout.buffer.write("".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))


class Rendered:
    """For people."""

    def __init__(self, path: str, timestamps: bool, is_colored: bool, is_live: bool) -> None:
        self.path = path
        self.timestamps = timestamps
        self.view = View((follow.record(path, "spec.json") or {}).get("rates"))
        self.width = options.width()
        room = None if self.width is None else max(30, self.width - 1 - (25 if timestamps else 0))
        self.screen = screen(room, is_colored)
        self.is_live = is_live and self.width is not None
        self.is_first = True

    def take(self, item: Item) -> list[Block]:
        if item.is_stderr:
            return [self.view.stderr(item.at, item.line.decode("utf-8", "surrogateescape"))]
        if item.record is None:
            return [self.view.damaged(len(item.line))]
        return self.view.blocks(item.record)

    def closing(self) -> list[Block]:
        end = follow.record(self.path, "end.json")
        if end is None:
            return []
        how = outcome(follow.record(self.path, "exit.json") or {}, end)
        return self.view.closing(how.outcome, how.reason)

    def text(self, unit: Block) -> list[str]:
        lines = self.screen.lines(unit)
        if self.is_first and lines[0] == "":
            del lines[0]
        self.is_first = False
        return [f"{stamp(unit.at)} {line}".rstrip() for line in lines] if self.timestamps else lines

    def show_status(self) -> None:
        """In the line under the last one, until something comes."""
        if self.is_live and self.width is not None:
            words = render.cut(render.one_line(self.view.status), self.width - 1)
            sys.stdout.write(f"\x1b[2m{words}\x1b[0m")
            sys.stdout.flush()

    def clear_status(self) -> None:
        if self.is_live:
            sys.stdout.write("\r\x1b[K")


class Lines:
    """For programs. ``is_raw``: the transcript's own lines; else JSON, with standard error in it."""

    def __init__(self, is_raw: bool) -> None:
        self.is_raw = is_raw

    def take(self, item: Item) -> list[str]:
        if self.is_raw:
            return [] if item.is_stderr else [item.line.rstrip(b"\n").decode("utf-8", "surrogateescape")]
        if item.is_stderr:
            record = {"type": "err", "at": item.at, "text": item.line.decode("utf-8", "backslashreplace")}
        else:
            record = item.record or {"type": "damaged", "at": item.at, "bytes": len(item.line)}
        return [json.dumps(record)]

    def closing(self) -> list[str]:
        return []

    def text(self, unit: str) -> list[str]:
        return [unit]

    def show_status(self) -> None:
        """There is none."""

    def clear_status(self) -> None:
        """There is none."""


def screen(width: int | None, is_colored: bool) -> Screen:
    if not is_colored or width is None:
        return Plain(width)
    from agentd.cli.transcript_rich import Rich

    return Rich(width)


def stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
