"""One worktree, from its first scan to its end.

Each turn is the same: watch the folders, ask git what differs, tell it, then follow the kernel's events until something
is in doubt. Without watches git is asked every few seconds, and the kernel again after a while.
"""

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from agentd.core.errors import Refused
from agentd.git.run import refuse_pipe
from agentd.watch.folders import MADE, UNLINKED, Batch, Folders, RootGone, are_rules
from agentd.watch.kernel import Kernel, OutOfWatches
from agentd.watch.look import Blind, Look, signature
from agentd.watch.wire import PATHS_IN_A_FACT, AnyFact, Gone, Mode, Ready, Watch, Wrote

BATCH_S = 0.15
POLL_S = (2.0, 5.0)
POLL_SHARE = 20
"""Between two polls, times what one takes."""
WATCHES_AGAIN_S = 30.0
GIT_AGAIN_S = 5.0
T = TypeVar("T")


class Worktree:
    def __init__(
        self, order: Watch, kernel: Kernel, threads: Executor, tell: Callable[[AnyFact], Awaitable[None]]
    ) -> None:
        self.order = order
        self.kernel = kernel
        self.threads = threads
        self.tell = tell
        self.look = Look(order)
        self.wake = asyncio.Event()
        self.folders: Folders
        self.mode = ("", "")
        self.scan_s = 0.0
        self.polled: dict[str, object] = {}
        self.is_ready_due = True
        self.is_rescan_due = False
        self.is_ending = False

    def rescan(self) -> None:
        self.is_rescan_due = self.is_ready_due = True
        self.polled = {}
        self.wake.set()

    def end(self) -> None:
        self.is_ending = True
        self.wake.set()

    async def run(self) -> None:
        try:
            self.folders = Folders(self.order.root, self.kernel, self.wake)
            try:
                while await self._turn():
                    pass
            finally:
                self.folders.close()
                self.kernel.forget(self.folders)
        except RootGone:
            pass
        await self.tell(Gone(self.order.key))

    async def _turn(self) -> bool:
        """False when it has ended."""
        try:
            return await self._watch_or_poll()
        except Blind as why:
            self.folders.close()
            self.folders.check_root()
            await self._say_mode("off", str(why))
            await self._pause(GIT_AGAIN_S)
            return not self.is_ending

    async def _watch_or_poll(self) -> bool:
        try:
            await self._scan()
            return await self._follow()
        except OutOfWatches as why:
            reason = str(why)
        self.folders.close()
        await self._say_mode("polling", reason)
        return await self._poll()

    # --- with watches ---------------------------------------------------------------------------------------

    async def _scan(self) -> None:
        began = time.monotonic()
        self.is_rescan_due = False
        self.folders.check_root()
        before = await self._in_thread(self.look.survey, True)
        if self.is_ending:
            return
        self.folders.take()
        if not self.folders.watch_all(before.ignored):
            raise Blind(f"{self.order.root} cannot be read; run: chmod u+rx {self.order.root}")
        survey = await self._in_thread(self.look.survey, False)
        for path in survey.ignored:
            if path in self.folders.by_path:
                self.folders.forget(path)
        await self._tell_of(survey.changed)
        await self._say_mode("inotify")
        await self._say_ready()
        self.scan_s = time.monotonic() - began

    async def _follow(self) -> bool:
        """Until another scan is due; False when it has ended."""
        while True:
            await self.wake.wait()
            if not self.is_ending:
                await asyncio.sleep(BATCH_S)
            self.wake.clear()
            self.folders.check_root()
            batch = self.folders.take()
            rules = [name for name in batch.names if are_rules(name)]
            try:
                refuse_pipe(*(f"{self.folders.real}/{name}" for name in rules))
                await self._tell_batch(batch)
            except (Blind, Refused):  # a folder that was exchanged under git's eyes, or more: a scan finds out
                return True
            if self.is_rescan_due or batch.is_lost or rules:
                await asyncio.sleep(0 if self.is_ending or self.is_rescan_due else self.scan_s)
                return True
            if self.is_ending:
                return False

    async def _tell_batch(self, batch: Batch) -> None:
        names = [name for name, how in batch.names.items() if self._is_news(name, how)]
        names += await self._explore(list(batch.new))
        if batch.moved:
            within = tuple(f"{folder}/" for folder in batch.moved)
            survey = await self._in_thread(self.look.survey, False)
            names += (path for path in survey.changed if path.startswith(within))
        names = [name for name in names if not self.folders.is_inside_another(name)]
        beyond = self._beyond_links(names)
        ignored = await self._ignored(name for name in names if name not in beyond)
        await self._tell_of(dict.fromkeys(name for name in names if name not in ignored))

    def _is_news(self, name: str, how: int) -> bool:
        """Not what came and went within a batch, nor what git cannot hold."""
        try:
            kind = os.lstat(f"{self.folders.real}/{name}").st_mode
        except OSError:
            return how != MADE | UNLINKED
        return bool(how & UNLINKED) or stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)

    async def _explore(self, wave: list[str]) -> list[str]:
        """Watch new folders and those in them, all but what is ignored; the files that are found."""
        found: list[str] = []
        while wave:
            ignored = await self._ignored(f"{folder}/" for folder in wave)
            wave, asked = [], wave
            for folder in asked:
                listing = None if f"{folder}/" in ignored else self.folders.watch(folder)
                if listing is not None and listing.is_repository:
                    found.append(folder)
                elif listing is not None:
                    found += listing.files
                    wave += listing.folders
        return found

    def _beyond_links(self, names: Iterable[str]) -> set[str]:
        """Names in a folder that a link has taken the place of: they are gone, and git does not answer for them."""
        known: dict[str, bool] = {"": False}

        def is_beyond(folder: str) -> bool:
            if folder not in known:
                above = is_beyond(folder.rpartition("/")[0])
                known[folder] = above or os.path.islink(f"{self.folders.real}/{folder}")
            return known[folder]

        return {name for name in names if is_beyond(name.rpartition("/")[0])}

    async def _ignored(self, names: Iterable[str]) -> set[str]:
        asked = list(names)
        return await self._in_thread(self.look.ignored, asked) if asked else set()

    # --- without watches ------------------------------------------------------------------------------------

    async def _poll(self) -> bool:
        """Until it is time to ask for watches again; False when it has ended."""
        until = time.monotonic() + WATCHES_AGAIN_S
        while True:
            began = time.monotonic()
            self.folders.check_root()
            survey = await self._in_thread(self.look.survey, True)
            now = {path: (signature(f"{self.folders.real}/{path}"),) for path in survey.changed}
            await self._tell_of([path for path in {**now, **self.polled} if now.get(path) != self.polled.get(path)])
            self.polled = dict(now)
            await self._say_ready()
            if self.is_ending:
                return False
            await self._pause(min(max(POLL_S[0], POLL_SHARE * (time.monotonic() - began)), POLL_S[1]))
            if time.monotonic() > until or self.is_rescan_due:
                return True

    # --- saying ---------------------------------------------------------------------------------------------

    async def _tell_of(self, paths: Iterable[str]) -> None:
        told = list(paths)
        for start in range(0, len(told), PATHS_IN_A_FACT):
            few = tuple(told[start : start + PATHS_IN_A_FACT])
            gone = self._beyond_links(few)
            removed = tuple(p for p in few if p in gone or not os.path.lexists(f"{self.folders.real}/{p}"))
            await self.tell(Wrote(self.order.key, few, time.time(), removed))

    async def _say_mode(self, how: str, why: str = "") -> None:
        if (how, why) != self.mode:
            self.mode = (how, why)
            await self.tell(Mode(self.order.key, how, why))

    async def _say_ready(self) -> None:
        if self.is_ready_due and not self.is_rescan_due:
            self.is_ready_due = False
            await self.tell(Ready(self.order.key))

    async def _pause(self, seconds: float) -> None:
        """Until then, or an order."""
        if self.is_ending or self.is_rescan_due:
            return
        self.wake.clear()
        try:
            await asyncio.wait_for(self.wake.wait(), seconds)
        except TimeoutError:
            pass

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)
