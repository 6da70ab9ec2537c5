"""The process: orders in, facts out, until the socket ends."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from agentd import process
from agentd.watch import wire
from agentd.watch.kernel import Kernel
from agentd.watch.worktree import Worktree

GIT_THREADS = 4
NICENESS = 5


def main(argv: list[str]) -> NoReturn:
    """``agentd.watch FD``: the other end is the daemon's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process.set_name("agentd-watcher")
    try:
        asyncio.run(Watcher().serve(socket.socket(fileno=int(argv[0]))))
    except Exception:
        traceback.print_exc()
        end_at_once(1)
    end_at_once()


class Watcher:
    def __init__(self) -> None:
        self.worktrees: dict[str, Worktree] = {}
        self.threads = ThreadPoolExecutor(GIT_THREADS, initializer=be_nice)
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, link: socket.socket) -> None:
        self.kernel = Kernel()
        reader, self.writer = await asyncio.open_connection(sock=link, limit=wire.LINE_BYTES)
        with contextlib.suppress(ConnectionError):
            while data := await reader.readline():
                self.obey(wire.order(data))

    def obey(self, order: wire.AnyOrder) -> None:
        worktree = self.worktrees.get(order.key)
        if isinstance(order, wire.Watch):
            if worktree is None:
                worktree = Worktree(order, self.kernel, self.threads, self.tell)
                self.worktrees[order.key] = worktree
                self.spawn(worktree)
        elif worktree is None:
            self.writer.write(wire.line(wire.Gone(order.key)))
        elif isinstance(order, wire.Unwatch):
            worktree.end()
        else:
            worktree.rescan()

    def spawn(self, worktree: Worktree) -> None:
        task = asyncio.ensure_future(worktree.run())
        self.tasks.add(task)
        task.add_done_callback(self.on_done)

    def on_done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            traceback.print_exception(error)
            end_at_once(1)

    async def tell(self, fact: wire.AnyFact) -> None:
        """A daemon that is behind is waited for: what happens meanwhile becomes one scan."""
        if isinstance(fact, wire.Gone):
            self.worktrees.pop(fact.key, None)
        self.writer.write(wire.line(fact))
        await self.writer.drain()


def be_nice() -> None:
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))


def end_at_once(code: int = 0) -> NoReturn:
    """With every git that still runs: each leads a group of its own."""
    for pid in process.children(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    sys.stderr.flush()
    os._exit(code)
