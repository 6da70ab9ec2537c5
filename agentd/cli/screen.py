"""A terminal taken over for a while, and given back as it was: drawn whole, keys one by one, woken by signals."""

import contextlib
import os
import signal
import sys
import termios
import tty
from types import TracebackType
from typing import Any

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, TO_THE_RIGHT, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
WAKING = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Screen:
    """``signals`` and ``keys`` are descriptors to be polled; ``keys`` is None if nobody can press any."""

    def __init__(self) -> None:
        self.keys = 0 if os.isatty(0) else None
        self.signals, self._theirs = os.pipe()
        os.set_blocking(self._theirs, False)
        self._before: dict[signal.Signals, Any] = {}
        self._mode: list[Any] = []

    def __enter__(self) -> "Screen":
        for number in WAKING:
            self._before[number] = signal.signal(number, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._theirs, warn_on_full_buffer=False)
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may have gone
            self.give_back()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.signals)
        os.close(self._theirs)

    def take(self) -> None:
        if self.keys is not None:
            self._mode = termios.tcgetattr(self.keys)
            tty.setcbreak(self.keys)
        self._write(ENTER)

    def give_back(self) -> None:
        self._write(LEAVE)
        if self.keys is not None:
            termios.tcsetattr(self.keys, termios.TCSADRAIN, self._mode)

    def draw(self, lines: list[str], height: int) -> None:
        """From the top; what does not fit is left out."""
        self._write(HOME + "\n".join(line + TO_THE_RIGHT for line in lines[:height]) + BELOW)

    def stop(self) -> None:
        """As Ctrl-Z would, with the terminal as it was; returns when the shell continues us."""
        self.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.take()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
