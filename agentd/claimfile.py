"""The files that say who holds locks besides jobs: ``<state>/claims/<key>.json``, one a holder.

A command under ``agentd lock … -- CMD`` keeps byte 0 of its file locked through an open file description that it
hands to all it starts. So the kernel says whether any of them lives, daemon or no daemon. A person's file names the
process that leads their terminal's session.

The folder is the lock table's second leg: a store that is lost or behind is mended from it.
"""

import contextlib
import json
import os
import re
from typing import Any

from agentd import jobdir, process

Record = dict[str, Any]
KEY = re.compile(r"[0-9a-f]{32}")


def folder(state_dir: str) -> str:
    return f"{state_dir}/claims"


def path_of(state_dir: str, key: str) -> str:
    return f"{folder(state_dir)}/{key}.json"


def make(state_dir: str, record: Record, is_inherited: bool = True) -> tuple[str, int]:
    """A new file for this process and what it becomes: its key, and the descriptor that keeps it locked, which is
    inherited. OSError if it cannot be written."""
    os.makedirs(folder(state_dir), 0o700, exist_ok=True)
    key = os.urandom(16).hex()
    fd = os.open(path_of(state_dir, key), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        process.take_byte(fd, 0)
        _fill(fd, {"format": 1, "who": process.identity(os.getpid()), **record})
    except BaseException:
        os.close(fd)
        jobdir.remove_quietly(path_of(state_dir, key))
        raise
    os.set_inheritable(fd, is_inherited)
    return key, fd


def rewrite(fd: int, record: Record) -> None:
    """Say more in one's own file."""
    _fill(fd, {"format": 1, "who": process.identity(os.getpid()), **record})


def _fill(fd: int, record: Record) -> None:
    data = json.dumps(record).encode() + b"\n"
    os.pwrite(fd, data.ljust(os.fstat(fd).st_size, b"\n"), 0)  # never shorter than it was: always whole


def read(state_dir: str, key: str) -> Record | None:
    return jobdir.read(folder(state_dir), f"{key}.json") if KEY.fullmatch(key) else None


def is_held(state_dir: str, key: str) -> bool:
    """Does the command, or anything it started, live?"""
    return process.byte_held(path_of(state_dir, key), 0)


def wait_until_free(state_dir: str, key: str) -> None:
    """Blocks until nothing of the command lives."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path_of(state_dir, key), os.O_RDWR | os.O_CLOEXEC)
        try:
            process.wait_for_byte(fd, 0)
        finally:
            os.close(fd)


def write(state_dir: str, key: str, record: Record) -> None:
    """Of a person: nobody keeps it locked. It is not synced: no session outlives the machine's."""
    os.makedirs(folder(state_dir), 0o700, exist_ok=True)
    aside = f"{folder(state_dir)}/.{key}"
    with open(aside, "w", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
        json.dump({"format": 1, **record}, file)
    os.rename(aside, path_of(state_dir, key))


def remove(state_dir: str, key: str) -> None:
    jobdir.remove_quietly(path_of(state_dir, key))


def keys(state_dir: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [name.removesuffix(".json") for name in os.listdir(folder(state_dir)) if name.endswith(".json")]
    return []
