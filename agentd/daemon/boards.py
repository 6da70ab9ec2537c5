"""Telling terminals: the boards of :mod:`agentd.noticeboard` are written as events are committed, and not read again.

A notice is a file that names the event's ``seq``. So a board is its own cursor: what was committed when a daemon died,
and stood on no board yet, is put there by the next one, and nothing twice. Nobody is waited for, and where no terminal
has asked there is nothing to do but to look for one folder.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from agentd import forms, noticeboard
from agentd.core.job import Job
from agentd.core.jobs import Jobs
from agentd.core.names import escaped, recency
from agentd.core.text import decode
from agentd.store import Entry

TOLD = ("job.completed", "job.stopped", "job.waiting")
TEXT = 300
PAGE = 500
Events = Callable[[int, int, str], Awaitable[list[Entry]]]


class Board:
    def __init__(self, path: str, record: noticeboard.Record, pidfd: int) -> None:
        self.path = path
        self.owner: str = record["owner"]
        self.since: float = record["since"]
        self.pidfd = pidfd
        self.count = noticeboard.number(f"{path}/state")
        self.seq = noticeboard.number_after(f"{path}/{self.count}") if self.count else 0
        self.first = self.count
        self.waiting: list[tuple[int, str, str]] = []
        """What a full disk keeps from it."""

    def add(self, entry: Entry, text: str) -> None:
        if entry.at >= self.since:
            self.seq = entry.seq
            self.waiting.append((entry.seq, f"{entry.job}.{entry.attempt}", text))

    def show(self, running: int, asking: int) -> None:
        """Notices first, then the state that counts them."""
        with contextlib.suppress(OSError):
            while self.waiting:
                seq, key, text = self.waiting[0]
                noticeboard.replace(f"{self.path}/{self.count + 1}", f"{key} {seq} {text}")
                self.count += 1
                del self.waiting[0]
        with contextlib.suppress(OSError):
            noticeboard.replace(f"{self.path}/state", f"{running} {asking} {self.count}")
            self.forget_told()

    def forget_told(self) -> None:
        """All but the last, which says how far the board has come."""
        told = min(noticeboard.number(f"{self.path}/told"), self.count - 1)
        while 0 < self.first <= told or (self.first == 0 < told):
            noticeboard.take_away(self.path, max(self.first, 1))
            self.first = max(self.first, 1) + 1


class Boards:
    def __init__(self, state_dir: str, jobs: Jobs) -> None:
        self.state_dir = state_dir
        self.jobs = jobs
        self.loop = asyncio.get_running_loop()
        self.known: dict[str, Board] = {}

    async def catch_up(self, events: Events) -> None:
        """Before anything else is committed: what the last daemon had committed and not told."""
        noticeboard.sweep(self.state_dir)
        for path in list(noticeboard.all_boards(self.state_dir)):
            board = self.board(path)
            if board is None:
                continue
            cursor = board.seq
            while page := await events(cursor, PAGE, board.owner):
                cursor = page[-1].seq
                for entry in page:
                    self.put(board, entry)
            board.show(*self.counts(board.owner))
        self.write_line()

    def publish(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.type in TOLD and entry.owner:
                for board in self.of(entry.owner):
                    self.put(board, entry)
                    board.show(*self.counts(entry.owner))

    def on_change(self, was: Job | None, job: Job) -> None:
        if ("" if was is None else self.jobs.tally(was)) != self.jobs.tally(job):
            for board in self.of(job.owner):
                board.show(*self.counts(job.owner))
            self.write_line()

    def put(self, board: Board, entry: Entry) -> None:
        job = self.jobs.get(entry.job)
        text = (
            notice(self.jobs, job, entry.type, decode(entry.data)) if job is not None and entry.type in TOLD else None
        )
        if text is not None:
            board.add(entry, text)

    def counts(self, owner: str) -> tuple[int, int]:
        return self.jobs.tallies[owner, "running"], self.jobs.tallies[owner, "asking"]

    def write_line(self) -> None:
        path = noticeboard.line_path(self.state_dir)
        if os.path.exists(path):
            with contextlib.suppress(OSError):
                noticeboard.replace(path, forms.counts(*self.counts("")))

    # --- which there are ------------------------------------------------------------------------------------

    def of(self, owner: str) -> list[Board]:
        found = (self.board(path) for path in noticeboard.boards(self.state_dir, owner))
        return [board for board in found if board is not None]

    def board(self, path: str) -> Board | None:
        """It is made by a shell, at any time, and goes when the terminal's session has no leader any more."""
        if path in self.known:
            return self.known[path]
        record = noticeboard.who(path)
        pidfd = noticeboard.leader_pidfd(record) if record is not None else None
        if record is None or pidfd is None:
            return None
        self.known[path] = Board(path, record, pidfd)
        self.loop.add_reader(pidfd, self.remove, path)
        return self.known[path]

    def remove(self, path: str) -> None:
        self.close_board(self.known.pop(path))
        noticeboard.remove(path)

    def close_board(self, board: Board) -> None:
        self.loop.remove_reader(board.pidfd)
        os.close(board.pidfd)

    def close(self) -> None:
        for board in self.known.values():
            self.close_board(board)
        self.known.clear()


def notice(jobs: Jobs, job: Job, type: str, data: dict[str, Any]) -> str | None:
    """A line in bash's form, safe for a terminal; None of what is no news for a prompt."""
    words = job.name
    match type:
        case "job.completed":
            state = forms.state_word("done", data["outcome"], data["exit_code"], data["signal"])
        case "job.stopped":
            state = forms.state_word("stopped", None, None, None)
        case _ if "text" in data:
            state = "Asking"
            options = "; ".join(f"{number}: {text}" for number, text in enumerate(data["options"], 1))
            words += f": {safe(data['text'])}" + (f" ({safe(options)})" if options else "")
        case _ if "needs" in data:
            state, words = "Waiting", f"{words}: needs {safe(', '.join(data['needs']))}"
        case _:
            return None  # interrupted, by who sits at a terminal
    return forms.job_line(job.number, current_mark(jobs, job, type), state, words)


def safe(text: str) -> str:
    return escaped(" ".join(str(text).split()), TEXT)


def current_mark(jobs: Jobs, job: Job, type: str) -> str:
    """``+`` of the owner's current job, ``-`` of the one before; of one that has ended only beside few others."""
    if type == "job.stopped":
        return "+"
    live = jobs.tallies[job.owner, "live"]
    if type == "job.completed":
        return {0: "+", 1: "-"}.get(live, " ")
    mine = [one for one in jobs.live.values() if one.owner == job.owner]
    ranked = sorted(mine, key=recency, reverse=True)[:2]
    return next((mark for one, mark in zip(ranked, "+-", strict=False) if one.id == job.id), " ")
