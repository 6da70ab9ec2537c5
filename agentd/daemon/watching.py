"""The daemon's line to the worktree watcher: there while a job works in a worktree, replaced when it dies.

A job that is over in a moment is not watched at all: what it changed stands in its result. Before the worktree of a job
is settled the watcher lets go of it: nobody but the job's own may be seen in there then.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from agentd import jobdir
from agentd.core.job import Job, Running, Starting, Stopped, Stopping, Worktree
from agentd.daemon.perform import job_dir, plan_of
from agentd.watch import wire

SOON_S = 0.3
LET_GO_S = 10.0
LONG_LIFE_S = 60.0
MAX_PAUSE_S = 30.0
PASSED_ON = ("PATH", "HOME", "XDG_CONFIG_HOME")
PREFIXES_PASSED_ON = ("AGENTD_", "PYTHON")


class Watching:
    """``find(id)``: the job if it is not over yet. ``on_wrote(id, paths)``: they differ from the base, or were written
    or taken away just now; ``on_mode(id, how, why)``: as :class:`agentd.watch.wire.Mode` says."""

    def __init__(
        self,
        state_dir: str,
        find: Callable[[int], Job | None],
        on_wrote: Callable[[int, tuple[str, ...]], None],
        on_mode: Callable[[int, str, str], None],
    ) -> None:
        self.state_dir = state_dir
        self.find = find
        self.on_wrote = on_wrote
        self.on_mode = on_mode
        self.loop = asyncio.get_running_loop()
        self.soon: dict[int, asyncio.TimerHandle] = {}
        self.watched: dict[int, wire.Watch] = {}
        self.leaving: dict[int, asyncio.Future[None]] = {}
        """Those of the watched that the watcher shall let go of."""
        self.task: asyncio.Task[None] | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.pid = 0
        """Of the watcher that runs, for who looks after it."""

    def consider(self, job: Job) -> None:
        """Something happened to this job: is its worktree to be watched?"""
        if not is_at_work(job):
            if job.id in self.soon:
                self.soon.pop(job.id).cancel()
            elif job.id in self.watched and job.id not in self.leaving:
                self.leaving[job.id] = self.loop.create_future()
                self._order(wire.Unwatch(str(job.id)))
        elif job.id not in self.soon and job.id not in self.watched:
            self.soon[job.id] = self.loop.call_later(SOON_S, self._begin, job.id)

    async def let_go(self, job: Job) -> None:
        """Until the watcher is out of its worktree, and has told what it knew of it."""
        self.consider(job)
        leaving = self.leaving.get(job.id)
        if leaving is not None:
            await asyncio.wait([leaving], timeout=LET_GO_S)

    def rescan(self, job_id: int) -> None:
        """Have everything that differs told again."""
        if job_id in self.watched:
            self._order(wire.Rescan(str(job_id)))

    def close(self) -> None:
        for timer in self.soon.values():
            timer.cancel()
        if self.task is not None:
            self.task.cancel()

    def _begin(self, id: int) -> None:
        del self.soon[id]
        job = self.find(id)
        if job is None or not is_at_work(job):
            return
        self.watched[id] = order_for(self.state_dir, job)
        if self.task is None or self.task.done():
            self.task = self.loop.create_task(self._serve_while_needed())
            self.task.add_done_callback(self._on_end)
        else:
            self._order(self.watched[id])

    def _order(self, order: wire.AnyOrder) -> None:
        if self.writer is not None:
            self.writer.write(wire.line(order))

    # --- the process ----------------------------------------------------------------------------------------

    async def _serve_while_needed(self) -> None:
        pause = 0.0
        while self.watched:
            began = time.monotonic()
            try:
                await self._serve()
            except (OSError, ValueError) as error:
                print(f"agentd: the worktree watcher: {error}", file=sys.stderr, flush=True)
            for id in list(self.leaving):
                self._forget(id)  # it died: it is in no worktree
            if self.watched:
                pause = 0.0 if time.monotonic() - began > LONG_LIFE_S else min(MAX_PAUSE_S, pause * 2 + 0.1)
                await asyncio.sleep(pause)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.loop.call_exception_handler({"message": "the worktree watcher's line broke", "exception": error})

    async def _serve(self) -> None:
        """From the start of one watcher to its end: because nobody needs it any more, or by itself."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = start(theirs)
            except OSError:
                ours.close()
                raise
        self.pid = child.pid
        reader, self.writer = await asyncio.open_connection(sock=ours, limit=wire.LINE_BYTES)
        try:
            for order in self.watched.values():
                self._order(order)
            while self.watched and (data := await reader.readline()):
                self._take(wire.fact(data))
        finally:
            self.pid = 0
            self.writer.close()
            self.writer = None
            await asyncio.shield(asyncio.to_thread(reap, child))

    def _take(self, fact: wire.AnyFact) -> None:
        id = int(fact.key)
        match fact:
            case wire.Wrote(paths=paths):
                self.on_wrote(id, paths)
            case wire.Mode(how=how, why=why):
                self.on_mode(id, how, why)
            case wire.Gone():
                if id not in self.leaving:
                    self.on_mode(id, "off", "the worktree is gone")
                self._forget(id)

    def _forget(self, id: int) -> None:
        self.watched.pop(id, None)
        leaving = self.leaving.pop(id, None)
        if leaving is None:
            return
        leaving.set_result(None)
        job = self.find(id)
        if job is not None:
            self.consider(job)  # it may have begun anew meanwhile


def is_at_work(job: Job) -> bool:
    has_worktree = isinstance(job.place, Worktree) and job.place.admin is not None and not job.place.is_gone
    return has_worktree and isinstance(job.state, Starting | Running | Stopped | Stopping)


def order_for(state_dir: str, job: Job) -> wire.Watch:
    assert isinstance(job.place, Worktree) and job.place.admin is not None
    plan = plan_of(job)
    known = jobdir.read(job_dir(state_dir, job), "repository.json") or {}
    return wire.Watch(
        key=str(job.id),
        root=plan.path,
        common=plan.repo.common,
        admin=job.place.admin,
        base=plan.base,
        commands=known.get("commands"),
        own_commands=known.get("own_commands"),
    )


def start(link: socket.socket) -> "subprocess.Popen[bytes]":
    """It inherits its end of the socket and our standard error, and of our environment what git and Python need."""
    kept = (name for name in os.environ if name in PASSED_ON or name.startswith(PREFIXES_PASSED_ON))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "agentd.watch", str(link.fileno())],
        pass_fds=(link.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in kept},
        start_new_session=True,
    )


def reap(child: "subprocess.Popen[bytes]") -> None:
    """Its socket has ended, and so it ends at once; if it cannot, because it was stopped, it is made to."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(LET_GO_S)
        return
    child.kill()
    child.wait()
