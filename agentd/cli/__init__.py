"""The command line: ``main`` is the console entry, and the one door through which errors leave.

A verb is a function in a module of its own, imported only when it is called: the table in :mod:`agentd.cli.verbs`
names it. It prints data on stdout and talk on stderr, and returns its exit code (None is 0). What it cannot do it
raises as an AgentdError, which becomes one line here, or one JSON object after ``--json``.
"""

import os
import sys
from collections.abc import Sequence

from agentd.core.errors import EXIT_FAULT, AgentdError

EXIT_INTERRUPTED = 130
OF_SEVERAL_LINES = ("busy", "timeout", "deadlock")
"""Who has a lock, and what one can do, is no one sentence."""
EXIT_PIPE = 141  # 128 + SIGPIPE, as a shell tells of a program whose reader has gone


def main() -> int:
    """Run the command line of this process; its exit code."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = guarded([as_utf8(word) for word in sys.argv[1:]])
    silence()  # what an interrupted verb has left; if nobody takes it, Python is not to complain at its end
    return code


def as_utf8(word: str) -> str:
    """Words are bytes, which Python may have read as another character set."""
    return os.fsencode(word).decode("utf-8", "surrogateescape")


def open_closed_streams() -> None:
    """A stream that the caller has closed is /dev/null, under its own number: no file of ours may get that."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def guarded(args: Sequence[str]) -> int:
    try:
        code = dispatch(list(args)) if args else where_one_stands()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence()
        return EXIT_PIPE
    except AgentdError as error:
        return tell(args, explained(error, args), error.code, error.exit)
    except Exception as error:
        if os.environ.get("AGENTD_DEBUG") == "1":
            raise
        if is_disk_full(error):
            silence()  # else Python tries once more at its end, and complains
            what = f"cannot write the output: {os.strerror(error.errno)}; free some space, or write elsewhere"  # type: ignore[attr-defined]
            return tell(args, what, "disk_full", 75)
        what = f"agentd failed: {type(error).__name__}: {error}; AGENTD_DEBUG=1 shows where"
        return tell(args, what, "fault", EXIT_FAULT)


def where_one_stands() -> int:
    from agentd.cli import standing

    standing.show()
    return 0


def explained(error: AgentdError, args: Sequence[str]) -> str:
    """A job was refused a method, of which it knows nothing: it called a verb."""
    if not error.message.endswith(" is not allowed for jobs"):
        return error.message
    from agentd.cli.verbs import VERBS

    verb = next((word for word in args if word in VERBS), "this")
    own = "delegate, run, ps, jobs, logs, wait, inspect, result, diff, lock, unlock and locks"
    return f"agentd {verb} is not allowed inside a job; {own} are"


def dispatch(args: list[str]) -> int:
    if args[:1] == ["complete"]:
        from agentd.cli.complete import complete

        return complete(args[1:])
    import typer
    from typer.exceptions import TyperException

    from agentd.cli import verbs

    try:
        with verbs.command_line().make_context("agentd", verbs.spelled_out(args)) as context:
            code = context.command.invoke(context)
            return code if isinstance(code, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return 1
    except TyperException as error:
        raise AgentdError(verbs.sentence(error, args), "usage", error.exit_code) from None


def tell(args: Sequence[str], message: str, code: str, exit: int) -> int:
    """One failure: a line on stderr, or with ``--json`` an object on stdout."""
    from agentd.cli import render, verbs

    try:
        if verbs.wants_json(args):
            import json

            print(json.dumps({"ok": False, "code": code, "error": message}), flush=True)
        else:
            lines = message.split("\n") if code in OF_SEVERAL_LINES else [message]
            more = [" " * (len(line) - len(line.lstrip(" "))) + render.one_line(line) for line in lines[1:]]
            print("\n".join(["agentd: " + render.one_line(lines[0]), *more]), file=sys.stderr)
            sys.stderr.flush()
    except OSError:
        silence()
    return exit


def is_disk_full(error: Exception) -> bool:
    import errno

    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def silence() -> None:
    """Nobody reads any more: what is still buffered goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        try:
            (sys.stdout if fd == 1 else sys.stderr).flush()
        except (OSError, ValueError):
            os.dup2(nowhere, fd)
    os.close(nowhere)
