"""A new store from what is left: the attempts' files, and the backup.

Files are the truth of attempts; ids, cursors and undo come from the backup. The new store is of a new epoch, so every
seq in it is higher than any before. What the backup does not prove to be acknowledged is told again: jobs whose end
is not in it are set back to a live state, and the ordinary look at their files brings them to the truth.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import time
from typing import Any

import msgspec
from msgspec.structs import replace

from agentd import jobdir
from agentd.core import events as on
from agentd.core import machine, recovery
from agentd.core.job import Done, Job, Kept, Queued, Starting, State, Trashed, Worktree, outcome
from agentd.core.machine import Notice
from agentd.core.text import decode, encode
from agentd.store import EPOCH, connect

LEFTOVERS = ("", "-wal", "-shm")


def is_needed(state_dir: str, path: str) -> str | None:
    """Why the store must be rebuilt; None if it need not be."""
    if not os.path.exists(path):
        has_left = any(numbers_in(f"{state_dir}/{folder}") for folder in ("jobs", "trash")) or copies_of(path)
        return "the store is missing" if has_left else None
    try:
        with contextlib.closing(connect(path)) as db:
            stored = {id for (id,) in db.execute("SELECT id FROM jobs")}
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return None
        return f"the store is damaged: {error}"
    # A job runs only after it was stored. sqlite takes a file that was cut short, or lost its -wal, for a good one.
    unknown = [f"{state_dir}/jobs/{id}" for id in numbers_in(f"{state_dir}/jobs") if id not in stored]
    unknown += [f"{state_dir}/trash/{id}/job" for id in numbers_in(f"{state_dir}/trash") if id not in stored]
    lost = next(filter(has_run, unknown), None)
    return f"the store does not know of the job in {lost}, which ran" if lost else None


def has_run(home: str) -> bool:
    """By its files: one of its attempts was launched, or it is in the trash, where only what has ended comes."""
    is_trashed = home.endswith("/job") and os.path.isdir(home)
    return is_trashed or any(was_launched(f"{home}/{number}") for number in numbers_in(home))


def rebuild(state_dir: str, path: str) -> int:
    """Put the old store aside and make a new one; returns the new epoch."""
    before = put_aside(path)
    aside = f"{path}.rebuilt"
    best = max(copies_of(path), key=lambda source: newest_seq(source, aside), default=None)
    if best is None or newest_seq(best, aside) < 0:
        remove_all(aside)
    db = connect(aside)
    with contextlib.closing(db):
        epoch = 1 + max(known_epoch(db), int((jobdir.read(state_dir, "epoch.json") or {}).get("epoch", 0)))
        jobdir.write(state_dir, "epoch.json", {"epoch": epoch, "put_aside": before})
        db.execute("BEGIN")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
        known = {job.id: job for job in (decode(doc, Job) for (doc,) in db.execute("SELECT doc FROM jobs"))}
        seq = epoch * EPOCH
        found = [(job, ()) for job in jobs_on_disk(state_dir, known)] + jobs_in_trash(state_dir, known)
        for job, notices in found:
            db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job.id, encode(job)))
            for notice in notices:
                seq += 1
                row = (seq, time.time(), notice.type, job.id, job.attempt, job.owner, encode(notice.data))
                db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.rename(aside, path)
    for suffix in LEFTOVERS[1:]:
        jobdir.remove_quietly(aside + suffix)
    jobdir.sync_folder(state_dir)
    return epoch


def copies_of(path: str) -> list[str]:
    """The backup, and stores that were put aside."""
    folder, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.(backup|old-\d+)")
    return [f"{folder}/{other}" for other in sorted(os.listdir(folder)) if pattern.fullmatch(other)]


def newest_seq(source: str, aside: str) -> int:
    """How far a copy of the store goes, looked up in a copy of it at ``aside``; -1 if it is damaged."""
    remove_all(aside)
    for suffix in LEFTOVERS[:2]:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source + suffix, aside + suffix)
    try:
        with contextlib.closing(connect(aside)) as db:
            newest = db.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
            return max(int(newest), known_epoch(db) * EPOCH)
    except sqlite3.DatabaseError:
        return -1


def remove_all(path: str) -> None:
    for suffix in LEFTOVERS:
        jobdir.remove_quietly(path + suffix)


def put_aside(path: str) -> str | None:
    """The old files keep their bytes under another name: they may be needed."""
    if not os.path.exists(path):
        for suffix in LEFTOVERS[1:]:
            jobdir.remove_quietly(path + suffix)
        return None
    number = next(n for n in range(1, 1 << 20) if not os.path.exists(f"{path}.old-{n}"))
    for suffix in LEFTOVERS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, f"{path}.old-{number}{suffix}")
    return f"{path}.old-{number}"


def known_epoch(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    return int(row[0]) if row else 0


def jobs_on_disk(state_dir: str, known: dict[int, Job]) -> list[Job]:
    found = []
    for id in numbers_in(f"{state_dir}/jobs"):
        job = job_from_files(f"{state_dir}/jobs/{id}", known.get(id))
        if job is not None:
            found.append(job)
        elif id in known and isinstance(known[id].shelf, Trashed):
            found.append(replace(known[id], shelf=Kept()))  # it was taken out after the backup
    return found


def job_from_files(home: str, known: Job | None) -> Job | None:
    """The job as its files tell it; None if the backup is as good, or the files say nothing."""
    attempts = [n for n in numbers_in(home) if jobdir.read(f"{home}/{n}", "spec.json") is not None]
    if not attempts:
        return None
    attempt = max(attempts)
    path = f"{home}/{attempt}"
    if known is not None and known.attempt == attempt and (known.is_done or not was_launched(path)):
        return None
    spec: dict[str, Any] = jobdir.read(path, "spec.json") or {}
    job = msgspec.convert(spec["job_doc"], Job)
    made = jobdir.read(home, "worktree.json")
    place = job.place
    if isinstance(place, Worktree) and made is not None:
        place = replace(place, admin=str(made["admin"]))
    state: State = Starting(job.created) if was_launched(path) else Queued(job.created)
    return replace(job, place=place, state=state, shelf=Kept(), result=None)


def was_launched(path: str) -> bool:
    return any(os.path.exists(f"{path}/{name}.json") for name in ("agent", "exit", "end"))


def jobs_in_trash(state_dir: str, known: dict[int, Job]) -> list[tuple[Job, tuple[Notice, ...]]]:
    """With what is to be told of them: the completion, if the backup does not know of it."""
    found = []
    for id in numbers_in(f"{state_dir}/trash"):
        entry = jobdir.read(f"{state_dir}/trash/{id}", "entry.json")
        home = f"{state_dir}/trash/{id}/job"
        job = job_from_files(home, known.get(id)) or known.get(id)
        if entry is None or job is None or not os.path.isdir(home) or isinstance(job.shelf, Trashed):
            continue
        after = machine.Step(job) if job.is_done else how_it_ended(job, f"{home}/{job.attempt}")
        assert isinstance(after.job.state, Done)
        state = replace(after.job.state, is_settled=True)
        shelved = replace(after.job, state=state, shelf=Trashed(float(entry["at"]), entry))
        found.append((shelved, after.notices))
    return found


def how_it_ended(job: Job, path: str) -> machine.Step:
    """A job in the trash has ended: what its files do not say of that, nobody knows."""
    started = replace(job, state=Starting(job.created))
    agent, exit, end = (jobdir.read(path, f"{name}.json") for name in ("agent", "exit", "end"))
    seen = recovery.Seen(agent=agent, exit=exit, end=end)
    for event in recovery.true_events(started, seen, time.time()):
        after = machine.step(started, event)
        if after.job.is_done:
            return after
        started = after.job
    return machine.step(started, on.AttemptEnded(time.time(), None, None, outcome({}, {})))


def numbers_in(folder: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []
