"""A transcript's records in, blocks for people out. Pure, and total: any JSON may come, for an agent can write to its
own transcript.

The left edge is ours. A block has a label, which is always one of our own words, and all that an agent or its model
says stands behind it; so no text can pass for a line of agentd's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agentd.budget import cost_of, tokens_of
from agentd.cli.render import spent_words
from agentd.cli.transcript_parts import (
    OUTPUT,
    TOOLS,
    Part,
    Record,
    bounded,
    call_parts,
    clock,
    folded,
    headline,
    is_moment,
    is_number,
    is_rates,
    object_of,
    objects,
    result_part,
    string,
)


@dataclass(frozen=True)
class Block:
    at: float
    label: str
    parts: tuple[Part, ...]
    is_apart: bool = False
    """A line is left free before it."""


class View:
    """What has to be remembered from record to record. ``rates``: of the model, for the cost."""

    def __init__(self, rates: Any = None) -> None:
        self.rates = rates if is_rates(rates) else None
        self.at = 0.0
        self.calls: dict[str, tuple[str, Record]] = {}
        self.shown_call = ""
        self.sent: dict[str, Record] = {}
        self.turns, self.tokens, self.cost = 0, 0, 0.0
        self.is_held = False
        self.has_ended = False
        self.status = ""
        """What goes on just now, for who follows."""

    def blocks(self, record: Record) -> list[Block]:
        at = record.get("at")
        if is_moment(at):
            self.at = float(at)
        self.count(record.get("usage"))
        arrow = ARROWS.get(string(record, "type"))
        return [] if arrow is None else arrow(self, record)

    def damaged(self, size: int) -> Block:
        return self.block("damaged", Part("error", f"a line of {size} bytes, which is no record"))

    def stderr(self, at: float, text: str) -> Block:
        return Block(at, "stderr", (Part("dim", bounded(text)),))

    def closing(self, outcome: str, reason: str | None = None) -> list[Block]:
        """When the attempt has ended: how, if it did not say so itself, and what it spent."""
        blocks = []
        if not self.has_ended:
            why = [Part("error", bounded(reason))] if reason and reason != outcome else []
            blocks.append(self.block("ended", Part("strong", outcome), *why, is_apart=True))
        if self.turns:
            cost = None if self.rates is None else self.cost
            blocks.append(self.block("spent", Part("text", spent_words(self.turns, self.tokens, cost))))
        return blocks

    def block(self, label: str, *parts: Part, is_apart: bool = False) -> Block:
        return Block(self.at, label, parts, is_apart)

    def count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        usage = {name: value for name, value in usage.items() if is_number(value) and 0 <= value < 1e15}
        self.turns += 1
        self.tokens += tokens_of(usage)
        self.cost += cost_of(usage, self.rates) or 0.0

    # --- the conversation -----------------------------------------------------------------------------------

    def on_start(self, record: Record) -> list[Block]:
        words = f"attempt {string(record, 'attempt') or '?'}, {string(record, 'model')}"
        begun = self.block("start", Part("strong", bounded(words)))
        if record.get("resume"):
            return [begun, self.block("", Part("dim", "goes on with the conversation of an earlier attempt"))]
        return [begun, self.block("task", Part("text", bounded(string(record, "task"))), is_apart=True)]

    def on_user(self, record: Record) -> list[Block]:
        return [self.block("told", Part("dim", bounded(string(record, "text"))))]

    def on_request(self, record: Record) -> list[Block]:
        self.status = f"turn {string(record, 'turn')}: the model is asked"
        return []

    def on_partial(self, record: Record) -> list[Block]:
        self.status = f"the model writes: {string(record, 'text')[-200:]}"
        return []

    def on_assistant(self, record: Record) -> list[Block]:
        self.status = ""
        blocks = []
        for piece in objects(record, "content"):
            match piece.get("type"):
                case "text":
                    said = Part("markdown", bounded(string(piece, "text").strip()))
                    blocks.append(self.block("says", said, is_apart=True))
                case "thinking" if string(piece, "thinking").strip():
                    thought = Part("dim", folded(string(piece, "thinking").strip(), *OUTPUT))
                    blocks.append(self.block("thinks", thought, is_apart=True))
                case "tool_use":
                    self.calls[string(piece, "id")] = (string(piece, "name"), object_of(piece, "input"))
        if record.get("stop") in ("max_tokens", "refusal"):
            why = "cut off at the limit of tokens" if record["stop"] == "max_tokens" else "the model refused"
            blocks.append(self.block("", Part("error", why)))
        return blocks

    def on_failed(self, record: Record) -> list[Block]:
        self.status = ""
        return [self.block("failed", Part("error", bounded(string(record, "why"))))]

    def on_compacted(self, record: Record) -> list[Block]:
        why = string(record, "why")
        words = "the conversation had grown long; it goes on from a summary" if not why else f"shortened: {why}"
        return [self.block("shorter", Part("dim", bounded(words)))]

    # --- tools ----------------------------------------------------------------------------------------------

    def on_call(self, record: Record) -> list[Block]:
        tool, given, id = string(record, "tool"), object_of(record, "input"), string(record, "id")
        self.calls[id] = (tool, given)
        if tool in ("ask", "note"):
            return []
        self.shown_call = id
        self.status = f"{tool} runs"
        return [self.block(tool if tool in TOOLS else "tool", *call_parts(tool, given))]

    def on_result(self, record: Record) -> list[Block]:
        self.status = ""
        id = string(record, "id")
        tool, given = self.calls.pop(id, ("", {}))
        content, is_error = string(record, "content"), bool(record.get("error"))
        if tool in ("ask", "note") and not is_error:
            return []
        head = () if id == self.shown_call else (Part("strong", bounded(f"{tool} {headline(tool, given)}".strip())),)
        label = "" if id == self.shown_call else "result"
        self.shown_call = ""
        return [self.block(label, *head, result_part(tool, content, is_error))]

    # --- people ---------------------------------------------------------------------------------------------

    def on_accepted(self, record: Record) -> list[Block]:
        self.sent[string(record, "n")] = record
        return []

    def on_consumed(self, record: Record) -> list[Block]:
        sent = self.sent.pop(string(record, "n"), {})
        text = Part("text", bounded(string(sent, "text")))
        if sent.get("kind") == "interrupt":
            return [self.block("you", Part("strong", "interrupted it"), *([text] if text.text else []), is_apart=True)]
        return [self.block("you", text, is_apart=True)] if text.text else []

    def on_question(self, record: Record) -> list[Block]:
        listed = record.get("options")
        texts = [text for text in listed if isinstance(text, str)][:100] if isinstance(listed, list) else []
        options = [Part("text", bounded(f"  {number}  {text}")) for number, text in enumerate(texts, 1)]
        return [self.block("asks", Part("strong", bounded(string(record, "text"))), *options, is_apart=True)]

    def on_waiting(self, record: Record) -> list[Block]:
        if record.get("why") == "question":
            self.status = "it waits for an answer"
            return []
        self.status, self.is_held = "it waits for a message", True
        return [self.block("held", Part("text", "interrupted; it waits for a message"))]

    def on_running(self, _: Record) -> list[Block]:
        self.status = ""
        was_held, self.is_held = self.is_held, False
        return [self.block("goes on")] if was_held else []

    def on_note(self, record: Record) -> list[Block]:
        return [self.block("note", Part("text", bounded(string(record, "text"))))]

    def on_parked(self, record: Record) -> list[Block]:
        self.is_held = True
        until = clock(record.get("until"))
        self.status = f"parked until {until}"
        return [self.block("parked", Part("text", bounded(f"until {until}: {string(record, 'why')}")))]

    def on_end(self, record: Record) -> list[Block]:
        self.status, self.has_ended = "", True
        outcome, text = string(record, "outcome"), string(record, "text")
        parts = [Part("strong", bounded(outcome))]
        if outcome != "done" and text:
            parts.append(Part("error", bounded(text)))
        return [self.block("ended", *parts, is_apart=True)]


ARROWS: dict[str, Callable[[View, Record], list[Block]]] = {
    "start": View.on_start,
    "user": View.on_user,
    "request": View.on_request,
    "partial": View.on_partial,
    "assistant": View.on_assistant,
    "failed": View.on_failed,
    "compacted": View.on_compacted,
    "call": View.on_call,
    "result": View.on_result,
    "accepted": View.on_accepted,
    "consumed": View.on_consumed,
    "question": View.on_question,
    "waiting": View.on_waiting,
    "running": View.on_running,
    "note": View.on_note,
    "parked": View.on_parked,
    "end": View.on_end,
}
