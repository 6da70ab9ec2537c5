"""Processes: who is who, signals that cannot hit a stranger, whole trees, liveness locks, ceilings.

Imports nothing of ours and nothing heavy: keeper and zygote live on it.

Three rules hold everywhere:

* A pid is no identity. An :func:`identity` is boot id, pid, start ticks and the pidfs inode of the process,
  and a signal goes only through a pidfd that was *verified after it was opened* (:func:`open_verified`).
* Liveness is a lock the kernel drops. One looks with :func:`byte_held` and never by taking.
* ``AGENTD_WITHOUT=cgroup,clone3,pidfd-exit,pidfd-getfd,splice`` turns a mechanism off: the fall-backs are tested too.
"""

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import select
import signal
import struct
import time
from collections.abc import Iterable, Iterator

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PIDFD_GET_INFO = 0xC040FF0B  # linux/pidfd.h, the 64-byte form; Linux 6.15 gave it the exit status
PIDFD_INFO_EXIT = 8
SYS_PIDFD_GETFD = 438  # of every architecture
Identity = dict[str, int | str]

PR_GET_TID_ADDRESS = 40
SYS_CLONE3 = 435  # on every architecture alike
CLONE_AS_FORK = 0x01000000 | 0x00200000  # linux/sched.h: the thread's number is noted where the C library has it
CLONE_INTO_CGROUP = 0x200000000  # Linux 5.7

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None)
"""The same, called with the interpreter's lock held, as a fork must be."""


def without(mechanism: str) -> bool:
    """True when the environment switches ``mechanism`` off."""
    return mechanism in os.environ.get("AGENTD_WITHOUT", "").split(",")


def boot_id() -> str:
    """The kernel's id of this boot. ``AGENTD_BOOT_ID_FILE`` lets a test reboot."""
    with open(os.environ.get("AGENTD_BOOT_ID_FILE", "/proc/sys/kernel/random/boot_id")) as file:
        return file.read().strip()


def boottime() -> float:
    """Seconds since boot, sleep included: the clock of all timers; setting the time of day does not move it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def set_name(name: str) -> None:
    """Name this process for ``ps`` and ``top``: the thread name, and the command line as far as it is long."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0)
    _overwrite_command_line(name.encode())


def _overwrite_command_line(title: bytes) -> None:
    # arg_start and arg_end are fields 48 and 49 of /proc/self/stat. A forked child has its own copy of the
    # pages, so writing there renames it alone.
    try:
        fields = _stat_fields("self")
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    room = end - start
    if 0 < room < 65536:
        ctypes.memmove(start, title[: room - 1].ljust(room, b"\0"), room)


def become_subreaper() -> None:
    """Orphans below this process become its children, instead of those of process 1."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def close_all_but(kept: set[int]) -> None:
    low = 0
    for fd in sorted(kept):
        if low < fd:  # closerange(0, 0) closes everything: CPython hands -1 to close_range(2)
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


# --- identity -----------------------------------------------------------------------------------------------


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None if nobody has."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        return _identity(pid, pidfd)
    finally:
        os.close(pidfd)


def open_verified(who: Identity) -> int | None:
    """A pidfd (close-on-exec) of exactly this process, dead but unreaped included; None if it is gone."""
    pid = int(who["pid"])
    if who["boot"] != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        # EINVAL, ENOENT since Linux 6.16: the number now belongs to a thread.
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise
    if _identity(pid, pidfd) == who:
        return pidfd
    os.close(pidfd)
    return None


def _identity(pid: int, pidfd: int) -> Identity | None:
    try:
        start = int(_stat_fields(pid)[19])
    except (OSError, ValueError, IndexError):
        return None
    info = os.fstat(pidfd)
    # Before pidfs (Linux 6.9) all pidfds shared one anonymous inode: then it says nothing, and is 0.
    unique = info.st_ino if info.st_ino > 0 and _has_pidfs() else 0
    return {"boot": boot_id(), "pid": pid, "start": start, "inode": unique}


_pidfs: bool | None = None


def _has_pidfs() -> bool:
    global _pidfs
    if _pidfs is None:
        with open("/proc/filesystems") as file:
            _pidfs = "\tpidfs\n" in file.read() or _pidfd_has_a_file_system()
    return _pidfs


def _pidfd_has_a_file_system() -> bool:
    # Before pidfs a pidfd had the one anonymous inode that an epoll descriptor has, too. (Two pidfds cannot be
    # compared: process 1 of a namespace sees none but its own.)
    mine, other = os.pidfd_open(os.getpid()), select.epoll()
    try:
        return os.fstat(mine).st_dev != os.fstat(other.fileno()).st_dev
    finally:
        os.close(mine)
        other.close()


def _stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on: the name may hold spaces and brackets."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def controlling_terminal(pid: int) -> int:
    """The device number of its controlling terminal; 0 if it has none."""
    return int(_stat_fields(pid)[4])


def open_files(pid: int, ending: str) -> list[int]:
    """The descriptors of a process that are of a file whose path ends so."""
    folder, found = f"/proc/{pid}/fd", []
    for fd in os.listdir(folder):
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{fd}").endswith(ending):
                found.append(int(fd))
    return found


def take_descriptor(pid: int, fd: int) -> int | None:
    """A copy of another process's descriptor (Linux 5.6), close-on-exec; None where it is not to be had."""
    if without("pidfd-getfd"):
        return None
    pidfd = os.pidfd_open(pid)
    try:
        copy = int(_libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0))
        return copy if copy >= 0 else None
    finally:
        os.close(pidfd)


def is_of(pidfd: int, who: Identity) -> bool:
    """Is this a pidfd of exactly that process, dead or alive? False where the kernel has no pidfs to tell by."""
    return who["inode"] != 0 and os.fstat(pidfd).st_ino == who["inode"]


def send(pidfd: int, number: int) -> bool:
    """Signal through a verified pidfd; False if the process has gone, or has become another user's."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def has_exited(pidfd: int, timeout_ms: int = 0) -> bool:
    """True once the process is dead, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def is_reaped(pidfd: int) -> bool:
    """True once somebody has taken the exit status."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def status_of_reaped(pidfd: int) -> int | None:
    """The wait status of a reaped process that is not our child, by a pidfd opened before it was reaped.

    Linux 6.15 and later; None where the kernel cannot tell. Source: linux/pidfd.h, ``struct pidfd_info``.
    """
    if without("pidfd-exit"):
        return None
    buffer = bytearray(struct.pack("QQ", PIDFD_INFO_EXIT, 0) + bytes(48))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer, True)
    except OSError:
        return None
    (mask,) = struct.unpack_from("Q", buffer)
    (status,) = struct.unpack_from("i", buffer, 60)
    return status if mask & PIDFD_INFO_EXIT else None


def look_at_child(pid: int) -> os.waitid_result | None:
    """How this child of ours ended, without reaping it; None while it runs. ChildProcessError: not our child."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


# --- trees --------------------------------------------------------------------------------------------------


def children(pid: int | str) -> list[int]:
    """The direct children of a process, all its threads' included."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def descendants(pid: int | str) -> list[int]:
    """All processes below ``pid``, parents first."""
    found: list[int] = []
    level = children(pid)
    while level:
        found += level
        level = [child for parent in level for child in children(parent)]
    return found


def ancestors(pid: int) -> Iterator[int]:
    """``pid``, its parent, and so on, as things are."""
    while pid:
        yield pid
        try:
            pid = int(_stat_fields(pid)[1])
        except (OSError, ValueError, IndexError):
            return


def marked(nonce: str, session: int, life_lock: str) -> list[int]:
    """The tree of a job whose parent we no longer are, by a scan of /proc: all that carries
    ``AGENTD_NONCE=nonce`` in its environment, or is in ``session`` with ``life_lock`` open (a session's number
    alone can be a stranger's by now), and whatever is below them."""
    mark = f"AGENTD_NONCE={nonce}".encode()
    parents: dict[int, int] = {}
    roots: set[int] = set()
    for pid in _all_pids():
        try:
            fields = _stat_fields(pid)
            parents[pid] = int(fields[1])
            if fields[0] == "Z":
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    roots.add(pid)
            if int(fields[3]) == session and _has_open(pid, life_lock):
                roots.add(pid)
        except (OSError, ValueError, IndexError):
            continue
    return [pid for pid in parents if any(ancestor in roots for ancestor in _line_of(pid, parents))]


def having(pair: str) -> list[int]:
    """Every process that has ``NAME=VALUE`` in its environment."""
    return [pid for pid in _all_pids() if _has_variable(pid, pair.encode()) and not is_zombie(pid)]


def end_all_with(pair: str, patience: float = 5.0) -> None:
    """Kill every process that has ``NAME=VALUE`` in its environment, and what they start meanwhile. Blocks."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = having(pair)
        for pid in found:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            if _has_variable(pid, pair.encode()):  # still: the number is nobody else's now
                send(pidfd, signal.SIGKILL)
            os.close(pidfd)
        if not found:
            return
        time.sleep(0.01)


def _has_variable(pid: int, pair: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return pair in file.read().split(b"\0")
    except OSError:
        return False


def _has_open(pid: int, path: str) -> bool:
    return any(os.readlink(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))


def _line_of(pid: int, parents: dict[int, int]) -> Iterator[int]:
    seen = 0
    while pid and seen < 1000:
        yield pid
        pid = parents.get(pid, 0)
        seen += 1


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def working_in(path: str) -> list[int]:
    """The processes whose current folder is ``path`` or below it."""
    found = []
    for pid in _all_pids():
        try:
            folder = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if folder == path or folder.startswith(path + "/"):
            found.append(pid)
    return found


def using(path: str) -> list[int]:
    """The processes that have ``path``, or anything below it, as current folder or open. Those that begin meanwhile are
    looked at too, so that nobody is missed who hands on to a child and ends."""
    found: list[int] = []
    seen: set[int] = set()
    while new := set(_all_pids()) - seen:
        found += (pid for pid in sorted(new) if _uses(pid, path))
        seen |= new
    return found


def _uses(pid: int, path: str) -> bool:
    links = [f"/proc/{pid}/cwd"]
    with contextlib.suppress(OSError):
        links += (f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))
    for link in links:
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if target == path or target.startswith(path + "/"):
                return True
    return False


def is_zombie(pid: int) -> bool:
    try:
        return _stat_fields(pid)[0] in "ZX"
    except (OSError, IndexError):
        return True


def describe(pid: int) -> dict[str, int | str]:
    """``{"pid", "command"}`` for people: the command line, at most 200 characters."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
        if not command:
            with open(f"/proc/{pid}/comm") as name:
                command = f"[{name.read().strip()}]"
    except OSError:
        command = "?"
    return {"pid": pid, "command": command[:200]}


def matches(pid: int, patterns: Iterable[str]) -> bool:
    """True if a shell pattern matches the program's name or the whole command line of ``pid``."""
    command = str(describe(pid)["command"])
    program = os.path.basename(command.split(" ")[0])
    return any(fnmatch.fnmatchcase(program, p) or fnmatch.fnmatchcase(command, p) for p in patterns)


# --- liveness locks -----------------------------------------------------------------------------------------


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def take_byte(fd: int, byte: int) -> bool:
    """Take an open-file-description lock on one byte; False if somebody else holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def wait_for_byte(fd: int, byte: int) -> None:
    """Take it as soon as its holder is gone."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, byte))


def byte_held(path: str, byte: int) -> bool:
    """Does any process hold this byte? Looks, never takes. A missing file is held by nobody."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    finally:
        os.close(fd)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


# --- control groups, version 2 ------------------------------------------------------------------------------


def cgroup_home() -> str | None:
    """A folder of the version 2 hierarchy in which this process may make groups; None where none can be had."""
    if without("cgroup"):
        return None
    if "AGENTD_CGROUP_HOME" in os.environ:  # a fixture's files
        return os.environ["AGENTD_CGROUP_HOME"]
    try:
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
        mount = next(m[4] for m in mounts if m[m.index("-") + 1] == "cgroup2")
        with open("/proc/self/cgroup") as file:
            own = next(line.split(":", 2)[2].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration, ValueError):
        return None
    # Inside our own group first (a systemd unit with Delegate=yes), else beside it; a group that has
    # processes of its own can still have empty sub-groups without controllers.
    home = mount + own.rstrip("/")
    return home if os.access(home, os.W_OK) and os.access(f"{home}/cgroup.procs", os.W_OK) else None


def cgroup_make(path: str, memory: int | None, processes: int | None) -> list[str]:
    """Make a group with ceilings; returns those that could not be set ("memory", "processes")."""
    os.makedirs(path, exist_ok=True)
    unset: list[str] = []
    wanted = (("memory", "memory.max", memory), ("processes", "pids.max", processes))
    for name, file, value in wanted:
        if value is None:
            continue
        try:
            with open(f"{path}/{file}", "w") as handle:
                handle.write(str(value))
        except OSError:
            unset.append(name)
    return unset


def cgroup_join(path: str, pid: int) -> bool:
    try:
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write(str(pid))
    except OSError:
        return False
    return True


def fork_into(cgroup: str | None) -> tuple[int, bool]:
    """As os.fork(), of a process with one thread: the pid, and whether the child was born in ``cgroup``. To join it
    later takes 10 ms: the kernel first waits until every processor has been idle or elsewhere for a moment."""
    pid = None if cgroup is None else _clone_into(cgroup)
    return (os.fork(), False) if pid is None else (pid, True)


def _clone_into(cgroup: str) -> int | None:
    """None where this is not to be had. The C library has no such call, so its fork, and what os.fork() does around it,
    are done here."""
    tid = ctypes.c_ulonglong()
    if without("clone3") or _libc.prctl(PR_GET_TID_ADDRESS, ctypes.byref(tid), 0, 0, 0) != 0:
        return None
    try:
        group = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    fields = (CLONE_AS_FORK | CLONE_INTO_CGROUP, 0, tid.value, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, group)
    arguments = ctypes.create_string_buffer(struct.pack("=11Q", *fields), 88)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _held.syscall(ctypes.c_long(SYS_CLONE3), arguments, ctypes.c_size_t(88))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    os.close(group)
    return int(pid) if pid >= 0 else None


def cgroup_pids(path: str) -> list[int]:
    """All processes in a group and the groups below it."""
    found: list[int] = []
    for folder, _, files in os.walk(path):
        if "cgroup.procs" in files:
            try:
                with open(f"{folder}/cgroup.procs") as file:
                    found += map(int, file.read().split())
            except OSError:
                continue
    return found


def cgroup_kill(path: str) -> bool:
    try:
        with open(f"{path}/cgroup.kill", "w") as file:
            file.write("1")
    except OSError:
        return False
    return True


def cgroup_remove(path: str) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return


def cgroup_end(path: str, patience: float = 5.0) -> None:
    """Kill all that is in a group, and remove it as soon as they are gone. Blocks."""
    deadline = time.monotonic() + patience
    while os.path.isdir(path) and time.monotonic() < deadline:
        cgroup_kill(path)
        cgroup_remove(path)
        time.sleep(0.005)


def oom_kills(path: str) -> int:
    """How many processes of a group the kernel killed for memory; 0 where it does not say."""
    try:
        with open(f"{path}/memory.events") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
