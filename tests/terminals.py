"""Terminals for tests: a bare PTY with one program at it, and tmux, where a shell and its programs have a real one.

Nothing is timed: what is to be seen is waited for.
"""

import fcntl
import os
import select
import shlex
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from clishell import AGENTD
from faultlab import until

PATIENCE_S = 90.0


class Terminal:
    """A PTY; ``theirs`` stays open here, so what its modes are can be looked at after the program."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.ours, self.theirs = os.openpty()
        self.seen = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.set_size(rows, columns)
        self.modes = termios.tcgetattr(self.theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stderr is not None:
                self.process.stderr.close()
        self.hang_up()

    def set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def start(self, *words: str, **more: Any) -> "Terminal":
        """``agentd words``, in a session of its own at this terminal."""

        def at_terminal() -> None:
            fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0)

        options = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs} | more
        self.process = subprocess.Popen(
            [*AGENTD, *words], start_new_session=True, pass_fds=(self.theirs,), preexec_fn=at_terminal, **options
        )
        return self

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, text: bytes, after: int = 0) -> int:
        """Until it is on the terminal; the place behind it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen[after:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[after:]!r}"
            if select.select([self.ours], [], [], 1.0)[0]:
                self.seen += os.read(self.ours, 1 << 16)
            elif self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"ended {self.process.poll()} without {text!r}: {self.seen[after:]!r}")
        return self.seen.index(text, after) + len(text)

    def finish(self) -> int:
        """Its exit code; all that it wrote is in ``seen``."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None or select.select([self.ours], [], [], 0)[0]:
            assert time.monotonic() < deadline, f"does not end: {self.seen!r}"
            if select.select([self.ours], [], [], 0.05)[0]:
                self.seen += os.read(self.ours, 1 << 16)
        return int(self.process.returncode)

    def hang_up(self) -> None:
        for name in ("ours", "theirs"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


class Tmux:
    """A server of its own, with one window a shell."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.socket = folder / "tmux.sock"
        self.folder = folder
        self.shell = shell
        self.windows = 0

    def __enter__(self) -> "Tmux":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run(["tmux", "-S", str(self.socket), "kill-server"], capture_output=True, timeout=60)

    def __call__(self, *words: str) -> str:
        command = ["tmux", "-f", "/dev/null", "-S", str(self.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def window(self, name: str, rows: int = 24, columns: int = 80) -> "Window":
        """A shell with the prompt ``$ `` that knows ``agentd``."""
        start = {
            "bash": ["bash", "--norc", "--noprofile", "-i"],
            "zsh": ["zsh", "-f", "-i"],
        }[self.shell]
        self("new-session", "-d", "-s", name, "-x", str(columns), "-y", str(rows), "env", "PS1=$ ", "PROMPT=$ ", *start)
        window = Window(self, name)
        window.until("$")
        window.line(f'agentd() {{ {shlex.join(AGENTD)} "$@"; }}; clear')
        return window


class Window:
    def __init__(self, tmux: Tmux, name: str) -> None:
        self.tmux = tmux
        self.name = name

    def line(self, text: str) -> None:
        self.tmux("send-keys", "-t", self.name, "-l", text)
        self.keys("Enter")

    def keys(self, *names: str) -> None:
        self.tmux("send-keys", "-t", self.name, *names)

    def text(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", self.name)

    def until(self, *texts: str, without: str = "") -> str:
        """Until all of them are on the screen, and ``without`` is not."""

        def is_so() -> bool:
            shown = self.text()
            return all(text in shown for text in texts) and (not without or without not in shown)

        until(is_so, PATIENCE_S, lambda: f"no {texts} (without {without!r}) on:\n{self.text()}")
        return self.text()

    def resize(self, rows: int, columns: int) -> None:
        self.tmux("resize-window", "-t", self.name, "-x", str(columns), "-y", str(rows))

    def shows(self, format: str) -> str:
        """``#{alternate_on}``, ``#{cursor_flag}`` and the like."""
        return self.tmux("display-message", "-p", "-t", self.name, format).strip()
