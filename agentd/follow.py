"""Reading a job's output from its files, in order of arrival, and following it while it is being written.

The daemon is on no path here: everything works while it is dead. What the reader of a log can rely on is said in
:class:`agentd.output.Log`: at most one stream has bytes that are not yet in the index, and its record is written
before the other stream is touched.

Following waits on two descriptors and never polls: the keeper's socket (``{"follow": [out, err]}`` is answered once
there is more), and an inotify watch of the attempt's folder, which sees the keeper's socket appear (a job that starts,
a keeper that adopts) and end.json, after which nothing more comes.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from agentd import jobdir, paths, process
from agentd.core.errors import Refused
from agentd.jobdir import STREAMS as STREAMS
from agentd.jobdir import Arrival, Record

BLOCK = 1 << 16
SAME_MOMENT_NS = 100_000_000
IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x80, 0x100, 0x200
PIDFD_SIGNAL_PROCESS_GROUP = 4  # linux/pidfd.h, Linux 6.9


T = TypeVar("T", covariant=True)


class Source(Protocol[T]):
    """What grows in an attempt's folder: the log, or more than that."""

    path: str
    offsets: dict[str, int]
    """How far the streams of the log have been read."""
    has_files: bool
    """It is in other files than the log, too, of which the keeper says nothing."""

    def pieces(self) -> Iterator[T]: ...


class Piece(NamedTuple):
    """Bytes of one stream. ``at``: nanoseconds since the epoch by which they had arrived."""

    at: int
    stream: str
    data: bytes


# --- which attempt ------------------------------------------------------------------------------------------


def record(path: str, name: str) -> Record | None:
    """A record of an attempt (or of the state folder); None if it is not there."""
    return jobdir.read(path, name)


def home_of(state_dir: str, id: int) -> str | None:
    """The folder of a job's attempts, in the trash or not."""
    for home in (f"{state_dir}/jobs/{id}", f"{state_dir}/trash/{id}/job"):
        if attempts(home):
            return home
    return None


def attempts(home: str) -> list[int]:
    try:
        numbers = [int(name) for name in os.listdir(home) if name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(n for n in numbers if os.path.exists(f"{home}/{n}/spec.json"))


def job_named(state_dir: str, name: str) -> int | None:
    """The newest job of this name that is not in the trash, from the files alone."""
    try:
        ids = sorted((int(entry) for entry in os.listdir(f"{state_dir}/jobs") if entry.isdigit()), reverse=True)
    except FileNotFoundError:
        return None
    for id in ids:
        home = f"{state_dir}/jobs/{id}"
        for number in attempts(home)[:1]:
            spec = jobdir.read(f"{home}/{number}", "spec.json") or {}
            if (spec.get("job_doc") or {}).get("name") == name:
                return id
    return None


def attempt_path(state_dir: str, id: int, attempt: int | None) -> str:
    """The folder of one attempt, the last one by default; Refused if there is none."""
    home = home_of(state_dir, id)
    if home is None:
        raise Refused(f"no job {id}; agentd ps --all lists them", "unknown_job")
    have = attempts(home)
    if attempt is not None and attempt not in have:
        raise Refused(f"job {id} has no attempt {attempt}: there is {', '.join(map(str, have))}", "no_attempt")
    return f"{home}/{attempt if attempt is not None else have[-1]}"


def live_attempt_path(state_dir: str, id: int, attempt: int) -> str:
    return paths.attempt_dir(state_dir, id, attempt)


def has_output(path: str) -> bool:
    return any(jobdir.size(path, stream) for stream in STREAMS)


def written(path: str) -> int:
    """Bytes that the attempt has written so far, kept or not: its output, and its transcript."""
    try:
        transcript = os.stat(f"{path}/transcript.ndjson").st_size
    except OSError:
        transcript = 0
    return transcript + sum(jobdir.size(path, stream) for stream in STREAMS)


def is_alive(path: str) -> bool:
    """Does anything of it run? The kernel drops the lock with the last process that has it."""
    return not has_ended(path) and any(process.byte_held(f"{path}/life.lock", byte) for byte in (0, 1))


def has_ended(path: str) -> bool:
    return os.path.exists(f"{path}/end.json")


def code_of(path: str) -> int | None:
    """The exit code that ``wait`` has for this attempt, by its files; None while it has not ended."""
    from agentd.core.job import outcome, wait_code

    end = jobdir.read(path, "end.json")
    return None if end is None else wait_code(outcome(jobdir.read(path, "exit.json") or {}, end))


# --- reading ------------------------------------------------------------------------------------------------


class Reader:
    """Where one is in a log: an offset in each stream and in the index. Streams not in ``wanted`` are passed over."""

    has_files = False

    def __init__(self, path: str, wanted: tuple[str, ...] = STREAMS) -> None:
        self.path = path
        self.wanted = wanted
        self.position = 0
        self.offsets = dict.fromkeys(STREAMS, 0)
        self.dropped = 0
        """Bytes of wanted streams that are gone: ``--log-max``."""
        self._files: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for fd, _start in self._files.values():
            os.close(fd)
        self._files = {}

    def pieces(self) -> Iterator[Piece]:
        """All that is there now and was not read yet, in order of arrival."""
        while True:
            yield from self._indexed()
            sizes = {stream: jobdir.size(self.path, stream) for stream in STREAMS}
            seen = self.position
            yield from self._indexed()
            if self.position != seen:
                continue  # sizes taken before the index grew do not tell the order
            for stream in STREAMS:
                yield from self._read(stream, sizes[stream], None)
            return

    def _indexed(self) -> Iterator[Piece]:
        first: Arrival | None = None
        waiting: Arrival | None = None
        for arrival in jobdir.arrivals(self.path, self.position):
            if first is not None and waiting is not None and not belongs(arrival, first):
                yield from self._read(waiting.stream, waiting.end, waiting.at)
                first = None
            first, waiting = first or arrival, arrival
            self.position += 1
        if waiting is not None:
            yield from self._read(waiting.stream, waiting.end, waiting.at)

    def _read(self, stream: str, end: int, at: int | None) -> Iterator[Piece]:
        if stream not in self.wanted:
            self.offsets[stream] = max(self.offsets[stream], end)
            return
        while self.offsets[stream] < end:
            held = self._files.get(stream) or self._open(stream)
            if held is None:
                return
            fd, start = held
            offset = self.offsets[stream]
            if offset >= end:
                return  # what was asked for is gone, and counted
            data = os.pread(fd, min(1 << 20, end - offset), offset - start) if offset >= start else b""
            if data:
                self.offsets[stream] += len(data)
                yield Piece(at if at is not None else time.time_ns(), stream, data)
            elif self._open(stream) in (None, held):
                return

    def _open(self, stream: str) -> tuple[int, int] | None:
        """The segment that holds the stream's offset; what was dropped before it is counted and skipped."""
        while True:
            segments = jobdir.segments(self.path, stream)
            if not segments:
                return None
            fitting = [segment for segment in segments if segment.start <= self.offsets[stream]]
            segment = fitting[-1] if fitting else segments[0]
            held = self._files.get(stream)
            if held is not None and held[1] == segment.start:
                return held
            try:
                fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # dropped this moment
            if held is not None:
                os.close(held[0])
            if not fitting:
                self.dropped += segment.start - self.offsets[stream]
                self.offsets[stream] = segment.start
            self._files[stream] = (fd, segment.start)
            return self._files[stream]

    def skip_before(self, at: int) -> None:
        """Begin with what arrived after ``at`` (nanoseconds)."""
        for arrival in jobdir.arrivals(self.path, self.position):
            if arrival.at >= at:
                return
            self.offsets[arrival.stream] = max(self.offsets[arrival.stream], arrival.end)
            self.position += 1

    def skip_to_tail(self, lines: int) -> None:
        """Begin with the last ``lines`` lines of all that is there now."""
        extents = self._extents()
        breaks, is_end = lines, True
        for index in range(len(extents) - 1, -1, -1):
            stream, start, end, _ = extents[index]
            if stream not in self.wanted:
                continue
            while end > start:
                low = max(start, end - BLOCK)
                block = b"".join(data for _, data in jobdir.read_range(self.path, stream, low, end))
                if not block:
                    break
                if is_end and lines:
                    breaks += block.endswith(b"\n")  # the one that ends the last line begins none
                is_end = False
                inside = block.count(b"\n")
                if lines == 0 or inside >= breaks:
                    return self._begin_at(extents, index, end if lines == 0 else after_break(block, end, breaks))
                breaks -= inside
                end = low

    def _extents(self) -> list[tuple[str, int, int, int]]:
        """``(stream, start, end, index position after it)``, in order of arrival, neighbours joined."""
        found: list[tuple[str, int, int, int]] = []
        ends = dict(self.offsets)
        position = self.position
        for arrival in jobdir.arrivals(self.path, position):
            position += 1
            start = ends[arrival.stream]
            if arrival.end <= start:
                continue
            if found and found[-1][0] == arrival.stream:
                start = found.pop()[1]
            found.append((arrival.stream, start, arrival.end, position))
            ends[arrival.stream] = arrival.end
        for stream in STREAMS:
            size = jobdir.size(self.path, stream)
            if size > ends[stream]:
                found.append((stream, ends[stream], size, position))
        return found

    def _begin_at(self, extents: list[tuple[str, int, int, int]], index: int, offset: int) -> None:
        for stream, _, end, position in extents[:index]:
            self.offsets[stream] = end
            self.position = position
        self.offsets[extents[index][0]] = offset


def after_break(block: bytes, end: int, breaks: int) -> int:
    """The offset behind the ``breaks``-th line feed from the back of a block that ends at ``end``."""
    place = len(block)
    for _ in range(breaks):
        place = block.rindex(b"\n", 0, place)
    return end - len(block) + place + 1


def belongs(arrival: Arrival, first: Arrival) -> bool:
    """May it be read together with what began so? Bytes of one stream, not many, and of nearly the same moment."""
    is_near = arrival.at - first.at < SAME_MOMENT_NS and arrival.end - first.end <= BLOCK
    return arrival.stream == first.stream and is_near


# --- following ----------------------------------------------------------------------------------------------


def follow(reader: Source[T]) -> Iterator[T]:
    """What is there and what comes, until the attempt has ended. A job that has not started is waited for."""
    with Watch(reader.path, reader.has_files) as watch:
        keeper: socket.socket | None = None
        try:
            while True:
                is_over = has_ended(reader.path)
                for piece in reader.pieces():
                    watch.patience = 1
                    yield piece
                if is_over:
                    return
                keeper = keeper or _connect(reader.path)
                if keeper is None:
                    watch.wait(None)
                    continue
                if not _ask_for_more(keeper, reader.offsets) or (watch.wait(keeper) and not _hear(keeper)):
                    keeper.close()
                    keeper = None
        finally:
            if keeper is not None:
                keeper.close()


def _connect(path: str) -> socket.socket | None:
    try:
        return jobdir.connect(f"{path}/keeper.sock")
    except OSError:
        return None


def _ask_for_more(keeper: socket.socket, offsets: dict[str, int]) -> bool:
    try:
        keeper.sendall(json.dumps({"follow": [offsets[stream] for stream in STREAMS]}).encode() + b"\n")
    except OSError:
        return False
    return True


def _hear(keeper: socket.socket) -> bool:
    try:
        return bool(keeper.recv(65536))
    except OSError:
        return False


class Watch:
    """Sees files appear in and go from a folder. Where inotify is not to be had, it looks again and again, ever
    more rarely."""

    def __init__(self, path: str, sees_writes: bool = False) -> None:
        self.patience = 1
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if self.fd >= 0:
            mask = IN_MOVED_TO | IN_CREATE | IN_DELETE | (IN_MODIFY if sees_writes else 0)
            if libc.inotify_add_watch(self.fd, os.fsencode(path), mask) < 0:
                self.close()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def wait(self, link: socket.socket | None) -> bool:
        """Until something happens; True if ``link`` has something to say."""
        poll = select.poll()
        if link is not None:
            poll.register(link, select.POLLIN)
        if self.fd >= 0:
            poll.register(self.fd, select.POLLIN)
            timeout = None
        else:
            timeout = min(10 * 2**self.patience, 2000)
            self.patience = min(self.patience + 1, 8)
        ready = [fd for fd, _ in poll.poll(timeout)]
        if self.fd in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self.fd, BLOCK):
                    pass
        return link is not None and link.fileno() in ready


# --- signalling the foreground ------------------------------------------------------------------------------


def pass_on(path: str, number: int) -> bool:
    """Give the agent a signal as a terminal would: to its process group, through a verified pidfd. False if it
    does not run."""
    agent: dict[str, Any] | None = jobdir.read(path, "agent.json")
    if agent is None or os.path.exists(f"{path}/exit.json"):
        return False
    pidfd = process.open_verified(agent["agent"])
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        return False
    except OSError:
        return process.send(pidfd, number)  # before Linux 6.9: the leader alone
    finally:
        os.close(pidfd)
    return True
