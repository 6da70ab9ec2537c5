"""The daemon's line to its zygote: started, taken over from a dead daemon, replaced when it dies."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from agentd import __version__, jobdir

MESSAGE_BYTES = 65536
MAX_FDS = 8
HELLO_S = 10.0
Answer = tuple[dict[str, Any], dict[str, int]]


class ZygoteLost(Exception):
    """The zygote died before it answered. The same order may be given to the next one."""


class Zygotes:
    """All of one kind, one after the other. ``on_notice(message, fds)``: a keeper was forked, is done, or has
    given what it held. ``on_new()``:
    another zygote serves now; tell it what to look after."""

    def __init__(
        self,
        state_dir: str,
        kind: str,
        on_notice: Callable[[dict[str, Any], dict[str, int]], None],
        on_new: Callable[[], None],
    ) -> None:
        self.state_dir = state_dir
        self.kind = kind
        self.on_notice = on_notice
        self.on_new = on_new
        self.link: socket.socket | None = None
        self.pid = 0
        self.pending: dict[int, asyncio.Future[Answer]] = {}
        self.outgoing: list[tuple[bytes, list[int]]] = []
        self.number = 0
        self.ready = asyncio.Event()
        self.is_closing = False
        self.task: asyncio.Task[None] | None = None
        self.children: list[subprocess.Popen[bytes]] = []

    async def start(self, must: bool = True) -> list[str]:
        """Take over the zygote of the last daemon, or start one (unless there is no ``must``). Returns the attempts
        that it holds descriptors for."""
        old = self._connect()
        if old is not None:
            self._use(old)
            try:
                answer, _ = await asyncio.wait_for(self._ask("hello"), HELLO_S)
                if answer["version"] == __version__:
                    self.pid = answer["pid"]
                    self.ready.set()
                    return list(answer["held"])
                return await self._replace(list(answer["held"]))
            except (ZygoteLost, TimeoutError):
                self._drop()
        if must:
            await self._spawn()
        return []

    async def _replace(self, held: list[str]) -> list[str]:
        """The old zygote is of another version: take what it holds, retire it, start ours."""
        escrow = {}
        for path in held:
            _, escrow[path] = await self._ask("escrow", path=path)
        await self._ask("retire")
        self._drop()
        await self._spawn()
        for path, fds in escrow.items():
            await self._ask("hold", path=path, fds=fds)
            for fd in fds.values():
                os.close(fd)
        return held

    async def ask(self, op: str, fds: dict[str, int] | None = None, **arguments: Any) -> Answer:
        """Give an order to the zygote that serves, and to its successor if it dies meanwhile."""
        # Copies: the caller may let go of its own before the message is out, or before it is sent again.
        copies = {name: os.dup(fd) for name, fd in (fds or {}).items()}
        try:
            while True:
                await self._be_ready()
                try:
                    return await self._ask(op, copies, **arguments)
                except ZygoteLost:
                    if self.is_closing:
                        raise
        finally:
            for fd in copies.values():
                os.close(fd)

    async def _be_ready(self) -> None:
        """The first order to a kind that nobody needed before starts its zygote; ZygoteLost if that cannot start."""
        if self.ready.is_set():
            return
        if self.link is None and (self.task is None or self.task.done()):
            self.task = asyncio.ensure_future(self._spawn())
        await (asyncio.shield(self.task) if self.task is not None else self.ready.wait())

    def close(self) -> None:
        self.is_closing = True
        self._drop()

    # --- one link -------------------------------------------------------------------------------------------

    def _connect(self) -> socket.socket | None:
        try:
            path = jobdir.zygote_socket(self.state_dir, self.kind)
            return jobdir.connect(path, socket.SOCK_SEQPACKET, blocking=False)
        except OSError:
            return None

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "agentd.zygote", str(theirs.fileno()), self.state_dir, self.kind]
        with theirs:
            child = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self.children = [old for old in self.children if old.poll() is None] + [child]
        self._use(ours)
        answer, _ = await self._ask("hello")
        if self.link is not ours:
            raise ZygoteLost  # it answered, and died before we came to read it
        # The last one's socket ended a moment before its process did: by now that is over, too.
        self.children = [child for child in self.children if child.poll() is None]
        self.pid = answer["pid"]
        self.ready.set()

    def _use(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.link = link
        asyncio.get_running_loop().add_reader(link.fileno(), self._on_readable)

    def _drop(self) -> None:
        self.ready.clear()
        if self.link is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.link.fileno())
            loop.remove_writer(self.link.fileno())
            self.link.close()
            self.link = None
        self.outgoing.clear()
        pending, self.pending = self.pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(ZygoteLost())

    async def _ask(self, op: str, fds: dict[str, int] | None = None, **arguments: Any) -> Answer:
        if self.link is None:
            raise ZygoteLost
        fds = fds or {}
        self.number += 1
        message = {"op": op, "id": self.number, "fds": list(fds), **arguments}
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pending[self.number] = future
        self.outgoing.append((json.dumps(message).encode(), list(fds.values())))
        self._flush()
        return await future

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self.outgoing and self.link is not None:
            data, fds = self.outgoing[0]
            try:
                socket.send_fds(self.link, [data], fds)
            except BlockingIOError:
                loop.add_writer(self.link.fileno(), self._flush)
                return
            except OSError:
                return  # its end is read by _on_readable
            self.outgoing.pop(0)
        if self.link is not None:
            loop.remove_writer(self.link.fileno())

    def _on_readable(self) -> None:
        assert self.link is not None
        try:
            data, fds, _, _ = socket.recv_fds(self.link, MESSAGE_BYTES, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            return self._on_end()
        for fd in fds:
            os.set_inheritable(fd, False)
        message = json.loads(data)
        named = dict(zip(message.pop("fds"), fds, strict=True))
        if "notice" in message:
            return self.on_notice(message, named)
        future = self.pending.pop(message["id"], None)
        if future is None or future.done():
            for fd in named.values():
                os.close(fd)
            return
        future.set_result((message, named))

    def _on_end(self) -> None:
        was_serving = self.ready.is_set()
        self._drop()
        if was_serving and not self.is_closing:
            self.task = asyncio.ensure_future(self._succeed())

    async def _succeed(self) -> None:
        """The zygote died: its keepers go on without it. Start another and have it look after them."""
        pause = 0.0
        while not self.is_closing:
            await asyncio.sleep(pause)
            with contextlib.suppress(ZygoteLost, OSError):
                await self._spawn()
                self.on_new()
                return
            pause = min(1.0, pause * 2 + 0.05)
