"""``agentd logs JOB``: what a job wrote, from its files; the daemon may be dead. Of an agent, its conversation."""

import codecs
import re
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from agentd import follow
from agentd.cli import options, pager, render
from agentd.client import Client
from agentd.core.errors import EXIT_FAULT, NotNow, Refused, Usage
from agentd.follow import Piece


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    is_following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    tail: Annotated[str | None, typer.Option("-n", "--tail", metavar="N", help="The last N lines.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="10m (ago), or an ISO date.")] = None,
    timestamps: Annotated[bool, typer.Option("-t", "--timestamps", help="When each line came.")] = False,
    attempt: Annotated[str | None, typer.Option("--attempt", metavar="N", help="Of an earlier attempt.")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only its standard output.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only its standard error.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Escape codes too; of an agent: its transcript as it is.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="With -f: exit as the job did.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_pager: options.NoPager = False,
    no_color: options.NoColor = False,
) -> int:
    """Show what a job wrote, both streams in the order in which it came; of an agent, its conversation."""
    if exit_code and not is_following:
        raise Usage(
            "--exit-code goes with -f: without it the job may not have ended; add -f, or see: agentd wait", "usage"
        )
    begin = None if since is None else moment(since)
    lines, number = options.number("--tail", tail), options.number("--attempt", attempt, 1)
    with Client(start=False) as client:
        id = resolve(client, job)
        path = follow.attempt_path(client.state_dir, id, number)
    is_paged = not (is_following or raw or json or no_pager)
    if (follow.record(path, "spec.json") or {}).get("runner") and not (stdout or stderr):
        show_conversation(
            path, raw, json, timestamps, options.has_color(no_color), is_following, lines, begin, is_paged
        )
        return ended(path) if exit_code else 0
    wanted = follow.STREAMS if stdout == stderr else (("out",) if stdout else ("err",))
    printer = JsonLines() if json else Printer(timestamps, is_clean=not raw and sys.stdout.isatty())
    with follow.Reader(path, wanted) as reader:
        why = None if quiet or (is_following and not sys.stderr.isatty()) else why_silent(id, path, is_following)
        if why:
            options.say(why)
        with pager.paged(is_paged and not why):
            show_output(reader, printer, is_following, lines, begin, quiet)
    if not (follow.record(path, "end.json") or {}).get("log_whole", True) and not quiet:
        options.say("the end of this log may be missing: everything that could hold it was killed before the job ended")
    return ended(path) if exit_code else 0


def show_output(
    reader: follow.Reader,
    printer: "Printer | JsonLines",
    is_following: bool,
    lines: int | None,
    begin: int | None,
    quiet: bool,
) -> None:
    if begin is not None:
        reader.skip_before(begin)
    if lines is not None:
        reader.skip_to_tail(lines)
    told = 0
    for piece in follow.follow(reader) if is_following else reader.pieces():
        if reader.dropped > told and not quiet:
            options.say(dropped_sentence(reader.dropped - told, reader.path))
            told = reader.dropped
        printer.show(piece)
    printer.finish()


def show_conversation(
    path: str,
    raw: bool,
    json: bool,
    timestamps: bool,
    is_colored: bool,
    is_following: bool,
    lines: int | None,
    begin: int | None,
    is_paged: bool,
) -> None:
    from agentd.cli import conversation

    records, earliest = conversation.Records(path), 0.0 if begin is None else begin / 1e9
    with records.log:
        if raw or json:
            return conversation.show(records, conversation.Lines(raw), is_following, lines, earliest)
        rendered = conversation.Rendered(path, timestamps, is_colored, is_following and options.is_screen())
        with pager.paged(is_paged):
            conversation.show(records, rendered, is_following, lines, earliest)


def ended(path: str) -> int:
    code = follow.code_of(path)
    return EXIT_FAULT if code is None else code


def resolve(client: Client, ref: str) -> int:
    """The id: a number is one; a name is the daemon's to know, or the files' if there is no daemon."""
    if ref.isascii() and ref.isdigit() and len(ref) < 16:
        return int(ref)
    try:
        return int(client.ask("jobs.resolve", jobs=[ref], owner=client.owner)["ids"][0])
    except NotNow as error:
        if error.code != "no_daemon":
            raise
    id = follow.job_named(client.state_dir, ref)
    if id is None:
        from agentd.cli import offline

        names = [str(job["name"]) for job in offline.jobs(client.state_dir, all=True)]
        hint = options.nearest(ref, names, "start it with: agentd daemon start")
        what = f'no job "{render.one_line(ref, 80)}" (no daemon is running, so only whole names and ids are known)'
        raise Refused(f"{what}; {hint}", "unknown_job")
    return id


def why_silent(id: int, path: str, is_following: bool) -> str | None:
    """Why there is no output, if there is none, by the files of the attempt."""
    if follow.has_output(path):
        return None
    exit, end = follow.record(path, "exit.json") or {}, follow.record(path, "end.json")
    if exit.get("reason") == "unstarted" and end is not None:
        why = "it was killed before it started" if end.get("reason") == "killed" else str(exit.get("error"))
        return f"job {id} was not started, so it wrote nothing: {render.one_line(why)}"
    if end is not None:
        return f"job {id} has ended and wrote nothing"
    state = "has written nothing yet" if follow.record(path, "agent.json") else "has not started yet"
    return f"job {id} {state}; " + ("what it writes comes here" if is_following else "agentd logs -f shows what comes")


def dropped_sentence(dropped: int, path: str) -> str:
    limit = int((follow.record(path, "spec.json") or {}).get("log_max") or 0)
    keeps = f" keeps the last {render.size(limit)}" if limit else ""
    return f"{render.size(dropped)} of output are missing here: --log-max{keeps}"


def moment(text: str) -> int:
    """Nanoseconds since the epoch of ``10m``, ``10m ago`` or an ISO date and time (local, unless it says)."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):
        pass
    try:
        span = re.sub(r"(?<=\S)\s+ago$", "", text.strip())
        return int((time.time() - (options.seconds("--since", span) or 0.0)) * 1e9)
    except Usage:
        raise Usage(
            f'--since: a time such as 10m, or 2026-01-31T12:00, not "{render.one_line(text, 80)}"', "bad_time"
        ) from None


class Printer:
    """Bytes as they are; with timestamps, and cleaned, where asked. Each stream has its own unfinished rest."""

    def __init__(self, timestamps: bool, is_clean: bool) -> None:
        self.timestamps = timestamps
        self.at_start = dict.fromkeys(follow.STREAMS, True)
        self.cleaners = {stream: Cleaner() for stream in follow.STREAMS} if is_clean else {}

    def show(self, piece: Piece) -> None:
        data = piece.data
        if piece.stream in self.cleaners:
            data = self.cleaners[piece.stream].feed(data)
        self.write(self.stamped(piece, data) if self.timestamps else data)

    def stamped(self, piece: Piece, data: bytes) -> bytes:
        when = datetime.fromtimestamp(piece.at / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        stamp = when.encode() + b" "
        lines = data.splitlines(keepends=True) if b"\r" not in data else split_after_newlines(data)
        parts = []
        for line in lines:
            parts += [stamp, line] if self.at_start[piece.stream] else [line]
            self.at_start[piece.stream] = line.endswith(b"\n")
        return b"".join(parts)

    def finish(self) -> None:
        for cleaner in self.cleaners.values():
            self.write(cleaner.feed(b"", is_last=True))

    def write(self, data: bytes) -> None:
        pager.write(data)


class JsonLines:
    """A line of output is a line of JSON, with the moment of its end."""

    def __init__(self) -> None:
        self.rests = dict.fromkeys(follow.STREAMS, b"")
        self.at = 0

    def show(self, piece: Piece) -> None:
        self.at = piece.at
        *lines, self.rests[piece.stream] = (self.rests[piece.stream] + piece.data).split(b"\n")
        for line in lines:
            self.put(piece.stream, line)

    def put(self, stream: str, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        options.print_json({"type": stream, "at": self.at / 1e9, "text": text})

    def finish(self) -> None:
        for stream, rest in self.rests.items():
            if rest:
                self.put(stream, rest)


def split_after_newlines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


class Cleaner:
    """:func:`render.clean` for a text that comes in pieces: what may be the head of a sequence waits."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.rest = ""

    def feed(self, data: bytes, is_last: bool = False) -> bytes:
        text = self.rest + self.decoder.decode(data, is_last)
        cut = len(text)
        if not is_last:
            start = max(text.rfind("\x1b", len(text) - 256), text.rfind("\x9b", len(text) - 256))
            if start >= 0:
                found = render.SEQUENCE.match(text, start)
                cut = cut if found else start
            elif text.endswith("\r"):
                cut -= 1
        self.rest = text[cut:]
        return render.clean(text[:cut]).encode()
