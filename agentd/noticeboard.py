"""Where the shells of a terminal are told of their owner's jobs: ``<state>/shells/<owner>/<leader>/``.

A shell reads it by itself before each prompt, with what is built into it: no process is started, nothing is asked.
``<leader>`` is the process that leads the terminal's session; with its end the board goes.

========= ============== ==============================================================
file      written by     holds
========= ============== ==============================================================
who.json  agentd shell   whose jobs, which process leads the session, since when
state     daemon         ``RUNNING ASKING COUNT``: replaced whole, so this one file tells whether there is news
1, 2, …   daemon         a notice each: ``JOB.ATTEMPT SEQ TEXT``; there before ``state`` counts it
told      the shell      how many of them it has told
seen/J.A  agentd run     the end of this attempt was seen in the foreground: it is not told
========= ============== ==============================================================

``<state>/shells/line`` is the same for a status line, of all jobs. It is kept up to date where it is there.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from agentd import files, process

Record = dict[str, Any]
LIMIT = 1 << 16


def folder(state_dir: str) -> str:
    return f"{state_dir}/shells"


@lru_cache(maxsize=1000)
def mark(owner: str) -> str:
    return hashlib.sha256(owner.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def line_path(state_dir: str) -> str:
    return f"{folder(state_dir)}/line"


def boards(state_dir: str, owner: str) -> list[str]:
    """Those of one owner. What takes the place of a folder is no board."""
    home = f"{folder(state_dir)}/{mark(owner)}"
    with contextlib.suppress(OSError):
        return [f"{home}/{name}" for name in os.listdir(home) if not name.startswith(".")]
    return []


def all_boards(state_dir: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for owner in os.listdir(folder(state_dir)):
            with contextlib.suppress(OSError):
                home = f"{folder(state_dir)}/{owner}"
                yield from (f"{home}/{name}" for name in os.listdir(home) if not name.startswith("."))


def who(board: str) -> Record | None:
    """Its who.json; None if that is none."""
    try:
        record = json.loads(files.read_file(f"{board}/who.json", LIMIT))
        return {"owner": str(record["owner"]), "since": float(record["since"]), "leader": record["leader"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def leader_pidfd(record: Record) -> int | None:
    """Of the process that leads its session; None if that has ended."""
    try:
        pidfd = process.open_verified(record["leader"])
    except (LookupError, TypeError, ValueError, OSError):
        return None
    if pidfd is not None and process.has_exited(pidfd):
        os.close(pidfd)
        return None
    return pidfd


def number(path: str) -> int:
    """What stands in a file such as ``told``; 0 if there is no number."""
    try:
        return int(files.read_file(path, 64).split()[-1])
    except (OSError, ValueError, IndexError):
        return 0


def number_after(path: str) -> int:
    """The ``seq`` of a notice."""
    try:
        return int(files.read_file(path, LIMIT).split(b" ", 2)[1])
    except (OSError, ValueError, IndexError):
        return 0


def take_away(board: str, notice: int) -> None:
    """One that has been told, with the mark that it was seen."""
    with contextlib.suppress(OSError):
        key = files.read_file(f"{board}/{notice}", LIMIT).split(b" ", 1)[0].decode()
        os.unlink(f"{board}/{notice}")
        if key.replace(".", "").isdigit():
            os.unlink(f"{board}/seen/{key}")


def path_here(state_dir: str, owner: str) -> str | None:
    """The board of this terminal, whether it is there or not; None where nothing leads the session that we could
    see."""
    leader = process.identity(os.getsid(0)) or process.identity(os.getppid())
    if leader is None:
        return None
    return f"{folder(state_dir)}/{mark(owner)}/{leader['pid']}-{leader['start']}"


def register(state_dir: str, owner: str) -> str | None:
    """The board of this terminal, made if it is not there. Those of terminals that are gone are removed."""
    sweep(state_dir)
    board = path_here(state_dir, owner)
    leader = process.identity(os.getsid(0)) or process.identity(os.getppid())
    if board is None or who(board) is not None:
        return board
    aside = f"{os.path.dirname(board)}/.{os.getpid()}"
    prepare(state_dir)
    for path in (os.path.dirname(board), aside, f"{aside}/seen"):
        os.makedirs(path, 0o700, exist_ok=True)
    record = {"owner": owner, "leader": leader, "since": time.time()}
    replace(f"{aside}/who.json", json.dumps(record))
    replace(f"{aside}/state", "0 0 0")
    replace(f"{aside}/told", "0")
    shutil.rmtree(board, ignore_errors=True)
    try:
        os.rename(aside, board)
    except OSError:  # another one was quicker
        shutil.rmtree(aside, ignore_errors=True)
    return board


def prepare(state_dir: str) -> None:
    files.make_private(state_dir, folder(state_dir))


def sweep(state_dir: str) -> None:
    for board in list(all_boards(state_dir)):
        record = who(board)
        pidfd = leader_pidfd(record) if record else None
        if pidfd is None:
            remove(board)
        else:
            os.close(pidfd)


def remove(board: str) -> None:
    shutil.rmtree(board, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(board))


def note_seen(state_dir: str, owner: str, job: int, attempt: int) -> None:
    """Whoever sits at this terminal has seen the attempt end: its shell need not tell."""
    with contextlib.suppress(OSError):
        board = path_here(state_dir, owner)
        if board is not None:
            os.close(os.open(f"{board}/seen/{job}.{attempt}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def replace(path: str, text: str) -> None:
    """Write a line whole or not at all; it need not outlive the machine's end."""
    aside = f"{path}.new"
    with open(
        aside, "w", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    ) as file:
        file.write(f"{text}\n")
    os.rename(aside, path)
