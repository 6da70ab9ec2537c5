"""What the records of a transcript must hold for a conversation to be made of them.

The file lies where the agent's commands can write, too. A line that is no record of a runner's must neither stop the
conversation from going on, nor get into it.
"""

from collections.abc import Callable
from typing import Any

from .conversation import USAGE


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def is_block(value: object) -> bool:
    if not isinstance(value, dict) or not is_text(value.get("type")):
        return False
    wanted = BLOCKS.get(value["type"], {})
    return all(name in value and is_good(value[name]) for name, is_good in wanted.items())


def are_blocks(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_block, value))


def are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and one.get("role") in ("user", "assistant") and are_blocks(one.get("content"))
        for one in value
    )


def is_usage(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), int | None) for name in USAGE)


def are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def is_object(value: object) -> bool:
    return isinstance(value, dict)


BLOCKS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "text": {"text": is_text},
    "tool_use": {"id": is_text, "name": is_text, "input": is_object},
    "tool_result": {"tool_use_id": is_text},
}
RECORDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {"system": are_texts, "task": is_text},
    "user": {"text": is_text},
    "assistant": {"content": are_blocks, "usage": is_usage, "stop": lambda stop: stop is None or is_text(stop)},
    "call": {"id": is_text},
    "result": {"id": is_text, "content": is_text, "error": lambda error: isinstance(error, bool)},
    "accepted": {"n": is_number, "sent": is_number, "kind": is_text, "text": is_text},
    "consumed": {"n": is_number, "sent": is_number},
    "question": {"id": is_text, "call": is_text},
    "note": {"text": is_text},
    "compacted": {"messages": are_messages},
}


def is_record(value: object) -> bool:
    """Of a type that this version knows, with what it must have; or of another, which says nothing to it."""
    if not isinstance(value, dict) or not is_text(value.get("type")):
        return False
    wanted = RECORDS.get(value["type"], {})
    return all(name in value and is_good(value[name]) for name, is_good in wanted.items())
