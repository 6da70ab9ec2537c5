"""The resident process: the command line with its imports done. It forks for each call that comes through the door.

One for a state folder; it holds the lock ``resident.lock`` while it lives. The first verb that had to run by itself
starts it, beside a daemon that runs; it ends with that daemon, when nobody has called for a while, or when the code on
disk has changed. It is a zygote of its own and never touches a call: a *spare* fork waits for the next one. The spare
takes the connection, reads the request, becomes the caller's likeness and carries out the verb; this process learns
only that the spare is taken, and forks the next. So it holds nothing of any caller, in memory or open.

The fork is not of the caller's session, so the terminal does not signal it: the door passes signals on, and the kernel
kills the fork when a pipe ends that the door holds, however that came about.
"""

import contextlib
import fcntl
import gc
import io
import os
import select
import signal
import socket
import sys
from typing import NamedTuple, NoReturn

import typer

from agentd import cli, door, jobdir, likeness, paths, process
from agentd.cli import verbs
from agentd.core.errors import AgentdError

BACKLOG = 1024
IDLE_S = 900
MAX_DEATHS = 3
F_SETSIG = 10  # linux/fcntl.h; Python has no name for it
KEPT = (  # of the environment of whoever starts it: where things are, no more
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPLATLIBDIR"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "AGENTD_STATE_DIR"),
)
Stamps = dict[str, tuple[int, int, int]]


# --- started in the background, by a verb at its end ---------------------------------------------------------


def start() -> None:
    """For the verbs to come, if a daemon runs and nobody serves them yet. Never fails."""
    with contextlib.suppress(Exception, KeyboardInterrupt):
        if process.without("resident") or "AGENTD_SOCKET" in os.environ:
            return
        state_dir = paths.state_dir()
        daemon = (jobdir.read(state_dir, "daemon.json") or {}).get("identity")
        if daemon and paths.private_folder_fault(state_dir) is None:
            start_beside(state_dir, daemon)


def start_beside(state_dir: str, who: process.Identity) -> None:
    with contextlib.ExitStack() as opened:
        lock = os.open(
            f"{state_dir}/{paths.RESIDENT_LOCK}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        opened.callback(os.close, lock)
        daemon = process.open_verified(who)
        if daemon is None or not process.take_byte(lock, 0):
            return
        opened.callback(os.close, daemon)
        listener = opened.enter_context(jobdir.listen(f"{state_dir}/{paths.RESIDENT_SOCKET}", backlog=BACKLOG))
        spawn(lock, listener.fileno(), daemon, state_dir)


def spawn(*given: int | str) -> None:
    import subprocess

    environment = {name: value for name, value in os.environ.items() if name in KEPT}
    child = subprocess.Popen(
        [sys.executable, "-X", "utf8", "-P", "-m", "agentd.resident", *map(str, given)],
        pass_fds=[fd for fd in given if isinstance(fd, int)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    child.returncode = 0  # it lives on without us: no ResourceWarning when this object goes


# --- the process ---------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    lock, listener, daemon = map(int, argv[:3])
    process.set_name("agentd-resident")
    os.umask(0o077)
    stamps = {place: stamp(place) for place in code_places()}
    warm_up()
    with contextlib.suppress(OSError):  # the disk is full: then only doctor does not know the pid
        os.pwrite(lock, b"%-10d\n" % os.getpid(), 0)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a call's process but its caller
    link = socket.socket(fileno=listener)
    link.listen(BACKLOG)  # once more: from now on SO_PEERCRED names this process
    serve(link, daemon, stamps)
    jobdir.remove_quietly(f"{argv[3]}/{paths.RESIDENT_SOCKET}")
    os.close(lock)
    return 0


def warm_up() -> None:
    """All that a verb imports or makes at its first use."""
    import difflib  # noqa: F401  # for words that are no verb
    import shlex  # noqa: F401  # to show commands

    groups = [
        (verbs.command_line(), verbs.VERBS),
        *((verbs.group(name), table) for name, table in verbs.GROUPS.items()),
    ]
    for group, table in groups:
        for command in (group, *(group.get_command(None, verb) for verb in table)):
            for parameter in command.params:
                parameter.get_runtime_param()
    for verb in verbs.VERBS:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.dispatch([verb, "--help"])


def serve(listener: socket.socket, daemon: int, stamps: Stamps) -> None:
    """Until the daemon ends, nobody calls, a fork says that it is enough, or forks die before they are taken."""
    pipes = Pipes(*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC))
    ours, deaths = likeness.Self(), 0
    while deaths < MAX_DEATHS:
        news, its_end = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            with never_returning():
                process.close_all_but({0, 1, 2, listener.fileno(), pipes.lifeline, pipes.enough, its_end})
                be_spare(listener, pipes, its_end, ours, stamps)
        os.close(its_end)
        readable = polled((news, daemon, pipes.is_enough), IDLE_S * 1000)
        was_taken = news in readable and os.read(news, 1) == b"t"
        os.close(news)
        deaths = 0 if was_taken else deaths + 1
        if readable != {news}:
            return


class Pipes(NamedTuple):
    """Of all forks: by one they learn of our end, by the other we learn that they can serve no longer."""

    lifeline: int
    our_end: int
    is_enough: int
    enough: int


def polled(fds: tuple[int, ...], milliseconds: int | None = None) -> set[int]:
    """Those that can be read, or have ended."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(milliseconds)}


class never_returning:
    """What is forked does not go on in its parent's code, come what may."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> NoReturn:
        os._exit(door.EXIT_UNKNOWN)


def code_places() -> list[str]:
    """Our code, and the folder in which what we depend on is installed: pip changes that."""
    found = [os.path.dirname(os.path.dirname(typer.__file__))]
    for folder, _, files in os.walk(os.path.dirname(os.path.abspath(__file__))):
        found += (f"{folder}/{name}" for name in files if name.endswith(".py"))
    return found


def stamp(place: str) -> tuple[int, int, int]:
    try:
        info = os.stat(place)
    except OSError:
        return (0, 0, 0)
    return (info.st_mtime_ns, info.st_ino, info.st_size)


# --- a fork of it: spare, then the likeness of a caller -------------------------------------------------------


def rehearse() -> None:
    """A call that comes to nothing: the pages that any call writes to are copied now, while nobody waits."""
    with contextlib.suppress(AgentdError), contextlib.redirect_stdout(io.StringIO()):
        cli.dispatch(["ps", "--last", "none"])
    likeness.Self()


def be_spare(listener: socket.socket, pipes: Pipes, news: int, ours: likeness.Self, stamps: Stamps) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until it can be the verb's
    rehearse()
    if listener.fileno() not in polled((listener.fileno(), pipes.lifeline)):
        return
    link, _ = listener.accept()
    os.write(news, b"t")
    try:
        link.sendall(b"%d" % os.getpid())
        if any(stamp(place) != seen for place, seen in stamps.items()):
            raise likeness.Outgrown("the code on disk has changed")
        rest = likeness.take_over(link, ours)
    except (likeness.Unlike, OSError, ValueError) as why:
        if isinstance(why, likeness.Outgrown):
            os.write(pipes.enough, b"e")
        link.sendall(b"-" + str(why).encode()[:60])
        return
    process.close_all_but({0, 1, 2, link.fileno(), rest.life})
    die_with(rest.life)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, rest.blocked)
        code = cli.main()
    except KeyboardInterrupt:  # it came before the verb began
        code = cli.EXIT_INTERRUPTED
    link.sendall(b"%d" % code)
    os._exit(code)


def die_with(life: int) -> None:
    """The kernel makes the caller's end ours. (Not by the connection: the news of what was sent there, and is read
    already, can come late.)"""
    fcntl.fcntl(life, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if polled((life,), 0):
        os._exit(door.EXIT_UNKNOWN)  # it went before we listened


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
