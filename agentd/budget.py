"""What an attempt has spent, by its own transcript, and what it may spend; and how long it has been silent.

The keeper counts before each request of the runner; so a limit holds with the daemon dead, and is overshot by one
request at most. Tokens are those that the model read for the first time or wrote: what it read from its cache costs a
tenth and counts only in money. Money is dollars, by ``rates`` (dollars per million tokens: ``input``, ``output``,
``cache_read``, ``cache_write``; and ``above``: from so many ``prompt_tokens`` on a ``factor``). Without rates the cost
is unknown, and so is a limit on it.
"""

import contextlib
import json
import os
import time
from typing import Any

from agentd import files

Record = dict[str, Any]
NEARLY = 0.8
LAST_RECORD = 8192
"""Bytes; a record that says that the agent rests is shorter."""
UNSEEN = "spending: its transcript lacks turns"
WORDS = {
    "turns": "{:,.0f} of {:,.0f} turns",
    "tokens": "{:,.0f} of {:,.0f} tokens",
    "cost": "{:.4f} of {:.4f} dollars",
}


class Spending:
    """``limits``: the most turns, tokens, cost (missing or null: none). ``before``: what earlier attempts spent."""

    def __init__(self, path: str, limits: Record, rates: Record | None, before: Record | None = None) -> None:
        self.path = path
        self.limits = {name: limits[name] for name in WORDS if limits.get(name)}
        self.rates = rates
        self.offset = 0
        before = before or {}
        self.spent: dict[str, float] = {name: before.get(name) or 0 for name in WORDS}
        self.warned: set[str] = set()

    def look(self) -> None:
        """Count what the transcript has had added since the last look."""
        try:
            file = files.open_file(self.path)
        except OSError:  # it is not there yet, or no file
            return
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                if b'"usage"' in line:
                    with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
                        self.count(json.loads(line))  # a line that is no runner's counts nothing

    def count(self, record: object) -> None:
        usage = record.get("usage") if isinstance(record, dict) else None
        if not isinstance(usage, dict):
            return
        tokens, cost = tokens_of(usage), cost_of(usage, self.rates) or 0.0
        self.spent["turns"] += 1
        self.spent["tokens"] += tokens
        self.spent["cost"] += cost

    def exceeded(self, turn: int = 0) -> str | None:
        """The limit that is reached: "turns", "tokens" or "cost". ``turn``: which one the runner would begin; if it has
        had more than the transcript shows, somebody has cut or removed that, and nothing more is spent unseen."""
        reached = next((name for name, most in self.limits.items() if self.spent[name] >= most), None)
        if reached is None and self.limits and self.spent["turns"] < turn - 1:
            return UNSEEN
        return reached

    def warning(self) -> str | None:
        """What the model is told, once for each limit, when four fifths are gone."""
        near = [
            name for name, most in self.limits.items() if self.spent[name] >= NEARLY * most and name not in self.warned
        ]
        self.warned.update(near)
        if not near:
            return None
        gone = ", ".join(WORDS[name].format(self.spent[name], self.limits[name]) for name in near)
        return f"{gone} are used up. At the limit you are stopped: finish what you do, and report."


def silent_for(path: str) -> float:
    """Seconds since the transcript at ``path`` has grown; 0 while its agent rests: it has asked and waits for an
    answer, or its model server is overloaded. Infinite if there is none."""
    try:
        file = files.open_file(path)
    except OSError:
        return float("inf")
    with file:
        seen = os.fstat(file.fileno())
        file.seek(max(0, seen.st_size - LAST_RECORD))
        last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    is_resting = last.startswith((b'{"type":"waiting"', b'{"type":"parked"'))
    return 0.0 if is_resting else max(0.0, time.time() - seen.st_mtime)


def tokens_of(usage: Record) -> int:
    names = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
    return sum(amount(usage, name) for name in names)


def amount(usage: Record, name: str) -> int:
    return max(0, int(usage.get(name) or 0))


def cost_of(usage: Record, rates: Record | None) -> float | None:
    """Dollars; None if the model's rates are unknown."""
    if rates is None:
        return None
    parts = {
        "input": "input_tokens",
        "output": "output_tokens",
        "cache_read": "cache_read_input_tokens",
        "cache_write": "cache_creation_input_tokens",
    }
    dollars = sum(float(rates[rate]) * amount(usage, name) for rate, name in parts.items()) / 1e6
    tier = rates.get("above")
    if tier and sum(amount(usage, parts[rate]) for rate in parts if rate != "output") > tier["prompt_tokens"]:
        dollars *= tier["factor"]
    return dollars
