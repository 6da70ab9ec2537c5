"""Dicts in, lines of text out: pure. All text from outside goes through :func:`clean` or :func:`one_line`."""

import re
import signal
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

View = dict[str, Any]

# --- text from outside --------------------------------------------------------------------------------------

SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x90-\x9f\n]*(?:\x07|\x1b\\|\x9c)"  # OSC DCS SOS PM APC
    r"|\x1b[ -/]*[0-~]"
)
HIDDEN = frozenset(
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def clean(text: str, keep: str = "\t\n") -> str:
    """Nothing in it drives a terminal any more: sequences are gone, other controls are shown as ``\\x..``."""
    return shown(SEQUENCE.sub("", text.replace("\r\n", "\n")), keep)


def shown(text: str, keep: str = "") -> str:
    """Every control as ``\\x..``, what hides or turns text as ``\\u....``; no sequence is taken out."""
    return "".join(c if c in keep or is_harmless(c) else code(c) for c in text)


def is_harmless(character: str) -> bool:
    number = ord(character)
    return number >= 32 and not 127 <= number < 160 and character not in HIDDEN and not 0xD800 <= number < 0xE000


def code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def one_line(text: str, limit: int = 2000) -> str:
    """As it may stand in a sentence or a row."""
    joined = shown(re.sub(r"\s*\n\s*", " ", text.strip()).replace("\t", " "))
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"


def indented(text: str, by: str, width: int | None) -> list[str]:
    """Its lines, cleaned, none of which begins at the left edge, which is ours, not even where a terminal of this
    width would wrap it."""
    lines = clean(text).expandtabs(4).split("\n")
    return [by + piece for line in lines for piece in wrapped(line, None if width is None else width - len(by))]


def wrapped(line: str, size: int | None) -> list[str]:
    """Pieces of so many places at most, cut at a blank where there is one in the second half."""
    pieces = []
    while size is not None and columns_of(line) > max(size, 8):
        piece = line[: max(size, 8)]
        while columns_of(piece) > max(size, 8):
            piece = piece[: len(piece) - max(1, (columns_of(piece) - max(size, 8)) // 2)]
        blank = piece.rfind(" ")
        end = blank + 1 if blank >= len(piece) // 2 else len(piece)
        pieces.append(line[:end].rstrip())
        line = line[end:]
    return [*pieces, line]


# --- times --------------------------------------------------------------------------------------------------


def moment(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def span(seconds: float) -> str:
    """``7s``, ``3m04s``, ``2h05m``, ``4d03h``; never negative."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def running_time(job: View, now: float) -> str:
    """How long it ran or runs; while it has not started, how long it has been there."""
    start = moment(job["started_at"])
    end = moment(job["ended_at"])
    if start is None:
        return span((end or now) - (moment(job["created_at"]) or now))
    return span((end or now) - start)


# --- jobs ---------------------------------------------------------------------------------------------------

PS_COLUMNS = ("ID", "NAME", "STATE", "AGENT", "TIME", "EXIT", "TASK")
OF_AGENTS = ("TURNS", "COST")
LEFT_OUT = (*reversed(OF_AGENTS), "AGENT", "EXIT", "TIME")
"""What a narrow terminal does without, the first one first."""
ROOM = 24
"""So many places the last column should have."""


def job_table(jobs: Sequence[View], now: float, width: int | None = None) -> list[str]:
    """``ps``. What agents spend is shown where there are any, and room for it."""
    names = [*PS_COLUMNS]
    if any(job["progress"] for job in jobs):
        names[-1:-1] = OF_AGENTS
    rows = [job_row(job, now) for job in jobs]

    def room() -> int:
        sizes = [max(columns_of(name), *(columns_of(row[name]) for row in rows), 0) + 2 for name in names[:-1]]
        return ROOM if width is None else width - sum(sizes)

    for name in LEFT_OUT:
        if room() >= ROOM:
            break
        if name in names:
            names.remove(name)
    if room() < ROOM:
        longest = max(len(row["NAME"]) for row in rows)
        for row in rows:
            row["NAME"] = cut(row["NAME"], max(8, longest - ROOM + room()))
    return table(names, [[row[name] for name in names] for row in rows], width)


def job_row(job: View, now: float) -> dict[str, str]:
    progress = job["progress"]
    return {
        "ID": str(job["id"]),
        "NAME": job["name"],
        "STATE": state_words(job),
        "AGENT": one_line(job["agent"], 20),
        "TIME": running_time(job, now),
        "EXIT": exit_word(job),
        "TURNS": str(progress["turns"]) if progress else "-",
        "COST": money(progress["cost"]) if progress and progress["turns"] else "-",
        "TASK": activity(job) or one_line(job["task"] or command_text(job["argv"])),
    }


def activity(job: View) -> str:
    """What an agent does or waits for just now; empty of any other job."""
    progress = job["progress"]
    if not progress or job["state"] == "done":
        return ""
    if progress["question"] and job["state"] == "waiting":
        return f"asks: {one_line(question_words(progress['question']))}"
    return one_line(job["waiting"] or progress["doing"])


def question_words(question: View) -> str:
    options = "; ".join(f"{number}: {text}" for number, text in enumerate(question["options"], 1))
    return f"{question['text']} ({options})" if options else str(question["text"])


def question_lines(question: View, by: str, width: int | None) -> list[str]:
    """The text and the numbered options, under each other."""
    lines = indented(question["text"], by, width)
    for number, text in enumerate(question["options"], 1):
        lines += indented(f"{number}  {text}", f"{by}  ", width)
    return lines


def money(dollars: float | None) -> str:
    """``?``: the price of its model is not known."""
    if dollars is None:
        return "?"
    return f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.4f}"


def spent_words(turns: int, tokens: int, cost: float | None) -> str:
    return f"{turns} {'turn' if turns == 1 else 'turns'}, {tokens:,} tokens, " + (
        "cost unknown" if cost is None else money(cost)
    )


def state_words(job: View) -> str:
    if job["state"] == "done":
        return str(job["outcome"])
    if job["waiting"] and not (job["progress"] and job["state"] in ("waiting", "parked")):
        return f"{job['state']} ({one_line(job['waiting'], 60)})"
    return str(job["state"])


def exit_word(job: View) -> str:
    if job["exit_code"] is not None:
        return str(job["exit_code"])
    return signal_word(job["signal"]) if job["signal"] is not None else "-"


def signal_word(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def command_text(argv: Sequence[str]) -> str:
    """The command as one would type it, controls shown."""
    import shlex

    return " ".join(one_line(shlex.quote(word)) for word in argv)


def outcome_sentence(job: View) -> str | None:
    """What its exit code alone does not say; None if that says it all."""
    head = f"job {job['id']} ({job['name']})"
    reason = one_line(job["reason"] or "", 300)
    match job["outcome"]:
        case "unstarted":
            return f"{head} was not started: {reason}"
        case "timed_out":
            return f"{head} met its time limit ({reason})"
        case "limited":
            return f"{head} met a limit ({reason})"
        case "lost":
            return f"how {head} ended is not known ({reason})"
        case "rebooted":
            return f"{head} was lost: {reason}"
        case "killed":
            return f"{head} was killed"
        case "failed" if reason:
            return f"{head} failed: {reason}"
    return None


def base_sentence(job: View, base_ref: str | None) -> str:
    branch = (base_ref or "").removeprefix("refs/heads/")
    return f"job {job['id']} starts from {job['base'][:10]}" + (f" ({one_line(branch, 100)})" if branch else "")


def excluded_sentence(id: int, excluded: View) -> str:
    parts = [f"{excluded[kind]} {kind}" for kind in ("modified", "untracked") if excluded[kind]]
    names = ", ".join(one_line(str(name), 80) for name in excluded["examples"][:5])
    more = ", …" if excluded["modified"] + excluded["untracked"] > len(excluded["examples"][:5]) else ""
    count = excluded["modified"] + excluded["untracked"]
    noun = "file" if count == 1 else "files"
    is_not = "is" if count == 1 else "are"
    return f"{', '.join(parts)} {noun} in your tree {is_not} not in job {id}: {names}{more}; use --with-changes"


# --- as a shell shows them ----------------------------------------------------------------------------------


def bash_marks(jobs: Iterable[View]) -> dict[int, str]:
    """``+`` for the current job, ``-`` for the one before: last stopped, else last started, else last ended."""

    def recency(job: View) -> tuple[int, str, int]:
        rank = 2 if job["state"] == "stopped" else 0 if job["state"] == "done" else 1
        return rank, job["started_at"] or job["created_at"], job["id"]

    ranked = sorted(jobs, key=recency, reverse=True)
    return {job["id"]: mark for job, mark in zip(ranked, "+-", strict=False)}


def bash_line(job: View, mark: str, with_pid: bool = False) -> str:
    """``[1]-  Running                 sleep 3 &``"""
    pid = f" {job['pid']} " if with_pid and job["pid"] else "  "
    command = one_line(job["task"] if job["progress"] else " ".join(job["argv"]) or job["task"])
    return f"[{job['number']}]{mark or ' '}{pid}{bash_state(job):<24}{command}{'' if job['state'] == 'done' else ' &'}"


def bash_state(job: View) -> str:
    if job["state"] != "done":
        return str(job["state"]).capitalize()
    if job["signal"] is not None:
        words = {9: "Killed", 15: "Terminated", 1: "Hangup", 2: "Interrupt", 6: "Aborted", 11: "Segmentation fault"}
        return words.get(job["signal"], signal_word(job["signal"]))
    if job["exit_code"] is None:
        return str(job["outcome"]).capitalize()
    return "Done" if job["exit_code"] == 0 else f"Exit {job['exit_code']}"


# --- events -------------------------------------------------------------------------------------------------


def event_line(event: View) -> str:
    """``17  12:00:01.123  job 7  job.completed  outcome=failed exit_code=3``"""
    about = f"job {event['job']}" if event["job"] else "-"
    if event["job"] and (event["attempt"] or 1) > 1:
        about += f".{event['attempt']}"
    facts = " ".join(f"{key}={fact(value)}" for key, value in event["data"].items() if value not in (None, [], {}, ""))
    return f"{event['seq']:>6}  {event['at']}  {about:<8}  {event['type']:<18} {facts}".rstrip()


def fact(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return one_line(" ".join(value), 200)
    if isinstance(value, dict | list):
        import json

        return one_line(json.dumps(value), 200)
    return one_line(str(value), 200)


# --- tables -------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Aligned lines. With a ``width`` the last column is cut to fit; without, nothing is cut or wrapped."""
    sizes = [max(columns_of(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        head = "  ".join(padded(cell, size) for cell, size in zip(row[:-1], sizes[:-1], strict=True))
        room = None if width is None else max(10, width - columns_of(head) - 2)
        lines.append(f"{head}  {row[-1] if room is None else cut(row[-1], room)}".rstrip())
    return lines


def columns_of(text: str) -> int:
    """How many places it takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, size: int) -> str:
    return text + " " * (size - columns_of(text))


def cut(text: str, size: int) -> str:
    if columns_of(text) <= size:
        return text
    while columns_of(text) > size - 1:
        text = text[:-1]
    return text + "…"
