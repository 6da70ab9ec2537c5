"""The door: what ``agentd`` is at first. It hands short verbs to the resident process, and carries out the rest itself.

Importing typer takes ten times as long as starting Python. So a process that has done it (:mod:`agentd.resident`) waits
beside the daemon, and forks for each call. This module is all that a short verb imports: keep it small.

The call passes through a socket of the state folder. A fork says who it is; it is sent words, environment, and the
descriptors 0 to 2, not earlier, for in a socket that nobody reads they would stay open. It makes itself like the caller
(:mod:`agentd.likeness`), or says that it cannot. Whatever is not as it should be (nobody there, another version, a
caller that cannot be copied) is no failure: the verb runs here. But if the fork, once asked, dies without a word, the
verb is not run again, unless it only asks.
"""

# What `signal` and `socket` are made of; their enums take 5 ms to make.
import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys

from agentd import __version__, paths

PATIENCE_S = 3.0
EXIT_UNKNOWN = 125
EXIT_INTERRUPTED = 130
SO_PEERCRED, SCM_RIGHTS = 17, 1
HELP = ("-h", "--help")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def handed_over() -> int | None:
    """The exit code of this process's call; None if it is to be carried out here."""
    words = sys.argv[1:]
    if not is_short(words) or not is_plain():
        return None
    try:
        link = connect()
        return None if link is None else ask(link, words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# --- what goes where ----------------------------------------------------------------------------------------


def always(_: "Sequence[str]") -> bool:
    return True


def never(_: "Sequence[str]") -> bool:
    return False


def is_no_terminal(_: "Sequence[str]") -> bool:
    """On one a pager is started, which reads it."""
    return not os.isatty(1)


def unless_it_follows(words: "Sequence[str]") -> bool:
    """In doubt it follows: any cluster of short options with an ``f``."""
    return not any(word == "--follow" or (word[:1] == "-" != word[1:2] and "f" in word) for word in words)


# Which calls may go to the resident process; "?" is any word that is no verb. What talks with a person, or goes on
# until it is interrupted, stays: the terminal's job control is for its own processes.
SHORT: "dict[str, Callable[[Sequence[str]], bool]]" = {
    "delegate": always,
    "run": lambda words: words[:1] in (["-d"], ["--detach"]),  # else it is in the foreground, and has the terminal
    "ps": lambda words: "--watch" not in words,
    "jobs": always,
    "top": never,
    "logs": lambda words: unless_it_follows(words) and is_no_terminal(words),
    "wait": always,
    "kill": always,
    "send": always,
    "answer": lambda words: sum(word[:1] != "-" for word in words) > 1,  # without a TEXT it asks for one
    "inbox": always,
    "interrupt": always,
    "inspect": is_no_terminal,
    "path": always,
    "events": unless_it_follows,
    "result": always,
    "diff": is_no_terminal,
    "merge": always,
    "lock": never,  # it becomes the command, and looks under which one it runs
    "unlock": always,
    "locks": lambda words: "--watch" not in words,
    "demo": never,
    "shell": never,  # it looks at its own session
    "attach": never,
    "fg": never,
    "bg": always,
    "stop": always,
    "cont": always,
    "restart": always,
    "profiles": always,
    "rm": always,
    "undo": always,
    "daemon": never,  # the resident process ends with the daemon
    "doctor": never,  # it looks at its own process, and forks
    "?": always,
}
# Those that only ask, and print at their end: they may be begun again if what carried them out was killed.
ASKING = ("ps", "jobs", "wait", "inbox", "inspect", "path", "result", "profiles")


def is_short(words: "Sequence[str]") -> bool:
    verb, rest = (words[0], words[1:]) if words else ("?", [])
    if rest[:1] in ([HELP[0]], [HELP[1]]) or (verb in ("daemon", "locks") and rest[-1:] in ([HELP[0]], [HELP[1]])):
        return True
    return SHORT.get(verb, always)(rest)


def is_plain() -> bool:
    """Is there nothing about this process that a fork of another could not be?"""
    environment = os.environ
    if "AGENTD_SOCKET" in environment or "AGENTD_DEBUG" in environment:  # inside a job; a traceback is wanted
        return False
    if is_without("resident"):
        return False
    flags = sys.flags
    if sys.warnoptions or sys._xoptions or flags.dev_mode or flags.optimize or flags.inspect or flags.verbose:
        return False
    if sys.getfilesystemencoding() != "utf-8" or os.getuid() != os.geteuid():
        return False
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        return False
    return not is_in_background()


def is_in_background() -> bool:
    """Then the terminal would stop it when it reads, and a stranger to the session would not be."""
    group = os.getpgrp()
    for fd in (0, 1, 2):
        try:
            if os.tcgetpgrp(fd) != group:
                return True
        except OSError:
            continue
    return False


# --- the call -----------------------------------------------------------------------------------------------


def connect() -> "_socket.socket | None":
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        folder = os.open(paths.state_dir(), os.O_PATH | os.O_CLOEXEC)
        try:
            link.settimeout(PATIENCE_S)
            link.connect(f"/proc/self/fd/{folder}/{paths.RESIDENT_SOCKET}")
        finally:
            os.close(folder)
        uid = link.getsockopt(_socket.SOL_SOCKET, SO_PEERCRED, 12)[4:8]
        if int.from_bytes(uid, sys.byteorder) == os.getuid():
            return link
    except (OSError, LookupError):
        pass
    link.close()
    return None


def ask(link: "_socket.socket", words: "Sequence[str]") -> int | None:
    interrupts: list[int] = []
    try:
        child = os.pidfd_open(int(link.recv(64) or b"0"))
        pass_signals_on(child, interrupts)
        link.settimeout(None)
        life, _ours = os.pipe()  # nobody writes there: what the fork sees of it is our end
        send(link, request(words), (0, 1, 2, life))
        answer = link.recv(64)
    except (OSError, ValueError) as error:  # also: it ended before it had read all of the request
        answer = b"-" + str(error).encode()
    if answer[:1] not in (b"", b"-"):
        return int(answer)
    leave_signals()
    if interrupts:
        return EXIT_INTERRUPTED
    return refused(answer[1:].decode()) if answer else lost(words)


def refused(why: str) -> int | None:
    """It is done here, unless a test wants to know of it."""
    if not is_without("in-process"):
        return None
    os.write(2, f"agentd: the resident process does not take this call: {why}\n".encode())
    return EXIT_UNKNOWN


def is_without(mechanism: str) -> bool:
    return mechanism in os.environ.get("AGENTD_WITHOUT", "").split(",")


def request(words: "Sequence[str]") -> bytes:
    is_unbuffered = getattr(sys.stdout, "write_through", False)
    streams = f"{sys.stdin.encoding} {sys.stdin.errors} {is_unbuffered:d}"
    fields = [identity(), ":".join(sys.path), streams, str(len(words)), *words]
    data = [os.fsencode(field) for field in fields]
    data += [name + b"=" + value for name, value in os.environb.items()]
    return b"\0".join(data)


def identity() -> str:
    """Which agentd this is: only the same one may answer for it."""
    return f"{__version__} {sys.hexversion} {sys.prefix} {os.path.dirname(os.path.abspath(__file__))}"


def send(link: "_socket.socket", data: bytes, fds: "Sequence[int]") -> None:
    data = len(data).to_bytes(8, sys.byteorder) + data
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    sent = link.sendmsg([data], [(_socket.SOL_SOCKET, SCM_RIGHTS, rights)])
    if sent < len(data):  # a send of nothing would fail if the call is over by now, and it would be made once more
        link.sendall(data[sent:])


def pass_signals_on(child: int, interrupts: list[int]) -> None:
    """Those that do not end this process. If it ends, the kernel ends the child."""

    def interrupt(number: int, _: object) -> None:
        interrupts.append(number)
        tell(child, number)

    def suspend(number: int, _: object) -> None:
        tell(child, _signal.SIGSTOP)
        _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)  # and here we stand until somebody says: go on
        _signal.signal(number, suspend)
        tell(child, _signal.SIGCONT)

    for number, handler in ((_signal.SIGINT, interrupt), (_signal.SIGTSTP, suspend)):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, handler)


def leave_signals() -> None:
    for number, handler in ((_signal.SIGINT, _signal.default_int_handler), (_signal.SIGTSTP, _signal.SIG_DFL)):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, handler)


def tell(child: int, number: int) -> None:
    try:
        _signal.pidfd_send_signal(child, number)
    except OSError:
        pass  # it has ended, and its exit code is on the way


def lost(words: "Sequence[str]") -> int | None:
    if not words or words[0] in ASKING or words[0] not in SHORT or words[1:2] in ([HELP[0]], [HELP[1]]):
        return None
    what = f"the process that carried out this {words[0]} was killed, so whether it was done is not known"
    os.write(2, f"agentd: {what}; look with: agentd ps --all\n".encode())
    return EXIT_UNKNOWN
