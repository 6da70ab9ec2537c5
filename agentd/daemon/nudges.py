"""What keepers tell the daemon: look at this attempt's files. One packet a nudge, with a descriptor now and then.

A keeper waits for nothing. What it sends lies in the kernel until the daemon comes to read it, and so does a pidfd of
an agent that is about to start: keeper and zygote may die the moment after, its exit status is still to be had.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from agentd import jobdir

MESSAGE_BYTES = 65536
MAX_WAITING = 64
"""Connections that have said nothing yet."""


class Nudge(msgspec.Struct, frozen=True):
    """``what``: for what no file can hold; ``processes``: what cannot be killed."""

    job: int
    attempt: int
    what: str = ""
    processes: tuple[dict[str, Any], ...] = ()


class Nudges:
    """``on_nudge(nudge, fd)``: ``fd`` is a pidfd of the attempt's leader, to be closed by whom it is given to."""

    def __init__(self, path: str, on_nudge: Callable[[Nudge, int | None], None]) -> None:
        self.path = path
        self.on_nudge = on_nudge
        self.loop = asyncio.get_running_loop()
        self.listener: socket.socket | None = None
        self.waiting: list[socket.socket] = []

    def listen(self) -> None:
        self.close()
        self.listener = jobdir.listen(self.path, socket.SOCK_SEQPACKET, backlog=4096)
        self.listener.setblocking(False)
        self.loop.add_reader(self.listener, self._accept)

    def close(self) -> None:
        for link in list(self.waiting):
            self._forget(link)
        if self.listener is not None:
            self.loop.remove_reader(self.listener)
            self.listener.close()
            self.listener = None

    def _accept(self) -> None:
        assert self.listener is not None
        for _ in range(64):
            try:
                link, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError:
                return self._pause()
            if jobdir.peer_uid(link) != os.getuid():
                link.close()
                continue
            link.setblocking(False)
            if not self._take(link):
                self.waiting.append(link)
                self.loop.add_reader(link, self._take_late, link)
                if len(self.waiting) > MAX_WAITING:
                    self._forget(self.waiting[0])

    def _pause(self) -> None:
        """Out of descriptors: no busy loop, the backlog waits."""
        assert self.listener is not None
        self.loop.remove_reader(self.listener)
        self.loop.call_later(0.2, self._go_on, self.listener)

    def _go_on(self, listener: socket.socket) -> None:
        if self.listener is listener:
            self.loop.add_reader(listener, self._accept)

    def _take_late(self, link: socket.socket) -> None:
        if self._take(link):
            self._forget(link)

    def _forget(self, link: socket.socket) -> None:
        self.loop.remove_reader(link)
        self.waiting.remove(link)
        link.close()

    def _take(self, link: socket.socket) -> bool:
        """False if nothing has been said yet. Once it has, the link is closed by whoever has it."""
        try:
            data, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)
        if link not in self.waiting:
            link.close()
        try:
            nudge = msgspec.convert(json.loads(data), Nudge)
        except ValueError:
            for fd in fds:
                os.close(fd)
            if data:
                print(f"agentd: not understood, on {self.path}: {data[:200]!r}", file=sys.stderr)
            return True
        self.on_nudge(nudge, fds[0] if fds else None)
        return True
