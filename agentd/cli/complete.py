"""``agentd complete KIND [WORD]``: for the completion of shells, so without typer: a word and what it is in each line.

Nothing is started for it, and what cannot be told is not: an error in the middle of a command line helps nobody.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentd.client import Client, ConnectionLost
from agentd.core.errors import AgentdError

Job = dict[str, Any]
Row = tuple[str, str]
FITS: dict[str, Callable[[Job], bool]] = {
    "job": lambda job: True,
    "live": lambda job: job["state"] != "done" or job["again_at"] is not None,
    "done": lambda job: job["state"] == "done",
    "asking": lambda job: job["state"] == "waiting",
}
MOST = 200
"""Rows: who types a letter more has fewer."""


def complete(args: Sequence[str]) -> int:
    kind, word = [*args, "", ""][:2]
    with contextlib.suppress(AgentdError, ConnectionLost, OSError, LookupError), Client(start=False) as client:
        rows = [row for row in of_kind(client, kind, word) if row[0].startswith(word)]
        sys.stdout.write("".join(f"{name}\t{shown(help)}\n" for name, help in rows[:MOST] if is_word(name)))
    return 0


def of_kind(client: Client, kind: str, word: str) -> Iterator[Row]:
    if kind == "profile":
        for profile in client.profiles():
            yield profile["name"], profile["model"]
        return
    if kind == "trash":
        jobs = list(client.ask("jobs.undo", owner=client.owner)["trash"])
    else:
        jobs = [job for job in client.jobs(all=kind != "live") if FITS[kind](job)]
    for job in reversed(jobs):
        yield from names(job, client.owner, word)


def names(job: Job, owner: str, word: str) -> Iterator[Row]:
    """In the form that was begun; all of them, if none was."""
    state = job["outcome"] if job["state"] == "done" else job["state"]
    help = f"{state}: {job['task'] or ' '.join(job['argv'])}"
    if word[:1].isdigit():
        yield str(job["id"]), f"{job['name']}, {help}"
    elif word.startswith("%"):
        if job["owner"] == owner:
            yield f"%{job['number']}", f"{job['name']}, {help}"
    elif job["removed"]:  # it has lost its name
        yield str(job["id"]), f"{job['name']}, {help}"
    else:
        yield job["name"], f"{job['id']}, {help}"


def is_word(name: str) -> bool:
    """What a shell could not quote, or a terminal obeys, is not offered."""
    return name.isprintable() and not any(c in name for c in "\t\n ")


def shown(help: str) -> str:
    """One short line that drives no terminal."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(help[:400].split()))
    return line if len(line) <= 60 else line[:59] + "…"
