"""A fork of the resident process makes itself like the one that called, or says why it cannot.

What counts is what a verb can see or hand on: words, environment, descriptors 0 to 2, folder, umask, limits, priority,
ignored and blocked signals, session. What no process can take over (user, groups, rights, namespaces, root folder) must
be the same already. All is read from /proc, of a caller that holds its end of the connection meanwhile.
"""

import io
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from agentd import client, door, process

MAX_FDS = 8
SAME = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
NAMESPACES = ("mnt", "user", "pid", "net", "ipc", "uts")
ALL_LIMITS = 16  # RLIM_NLIMITS
OF_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK)
OWN_SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ)  # the last two Python always ignores
READ_AT_IMPORT = ("TYPER_", "_TYPER_")


class Unlike(Exception):
    """Why this process cannot be like the caller."""


class Outgrown(Unlike):
    """The caller may more than we: one that it starts itself would serve it, and us."""


class Self:
    """What the caller must have in common with us."""

    def __init__(self) -> None:
        self.identity = door.identity()
        self.path = ":".join(sys.path)
        self.status = status("self")
        self.places = places("self")


class Rest(NamedTuple):
    """What is left to be done when all else is as the caller has it."""

    life: int
    """A pipe that ends with the caller."""
    blocked: set[int]
    """Signals: while the verb begins."""


def take_over(link: socket.socket, ours: Self) -> Rest:
    fields, fds = receive(link)
    pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid() or pid <= 0 or len(fds) != 4:
        raise Unlike("it is of another user, or of another space of processes")
    identity, path, streams, count, *rest = map(os.fsdecode, fields)
    if identity != ours.identity or ours.path not in (
        path,
        path.partition(":")[2],
    ):  # it begins with the script's folder
        raise Unlike("it is another agentd")
    words, pairs = rest[: int(count)], rest[int(count) :]
    environment = dict(pair.split("=", 1) for pair in pairs)
    if any(name.startswith(READ_AT_IMPORT) for name in environment):
        raise Unlike("its environment sets up typer, which we have already")
    theirs = status(pid)
    if any(theirs.get(name) != ours.status.get(name) for name in SAME):
        raise Unlike("its user, groups or rights are others")
    if places(pid) != ours.places:
        raise Unlike("its namespaces or its root folder are others")
    be_as_limited(pid)
    os.chdir(f"/proc/{pid}/cwd")
    os.umask(int(theirs["Umask"], 8))
    take_streams(fds[:3], *streams.split(" "))
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv[1:] = words
    client.caller = pid
    process.set_name(f"agentd {sys.argv[1] if sys.argv[1:] and sys.argv[1] in door.SHORT else ''}")
    ignore_signals(int(theirs["SigIgn"], 16))
    return Rest(fds[3], {number for number in range(1, 65) if int(theirs["SigBlk"], 16) >> (number - 1) & 1})


def receive(link: socket.socket) -> tuple[list[bytes], list[int]]:
    data, fds, _, _ = socket.recv_fds(link, 1 << 16, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], sys.byteorder):
        more = link.recv(1 << 20)
        if not more:
            raise Unlike("it has gone")
        data += more
    return data[8:].split(b"\0"), fds


def status(pid: int | str) -> dict[str, str]:
    with open(f"/proc/{pid}/status", errors="surrogateescape") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def places(pid: int | str) -> tuple[object, ...]:
    root = os.stat(f"/proc/{pid}/root")
    return (root.st_dev, root.st_ino, *(os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES))


def be_as_limited(pid: int) -> None:
    """Limits and priority can be lowered only."""
    for number in range(ALL_LIMITS):
        ours, theirs = resource.getrlimit(number), resource.prlimit(pid, number)
        if theirs == ours:
            continue
        if number in OF_MEMORY and not is_more(theirs, ours):
            raise Unlike("its memory is limited, and ours is used already")
        try:
            resource.setrlimit(number, theirs)
        except (OSError, ValueError):
            raise Outgrown("its limits are higher") from None
    priority = os.getpriority(os.PRIO_PROCESS, pid)
    if priority != os.getpriority(os.PRIO_PROCESS, 0):
        try:
            os.setpriority(os.PRIO_PROCESS, 0, priority)
        except OSError:
            raise Outgrown("its priority is higher") from None


def is_more(theirs: tuple[int, int], ours: tuple[int, int]) -> bool:
    unlimited = 1 << 64
    pairs = zip(theirs, ours, strict=True)
    return all((a if a >= 0 else unlimited) >= (b if b >= 0 else unlimited) for a, b in pairs)


def take_streams(fds: Sequence[int], encoding: str, errors: str, unbuffered: str) -> None:
    """As Python makes them at its start."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    size = 0 if unbuffered == "1" else -1
    streams = {
        "stdin": text(os.fdopen(0, "rb", closefd=False), encoding, errors),
        "stdout": text(os.fdopen(1, "wb", size, closefd=False), encoding, errors, os.isatty(1)),
        "stderr": text(os.fdopen(2, "wb", size, closefd=False), encoding, "backslashreplace", True),
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def text(binary: BinaryIO, encoding: str, errors: str, is_by_line: bool = False) -> io.TextIOWrapper:
    is_raw = isinstance(binary, io.RawIOBase)
    return io.TextIOWrapper(
        binary, encoding, errors, newline="\n", line_buffering=is_by_line and not is_raw, write_through=is_raw
    )


def ignore_signals(mask: int) -> None:
    for number in range(1, 32):
        if number in OWN_SIGNALS:
            continue
        if mask >> (number - 1) & 1:
            signal.signal(number, signal.SIG_IGN)
        else:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
