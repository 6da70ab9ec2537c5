"""A new store from what is left: the attempts' files, and the backup.

Files are the truth of attempts; ids, cursors and undo come from the backup. The new store is of a new epoch, so every
seq in it is higher than any before. What the backup does not prove to be acknowledged is told again: jobs whose end
is not in it are set back to a live state, and the ordinary look at their files brings them to the truth.
"""

import contextlib
import os
import shutil
import sqlite3
from typing import Any

import msgspec
from msgspec.structs import replace

from agentd import jobdir
from agentd.core.job import Job, Kept, Queued, Removing, Starting, State, Trashed, Worktree
from agentd.core.text import decode, encode
from agentd.store import connect

LEFTOVERS = ("", "-wal", "-shm")


def is_needed(state_dir: str, path: str) -> str | None:
    """Why the store must be rebuilt; None if it need not be."""
    if not os.path.exists(path):
        has_jobs = os.path.isdir(f"{state_dir}/jobs") and bool(os.listdir(f"{state_dir}/jobs"))
        return "the store is missing" if has_jobs or os.path.exists(f"{path}.backup") else None
    try:
        db = connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return None
        return f"the store is damaged: {error}"
    db.close()
    return None


def rebuild(state_dir: str, path: str) -> int:
    """Put the old store aside and make a new one; returns the new epoch."""
    before = put_aside(path)
    aside = f"{path}.rebuilt"
    for suffix in LEFTOVERS:
        jobdir.remove_quietly(aside + suffix)
    if os.path.exists(f"{path}.backup"):
        shutil.copyfile(f"{path}.backup", aside)
    try:
        db = connect(aside)
    except sqlite3.DatabaseError:
        jobdir.remove_quietly(aside)
        db = connect(aside)
    with contextlib.closing(db):
        epoch = 1 + max(known_epoch(db), int((jobdir.read(state_dir, "epoch.json") or {}).get("epoch", 0)))
        jobdir.write(state_dir, "epoch.json", {"epoch": epoch, "put_aside": before})
        db.execute("BEGIN")
        db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(epoch),))
        known = {job.id: job for job in (decode(doc, Job) for (doc,) in db.execute("SELECT doc FROM jobs"))}
        for job in [*jobs_on_disk(state_dir, known), *jobs_in_trash(state_dir, known)]:
            db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job.id, encode(job)))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.rename(aside, path)
    for suffix in LEFTOVERS[1:]:
        jobdir.remove_quietly(aside + suffix)
    jobdir.sync_folder(state_dir)
    return epoch


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


def jobs_in_trash(state_dir: str, known: dict[int, Job]) -> list[Job]:
    found = []
    for id in numbers_in(f"{state_dir}/trash"):
        entry = jobdir.read(f"{state_dir}/trash/{id}", "entry.json")
        job = known.get(id) or job_from_files(f"{state_dir}/trash/{id}/job", None)
        if entry is None or job is None or isinstance(job.shelf, Trashed):
            continue
        shelf = Trashed(float(entry["at"]), entry) if job.is_done else Removing(float(entry["at"]))
        found.append(replace(job, shelf=shelf))
    return found


def numbers_in(folder: str) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []
