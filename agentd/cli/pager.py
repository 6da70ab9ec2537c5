"""Long output goes through a pager on a terminal, as git does it. What is written to standard output, by Python or by
its number, goes there meanwhile; so widths and colours are to be asked for before."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

CHOICES = ("AGENTD_PAGER", "GIT_PAGER", "PAGER")


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


@contextlib.contextmanager
def paged(is_wanted: bool) -> Iterator[None]:
    """``is_wanted``: if there is a terminal for it."""
    command = chosen() if is_wanted and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else None
    if command is None:
        yield
        return
    import subprocess  # for people at a terminal only: 3 ms

    sys.stdout.flush()
    screen = os.dup(1)
    try:
        environment = {"LESS": "FRX", "LV": "-c", **os.environ}
        pager = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=screen, env=environment)
        assert pager.stdin is not None
        os.dup2(pager.stdin.fileno(), 1)
        pager.stdin.close()
        try:
            with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):  # who reads has seen enough
                yield
                sys.stdout.flush()
        finally:
            discard_rest()
            os.dup2(screen, 1)  # the pager sees the end
            while pager.poll() is None:
                with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the pager's
                    pager.wait()
    finally:
        os.close(screen)


def chosen() -> str | None:
    """The first that is set, else less; None if that is none."""
    command = next((os.environ[name] for name in CHOICES if name in os.environ), "less")
    program = command.split()[0] if command.strip() else "cat"
    if program == "cat" or ("=" not in program and shutil.which(program) is None):
        return None
    return command


def discard_rest() -> None:
    """What is still buffered for a pager that has gone goes nowhere, not to the terminal."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        sys.stdout.flush()
