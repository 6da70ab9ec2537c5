"""One inotify instance for all worktrees, through watchdog.

Not watchdog's observer: it watches all folders below a path, those with a hundred thousand ignored files too, and has a
thread for each worktree. Its ``InotifyFD`` beneath is one instance, one thread, and watches that we choose.
"""

import asyncio
import errno
import logging
import os
import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from agentd import process

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyFD

MAX_WAITING = 50_000
"""Events that we have not come to: a flood beyond that is a scan for everybody."""
LIMITS = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF, IGNORED, ISDIR = 0x400, 0x800, 0x8000, 0x40000000
ONLYDIR, EXCL_UNLINK = 0x1000000, 0x4000000
# CLOSE_WRITE beside MODIFY: writes through a memory map tell nothing else. ATTRIB: git keeps the executable bit.
MASK = (
    *(MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE),
    *(DELETE_SELF, MOVE_SELF, ONLYDIR, EXCL_UNLINK),
)


class OutOfWatches(Exception):
    """The kernel gives no (more) watches; its words are for people."""


class Listener(Protocol):
    def on_event(self, watch: int, mask: int, name: bytes) -> None: ...

    def on_lost(self) -> None:
        """Events are missing: nothing that was learned from them is sure."""


class Kernel:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.instance: InotifyFD | None = None
        self.waiting: deque[tuple[Listener, int, int, bytes]] = deque()
        self.is_called = False
        self.listeners: dict[int, _Callback] = {}

    def add(self, path: bytes, listener: Listener) -> int | None:
        """Watch one folder; None if it may not be read."""
        callback = self.listeners.setdefault(id(listener), _Callback(self, listener))
        try:
            if self.instance is None:
                self.instance = self._begin()
            watch = self.instance.add_callback(path, sum(MASK), callback, id(callback))  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in LIMITS:
                raise OutOfWatches(f"inotify: {os.strerror(error.errno)} ({error.strerror})") from None
            raise
        return None if watch == -1 else int(watch)  # what watchdog gives for EACCES

    def _begin(self) -> "InotifyFD":
        if process.without("inotify"):
            raise OutOfWatches("inotify is switched off (AGENTD_WITHOUT)")
        try:
            from watchdog.observers.inotify_c import InotifyFD
        except Exception as error:  # not installed, or a C library without inotify
            raise OutOfWatches(f"watchdog cannot be used: {error}") from None
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # an overflow is answered, not logged
        warnings.filterwarnings("ignore", "Callback with id")  # a scan asks for watches that are there
        threading.excepthook = _end_blind
        instance = InotifyFD()
        instance.start()
        return instance

    def remove(self, watches: list[int], listener: Listener) -> None:
        callback = self.listeners.get(id(listener))
        if self.instance is not None and callback is not None:
            self.instance.remove_callbacks([(watch, id(callback)) for watch in watches])  # type: ignore[misc]

    def forget(self, listener: Listener) -> None:
        self.listeners.pop(id(listener), None)

    # --- on watchdog's thread -------------------------------------------------------------------------------

    def put(self, listener: Listener, watch: int, mask: int, name: bytes) -> None:
        if len(self.waiting) >= MAX_WAITING:
            self.lose()
            return
        self.waiting.append((listener, watch, mask, name))
        if not self.is_called:
            self.is_called = True
            self.loop.call_soon_threadsafe(self._hand_out)

    def lose(self) -> None:
        self.waiting.clear()
        self.loop.call_soon_threadsafe(self._tell_lost)

    # --- on the loop ----------------------------------------------------------------------------------------

    def _tell_lost(self) -> None:
        for callback in list(self.listeners.values()):
            callback.listener.on_lost()

    def _hand_out(self) -> None:
        self.is_called = False  # before we look: what comes from now on calls again
        for _ in range(len(self.waiting)):
            try:
                listener, watch, mask, name = self.waiting.popleft()
            except IndexError:  # a flood was given up meanwhile
                return
            if id(listener) in self.listeners:
                listener.on_event(watch, mask, name)


class _Callback:
    """What watchdog calls for one worktree."""

    def __init__(self, kernel: Kernel, listener: Listener) -> None:
        self.kernel = kernel
        self.listener = listener

    def on_event(self, event: Any) -> None:
        self.kernel.put(self.listener, event.wd, event.mask, event.name)

    def on_watch_deleted(self, watch: int) -> None:
        self.kernel.put(self.listener, watch, IGNORED, b"")

    def on_queue_overflow(self) -> None:
        self.kernel.lose()


def _end_blind(args: threading.ExceptHookArgs) -> None:
    """The thread that reads the kernel's events has ended: we would see nothing, and not know. The daemon starts
    another watcher."""
    threading.__excepthook__(args)
    os._exit(1)
