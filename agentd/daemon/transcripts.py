"""From a runner's transcript to what is told of its job: read on from where the last commit had come, so that each
record is told once, whoever dies in between.

The file lies where the agent's commands can write, too. What is no record of a runner's is passed over: it must not
stop what comes after it, nor reach the store.
"""

import json
from collections.abc import Iterable
from typing import Any

from msgspec import MsgspecError
from msgspec.structs import replace

from agentd import files
from agentd.budget import cost_of, tokens_of
from agentd.core import text
from agentd.core.events import Told
from agentd.core.job import Parked, Progress, Question

Record = dict[str, Any]
MOST_AT_ONCE = 4 << 20
LAST_MOMENT = 1e11
"""No clock of ours will say more."""
WORDS = 4000
"""Characters of a text that are told in an event; the transcript has all of it."""


def read(path: str, offset: int) -> tuple[list[Record], int]:
    """The whole records from ``offset`` on (not more than some megabytes at once), and the offset after them."""
    try:
        file = files.open_file(path)
    except OSError:  # it is not there yet, or no file
        return [], offset
    records, end = [], offset
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or end - offset > MOST_AT_ONCE:
                break
            if (record := parsed(line)) is not None:
                records.append(record)
            end += len(line)
    return records, end


def parsed(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def after(progress: Progress, records: Iterable[Record], rates: Record | None) -> tuple[Progress, list[Told]]:
    """What the records make of it, and what is told. What it does is told once for each piece that is read."""
    told: list[Told] = []
    before = progress
    for record in records:
        news: list[Told] = []
        try:
            progress = step(progress, record, rates, news)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MsgspecError):
            continue
        told += news
    if (progress.turns, progress.doing) != (before.turns, before.doing):
        data: dict[str, object] = {
            "turns": progress.turns,
            "tokens": progress.tokens,
            "cost": progress.cost,
            "doing": progress.doing,
        }
        told.append(Told("job.progress", data))
    return progress, told


def step(progress: Progress, record: Record, rates: Record | None, told: list[Told]) -> Progress:
    """What one record makes of it; some error or other if it is none that can be stored."""
    if not all(0 <= record.get(name, 0) < LAST_MOMENT for name in ("at", "until")):
        raise ValueError("no time of ours")
    usage = record.get("usage")
    if isinstance(usage, dict):
        progress = spent(progress, usage, rates)
    arrow = ARROWS.get(record["type"])
    if arrow is not None:
        progress = arrow(progress, record, told)
    text.encode([one.data for one in told])
    checked: Progress = text.decode(text.encode(progress), Progress)
    return checked


def spent(progress: Progress, usage: Record, rates: Record | None) -> Progress:
    cost = cost_of(usage, rates)
    total = None if cost is None else (progress.cost or 0.0) + cost
    return replace(progress, turns=progress.turns + 1, tokens=progress.tokens + tokens_of(usage), cost=total)


def on_call(progress: Progress, record: Record, _: list[Told]) -> Progress:
    return replace(progress, doing=call_words(record))


def on_result(progress: Progress, _: Record, __: list[Told]) -> Progress:
    return replace(progress, question=None)


def on_note(progress: Progress, record: Record, told: list[Told]) -> Progress:
    told.append(Told("job.note", {"text": record["text"][:WORDS]}))
    return replace(progress, plan=record["text"][:WORDS])


def on_question(progress: Progress, record: Record, _: list[Told]) -> Progress:
    asked = Question(record["id"], record["text"][:WORDS], tuple(record.get("options") or ()), record["at"])
    return replace(progress, question=asked)


def on_waiting(progress: Progress, record: Record, told: list[Told]) -> Progress:
    asked = progress.question
    if record["why"] == "question":
        if asked is not None:
            data: dict[str, object] = {"question": asked.id, "text": asked.text, "options": list(asked.options)}
            told.append(Told("job.waiting", data))
        return progress
    told.append(Told("job.waiting", {"why": record["why"]}))
    return replace(progress, question=None, is_held=True, held_since=record["at"])


def on_running(progress: Progress, _: Record, told: list[Told]) -> Progress:
    told.append(Told("job.continued", {}))
    return replace(progress, question=None, is_held=False, parked=None)


def on_parked(progress: Progress, record: Record, told: list[Told]) -> Progress:
    told.append(Told("job.parked", {"why": record["why"], "until": record["until"]}))
    return replace(progress, parked=Parked(record["why"], record["until"]))


def on_receipt(progress: Progress, record: Record, told: list[Told]) -> Progress:
    told.append(Told("job.input", {"n": record["n"], "state": record["type"]}))
    return progress


def on_end(progress: Progress, record: Record, _: list[Told]) -> Progress:
    words = str(record.get("text") or "")[:WORDS]
    return replace(progress, question=None, is_held=False, parked=None, words=words)


ARROWS = {
    "call": on_call,
    "result": on_result,
    "note": on_note,
    "question": on_question,
    "waiting": on_waiting,
    "running": on_running,
    "parked": on_parked,
    "accepted": on_receipt,
    "consumed": on_receipt,
    "end": on_end,
}


def call_words(record: Record) -> str:
    """``bash: make test``: the tool, and the first of its arguments that is a text."""
    given = record.get("input") or {}
    words = next((value for value in given.values() if isinstance(value, str)), "").strip()
    return f"{record['tool']}: {words.splitlines()[0] if words else ''}"[:200].rstrip(": ")
