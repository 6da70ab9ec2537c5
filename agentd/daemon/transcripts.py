"""From a runner's transcript to what is told of its job: read on from where the last commit had come, so that each
record is told once, whoever dies in between."""

import json
import os
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from agentd.budget import cost_of, tokens_of
from agentd.core.events import Told
from agentd.core.job import Parked, Progress, Question

Record = dict[str, Any]
MOST_AT_ONCE = 4 << 20
WORDS = 4000
"""Characters of a text that are told in an event; the transcript has all of it."""


def read(path: str, offset: int) -> tuple[list[Record], int]:
    """The whole records from ``offset`` on (not more than some megabytes at once), and the offset after them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return [], offset
    records, end = [], offset
    with os.fdopen(fd, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or end - offset > MOST_AT_ONCE:
                break
            records.append(json.loads(line))
            end += len(line)
    return records, end


def after(progress: Progress, records: Iterable[Record], rates: Record | None) -> tuple[Progress, list[Told]]:
    """What the records make of it, and what is told. What it does is told once for each piece that is read."""
    told: list[Told] = []
    before = progress
    for record in records:
        usage = record.get("usage")
        if isinstance(usage, dict):
            progress = spent(progress, usage, rates)
        arrow = ARROWS.get(record["type"])
        if arrow is not None:
            progress = arrow(progress, record, told)
    if (progress.turns, progress.doing) != (before.turns, before.doing):
        data: dict[str, object] = {
            "turns": progress.turns,
            "tokens": progress.tokens,
            "cost": progress.cost,
            "doing": progress.doing,
        }
        told.append(Told("job.progress", data))
    return progress, told


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
    if record["why"] == "question" and asked is not None:
        told.append(Told("job.waiting", {"question": asked.id, "text": asked.text, "options": list(asked.options)}))
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
    text = next((value for value in given.values() if isinstance(value, str)), "")
    return f"{record['tool']}: {text.splitlines()[0] if text else ''}"[:200].rstrip(": ")
