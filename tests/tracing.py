"""Faults at chosen system calls: strace attached to a live process, and a tracer that counts over all its threads."""

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from breaking import fork
from faultlab import Violation, until


def can_trace() -> str | None:
    """Why strace cannot be attached to a process that is no child of it; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.getuid() != 0 and scope.exists() and scope.read_text().strip() != "0":
        return "needs root here: yama lets nobody else trace processes that are not its children"
    return None


needs_trace = pytest.mark.skipif(can_trace() is not None, reason=str(can_trace()))
is_x86 = platform.machine() == "x86_64"
needs_tracer = pytest.mark.skipif(
    can_trace() is not None or not is_x86, reason=can_trace() or "knows x86_64's calls only"
)


# --- strace -------------------------------------------------------------------------------------------------


class Strace:
    """strace attached to a live process: ``inject`` is "CALL:signal=KILL:when=3", "fsync:error=EIO:when=1" and so on.

    ``follow``: its other threads and its children too, each with a count of its own.
    """

    def __init__(self, pid: int, folder: Path, calls: Sequence[str], inject: str = "", follow: bool = True) -> None:
        self.out = folder / "trace.out"
        self.out.unlink(missing_ok=True)
        command = ["strace", "-qq", "-o", str(self.out), "-e", "trace=" + ",".join(calls)]
        command += ["-f"] if follow else []
        command += ["-e", f"inject={inject}"] if inject else []
        self.said = folder / "trace.err"
        with self.said.open("wb") as said:
            self.strace = subprocess.Popen([*command, "-p", str(pid)], stderr=said)
        self.pid = pid
        until(self.is_attached, 10.0, lambda: f"strace cannot attach: {self.said.read_text()}")

    def is_attached(self) -> bool:
        if self.strace.poll() is not None:
            raise Violation(f"strace ended: {self.said.read_text()}")
        return all(tracer_of(self.pid, tid) for tid in self.threads())

    def threads(self) -> list[str]:
        if "-f" not in self.strace.args:  # type: ignore[operator]
            return [str(self.pid)]
        try:
            return os.listdir(f"/proc/{self.pid}/task")
        except FileNotFoundError:
            return []

    def __enter__(self) -> "Strace":
        return self

    def __exit__(self, *_: object) -> None:
        self.strace.terminate()  # it detaches: the process goes on
        try:
            self.strace.wait(5)
        except subprocess.TimeoutExpired:
            self.strace.kill()  # it waits for ever for a thread of a process that was killed: seen with 6.1
            self.strace.wait()

    def counts(self) -> dict[str, int]:
        """The most often one thread made each call. Call it after the end."""
        found: dict[tuple[str, str], int] = {}
        for line in self.out.read_text(errors="replace").splitlines():
            who, _, rest = line.partition(" ")
            if not who.isdigit():
                who, rest = "", line
            name = rest.strip().partition("(")[0]
            if name.isidentifier() and "(" in rest:
                found[name, who] = found.get((name, who), 0) + 1
        most: dict[str, int] = {}
        for (name, _), count in found.items():
            most[name] = max(most.get(name, 0), count)
        return most


def tracer_of(pid: int, tid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    except OSError:
        return True  # that thread has just ended
    return "TracerPid:\t0\n" not in status


# --- killed at the nth call ---------------------------------------------------------------------------------

PTRACE_CONT, PTRACE_SYSCALL, PTRACE_DETACH = 7, 24, 17
PTRACE_SETOPTIONS, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GET_SYSCALL_INFO = 0x4200, 0x4206, 0x4207, 0x420E
SYSCALL_ENTRY = 1
O_SYSGOOD, O_FORK, O_VFORK, O_CLONE = 1, 2, 4, 8
WALL = 0x40000000
MUTATING = {
    # x86_64: number -> name. The calls by which one of ours changes a file, a process or a socket.
    **{1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 40: "sendfile", 275: "splice", 285: "fallocate"},
    **{2: "open", 257: "openat", 3: "close", 74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate"},
    **{82: "rename", 264: "renameat", 316: "renameat2", 87: "unlink", 263: "unlinkat", 86: "link", 88: "symlink"},
    **{83: "mkdir", 258: "mkdirat", 84: "rmdir", 133: "mknod", 259: "mknodat", 90: "chmod", 91: "fchmod"},
    **{268: "fchmodat", 280: "utimensat", 319: "memfd_create", 73: "flock", 72: "fcntl", 293: "pipe2"},
    **{46: "sendmsg", 44: "sendto", 42: "connect", 49: "bind", 50: "listen", 288: "accept4", 47: "recvmsg"},
    **{56: "clone", 57: "fork", 58: "vfork", 435: "clone3", 247: "waitid", 61: "wait4", 424: "pidfd_send_signal"},
}


class Tracer:
    """A process that looks at the mutating calls of process ``pid``, and kills it as it enters the ``nth`` of them,
    whichever of its threads that is; 0: never. ``next_child``: those of the child that ``pid`` forks next.

    strace cannot do this: it counts in each thread, and with -f in each child, by itself. ``calls`` has the names (the
    last was not executed, if that killed it).
    """

    def __init__(self, pid: int, nth: int, next_child: bool = False) -> None:
        self.nth = nth
        self.read_end, write_end = os.pipe()
        attached, tell = os.pipe()
        self.pid = fork(lambda: trace(pid, nth, next_child, write_end, tell))
        os.close(write_end)
        os.close(tell)
        try:
            if os.read(attached, 1) != b"a":
                raise Violation(f"cannot trace process {pid}")
        finally:
            os.close(attached)

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)  # the kernel detaches what it traced
        os.waitpid(self.pid, 0)
        self.names = self.calls()
        os.close(self.read_end)

    def calls(self) -> list[str]:
        """All calls so far."""
        os.set_blocking(self.read_end, False)
        told = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.read_end, 65536):
                told += piece
        return told.decode().split()

    def has_killed(self) -> bool:
        """After the end: did it come to that call?"""
        return 0 < self.nth <= len(self.names)


def trace(pid: int, nth: int, next_child: bool, told: int, attached: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, tid: int, address: int = 0, data: Any = 0) -> int:
        return int(libc.ptrace(request, tid, address, data))

    def mutating_call(tid: int) -> str | None:
        ptrace(PTRACE_GET_SYSCALL_INFO, tid, len(info), ctypes.addressof(info))
        if info.raw[0] != SYSCALL_ENTRY:
            return None
        return MUTATING.get(int.from_bytes(info.raw[24:32], sys.byteorder))

    info = ctypes.create_string_buffer(128)
    if next_child:
        if ptrace(PTRACE_SEIZE, pid, 0, O_SYSGOOD | O_FORK | O_VFORK | O_CLONE) != 0:
            return
    else:
        for tid in map(int, os.listdir(f"/proc/{pid}/task")):
            if ptrace(PTRACE_SEIZE, tid, 0, O_SYSGOOD | O_CLONE) != 0:  # new threads too; no children
                return
            ptrace(PTRACE_INTERRUPT, tid)
            os.waitpid(tid, WALL)
            ptrace(PTRACE_SYSCALL, tid)
    os.write(attached, b"a")
    victim, count = 0 if next_child else pid, 0
    while True:
        tid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        if next_child and tid == pid:
            ptrace(PTRACE_CONT, tid, 0, 0 if event else number)
            continue
        if next_child and victim == 0:
            victim = tid
            ptrace(PTRACE_SETOPTIONS, tid, 0, O_SYSGOOD)
        if next_child and tid != victim:
            ptrace(PTRACE_DETACH, tid)
            continue
        if number == signal.SIGTRAP | 0x80 and (name := mutating_call(tid)) is not None:
            count += 1
            os.write(told, f"{name}\n".encode())
            if count == nth:
                os.kill(victim, signal.SIGKILL)
                continue
        ptrace(PTRACE_SYSCALL, tid, 0, 0 if event or number & 0x80 else number)
