"""The log of an attempt: FIFOs into segments and an index. Written by one process at a time, which holds byte 0 of
life.lock.

**splice moves a pipe buffer whole or not at all,** so bytes are in the FIFO or in the log, never in us. The log's
offset is its size.
"""

import errno
import os
import select
import time

from agentd import jobdir, process

INDEX_EVERY_NS = 50_000_000
PIPE_BYTES = 256 * 1024
SPLICE_BYTES = 1 << 20


class Log:
    """Both streams' segments and the index. The only writer: byte 0 of life.lock is held.

    An index record says how far a stream had grown at a moment. At most one stream has bytes that are not yet
    in the index (``pending``), because a record is written before the other stream is touched: so the order of
    arrival of every byte is known even if the keeper dies between splice and record.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.segment_bytes = max(65536, limit // 8) if limit else 0
        self.limit = limit
        self.ends = {stream: jobdir.size(path, stream) for stream in jobdir.STREAMS}
        self.files: dict[str, tuple[int, int]] = {}  # stream -> (descriptor, logical start of its segment)
        self.index = os.open(f"{path}/log.index", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.index_size = os.fstat(self.index).st_size // jobdir.INDEX_RECORD.size * jobdir.INDEX_RECORD.size
        self.indexed = {stream: 0 for stream in jobdir.STREAMS}
        for arrival in jobdir.arrivals(path):
            self.indexed[arrival.stream] = arrival.end
        self.indexed_at = 0
        self.synced: dict[str, int] = {}
        self.pending: str | None = next((s for s in jobdir.STREAMS if self.ends[s] > self.indexed[s]), None)

    def take(self, fifo: int, stream: str) -> int:
        """Move at most one piece from the FIFO to the log; 0 when the FIFO is empty."""
        if self.pending is not None and self.pending != stream:
            self.write_index()
        if self.needs_file(stream) and not is_readable(fifo):
            return 0  # no file for nothing: there may be no inode left, and an attempt must be able to end
        file, start = self.segment(stream)
        room = start + self.segment_bytes - self.ends[stream] if self.segment_bytes else SPLICE_BYTES
        try:
            count = move(fifo, file, min(room, SPLICE_BYTES))
        except BlockingIOError:
            return 0
        self.ends[stream] += count
        if count:
            self.pending = stream
            if time.time_ns() - self.indexed_at > INDEX_EVERY_NS:
                self.write_index()
        return count

    def needs_file(self, stream: str) -> bool:
        held = self.files.get(stream)
        return held is None or bool(self.segment_bytes and self.ends[stream] - held[1] >= self.segment_bytes)

    def segment(self, stream: str) -> tuple[int, int]:
        held = self.files.get(stream)
        end = self.ends[stream]
        if held is not None and not self.needs_file(stream):
            return held
        existing = jobdir.segments(self.path, stream)
        start = existing[-1].start if existing and held is None else end
        if held is not None:
            os.fdatasync(held[0])
            os.close(held[0])
            del self.files[stream]
        fd = os.open(f"{self.path}/log.{stream}.{start}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.lseek(fd, 0, os.SEEK_END)
        self.files[stream] = (fd, start)
        self.drop_old(stream)
        return self.segment(stream) if held is None else self.files[stream]

    def drop_old(self, stream: str) -> None:
        if not self.limit:
            return
        held = jobdir.segments(self.path, stream)
        while len(held) > 1 and self.ends[stream] - held[1].start >= self.limit - self.segment_bytes:
            jobdir.remove_quietly(held.pop(0).path)

    def write_index(self) -> None:
        stream = self.pending
        if stream is None:
            return
        now = time.time_ns()
        record = jobdir.INDEX_RECORD.pack(now, self.ends[stream], jobdir.STREAMS.index(stream))
        try:
            written = os.pwrite(self.index, record, self.index_size)
        except OSError as error:
            if not jobdir.is_full(error):
                raise
            return
        if written == len(record):
            self.index_size += written
            self.indexed_at = now
            self.pending = None

    def sync(self) -> None:
        if self.ends == self.synced:
            return
        self.write_index()
        for fd, _ in self.files.values():
            os.fdatasync(fd)
        os.fdatasync(self.index)
        self.synced = dict(self.ends)


def move(source: int, target: int, count: int) -> int:
    """splice; where that is missing or switched off, a copy (which a kill can tear, and doctor says so)."""
    if not process.without("splice"):
        try:
            return os.splice(source, target, count, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    data = os.read(source, min(count, 65536))
    jobdir.write_all(target, data)
    return len(data)


def open_fifo(path: str) -> int:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def open_held(path: str) -> int | None:
    """A FIFO that somebody has open, None if nobody has: then what was in it died with its last holder."""
    try:
        holding = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return open_fifo(path)
    finally:
        os.close(holding)


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
