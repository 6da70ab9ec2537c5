"""Blocks of a transcript as lines of plain text: for pipes, and for terminals without colours."""

from agentd.cli.render import indented
from agentd.cli.transcript_view import Block

LABEL = 9


class Plain:
    def __init__(self, width: int | None) -> None:
        self.width = width

    def lines(self, block: Block) -> list[str]:
        """``width`` None: nothing is wrapped."""
        body = [line for part in block.parts for line in indented(part.text, " " * LABEL, self.width)]
        return under_label(block, block.label.ljust(LABEL), body)


def under_label(block: Block, label: str, body: list[str]) -> list[str]:
    """``body``: lines that begin with the room for the label."""
    first, *more = body or [""]
    lines = [line.rstrip() for line in (label + first[LABEL:], *more)]
    return ["", *lines] if block.is_apart else lines
