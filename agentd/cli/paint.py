"""Our own colours: the only escape codes that a view prints. Pure; the sixteen colours of the terminal's own theme."""

from collections.abc import Callable, Sequence
from typing import Any

CODES = {
    "strong": "1",
    "dim": "2",
    "bad": "31",
    "good": "32",
    "held": "33",
    "asks": "1;33",
    "begins": "36",
    "changes": "35",
}
Style = Callable[[int, str], str]
"""Of a cell, by its row (-1: the head) and its column: a name in CODES, or none."""


def paint(text: str, style: str) -> str:
    return f"\x1b[{CODES[style]}m{text}\x1b[0m" if style and text else text


STATES = {
    "running": "good",
    "stopped": "held",
    "parked": "held",
    "waiting": "asks",
    "queued": "dim",
    "preparing": "begins",
    "starting": "begins",
    "stopping": "held",
}


def state_style(job: dict[str, Any]) -> str:
    """The word says it too: no colour is the only sign of anything."""
    if job["state"] != "done":
        return STATES.get(job["state"], "")
    return "" if job["outcome"] == "succeeded" else "bad"


def of_jobs(jobs: Sequence[dict[str, Any]]) -> Style:
    """How a table of them is painted."""

    def style(row: int, column: str) -> str:
        if row < 0:
            return "strong"
        if column == "STATE":
            return state_style(jobs[row])
        if column == "TASK" and jobs[row]["state"] == "waiting":
            return "asks"
        return "dim" if column in ("ID", "AGENT", "ENDED") else ""

    return style
