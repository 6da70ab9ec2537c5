"""Being at an agent's terminal: keys go to its keeper, output comes from its log. No daemon is needed.

The keeper may be killed: its adopter is found by the same path, and it goes on. What one has not been shown yet is in
the log, so whoever is slow slows nobody; far behind, one is shown the newest, and told how much was skipped.

A full-screen program appears as it is: the log's end since the screen was last cleared is drawn, the modes that are
set are set again, and the program is made to draw itself by a change of size (:meth:`agentd.terminal.Terminal.redraw`).
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from agentd import follow, jobdir
from agentd.core.errors import NotNow, Refused
from agentd.screen import Filter, Keys, Modes, beginning, is_drawn

AT_ONCE = 1 << 17
FAR_BEHIND = 1 << 20
TAIL = 1 << 18
HEAD, RECENT = 1 << 20, 32 << 20
"""Modes are set when a program begins, or not long ago: of a long log the middle is not looked at."""
KEYS_AT_ONCE = 1024
MOST_UNSAID = 1 << 16
PATIENCE_S = 10.0
GONE = "gone"
ENDED = "ended"


class HungUp(Exception):
    """Our own terminal has gone."""


def own_size() -> tuple[int, int] | None:
    """Rows and columns of the terminal we are at; None if none of the standard streams is one that tells."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            if rows and columns:
                return rows, columns
    return None


def own_rows() -> int:
    return (own_size() or (24, 80))[0]


def stop(path: str) -> bool:
    """The whole tree of a job; False if it has ended, or nobody keeps it just now."""
    answer = jobdir.ask_keeper(path, {"stop": True}, PATIENCE_S)
    return answer is not None and bool(answer.get("ok"))


@contextlib.contextmanager
def raw_mode(has_signals: bool) -> Iterator[None]:
    """Keys come as they are pressed. ``has_signals``: Ctrl-C is for us. Restored on every way out."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        if has_signals:
            mode = termios.tcgetattr(0)
            mode[3] |= termios.ISIG
            mode[6][termios.VSUSP] = mode[6][termios.VQUIT] = b"\0"
            termios.tcsetattr(0, termios.TCSADRAIN, mode)
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):  # the terminal has gone
            termios.tcsetattr(0, termios.TCSAFLUSH, before)  # what it answered to late questions is for nobody


@contextlib.contextmanager
def signals(wake: int) -> Iterator[None]:
    """A new size wakes us; the end of the terminal, or of us, is an exit like any other."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    handlers: dict[int, Any] = {
        signal.SIGWINCH: lambda *_: None,
        signal.SIGCONT: lambda *_: None,
        signal.SIGTSTP: signal.SIG_IGN,
        signal.SIGTERM: end,
        signal.SIGHUP: end,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    before_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_wake)
        for number, handler in before.items():
            signal.signal(number, handler)


class Attachment:
    """``bindings``: sequences of keys that are for us, with what they mean. ``may_type`` false: only look."""

    def __init__(self, path: str, bindings: dict[bytes, str], may_type: bool, steal: bool, is_unfiltered: bool) -> None:
        self.path = path
        self.keys = Keys(bindings)
        self.may_type = may_type
        self.steals = steal
        self.modes = Modes()
        self.is_screen = os.isatty(1)
        self.filter = Filter() if self.is_screen and not is_unfiltered else None
        self.reads_keys = False
        self.types = False
        self.offset = 0
        self.link: socket.socket | None = None
        self.heard = b""
        self.to_say = b""
        self.is_asked = False
        """The keeper will tell that the log has grown."""
        self.attached: dict[str, Any] = {}
        """What the keeper said when it let us in."""

    def __enter__(self) -> "Attachment":
        """Let in by the keeper, or refused; a job that has not started is waited for."""
        self.watch = follow.Watch(self.path)
        self.wake, self.woken_by = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.scan()
            self.enter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lose_link()
        self.watch.close()
        os.close(self.wake)
        os.close(self.woken_by)

    def enter(self) -> None:
        deadline: float | None = None
        while not self.attached:
            if follow.has_ended(self.path):
                return
            self.connect(redraw=self.is_screen and self.is_drawn(self.tail()))
            if self.link is not None:
                deadline = deadline or time.monotonic() + PATIENCE_S
            self.wait(None if deadline is None else deadline - time.monotonic())
            if deadline is not None and time.monotonic() > deadline:
                raise NotNow("cannot attach now: the job's keeper does not answer; try again", "keeper_busy")

    def run(self) -> str:
        """Until the job ends, or a key that is for us; ``gone``: our own terminal is."""
        with signals(self.woken_by), raw_mode(has_signals=not self.may_type):
            try:
                self.reads_keys = self.keys.actions != {} and os.isatty(0)
                self.draw()
                return self.loop()
            except HungUp:
                return GONE
            finally:
                with contextlib.suppress(HungUp):
                    self.clear_off()

    def loop(self) -> str:
        while True:
            is_over = follow.has_ended(self.path)
            is_more = self.show()
            if is_over and not is_more:
                return ENDED
            self.connect(redraw=False)
            if self.link is not None and not self.is_asked and not is_more:
                self.is_asked = True
                self.say({"follow": [self.offset, 1 << 62]})
            action = self.wait(0.0 if is_more else None)
            if action:
                return action

    # --- the screen -----------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Which modes are set, and where the log ends."""
        self.offset = end = jobdir.size(self.path, "out")
        for start, stop in ((0, min(HEAD, end)), (max(HEAD, end - RECENT), end)):
            for _, data in jobdir.read_range(self.path, "out", start, stop):
                self.modes.feed(data)

    def draw(self) -> None:
        """What the screen shows now."""
        if not self.is_screen:
            return
        tail = self.tail()
        is_drawn = self.is_drawn(tail)
        head = self.modes.enter_alternate() + b"\x1b[H\x1b[2J" if is_drawn else b""
        shown = tail[beginning(tail, is_drawn, own_rows()) :]
        self.put(head + self.filtered(shown, may_ask=False) + self.modes.enter())

    def tail(self) -> bytes:
        """The end of what has been shown."""
        start = max(0, self.offset - TAIL)
        return b"".join(data for _, data in jobdir.read_range(self.path, "out", start, self.offset))

    def is_drawn(self, tail: bytes) -> bool:
        """A program has the whole screen."""
        return self.modes.is_alternate or is_drawn(tail, own_rows())

    def clear_off(self) -> None:
        """Leave a terminal as we found it, in a new line."""
        if not self.is_screen:
            return
        if self.modes.is_alternate:
            return self.put(self.modes.leave())
        tail = self.tail()
        below = b"\x1b[999;1H\r\n" if self.is_drawn(tail) else b"" if tail.endswith(b"\n") else b"\r\n"
        self.put(self.modes.leave() + below)

    def show(self) -> bool:
        """Some of what is new; True if there is more."""
        end = jobdir.size(self.path, "out")
        if self.is_screen and end - self.offset > FAR_BEHIND:
            self.skip(end)
        stop = min(end, self.offset + AT_ONCE)
        for _, data in jobdir.read_range(self.path, "out", self.offset, stop):
            self.modes.feed(data)
            self.put(self.filtered(data, may_ask=self.types))
        self.offset = stop
        return stop < end

    def skip(self, end: int) -> None:
        skipped = end - TAIL - self.offset
        for _, data in jobdir.read_range(self.path, "out", max(self.offset, end - RECENT), end):
            self.modes.feed(data)
        self.offset = end
        self.put(self.modes.leave())
        if not self.modes.is_alternate:
            self.put(b"\r\nagentd: %d bytes are skipped here; agentd logs has them\r\n" % skipped)
        self.draw()

    def filtered(self, data: bytes, may_ask: bool) -> bytes:
        return data if self.filter is None else self.filter.feed(data, may_ask)

    def put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:  # somebody else who has this terminal wants it so
                select.select([], [1], [])
            except OSError:
                raise HungUp from None

    # --- waiting --------------------------------------------------------------------------------------------

    def wait(self, seconds: float | None) -> str:
        """Until something happens; what a key means that is for us."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        if self.reads_keys:
            poll.register(0, select.POLLIN)
        if self.watch.fd >= 0:
            poll.register(self.watch.fd, select.POLLIN)
        else:
            seconds = min(0.2, 0.2 if seconds is None else seconds)
        if self.link is not None:
            poll.register(self.link, select.POLLIN | (select.POLLOUT if self.to_say else 0))
        ready = dict(poll.poll(None if seconds is None else max(0.0, seconds * 1000)))
        for fd in (self.wake, self.watch.fd):
            if fd in ready:
                with contextlib.suppress(BlockingIOError):
                    while os.read(fd, 4096):
                        pass
        if self.wake in ready:
            self.say({"size": own_size()})
        if self.link is not None and self.link.fileno() in ready:
            self.hear(ready[self.link.fileno()])
        return self.on_keys() if 0 in ready else ""

    def on_keys(self) -> str:
        try:
            data = os.read(0, KEYS_AT_ONCE)
        except BlockingIOError:
            return ""
        except OSError:
            raise HungUp from None
        if not data:
            raise HungUp
        for passed, action in self.keys.feed(data):
            if passed and self.types:
                self.say({"keys": base64.b64encode(passed).decode()})
            elif passed and self.may_type:
                self.put(b"\a")  # somebody else types
            if action:
                return action
        return ""

    # --- the keeper -----------------------------------------------------------------------------------------

    def connect(self, redraw: bool) -> None:
        if self.link is not None:
            return
        try:
            self.link = jobdir.connect(f"{self.path}/keeper.sock", blocking=False)
        except OSError:
            return  # its adopter's socket will be seen to come
        self.heard, self.is_asked = b"", False
        ask = {"size": own_size(), "type": self.may_type, "steal": self.steals or self.types, "redraw": redraw}
        self.to_say = json.dumps({"attach": ask}).encode() + b"\n" + self.to_say
        self.flush()

    def lose_link(self) -> None:
        if self.link is not None:
            self.link.close()
        self.link, self.to_say, self.is_asked = None, b"", False

    def say(self, request: dict[str, Any]) -> None:
        """To the keeper there is, or the one to come."""
        if self.link is not None or len(self.to_say) < MOST_UNSAID:
            self.to_say += json.dumps(request).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        if self.link is None:
            return
        try:
            while self.to_say:
                self.to_say = self.to_say[self.link.send(self.to_say) :]
        except BlockingIOError:
            return
        except OSError:
            self.lose_link()

    def hear(self, events: int) -> None:
        if events & select.POLLOUT:
            self.flush()
        if self.link is None or not events & ~select.POLLOUT:
            return
        try:
            data = self.link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self.lose_link()
        *lines, self.heard = (self.heard + data).split(b"\n")
        for line in lines:
            self.take(json.loads(line))

    def take(self, answer: dict[str, Any]) -> None:
        if "attached" in answer:
            self.attached = answer["attached"]
            self.types, self.steals = bool(self.attached["types"]), False
        elif "types" in answer:
            self.types = bool(answer["types"])
            self.put(b"" if self.types else b"\a")
        elif "log" in answer:
            self.is_asked = False
        elif answer.get("error") == "hung up":
            what = "its terminal was hung up when keeper, zygote and daemon were killed together"
            raise Refused(f"cannot attach: {what}", "hung_up")
        elif "error" in answer and not self.attached:
            raise Refused("cannot attach: the job's keeper is of an older agentd", "old_keeper")
