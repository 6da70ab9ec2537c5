"""The terminal of an attempt with ``-t``, as its keeper holds it.

* **The master is in many hands:** the keeper's, the zygote's, the daemon's, and the agent's own tree has it as it has
  the anchors of the FIFOs. While one of them lives nobody is hung up, and unread output stays in the kernel. A keeper
  that is given none by zygote or daemon takes it back from the tree (:func:`taken_back`).
* **Output** goes on to out.fifo by splice, and from there as any output does (:mod:`agentd.output`): its bytes are in
  the terminal, the FIFO or the log, never in us. Each keeper holds the slave side open, so the end of the last
  program is no end of file: as with the FIFOs, it is the tree's end that ends the output.
* **Who looks reads the log.** A viewer is a connection to keeper.sock: it is told that the log has grown, and sends
  what is typed. So one that never reads slows nobody.
* **One types**, the others look on until they steal it. The terminal has the size of the one who types.

What was typed in the moment in which a keeper is killed may be lost.
"""

import array
import base64
import contextlib
import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable
from typing import Any, Protocol

from agentd import output, process

TIOCGPTPEER = 0x5441
TIOCGPTN = 0x80045430
IUTF8 = 0o40000
CHUNK = 4096 if process.without("splice") else 65536
MOST_TYPED = 256 * 1024
REDRAW_S = 0.5
DEFAULT_SIZE = (24, 80)
Size = tuple[int, int]
"""Rows and columns."""


def make(size: Size) -> int:
    """A new PTY's master, not blocking, of this size."""
    master, slave = os.openpty()
    try:
        mode = termios.tcgetattr(slave)
        mode[0] |= IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, mode)
    finally:
        os.close(slave)
    os.set_blocking(master, False)
    set_size(master, size)
    return master


def open_slave(master: int) -> int:
    """Its other side, whatever is mounted at /dev/pts. It becomes nobody's controlling terminal."""
    return int(fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))


def number(master: int) -> int:
    """N of /dev/pts/N."""
    found = array.array("I", [0])
    fcntl.ioctl(master, TIOCGPTN, found, True)
    return found[0]


def size_of(master: int) -> Size:
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def set_size(master: int, size: Size) -> None:
    """The programs in the foreground get SIGWINCH, if it is another one."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def good_size(asked: object) -> Size | None:
    """A size that a terminal can have; None for one that says nothing, such as 0 × 0."""
    if not isinstance(asked, list | tuple) or len(asked) != 2:
        return None
    rows, columns = asked
    if not all(isinstance(side, int) and 0 < side < 1 << 16 for side in asked):
        return None
    return rows, columns


def become_controlling(master: int) -> int:
    """In the agent's process, a session leader: the slave is its controlling terminal from now on."""
    slave = open_slave(master)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    return slave


def taken_back(leader: int) -> int | None:
    """The master out of the agent's own tree, when everybody who kept it for us is dead. None if no process there
    has it, or the kernel (yama) does not let us."""
    with contextlib.suppress(OSError):
        ours = process.controlling_terminal(leader)
        for pid in (leader, *process.descendants(leader)):
            for fd in process.open_files(pid, "/ptmx"):
                copy = process.take_descriptor(pid, fd)
                if copy is None:
                    continue
                if ours and number(copy) == os.minor(ours):
                    return copy
                os.close(copy)
    return None


class Host(Protocol):
    """What the terminal needs of its keeper."""

    timers: dict[str, float]

    def watch(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def after(self, name: str, seconds: float) -> None: ...
    def answer(self, fd: int, reply: dict[str, Any]) -> None: ...
    def on_output(self, stream: str) -> None: ...
    def pause_reading(self, fd: int) -> None: ...
    def resume_reading(self, fd: int) -> None: ...


class Viewer:
    def __init__(self, fd: int, wants_to_type: bool, size: Size | None) -> None:
        self.fd = fd
        self.wants_to_type = wants_to_type
        self.size = size


class Terminal:
    def __init__(self, master: int, host: Host) -> None:
        self.master = master
        self.slave = open_slave(master)
        self.host = host
        self.viewers: dict[int, Viewer] = {}
        self.typist: Viewer | None = None
        self.typed = b""
        self.paused: int | None = None
        """The connection that is not read for the moment: the agent does not take what was typed there."""
        self.real_size: Size | None = None
        """That of before the little change which makes a program draw everything anew."""

    def watch(self) -> None:
        self.host.watch(self.master, self.on_master, select.POLLIN | (select.POLLOUT if self.typed else 0))

    def unwatch(self) -> None:
        self.host.unwatch(self.master)

    def on_master(self, events: int) -> None:
        if events & select.POLLOUT:
            self.pass_typed()
        if events & ~select.POLLOUT:
            self.host.on_output("out")

    def take(self, fifo: int) -> int:
        """Move what the agent wrote into the empty FIFO; 0 when there is nothing."""
        try:
            count = output.move(self.master, fifo, CHUNK)
        except OSError:  # nothing there, or (EIO) nobody has the other side
            return 0
        if count:
            self.end_redraw()
        return count

    # --- viewers --------------------------------------------------------------------------------------------

    def attach(self, fd: int, ask: dict[str, Any]) -> None:
        """``{"size": [rows, columns], "type": bool, "steal": bool, "redraw": bool}``"""
        viewer = Viewer(fd, bool(ask.get("type")), good_size(ask.get("size")))
        self.viewers[fd] = viewer
        before = size_of(self.master)
        if viewer.wants_to_type and (self.typist is None or ask.get("steal")):
            self.let_type(viewer)
        if ask.get("redraw") and size_of(self.master) == before:
            self.redraw()
        types, size = self.typist is viewer, self.real_size or size_of(self.master)
        self.host.answer(fd, {"attached": {"types": types, "size": list(size), "viewers": len(self.viewers)}})

    def let_type(self, viewer: Viewer) -> None:
        if self.typist is not None and self.typist is not viewer:
            self.host.answer(self.typist.fd, {"types": False})
        self.typist = viewer
        self.resize(viewer)

    def resize(self, viewer: Viewer) -> None:
        if viewer.size is not None and viewer is self.typist:
            self.real_size = None
            set_size(self.master, viewer.size)

    def is_viewer(self, fd: int) -> bool:
        return fd in self.viewers

    def leave(self, fd: int) -> None:
        """When the one who typed is gone, the next who wants to may."""
        viewer = self.viewers.pop(fd, None)
        if viewer is None or viewer is not self.typist:
            return
        self.typist = None
        heir = next((other for other in self.viewers.values() if other.wants_to_type), None)
        if heir is not None:
            self.let_type(heir)
            self.host.answer(heir.fd, {"types": True})

    def obey(self, fd: int, request: dict[str, Any]) -> bool:
        """``{"keys": base64}``, ``{"size": [rows, columns]}``; False for what is nothing of ours."""
        viewer = self.viewers.get(fd)
        if viewer is None or not ("keys" in request or "size" in request):
            return False
        if "size" in request:
            viewer.size = good_size(request["size"])
            self.resize(viewer)
        elif viewer is self.typist:
            self.typed += base64.b64decode(request["keys"], validate=True)
            self.pass_typed()
        return True

    def pass_typed(self) -> None:
        """As much as the agent's side takes; who types far ahead of it is not read meanwhile."""
        try:
            while self.typed:
                self.typed = self.typed[os.write(self.master, self.typed) :]
        except OSError:  # full
            pass
        self.watch()
        if len(self.typed) > MOST_TYPED and self.typist is not None:
            self.paused = self.typist.fd
            self.host.pause_reading(self.paused)
        elif not self.typed and self.paused is not None:
            self.host.resume_reading(self.paused)
            self.paused = None

    # --- drawing anew ---------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Another size, until the program has answered to it with output: then it draws all once more."""
        if self.real_size is None:
            rows, columns = self.real_size = size_of(self.master)
            set_size(self.master, (rows - 1 or 2, columns))
        self.host.after("redraw", REDRAW_S)

    def end_redraw(self) -> None:
        if self.real_size is not None:
            set_size(self.master, self.real_size)
            self.real_size = None
            self.host.timers.pop("redraw", None)
