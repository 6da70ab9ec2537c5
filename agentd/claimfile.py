"""The files that say who holds locks besides jobs: ``<state>/claims/<key>.json``, one a holder.

A command under ``agentd lock … -- CMD`` keeps byte 0 of its file locked through an open file description that it
hands to all it starts. So the kernel says whether any of them lives, daemon or no daemon. A person's file names the
process that leads their terminal's session.

The folder is the lock table's second leg: a store that is lost or behind is mended from it.
"""

import contextlib
import errno
import json
import os
import re
from typing import Any, NamedTuple

from agentd import files, jobdir, process

Record = dict[str, Any]
KEY = re.compile(r"[0-9a-f]{32}")
NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ELOOP)
"""A folder or another thing stands where it was."""


class Claim(NamedTuple):
    """What a file says, as far as it says it well: anybody may have written into it."""

    who: process.Identity | None = None
    owner: str = ""
    label: str = ""
    reason: str = ""
    is_command: bool = False
    token: int = 0
    granted: tuple[tuple[list[Any], Any], ...] = ()
    """Kind, scope and text of each name, and its mode."""
    until: float = 0.0

    @property
    def pid(self) -> int | None:
        return None if self.who is None else int(self.who["pid"])


def folder(state_dir: str) -> str:
    return f"{state_dir}/claims"


def path_of(state_dir: str, key: str) -> str:
    return f"{folder(state_dir)}/{key}.json"


def make(state_dir: str, record: Record, is_inherited: bool = True) -> tuple[str, int]:
    """A new file for this process and what it becomes: its key, and the descriptor that keeps it locked, which is
    inherited. OSError if it cannot be written."""
    files.make_private(state_dir, folder(state_dir))
    key = os.urandom(16).hex()
    aside = f"{folder(state_dir)}/.{key}"
    fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        process.take_byte(fd, 0)
        _fill(fd, {"format": 1, "who": process.identity(os.getpid()), **record})
        os.rename(aside, path_of(state_dir, key))  # whoever sees it sees it locked
    except BaseException:
        os.close(fd)
        jobdir.remove_quietly(aside)
        raise
    os.set_inheritable(fd, is_inherited)
    return key, fd


def rewrite(fd: int, record: Record) -> None:
    """Say more in one's own file."""
    _fill(fd, {"format": 1, "who": process.identity(os.getpid()), **record})


def _fill(fd: int, record: Record) -> None:
    data = json.dumps(record).encode() + b"\n"
    data = data.ljust(os.fstat(fd).st_size, b"\n")  # never shorter than it was: always whole
    if os.pwrite(fd, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def look(state_dir: str, key: str) -> Claim:
    record = (jobdir.read(folder(state_dir), f"{key}.json") if KEY.fullmatch(key) else None) or {}
    token, until = record.get("token"), record.get("until")
    return Claim(
        who=_who(record.get("who")),
        owner=_text(record.get("owner")),
        label=_text(record.get("label")),
        reason=_text(record.get("reason")),
        is_command="wants" in record,
        token=token if isinstance(token, int) and 0 <= token < 1 << 62 else 0,
        granted=_granted(record.get("granted")),
        until=float(until) if isinstance(until, int | float) else 0.0,
    )


def _text(said: Any) -> str:
    return said[:1000] if isinstance(said, str) else ""


def _who(said: Any) -> process.Identity | None:
    wanted = {"boot": str, "pid": int, "start": int, "inode": int}
    if not isinstance(said, dict) or said.keys() != wanted.keys():
        return None
    is_good = all(isinstance(said[name], kind) for name, kind in wanted.items()) and 0 < said["pid"] < 1 << 31
    return said if is_good else None


def _granted(said: Any) -> tuple[tuple[list[Any], Any], ...]:
    """All or nothing."""
    items = said if isinstance(said, list) else [None]
    found = []
    for item in items:
        name, mode = (item.get("name"), item.get("mode")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, list) or len(name) != 3 or not all(isinstance(part, str) for part in name):
            return ()
        if name[0] not in ("path", "res", "file", "integrate") or mode not in ("X", "S", "A"):
            return ()
        found.append((name, mode))
    return tuple(found)


def is_held(state_dir: str, key: str) -> bool:
    """Does the command, or anything it started, live?"""
    try:
        return process.byte_held(path_of(state_dir, key), 0)
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise


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
    files.make_private(state_dir, folder(state_dir))
    aside = f"{folder(state_dir)}/.{key}"
    try:
        with open(aside, "w", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
            json.dump({"format": 1, **record}, file)
        os.rename(aside, path_of(state_dir, key))
    except OSError:
        jobdir.remove_quietly(aside)
        raise


def remove(state_dir: str, key: str) -> None:
    with contextlib.suppress(OSError):  # a folder, or it may not be removed: it says nothing, as nobody holds it
        os.unlink(path_of(state_dir, key))


def keys(state_dir: str) -> list[str]:
    """Of all files there; what has another name is not ours."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [name.removesuffix(".json") for name in os.listdir(folder(state_dir)) if name.endswith(".json")]
        return [name for name in names if KEY.fullmatch(name)]
    return []
