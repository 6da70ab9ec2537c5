"""Blocks of a transcript for a terminal with colours. Imported only there: rich costs a tenth of a second."""

import re
import sys

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.text import Text

from agentd.cli.render import clean, columns_of, indented
from agentd.cli.transcript_parts import Part
from agentd.cli.transcript_plain import LABEL, under_label
from agentd.cli.transcript_view import Block

LONGEST_MARKDOWN = 20_000
LANGUAGES = {
    *{
        "bash",
        "c",
        "cpp",
        "css",
        "diff",
        "go",
        "html",
        "java",
        "javascript",
        "js",
        "json",
        "kotlin",
        "make",
        "markdown",
    },
    *{"php", "py", "python", "ruby", "rust", "sh", "shell", "sql", "swift", "toml", "ts", "typescript", "xml", "yaml"},
}
STYLES = {"text": "", "dim": "dim", "error": "red", "strong": "bold"}
LABELS = {
    "says": "bold cyan",
    "asks": "bold yellow",
    "you": "bold green",
    "task": "bold green",
    "ended": "bold",
    "failed": "bold red",
    "parked": "bold yellow",
    "held": "bold yellow",
    "note": "magenta",
}
COLORS = re.compile(r"\x1b\[[0-9;]*m")
DIFF = {"+": "green", "-": "red", "…": "dim"}


class Rich:
    def __init__(self, width: int) -> None:
        self.body = max(20, width - LABEL)
        self.console = Console(file=sys.stdout, force_terminal=True, highlight=False, markup=False, emoji=False)

    def lines(self, block: Block) -> list[str]:
        label = self.shown(Text(block.label.ljust(LABEL), LABELS.get(block.label, "blue")))[0]
        body = [" " * LABEL + line for part in block.parts for line in self.part(part)]
        return under_label(block, label, body)

    def part(self, part: Part) -> list[str]:
        """Drawn; or, where that may be wider than there is room (a table, or signs of which terminals disagree how wide
        they are), as plain text. A line that a terminal wraps would go on at the left edge."""
        drawn = self.shown(renderable(part))
        if all(columns_of(COLORS.sub("", line)) <= self.body for line in drawn):
            return drawn
        return indented(part.text, "", self.body)

    def shown(self, what: RenderableType) -> list[str]:
        with self.console.capture() as capture:
            self.console.print(what, width=self.body, overflow="fold")
        return [line.rstrip() for line in capture.get().rstrip("\n").split("\n")]


def renderable(part: Part) -> RenderableType:
    if part.style == "markdown" and len(part.text) <= LONGEST_MARKDOWN:
        return CleanMarkdown(part.text)
    text = clean(part.text).expandtabs(4)
    if part.style == "diff":
        lines = [
            Text(line, DIFF.get(line[:1], "") if line[:3] not in ("+++", "---") else "bold") for line in lines_of(text)
        ]
        return Text("\n").join(lines)
    return Text(text, STYLES.get(part.style, ""))


def lines_of(text: str) -> list[str]:
    return text.split("\n")


class CleanMarkdown(Markdown):
    """Cleaned once it is parsed: an entity such as ``&#x202e;`` becomes a character only there. Links are shown with
    where they lead, and are no links."""

    def __init__(self, text: str) -> None:
        super().__init__(clean(text), code_theme="ansi_dark", hyperlinks=False)
        tokens = [*self.parsed]
        while tokens:
            token = tokens.pop()
            token.content = clean(token.content)
            token.attrs = {
                name: clean(value) if isinstance(value, str) else value for name, value in token.attrs.items()
            }
            token.info = token.info if token.info in LANGUAGES else ""
            tokens += token.children or []
