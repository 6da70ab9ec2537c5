"""Who holds locks besides jobs: commands under ``agentd lock … -- CMD``, and people.

The kernel says when they are gone. Each has a file (:mod:`agentd.claimfile`), which the next daemon reads.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from agentd import claimfile, process
from agentd.core.claims import Holder
from agentd.core.errors import NotNow, Refused

SESSION_S = 1800.0
"""A person's claim where no process leads their session: so long after they last asked for something."""


class Holders:
    """``gone(holder)`` is called when nothing of it lives."""

    def __init__(self, state_dir: str, loop: asyncio.AbstractEventLoop, gone: Callable[[Holder], None]) -> None:
        self.state_dir = state_dir
        self.loop = loop
        self.gone = gone
        self.keys: dict[str, str] = {}
        """The file of each."""
        self.owners: dict[str, str] = {}
        self.leaders: dict[str, process.Identity | None] = {}
        """Of people: the process that leads their session, by owner."""
        self.watched: dict[str, int] = {}
        """A pidfd of each."""

    def command(self, key: str) -> Holder:
        """Of ``agentd lock … -- CMD``: its claim file says who it is, and is locked by it."""
        claim = claimfile.look(self.state_dir, key)
        if claim.who is None or not claimfile.is_held(self.state_dir, key):
            raise Refused("the command that asks has ended", "not_alive")
        holder = Holder("command", key, claim.label, None, claim.pid)
        self.owners[holder.id] = claim.owner
        self.watch(holder, key, claim.who)
        return holder

    def session(self, owner: str, leader: dict[str, int | str] | None) -> Holder:
        """A person: as alive as the process that leads their session."""
        pid = int(leader["pid"]) if leader is not None else None
        holder = Holder("session", owner, owner, None, pid)
        if leader is None or self.leaders.get(owner) != leader:
            key = self.keys.get(holder.id) or os.urandom(16).hex()
            record: claimfile.Record = {"owner": owner, "who": leader, "until": time.time() + SESSION_S}
            try:
                claimfile.write(self.state_dir, key, record)
            except OSError as error:
                what = f"cannot write a claim in {self.state_dir}/claims: {error.strerror}; mend that, and try again"
                raise NotNow(what, "unavailable") from None
            self.owners[holder.id] = owner
            self.unwatch(holder)
            if not self.watch(holder, key, leader):
                self.gone(holder)
                raise Refused("the session that asks has ended", "not_alive")
            self.leaders[owner] = leader
        return holder

    def watch(self, holder: Holder, key: str, who: process.Identity | None) -> bool:
        """Be told of its end; False if it has ended."""
        self.keys[holder.id] = key
        if holder.id in self.watched:
            return True
        if who is None:
            self.loop.call_later(SESSION_S + 1.0, self.on_session_old, holder)
            return True
        pidfd = process.open_verified(who)
        if pidfd is None:
            return False
        self.watched[holder.id] = pidfd
        self.loop.add_reader(pidfd, self.on_exit, holder)
        return True

    def on_session_old(self, holder: Holder) -> None:
        claim = claimfile.look(self.state_dir, self.keys.get(holder.id, ""))
        left = claim.until - time.time()
        if claim.who is None and left > 0:
            self.loop.call_later(left + 1.0, self.on_session_old, holder)
        elif claim.who is None:
            self.gone(holder)

    def on_exit(self, holder: Holder) -> None:
        """The process has ended. A command's claim stands as long as anything that it started."""
        self.unwatch(holder)
        key = self.keys[holder.id]
        if holder.kind == "command" and claimfile.is_held(self.state_dir, key):
            self.wait_for_rest(holder, key)
        else:
            self.gone(holder)

    def wait_for_rest(self, holder: Holder, key: str) -> None:
        """The kernel wakes nobody but who waits for the lock itself: a thread for each such command."""
        threading.Thread(target=self.wait_in_thread, args=(holder, key), name="lock", daemon=True).start()

    def wait_in_thread(self, holder: Holder, key: str) -> None:
        claimfile.wait_until_free(self.state_dir, key)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the next daemon looks itself
            self.loop.call_soon_threadsafe(self.gone, holder)

    def forget(self, holder: Holder) -> None:
        """It has nothing any more."""
        self.unwatch(holder)
        key = self.keys.pop(holder.id, None)
        if key is not None:
            claimfile.remove(self.state_dir, key)
        self.owners.pop(holder.id, None)
        if holder.kind == "session":
            self.leaders.pop(holder.key, None)

    def unwatch(self, holder: Holder) -> None:
        pidfd = self.watched.pop(holder.id, None)
        if pidfd is not None:
            self.loop.remove_reader(pidfd)
            os.close(pidfd)

    # --- after a restart ------------------------------------------------------------------------------------

    def files(self) -> dict[str, claimfile.Claim]:
        """Also of those that are gone."""
        return {key: claimfile.look(self.state_dir, key) for key in claimfile.keys(self.state_dir)}

    def take_up(self) -> Iterator[tuple[Holder, claimfile.Claim]]:
        """Those that live, the oldest claim first; the files of others are removed."""
        for key, claim in sorted(self.files().items(), key=lambda item: item[1].token):
            is_held = claimfile.is_held(self.state_dir, key)
            holder = self.take_up_command(key, claim) if is_held else self.take_up_session(key, claim)
            if holder is None:
                claimfile.remove(self.state_dir, key)
            else:
                yield holder, claim

    def take_up_command(self, key: str, claim: claimfile.Claim) -> Holder:
        """Something of it lives, whatever its file says."""
        holder = Holder("command", key, claim.label, None, claim.pid)
        self.owners[holder.id] = claim.owner
        if claim.who is None or not self.watch(holder, key, claim.who):
            self.keys[holder.id] = key
            self.wait_for_rest(holder, key)
        return holder

    def take_up_session(self, key: str, claim: claimfile.Claim) -> Holder | None:
        holder = Holder("session", claim.owner or "?", claim.owner, None, claim.pid)
        is_alive = claim.who is not None or claim.until > time.time()
        if claim.is_command or not claim.owner or not is_alive or not self.watch(holder, key, claim.who):
            if self.keys.get(holder.id) == key:
                del self.keys[holder.id]
            return None
        self.owners[holder.id] = claim.owner
        self.leaders[claim.owner] = claim.who
        return holder
