"""What a request to the model comes to: an answer, or one of four reasons why there is none."""

from dataclasses import dataclass, field
from typing import Any

Block = dict[str, Any]


class Busy(Exception):
    """Overloaded, rate limited, or not reachable: later. ``after``: seconds the server asked for."""

    def __init__(self, why: str, after: float | None = None, is_shared: bool = False) -> None:
        super().__init__(why)
        self.after = after
        self.is_shared = is_shared  # it concerns all who use this credential


class Broken(Exception):
    """An answer that began and did not end well. ``usage``: what is known to have been spent."""

    def __init__(self, why: str, usage: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.usage = usage


class TooLong(Exception):
    """The conversation does not fit into the model's context."""


class Rejected(Exception):
    """The request is wrong, and will be wrong again."""


@dataclass
class Answer:
    content: list[Block] = field(default_factory=list)
    stop: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)
    """Tool calls whose input cannot be used, by id, with the reason."""
    model: str = ""
    id: str = ""
