"""What of a record is shown, and how much of it: long texts are folded here, before they cost anything. Pure, and
total: any JSON may stand in a record."""

import difflib
import json
import math
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

Record = dict[str, Any]

MOST = 100_000
"""Characters of one text; the middle of a longer one is left out."""
LONGEST_LINE = 2_000
OUTPUT = (2, 4)
"""Lines of a result at its beginning and its end."""
COMMAND = (6, 2)
CHANGE = (40, 10)
DIFFABLE = 400
TOOLS = ("bash", "read", "write", "edit", "glob", "grep")
COUNTED = ("read", "glob", "grep")
"""Of their results the number of lines is told."""


class Part(NamedTuple):
    style: str
    """text, dim, error, strong, markdown, diff"""
    text: str


# --- tools --------------------------------------------------------------------------------------------------


def call_parts(tool: str, given: Record) -> list[Part]:
    head = Part("strong", folded(headline(tool, given), *COMMAND))
    if tool == "edit":
        return [head, Part("diff", changed(string(given, "path"), string(given, "old"), string(given, "new")))]
    if tool == "write":
        lines = [f"+{line}" for line in bounded(string(given, "content")).splitlines()]
        return [head, Part("diff", folded("\n".join(lines), *CHANGE))]
    return [head if tool in TOOLS else Part("strong", folded(f"{tool} {headline('', given)}", *COMMAND))]


def headline(tool: str, given: Record) -> str:
    match tool:
        case "bash" if "command" in given:
            return string(given, "command") + ("  (in the background)" if given.get("background") else "")
        case "bash":
            return f"(more of {string(given, 'id')})"
        case "read" if given.get("offset") or given.get("limit"):
            return f"{string(given, 'path')} from line {string(given, 'offset') or '1'}"
        case "read" | "write" | "edit":
            return string(given, "path")
        case "glob":
            return string(given, "pattern")
        case "grep":
            places = [string(given, name) for name in ("path", "glob") if given.get(name)]
            return string(given, "pattern") + (f" in {' '.join(places)}" if places else "")
    return compact(given) if given else ""


def result_part(tool: str, content: str, is_error: bool) -> Part:
    if is_error:
        return Part("error", folded(content, *OUTPUT))
    if tool in COUNTED:
        count = content.count("\n") + (not content.endswith("\n") and bool(content))
        return Part("dim", f"{count} {'line' if count == 1 else 'lines'}")
    return Part("dim", folded(content.strip("\n"), *OUTPUT))


def changed(path: str, old: str, new: str) -> str:
    """A unified diff of the piece that is replaced; where that would cost too much, both pieces."""
    before, after = bounded(old).splitlines(), bounded(new).splitlines()
    if len(before) + len(after) > DIFFABLE:
        lines = [*(f"-{line}" for line in before), *(f"+{line}" for line in after)]
    else:
        found = difflib.unified_diff(before, after, n=3, lineterm="")
        lines = [line for line in found if not line.startswith(("--- ", "+++ ", "@@ "))]
    return folded("\n".join([f"--- {one(path)}", f"+++ {one(path)}", *lines]), *CHANGE)


# --- texts --------------------------------------------------------------------------------------------------


def folded(text: str, first: int, last: int) -> str:
    """Its first and last lines, and how many are between."""
    lines = bounded(text).split("\n")
    if len(lines) <= first + last + 1:
        return "\n".join(lines)
    return "\n".join([*lines[:first], f"… {len(lines) - first - last} more lines", *lines[len(lines) - last :]])


def bounded(text: str) -> str:
    """Not too much of a text, nor of a line of it."""
    if len(text) > MOST:
        half = MOST // 2
        text = f"{text[:half]}\n… {len(text) - MOST} more characters …\n{text[-half:]}"
    return "\n".join(line if len(line) <= LONGEST_LINE else shorter(line) for line in text.split("\n"))


def shorter(line: str) -> str:
    return f"{line[:LONGEST_LINE]}… {len(line) - LONGEST_LINE} more characters"


def one(text: str) -> str:
    return " ".join(text[:LONGEST_LINE].split())


def clock(at: Any) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S") if is_moment(at) else "?"


# --- whatever may stand there ---------------------------------------------------------------------------------


def string(record: Record, name: str) -> str:
    value = record.get(name)
    if isinstance(value, str):
        return value
    return "" if value is None else compact(value)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def objects(record: Record, name: str) -> list[Record]:
    value = record.get(name)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_of(record: Record, name: str) -> Record:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def is_moment(value: Any) -> TypeGuard[float]:
    """Seconds since 1970 that a calendar has."""
    return is_number(value) and 0 <= value < 1e11


def is_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_rates(value: Any) -> bool:
    """As agentd.budget takes them."""
    names = ("input", "output", "cache_read", "cache_write")
    if not isinstance(value, dict) or not all(is_number(value.get(name)) for name in names):
        return False
    tier = value.get("above") or {"prompt_tokens": 0, "factor": 1}
    return isinstance(tier, dict) and is_number(tier.get("prompt_tokens")) and is_number(tier.get("factor"))
