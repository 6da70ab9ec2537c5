"""A program that a tool runs: its output bounded, its end noticed without a thread, its whole group ended.

It leads a session of its own. It is not reaped before the last holder of its output is gone: as long as that is so, the
number of its group is no other's, and can be signalled.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence

from agentd import process

from .results import LIMIT, Bounded

PIPE_CHUNK = 1 << 16
DRAIN_PIECES = (1 << 20) // PIPE_CHUNK + 1  # a pipe of the largest size, and one more for its end
GRACE = 1.0
PAUSE = 0.2


class Program:
    def __init__(
        self,
        argv: Sequence[str],
        environment: dict[str, str],
        folder: str,
        stdin: int = subprocess.DEVNULL,
        keeps_running: bool = False,
        limit: int = LIMIT,
    ) -> None:
        self.output = Bounded(limit)
        self.code: int | None = None
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()  # nobody holds its output any more
        self.grew = asyncio.Event()
        self.keeps_running = keeps_running
        self.pipe, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self.child = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=theirs,
                stderr=theirs,
                cwd=folder,
                env=environment,
                # What is inheritable is meant to be: the lock that tells that something of the agent lives.
                close_fds=False,
                start_new_session=True,
            )
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self.pipe, False)
        self.pidfd = os.pidfd_open(self.child.pid)
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.pipe, self._on_output)
        self.loop.add_reader(self.pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        return self.child.pid

    def is_over(self) -> bool:
        return self.exited.is_set() and self.silent.is_set()

    async def kill(self) -> None:
        """End its whole group: TERM, and KILL for who is still there a second later."""
        self._signal(signal.SIGTERM)
        await self._over(GRACE)
        if not self.is_over():
            self._signal(signal.SIGKILL)
            await self.exited.wait()
        self._stop_reading()

    async def news(self) -> None:
        """It is over, or has written something and then paused."""
        while not self.is_over() and not self.output.total:
            self.grew.clear()
            await self.grew.wait()
        await self._over(PAUSE)

    def taken(self, more: str) -> str:
        """What it wrote since this was asked last."""
        text, self.output = self.output.text(more), Bounded()
        return text

    async def _over(self, within: float) -> None:
        # Not asyncio.timeout: in a task that is being cancelled, that of Python 3.11.2 loses its TimeoutError.
        waits = [asyncio.ensure_future(event.wait()) for event in (self.exited, self.silent)]
        await asyncio.wait(waits, timeout=within)
        for wait in waits:
            wait.cancel()

    def _signal(self, number: int) -> None:
        if self.child.returncode is None:  # not reaped: the group is ours
            try:
                os.killpg(self.child.pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    def _on_output(self) -> None:
        # One piece at a time: a program that never stops writing must not keep us from noticing anything else.
        if not self._read_piece():
            self._stop_reading()

    def _read_piece(self) -> bool:
        try:
            data = os.read(self.pipe, PIPE_CHUNK)
        except BlockingIOError:
            return True
        self.output.add(data)
        self.grew.set()
        return bool(data)

    def _on_exit(self) -> None:
        self.loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        seen = process.look_at_child(self.child.pid)
        if seen is not None:
            self.code = seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status
        self._drain()
        self.exited.set()
        if self.silent.is_set() or not self.keeps_running:
            self._stop_reading()

    def _drain(self) -> None:
        """What is in the pipe at the end; not what others may still be writing into it."""
        for _ in range(DRAIN_PIECES):
            if self.silent.is_set():
                return
            try:
                data = os.read(self.pipe, PIPE_CHUNK)
            except BlockingIOError:
                return
            self.output.add(data)
            if not data:
                return self._stop_reading()

    def _stop_reading(self) -> None:
        if not self.silent.is_set():
            self.loop.remove_reader(self.pipe)
            os.close(self.pipe)
            self.silent.set()
        if self.exited.is_set() or self.code is not None:
            self.child.wait()
        self.grew.set()
