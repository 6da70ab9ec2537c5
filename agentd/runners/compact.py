"""A conversation that grows too long is begun anew with a summary, which the model itself writes. Pure."""

from typing import Any

Block = dict[str, Any]

DEFAULT_CONTEXT = 150_000
KEPT_RESULTS = 6

ASK = (
    "[agentd] This conversation is near the limit of its length and goes on from a summary, which you write now. Call"
    " no tool. Say all that is needed to go on without what stands above: what was found out, with paths and names;"
    " what was changed and how it was checked; what was tried in vain, and why; what was decided, asked and answered;"
    " what comes next."
)
FOLLOWS = "[agentd] You have worked on this before. Your own summary of it:"
GO_ON = "Go on from there. Look at files again before you change them."


def is_due(tokens: int, limit: int | None) -> bool:
    return tokens > (limit or DEFAULT_CONTEXT)


def request(messages: list[Block]) -> list[Block]:
    """The conversation, with the summary asked for in the last message. The prefix stays the one in the cache."""
    last = messages[-1]
    return [*messages[:-1], {**last, "content": [*last["content"], {"type": "text", "text": ASK}]}]


def begun_anew(task: str, summary: str, notes: list[str], unsaid: list[Block]) -> list[Block]:
    """``unsaid``: texts that came since the last answer, which stay word for word."""
    parts = [task, f"{FOLLOWS}\n{summary}"]
    if notes:
        parts.append("Your notes:\n" + "\n".join(f"- {note}" for note in notes[-5:]))
    parts.append(GO_ON)
    content = [{"type": "text", "text": text} for text in parts]
    return [{"role": "user", "content": [*content, *unsaid]}]


def unsaid(messages: list[Block]) -> list[Block]:
    """The texts of the last message, if it is not the first: what was sent since the last answer."""
    return [block for block in messages[-1]["content"] if block["type"] == "text"] if len(messages) > 1 else []


def shortened(messages: list[Block]) -> list[Block] | None:
    """Where no summary can be had, since not even the request for it fits: all but the last results of tools are
    emptied, then the last ones too. None if there is nothing left to take."""
    for kept in (KEPT_RESULTS, 0):
        results = [
            block
            for message in messages
            for block in message["content"]
            if block["type"] == "tool_result" and len(block["content"]) > len(LEFT_OUT)
        ]
        dropped = {id(block) for block in (results[:-kept] if kept else results)}
        if dropped:
            return [
                {**m, "content": [{**b, "content": LEFT_OUT} if id(b) in dropped else b for b in m["content"]]}
                for m in messages
            ]
    return None


LEFT_OUT = "[left out by agentd: the conversation had grown too long]"
