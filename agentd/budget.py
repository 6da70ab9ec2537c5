"""What an attempt has spent, by its own transcript, and what it may spend.

The keeper counts before each request of the runner; so a limit holds with the daemon dead, and is overshot by one
request at most. Tokens are those that the model read for the first time or wrote: what it read from its cache costs a
tenth and counts only in money. Money is dollars, by ``rates`` (dollars per million tokens: ``input``, ``output``,
``cache_read``, ``cache_write``; and ``above``: from so many ``prompt_tokens`` on a ``factor``). Without rates the cost
is unknown, and so is a limit on it.
"""

import json
import os
from typing import Any

Record = dict[str, Any]
NEARLY = 0.8
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
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                if b'"usage"' in line:
                    self.count(json.loads(line))

    def count(self, record: Record) -> None:
        usage = record.get("usage")
        if not isinstance(usage, dict):
            return
        self.spent["turns"] += 1
        self.spent["tokens"] += tokens_of(usage)
        self.spent["cost"] += cost_of(usage, self.rates) or 0.0

    def exceeded(self) -> str | None:
        """The limit that is reached: "turns", "tokens" or "cost"."""
        return next((name for name, most in self.limits.items() if self.spent[name] >= most), None)

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


def tokens_of(usage: Record) -> int:
    names = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
    return sum(int(usage.get(name) or 0) for name in names)


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
    dollars = sum(float(rates[rate]) * int(usage.get(name) or 0) for rate, name in parts.items()) / 1e6
    tier = rates.get("above")
    if tier and sum(int(usage.get(parts[rate]) or 0) for rate in parts if rate != "output") > tier["prompt_tokens"]:
        dollars *= tier["factor"]
    return dollars
