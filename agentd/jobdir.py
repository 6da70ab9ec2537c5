"""The files of one attempt: the truth about what it was, what ran, how it ended, and every byte it wrote.

A record is there whole or not at all: written aside, fsynced, renamed, and the folder fsynced. The three
records that end an attempt, and the order to end it, are *preallocated* when it starts, so that they can be written on
a full disk.

==================  ========================  ============================================================
file                written by                holds
==================  ========================  ============================================================
spec.json           daemon                    what to run: durable before the job's id is answered
life.lock           keeper, agent's tree      byte 0: a keeper lives; byte 1: something of the agent lives
agent.json          keeper                    who the agent is; durable before the agent is executed
noexec-PID.json     the agent's fork          it was never executed, and why
kill.json           daemon, keeper            the order to end it: durable before the first signal
exit.json           keeper, zygote            how the leader ended
end.json            keeper                    the tree is gone, the log is whole: the attempt is over
out.fifo err.fifo   zygote                    the agent's standard output and error
log.out.N log.err.N keeper                    their bytes from logical offset N on
log.index           keeper                    order of arrival and times (see :class:`Index`)
stdin stdin.eof     daemon                    input of a job with ``-i``
keeper.sock         keeper                    orders and followers
==================  ========================  ============================================================
"""

import contextlib
import errno
import json
import mmap
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from agentd import files

Record = dict[str, Any]
PLAIN = "command"
"""The kind of agent whose zygote needs nothing but ours: it executes programs."""
STREAMS = ("out", "err")
PREALLOCATED = {"kill": 4096, "noexec": 2048, "exit": 2048, "end": 65536}
NO_RECORD = (errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ELOOP)
"""A pipe, a folder, or too much, where a record should be: it is not there."""
SEGMENTS = {stream: re.compile(rf"log\.{stream}\.(\d+)") for stream in STREAMS}
"""Compiled here, once, and not in each keeper: that takes a keeper half a millisecond and 0.3 MB."""
KEEPER_PAUSE_S = 0.02
INDEX_RECORD = struct.Struct("<QQB7x")  # wall clock in ns, logical end offset, stream


def read(path: str, name: str) -> Record | None:
    """A record, or None if it is not there. One that cannot be parsed counts as not there: never half a truth."""
    try:
        value = json.loads(files.read_file(f"{path}/{name}").rstrip(b"\0 \n"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in NO_RECORD:
            return None
        raise
    return value if isinstance(value, dict) else None


def write(path: str, name: str, record: Record) -> None:
    """Write a record durably, replacing an older one whole."""
    data = json.dumps(record, ensure_ascii=True).encode() + b"\n"
    aside = f"{path}/.{name}.{os.getpid()}"
    try:
        files.write_over(aside, data)
        os.rename(aside, f"{path}/{name}")
    except BaseException:
        remove_quietly(aside)
        raise
    sync_folder(path)


def preallocate(path: str) -> None:
    """Reserve room for the records that must be writable on a full disk."""
    for name, size in PREALLOCATED.items():
        fd = os.open(f"{path}/.{name}.room", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)


def write_final(path: str, name: str, record: Record) -> None:
    """Write one of the preallocated records, once: the first truth stands. Works on a full disk.
    The part of ``name`` before a dot or hyphen says which room it takes.

    The room keeps its size until the data is safe (shrinking could free the very block), and spaces fill it.
    """
    if os.path.exists(f"{path}/{name}"):
        return sync_folder(path)  # whoever wrote it may have died before this
    kind = name.replace("-", ".").partition(".")[0]
    room = f"{path}/.{kind}.room"
    data = json.dumps(record, ensure_ascii=True).encode() + b"\n"
    try:
        fd = os.open(room, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return write(path, name, record)
    try:
        padded = data.ljust(PREALLOCATED[kind])
        _fill(fd, padded)
        if os.fstat(fd).st_size != len(padded):
            os.ftruncate(fd, len(padded))  # a longer one may have been begun here
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(room, f"{path}/{name}")
    sync_folder(path)


def write_order(path: str, record: Record) -> None:
    """kill.json, durable. On a full disk into the room that was made for it, or over an order that stands there."""
    try:
        return write(path, "kill.json", record)
    except OSError as error:
        if not is_full(error):
            raise
    if os.path.exists(f"{path}/.kill.room"):
        write_over(f"{path}/.kill.room", record)
        os.rename(f"{path}/.kill.room", f"{path}/kill.json")
        return sync_folder(path)
    write_over(f"{path}/kill.json", record)


def write_over(path: str, record: Record) -> None:
    """Into the blocks that a file has: for a full disk. Who reads it meanwhile may find no record."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _fill(fd, json.dumps(record, ensure_ascii=True).encode().ljust(os.fstat(fd).st_size))
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(fd: int, data: bytes) -> None:
    """Write into room that is there. What RLIMIT_FSIZE forbids to write can still be mapped."""
    try:
        write_all(fd, data)
    except OSError as error:
        if error.errno != errno.EFBIG or os.fstat(fd).st_size < len(data):
            raise
        with mmap.mmap(fd, len(data)) as room:
            room[:] = data
            room.flush()


def bare_spec(path: str) -> Record:
    """What can be told of an attempt whose spec.json somebody has removed: enough to see it to its end."""
    home, attempt = os.path.split(path)
    jobs, job = os.path.split(home)
    agent = read(path, "agent.json") or {}
    nonce = agent.get("nonce", "")
    return {"job": int(job), "attempt": int(attempt), "nonce": nonce, "state_dir": os.path.dirname(jobs)}


def noexec(path: str, agent: Record) -> Record | None:
    """The note of this very agent's fork that it was never executed; an earlier fork's note is another's."""
    return read(path, f"noexec-{agent['agent']['pid']}.json")


def has_helpers(path: str, end: Record) -> bool:
    """Did processes stay after the end that may still write into the FIFOs? These go with the last of them."""
    return bool(end["left"]) and os.path.exists(f"{path}/out.fifo")


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def zygote_socket(state_dir: str, kind: str) -> str:
    """Where a zygote listens for the next daemon."""
    return f"{state_dir}/zygote.sock" if kind == PLAIN else f"{state_dir}/zygote-{kind}.sock"


def nudge_socket(state_dir: str) -> str:
    """Where the daemon hears from keepers."""
    return f"{state_dir}/nudge.sock"


# --- sockets whose path is longer than the kernel's 107 bytes -----------------------------------------------


def connect(path: str, kind: int = socket.SOCK_STREAM, blocking: bool = True) -> socket.socket:
    """A connected Unix socket (close-on-exec). A long path is reached through /proc/self/fd.

    Not blocking: BlockingIOError when the listener's backlog is full.
    """
    link = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    link.setblocking(blocking)
    folder, name = os.path.split(path)
    try:
        if len(os.fsencode(path)) <= 107:
            link.connect(path)
        else:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                link.connect(f"/proc/self/fd/{fd}/{name}")
            finally:
                os.close(fd)
    except BaseException:
        link.close()
        raise
    return link


def tell_keeper(path: str, order: Record) -> None:
    """Say something to a keeper and wait for nothing; if nobody listens, its successor reads the files."""
    with contextlib.suppress(OSError), connect(f"{path}/keeper.sock", blocking=False) as link:
        link.send(json.dumps(order).encode() + b"\n")


def ask_keeper(path: str, order: Record, patience: float) -> Record | None:
    """Say something to a keeper; its answer, or None if there is none in ``patience`` seconds. Blocks: for threads.

    A keeper that has just been killed has a successor in a moment: it is asked again then. So the order may be
    carried out twice, if the first keeper died after it had obeyed.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            with connect(f"{path}/keeper.sock", blocking=False) as link:
                link.settimeout(max(0.01, deadline - time.monotonic()))
                link.sendall(json.dumps(order).encode() + b"\n")
                return dict(json.loads(link.recv(4096)))
        except (OSError, ValueError):
            if os.path.exists(f"{path}/end.json"):
                return None
            time.sleep(KEEPER_PAUSE_S)
    return None


def listen(path: str, kind: int = socket.SOCK_STREAM, backlog: int = 128) -> socket.socket:
    """A listening Unix socket, mode 0600, moved into place by rename: no connect ever finds the path missing."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    folder, name = os.path.split(path)
    aside = f".{name}.{os.getpid()}"
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        remove_quietly(f"{folder}/{aside}")
        listener.bind(f"/proc/self/fd/{fd}/{aside}")
        # Not by umask, which is the whole process's: other threads make folders and start programs just now.
        # Nobody can connect before it listens.
        os.chmod(f"{folder}/{aside}", 0o600)
        listener.listen(backlog)
        os.rename(f"{folder}/{aside}", path)
    except BaseException:
        listener.close()
        remove_quietly(f"{folder}/{aside}")
        raise
    finally:
        os.close(fd)
    return listener


def peer_uid(link: socket.socket) -> int:
    """The user id at the other end (SO_PEERCRED)."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[1])


# --- the log ------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """One file of a stream: its bytes begin at logical offset ``start``."""

    start: int
    path: str


class Arrival(NamedTuple):
    """``stream`` had grown to logical offset ``end`` by ``at`` (wall clock, nanoseconds)."""

    at: int
    end: int
    stream: str


def segments(path: str, stream: str) -> list[Segment]:
    """The files of a stream that still exist, oldest first."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return []
    found = [Segment(int(m[1]), f"{path}/{m[0]}") for name in names if (m := SEGMENTS[stream].fullmatch(name))]
    return sorted(found)


def size(path: str, stream: str) -> int:
    """The logical length of a stream: all bytes it ever had, those dropped by ``--log-max`` included."""
    held = segments(path, stream)
    if not held:
        return 0
    try:
        return held[-1].start + os.stat(held[-1].path).st_size
    except FileNotFoundError:
        return size(path, stream)


def arrivals(path: str, position: int = 0) -> Iterator[Arrival]:
    """The index from record number ``position`` on. A torn last record is left out."""
    try:
        fd = os.open(f"{path}/log.index", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        offset = position * INDEX_RECORD.size
        while data := os.pread(fd, INDEX_RECORD.size * 4096, offset):
            whole = len(data) - len(data) % INDEX_RECORD.size
            for at, end, stream in INDEX_RECORD.iter_unpack(data[:whole]):
                yield Arrival(at, end, STREAMS[stream & 1])
            offset += whole
            if whole < len(data) or not whole:
                return
    finally:
        os.close(fd)


def read_range(path: str, stream: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Pieces ``(logical offset, bytes)`` of a stream between two offsets; what was dropped is skipped."""
    for segment in segments(path, stream):
        if segment.start >= end:
            return
        try:
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            offset = max(start, segment.start)
            while offset < end and (data := os.pread(fd, min(1 << 20, end - offset), offset - segment.start)):
                yield offset, data
                offset += len(data)
        finally:
            os.close(fd)
