"""A fork of the resident process makes itself like the one that called, or says why it cannot.

What counts is what a verb can see or hand on: words, environment, descriptors 0 to 2, folder, umask, limits, priority,
ignored and blocked signals, session. What no process can take over (user, groups, rights, namespaces, root folder) must
be the same already. All is read from /proc, of a caller that holds its end of the connection meanwhile.
"""

import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence

from agentd import client, door, process

MAX_FDS = 8
SAME = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
NAMESPACES = ("mnt", "user", "pid", "net", "ipc", "uts")
OF_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_STACK)
OWN_SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ)  # the last two Python always ignores
READ_AT_IMPORT = ("TYPER_", "_TYPER_", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH")
"""By typer, once; as is all of PYTHON*."""


class Unlike(Exception):
    """Why this process cannot be like the caller."""


class Self:
    """What the caller must have in common with us."""

    def __init__(self) -> None:
        self.identity = door.identity()
        self.status = status("self")
        self.places = places("self")
        self.read_at_import = read_at_import(os.environ)


def take_over(link: socket.socket, ours: Self) -> None:
    fields, fds = receive(link)
    pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid() or pid <= 0 or len(fds) != 3:
        raise Unlike("it is of another user, or of another space of processes")
    if os.fsdecode(fields[0]) != ours.identity:
        raise Unlike("it is another agentd")
    count = int(fields[2])
    words, pairs = fields[3 : 3 + count], fields[3 + count :]
    environment = dict(pair.split(b"=", 1) for pair in pairs)
    if read_at_import({os.fsdecode(n): os.fsdecode(v) for n, v in environment.items()}) != ours.read_at_import:
        raise Unlike("its environment sets up Python or typer otherwise")
    theirs = status(pid)
    if any(theirs.get(name) != ours.status.get(name) for name in SAME):
        raise Unlike("its user, groups or rights are others")
    if places(pid) != ours.places:
        raise Unlike("its namespaces or its root folder are others")
    be_as_limited(pid)
    os.chdir(f"/proc/{pid}/cwd")
    os.umask(int(theirs["Umask"], 8))
    take_streams(fds, *os.fsdecode(fields[1]).split(" "))
    os.environ.clear()
    os.environb.update(environment)
    time.tzset()
    sys.argv[1:] = [os.fsdecode(word) for word in words]
    client.caller = pid
    process.set_name(f"agentd {sys.argv[1] if sys.argv[1:] and sys.argv[1] in door.SHORT else ''}")
    take_signals(int(theirs["SigIgn"], 16), int(theirs["SigBlk"], 16))


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


def read_at_import(environment: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    prefixes = ("PYTHON", *READ_AT_IMPORT)
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


def be_as_limited(pid: int) -> None:
    """Limits and priority: they can be lowered; where the caller has more than we, it is for itself to use that."""
    try:
        for number in range(resource.RLIM_NLIMITS if hasattr(resource, "RLIM_NLIMITS") else 16):
            wanted = resource.prlimit(pid, number)
            if wanted != resource.getrlimit(number):
                if number in OF_MEMORY:
                    raise Unlike("its memory is limited otherwise")
                resource.setrlimit(number, wanted)
        wanted_priority = os.getpriority(os.PRIO_PROCESS, pid)
        if wanted_priority != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, wanted_priority)
    except (OSError, ValueError):
        raise Unlike("its limits or its priority are higher than ours") from None


def take_streams(fds: Sequence[int], encoding: str, errors: str) -> None:
    """As Python makes them at its start."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    is_terminal = os.isatty(1)
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, errors=errors, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(  # type: ignore[misc]
        1, "w", 1 if is_terminal else -1, encoding, errors, newline="\n", closefd=False
    )
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding, "backslashreplace", newline="\n", closefd=False)  # type: ignore[misc]


def take_signals(ignored: int, blocked: int) -> None:
    for number in range(1, 32):
        if number in OWN_SIGNALS:
            continue
        if ignored >> (number - 1) & 1:
            signal.signal(number, signal.SIG_IGN)
        else:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [n for n in range(1, 65) if blocked >> (n - 1) & 1])
