"""The store: events and the jobs they make, in one sqlite file, written by one thread.

It is the truth of ids, cursors and undo; what attempts did is in their files. Every write is one transaction with
its events: WAL, synchronous=FULL, so an answered commit survives a power cut. What arrives while the thread commits
is the next batch. Completions are handed back in commit order, through ``deliver``.

``seq`` rises for ever, through rebuilds too: it is ``epoch * 2**32 + n``, and a rebuild opens a new epoch.

Never fork with it open, and open the database file nowhere else in the process: closing *any* descriptor of it
drops sqlite's locks.
"""

import contextlib
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple

from agentd.core.claims import Claim, ClaimKey, Request
from agentd.core.errors import EXIT_FAULT, Fault, NotNow
from agentd.core.job import Job
from agentd.core.machine import Notice
from agentd.core.text import decode, encode

FORMAT = 1
EPOCH = 1 << 32
BACKUP_EVERY_S = 300.0
RETRY_S = 0.5

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, type TEXT NOT NULL,
    job INTEGER NOT NULL, attempt INTEGER NOT NULL, owner TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, doc BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS subscribers (
    name TEXT PRIMARY KEY, acked INTEGER NOT NULL, owner TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, doc BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (ticket INTEGER PRIMARY KEY, doc BLOB NOT NULL);
"""


class Entry(NamedTuple):
    """An event as it is stored and told. ``owner`` is the job's, for filters; ``data`` is JSON."""

    seq: int
    at: float
    type: str
    job: int
    attempt: int
    owner: str
    data: bytes


class Subscriber(NamedTuple):
    """A named reader. ``owner`` is empty, or the only owner whose jobs it is told of."""

    name: str
    acked: int
    owner: str
    used: float


class Locks(NamedTuple):
    """What is stored of the lock table, or what changes in it: a value that is None goes. ``tokens`` and ``tickets``
    are the last ones given out."""

    claims: dict[ClaimKey, Claim | None]
    requests: dict[int, Request | None]
    tokens: int = 0
    tickets: int = 0
    is_of_this_epoch: bool = True
    """False: the store was made anew since it was written, and there may be more."""


class Change(NamedTuple):
    """One transaction's worth: a job, what is told about it, subscribers to write or to drop, locks."""

    at: float
    job: Job | None = None
    notices: tuple[Notice, ...] = ()
    subscriber: Subscriber | None = None
    drop_subscriber: str | None = None
    locks: Locks | None = None
    must: bool = False
    """It is a fact, not a request: on a full disk it is tried again until it is in."""


class Work(NamedTuple):
    change: Change
    done: "Future[list[Entry]]"


class Store:
    """``deliver(work, entries)`` is called on the store's thread after each commit, in commit order."""

    def __init__(self, path: str, deliver: "Callable[[Work, list[Entry]], None]") -> None:
        self.path = path
        self.deliver = deliver
        self.work: queue.SimpleQueue[Work | Callable[[], None] | None] = queue.SimpleQueue()
        self.trouble: str | None = None
        """Why facts wait, while they do: for ``daemon status`` and ``doctor``."""
        self.thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.changed_since_backup = False
        self._open()
        self.thread.start()

    # --- on the caller's thread -----------------------------------------------------------------------------

    def append(self, change: Change) -> "Future[list[Entry]]":
        done: Future[list[Entry]] = Future()
        self.work.put(Work(change, done))
        return done

    def ask(self, question: Callable[[sqlite3.Connection], Any]) -> "Future[Any]":
        """Run a reading function on the store's thread."""
        answer: Future[Any] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return  # who asked has gone; from here on it cannot be cancelled
            try:
                answer.set_result(question(self.db))
            except BaseException as error:
                answer.set_exception(error)

        self.work.put(run)
        return answer

    def close(self) -> None:
        """Commit what is queued, back up, and end the thread. A fact that cannot be written now is in an attempt's
        files too, and the next daemon finds it there."""
        self.work.put(None)
        self.thread.join()

    # --- opening --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self.db = connect(self.path)
        self.inode = os.stat(self.path).st_ino
        found = dict(self.db.execute("SELECT key, value FROM meta").fetchall())
        if int(found.get("format", FORMAT)) > FORMAT:
            self.db.close()
            raise Fault(f"cannot open {self.path}: a newer agentd wrote it; upgrade agentd", "store_too_new")
        self.epoch = int(found.get("epoch", 0))
        wanted = {"format": str(FORMAT), "epoch": str(self.epoch)}
        if not found.items() >= wanted.items():  # a daemon can start on a full disk
            with self.db:
                self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", wanted.items())
        newest = self.db.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
        self.seq = max(newest, self.epoch * EPOCH)

    def load(self) -> tuple[list[Job], list[Subscriber], int]:
        """All jobs, all subscribers, the newest seq."""

        def read(db: sqlite3.Connection) -> tuple[list[Job], list[Subscriber], int]:
            jobs = [decode(doc, Job) for (doc,) in db.execute("SELECT doc FROM jobs ORDER BY id")]
            readers = [Subscriber(*row) for row in db.execute("SELECT name, acked, owner, used FROM subscribers")]
            return jobs, readers, self.seq

        result: tuple[list[Job], list[Subscriber], int] = self.ask(read).result()
        return result

    def load_locks(self) -> Locks:
        def read(db: sqlite3.Connection) -> Locks:
            claims = [decode(doc, Claim) for (doc,) in db.execute("SELECT doc FROM claims")]
            requests = [decode(doc, Request) for (doc,) in db.execute("SELECT doc FROM requests")]
            last = dict(db.execute("SELECT key, value FROM meta WHERE key LIKE 'lock_%'").fetchall())
            return Locks(
                {claim.key: claim for claim in claims},
                {request.ticket: request for request in requests},
                int(last.get("lock_tokens", 0)),
                int(last.get("lock_tickets", 0)),
                int(last.get("lock_epoch", 0)) == self.epoch,
            )

        result: Locks = self.ask(read).result()
        return result

    def events(self, since: int, limit: int, owner: str = "") -> "Future[list[Entry]]":
        """At most ``limit`` events after ``since``, oldest first."""
        return self.ask(
            lambda db: [
                Entry(*row)
                for row in db.execute(
                    "SELECT seq, at, type, job, attempt, owner, data FROM events"
                    " WHERE seq > ? AND (? = '' OR owner = ?) ORDER BY seq LIMIT ?",
                    (since, owner, owner, limit),
                )
            ]
        )

    def forget_events(self, before: float, through: int) -> "Future[int]":
        """Remove some of the events up to seq ``through`` that are older than ``before``; how many. Asked again until
        it is 0, so that nobody's commit waits long. The newest stays: the next seq is counted from it."""
        return self.ask(
            lambda db: (
                db.execute(
                    "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= ? AND at < ?"
                    " AND seq < (SELECT max(seq) FROM events) ORDER BY seq LIMIT 2000)",
                    (through, before),
                ).rowcount
            )
        )

    # --- on the store's thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        """A fact that cannot be written waits, and is tried again before what came after it. Nobody else waits with
        it: requests are refused meanwhile, and questions answered."""
        backup_at = time.monotonic() + BACKUP_EVERY_S
        works: list[Work] = []
        while True:
            patience = max(0.0, backup_at - time.monotonic()) if self.changed_since_backup else None
            batch = self._next_batch(RETRY_S if works else patience)
            if not batch and not works:
                self._back_up()
                continue
            for item in batch:
                if isinstance(item, Work):
                    works.append(item)
                    continue
                works = self._commit(works)
                if item is None:
                    self._back_up()
                    self.db.close()
                    return
                item()
            works = self._commit(works)
            if not self.changed_since_backup:
                backup_at = time.monotonic() + BACKUP_EVERY_S
            self.changed_since_backup = True

    def _next_batch(self, patience: float | None) -> list[Work | Callable[[], None] | None]:
        batch: list[Work | Callable[[], None] | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self.work.get(timeout=patience))
            while len(batch) < 1000:
                batch.append(self.work.get_nowait())
        return batch

    def _commit(self, works: list[Work]) -> list[Work]:
        """Write a batch in one transaction; which of it must wait."""
        if not works:
            return []
        seq = self.seq
        try:
            self._rescue_if_gone()
            told = self._write(works)
        except Exception as error:
            self.seq = seq
            with contextlib.suppress(sqlite3.Error):
                self.db.rollback()
            return self._after_failure(works, error)
        self.trouble = None
        for work, entries in zip(works, told, strict=True):
            self.deliver(work, entries)
        return []

    def _rescue_if_gone(self) -> None:
        """Somebody removed or replaced the file: sqlite would go on writing into the nameless one."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self.inode:
                return
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        aside = f"{self.path}.new"
        with contextlib.closing(sqlite3.connect(aside)) as target:
            self.db.backup(target)
        os.rename(aside, self.path)
        self.db.close()
        self.db = connect(self.path)
        self.inode = os.stat(self.path).st_ino

    def _after_failure(self, works: list[Work], error: Exception) -> list[Work]:
        """Refuse the requests of a batch that could not be written; its facts, in order, must wait."""
        if not isinstance(error, sqlite3.Error | OSError):
            return self._after_nonsense(works, error)
        if not isinstance(error, sqlite3.OperationalError | OSError):
            # The file is damaged. The next daemon rebuilds it from the attempts' files and the backup.
            print(f"agentd: the store is damaged ({error}); ending, so that it is rebuilt", file=sys.stderr)
            os._exit(EXIT_FAULT)
        if len(works) > 1:
            return self._one_by_one(works)
        (work,) = works
        if work.change.must:
            self.trouble = str(error)
            return works
        refuse(work, str(error))
        return []

    def _one_by_one(self, works: list[Work]) -> list[Work]:
        """One of them may be what does not fit: each by itself, in order. Nothing overtakes a fact that waits."""
        waiting: list[Work] = []
        for work in works:
            if not waiting:
                waiting = self._commit([work])
            elif work.change.must:
                waiting.append(work)
            else:
                refuse(work, str(self.trouble))
        return waiting

    def _after_nonsense(self, works: list[Work], error: Exception) -> list[Work]:
        """A value that no database takes costs its own change, and nobody else's."""
        if len(works) > 1:
            return self._one_by_one(works)
        works[0].done.set_exception(Fault(f"cannot save the change: {error}", "bad_value"))
        return []

    def _write(self, works: Iterable[Work]) -> list[list[Entry]]:
        told: list[list[Entry]] = []
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            for change, _ in works:
                job = change.job
                about = (job.id, job.attempt, job.owner) if job is not None else (0, 0, "")
                if job is not None:
                    self.db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job.id, encode(job)))
                entries: list[Entry] = []
                for notice in change.notices:
                    self.seq += 1
                    whose = about if notice.about is None else notice.about
                    entries.append(Entry(self.seq, change.at, notice.type, *whose, encode(notice.data)))
                self.db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", entries)
                if change.subscriber is not None:
                    self.db.execute("INSERT OR REPLACE INTO subscribers VALUES (?, ?, ?, ?)", change.subscriber)
                if change.drop_subscriber is not None:
                    self.db.execute("DELETE FROM subscribers WHERE name = ?", (change.drop_subscriber,))
                if change.locks is not None:
                    self._write_locks(change.locks)
                told.append(entries)
        return told

    def _write_locks(self, locks: Locks) -> None:
        for (holder, name), claim in locks.claims.items():
            key = encode([holder, name])
            if claim is None:
                self.db.execute("DELETE FROM claims WHERE key = ?", (key,))
            else:
                self.db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, encode(claim)))
        for ticket, request in locks.requests.items():
            if request is None:
                self.db.execute("DELETE FROM requests WHERE ticket = ?", (ticket,))
            else:
                self.db.execute("INSERT OR REPLACE INTO requests VALUES (?, ?)", (ticket, encode(request)))
        last = {"lock_tokens": str(locks.tokens), "lock_tickets": str(locks.tickets), "lock_epoch": str(self.epoch)}
        self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", last.items())

    def _back_up(self) -> None:
        """A second copy, whole or not at all: ids, cursors and undo exist nowhere else."""
        self.changed_since_backup = False
        aside = f"{self.path}.backup.new"
        try:
            with contextlib.closing(sqlite3.connect(aside)) as target:
                self.db.backup(target)
            os.replace(aside, f"{self.path}.backup")
        except (sqlite3.Error, OSError):
            with contextlib.suppress(OSError):
                os.unlink(aside)


def refuse(work: Work, why: str) -> None:
    with contextlib.suppress(InvalidStateError):  # who asked has gone
        work.done.set_exception(not_saved(why))


def not_saved(why: str) -> NotNow:
    return NotNow(f"cannot save the change: {why}; free some disk space and try again", "disk_full")


def connect(path: str) -> sqlite3.Connection:
    """An open database with our settings and tables; sqlite3.DatabaseError if the file is none."""
    # Not by umask, which is the whole process's. sqlite gives its other files the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60.0)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=1000")
        db.executescript(SCHEMA)
        check = db.execute("PRAGMA quick_check(1)").fetchone()[0] if os.path.getsize(path) < 64 << 20 else "ok"
    except BaseException:
        db.close()
        raise
    if check != "ok":
        db.close()
        raise sqlite3.DatabaseError(f"damaged: {check}")
    return db
