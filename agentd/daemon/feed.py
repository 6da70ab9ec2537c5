"""Events on their way to readers: persisted first, in order, again and again until acknowledged.

A reader is caught up from the store and then fed as events are published; a slow one is cut off at the backlog's
limit and costs nobody else anything: it comes back and goes on where it acknowledged.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from agentd import protocol
from agentd.core.errors import Refused
from agentd.core.machine import Notice
from agentd.daemon.engine import Engine
from agentd.daemon.views import event_view
from agentd.store import Change, Entry, Subscriber

PAGE = 500
UNUSED_S = 30 * 86400.0


class Reader:
    """One subscription on one connection. ``send(line)`` is False when the connection is to be given up."""

    def __init__(self, send: Callable[[bytes], bool], owner: str, cursor: int) -> None:
        self.send = send
        self.owner = owner
        self.cursor = cursor
        self.is_live = False

    def offer(self, entry: Entry, line: bytes) -> bool:
        if self.owner and entry.owner != self.owner:
            return True
        self.cursor = entry.seq
        return self.send(line)


class Feed:
    def __init__(self) -> None:
        self.engine: Engine
        self.subscribers: dict[str, Subscriber] = {}
        self.readers: set[Reader] = set()
        self.waiters: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self.newest = 0

    def load(self, subscribers: list[Subscriber], newest: int) -> None:
        self.subscribers = {one.name: one for one in subscribers}
        self.newest = newest

    def publish(self, entries: list[Entry]) -> None:
        self.newest = entries[-1].seq
        for entry in entries:
            for waiter in self.waiters.get(entry.job, ()):
                waiter.set()
            if not self.readers:
                continue
            line = protocol.notification("event", event_view(entry))
            for reader in [r for r in self.readers if r.is_live and not r.offer(entry, line)]:
                self.readers.discard(reader)

    # --- readers --------------------------------------------------------------------------------------------

    async def read(self, reader: Reader, drained: Callable[[], Awaitable[None]]) -> None:
        """Catch the reader up from the store, then make it live."""
        self.readers.add(reader)
        while reader in self.readers:
            newest = self.newest
            page = await asyncio.wrap_future(self.engine.store.events(reader.cursor, PAGE, reader.owner))
            for entry in page:
                if not reader.offer(entry, protocol.notification("event", event_view(entry))):
                    self.readers.discard(reader)
                    return
            await drained()
            if not page and newest == self.newest:
                # Publishing happens in this loop: nothing was committed since the page was asked for.
                reader.is_live = True
                return

    def forget(self, reader: Reader) -> None:
        self.readers.discard(reader)

    # --- names ----------------------------------------------------------------------------------------------

    async def subscriber(self, name: str, owner: str = "", since: int | None = None) -> Subscriber:
        """A named reader; one that is new begins now, or after ``since``."""
        known = self.subscribers.get(name)
        if known is not None:
            if time.time() - known.used > 86400:
                known = known._replace(used=time.time())
                await self._save(known)
            return known
        new = Subscriber(name, self.newest if since is None else min(since, self.newest), owner, time.time())
        await self._save(new)
        return new

    async def ack(self, name: str, seq: int) -> Subscriber:
        """Remember that ``name`` has dealt with everything up to ``seq``; durable when this returns."""
        if not 0 <= seq <= self.newest:
            raise Refused(
                f"cannot acknowledge {seq}: the newest event is {self.newest}; give one up to that", "no_such_event"
            )
        known = await self.subscriber(name, since=seq)
        if seq > known.acked:
            known = known._replace(acked=seq, used=time.time())
            await self._save(known)
        return known

    async def _save(self, subscriber: Subscriber) -> None:
        self.subscribers[subscriber.name] = subscriber
        await self.engine.commit(Change(time.time(), subscriber=subscriber, must=True))

    async def retire_unused(self) -> None:
        for one in [s for s in self.subscribers.values() if time.time() - s.used > UNUSED_S]:
            await self.retire(one.name)

    async def retire(self, name: str) -> Subscriber:
        """Used again, the name is a new reader."""
        gone = self.subscribers.pop(name)  # before the commit: an ack meanwhile is of the new one, committed later
        notice = Notice("subscriber.retired", {"name": name, "acked": gone.acked})
        await self.engine.commit(Change(time.time(), notices=(notice,), drop_subscriber=name, must=True))
        return gone

    async def forget_old(self, days: int) -> None:
        """Of events older than that, those which every named reader has acknowledged."""
        through = min((one.acked for one in self.subscribers.values()), default=self.newest)
        before = time.time() - days * 86400
        with contextlib.suppress(sqlite3.Error):  # a full disk: another day
            while await asyncio.wrap_future(self.engine.store.forget_events(before, through)):
                pass
