"""What the transcript's records add up to: the conversation, and what is owed in it. Pure.

There is one way in, :meth:`Conversation.apply`. The loop writes a record and applies it; resuming reads the records and
applies them. So the two cannot drift apart, and the messages that go to the model are the same bytes in both.
"""

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Block = dict[str, Any]

USAGE = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
UNKNOWN = "Unknown: the process was killed while this ran. Look at what it did before you repeat it."
CUT_OFF = "[agentd] Your answer was cut off at the limit of output tokens. Go on from there, in smaller pieces."
EMPTY = "[agentd] Your answer was empty. Go on, or say in a sentence that you have finished."


@dataclass
class Call:
    """A tool call of the last answer that has no result yet."""

    id: str
    tool: str
    input: dict[str, Any]
    invalid: str | None
    """Why its input cannot be used: it was cut off, or is no JSON."""
    is_started: bool = False


class Conversation:
    def __init__(self) -> None:
        self.system: list[str] = []
        self.task = ""
        self.messages: list[Block] = []
        self.calls: dict[str, Call] = {}
        self.stop: str | None = None
        self.turns = 0
        self.requests = 0
        self.tokens = 0
        self.accepted: set[tuple[int, float]] = set()
        self.pending: dict[tuple[int, float], Record] = {}
        self.is_held = False
        """Interrupted without a word: it goes on when somebody says how."""
        self.questions: dict[str, Record] = {}
        self.answers: dict[str, str] = {}
        self.notes: list[str] = []
        self.stumbles = 0
        """Answers in a row that could not be used whole."""
        self.end: Record | None = None

    def apply(self, record: Record) -> None:
        """KeyError, with nothing changed, if the record speaks of a call or a message that is not there."""
        arrow = ARROWS.get(record["type"])
        if arrow is not None:
            arrow(self, record)

    # --- what is owed ---------------------------------------------------------------------------------------

    def is_models_turn(self) -> bool:
        if self.calls or not self.messages:
            return False
        return self.messages[-1]["role"] == "user" or self.stop == "pause_turn"

    def was_killed_in(self) -> list[Call]:
        """Calls that were begun by a process that is gone. A question is not among them: asking has no effect."""
        return [call for call in self.calls.values() if call.is_started and call.id not in self.questions]

    def last_text(self) -> str:
        """The closing words of the last answer."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return "\n\n".join(block["text"] for block in message["content"] if block["type"] == "text")
        return ""

    # --- the arrows, one a type of record -------------------------------------------------------------------

    def on_start(self, record: Record) -> None:
        self.end = None
        self.stumbles = 0
        self.system = record["system"]
        if not self.task:
            self.task = record["task"]
            self.messages.insert(0, {"role": "user", "content": [{"type": "text", "text": self.task}]})

    def on_user(self, record: Record) -> None:
        self.end = None
        self._hear({"type": "text", "text": record["text"]})

    def on_request(self, record: Record) -> None:
        self.requests += 1

    def on_assistant(self, record: Record) -> None:
        self.turns += 1
        self.stop = record["stop"]
        self.tokens = tokens_of(record["usage"])
        for id in list(self.calls):  # their results were recorded once, and the records are lost
            self.on_result({"id": id, "content": UNKNOWN, "error": True})
        invalid: dict[str, str] = record.get("invalid", {})
        self.stumbles = self.stumbles + 1 if self.stop == "max_tokens" else 0
        self.messages.append({"role": "assistant", "content": record["content"]})
        self.calls = {
            block["id"]: Call(block["id"], block["name"], block["input"], invalid.get(block["id"]))
            for block in record["content"]
            if block["type"] == "tool_use"
        }

    def on_failed(self, record: Record) -> None:
        if record.get("counts"):
            self.stumbles += 1

    def on_call(self, record: Record) -> None:
        self.calls[record["id"]].is_started = True

    def on_result(self, record: Record) -> None:
        self.calls.pop(record["id"])
        block = {"type": "tool_result", "tool_use_id": record["id"], "content": record["content"]}
        self._hear({**block, "is_error": True} if record["error"] else block)

    def on_accepted(self, record: Record) -> None:
        key = (record["n"], record["sent"])
        self.accepted.add(key)
        self.pending[key] = record

    def on_consumed(self, record: Record) -> None:
        """Text that was sent enters the conversation here, in the same record as its receipt."""
        put = self.pending.pop((record["n"], record["sent"]))
        self.end = None
        if put["kind"] == "answer" and record.get("question"):
            self.answers[record["question"]] = put["text"]
            return
        if put["kind"] == "notice":
            return self._hear({"type": "text", "text": put["text"]})
        self.is_held = put["kind"] == "interrupt" and not put["text"]
        if put["kind"] == "interrupt":
            self._hear({"type": "text", "text": "[agentd] Your user interrupted you."})
        if put["text"]:
            self._hear({"type": "text", "text": f"Message from your user:\n{put['text']}"})

    def on_question(self, record: Record) -> None:
        self.questions[record["call"]] = record

    def on_note(self, record: Record) -> None:
        self.notes.append(record["text"])

    def on_compacted(self, record: Record) -> None:
        self.messages = record["messages"]
        self.tokens = 0
        self.turns += 1 if record.get("usage") else 0

    def on_end(self, record: Record) -> None:
        self.end = record

    def _hear(self, block: Block) -> None:
        if not self.messages or self.messages[-1]["role"] != "user":
            self.messages.append({"role": "user", "content": []})
        self.messages[-1]["content"].append(block)


ARROWS = {
    "start": Conversation.on_start,
    "user": Conversation.on_user,
    "request": Conversation.on_request,
    "assistant": Conversation.on_assistant,
    "failed": Conversation.on_failed,
    "call": Conversation.on_call,
    "result": Conversation.on_result,
    "accepted": Conversation.on_accepted,
    "consumed": Conversation.on_consumed,
    "question": Conversation.on_question,
    "note": Conversation.on_note,
    "compacted": Conversation.on_compacted,
    "end": Conversation.on_end,
}


def tokens_of(usage: Record) -> int:
    """How much of the model's context the conversation fills after an answer."""
    return sum(int(usage.get(name) or 0) for name in USAGE)
