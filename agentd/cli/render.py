"""Dicts in, lines of text out: pure. All text from outside goes through :func:`clean` or :func:`one_line`."""

import re
import signal
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from agentd.cli.paint import Style, paint

View = dict[str, Any]

# --- text from outside --------------------------------------------------------------------------------------

SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x90-\x9f\n]*(?:\x07|\x1b\\|\x9c)"  # OSC DCS SOS PM APC
    r"|\x1b[ -/]*[0-~]"
)
HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # what hides or turns text
    "\ud800-\udfff]"
)


def clean(text: str, keep: str = "\t\n") -> str:
    """Nothing in it drives a terminal any more: sequences are gone, other controls are shown as ``\\x..``."""
    return shown(SEQUENCE.sub("", text.replace("\r\n", "\n")), keep)


def shown(text: str, keep: str = "") -> str:
    """Every control as ``\\x..``, what hides or turns text as ``\\u....``; no sequence is taken out."""
    return HARMFUL.sub(lambda found: found[0] if found[0] in keep else code(found[0]), text)


def code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


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


def local(text: str | None) -> str | None:
    """``2026-01-31 12:00:01 CET``: the time of day where one is."""
    return None if text is None else datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


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


def ago(text: str | None, now: float) -> str:
    """``just now``, ``3 min ago``, ``2 h ago``, ``5 days ago``; a moment to come is ``in 3 min``."""
    at = moment(text)
    if at is None:
        return "-"
    seconds = abs(now - at)
    if seconds < 5:
        return "just now"
    size, unit = next((size, unit) for size, unit in AGES if seconds >= size)
    number = int(seconds // size)
    words = count(number, unit) if unit == "day" else f"{number} {unit}"
    return f"in {words}" if at > now else f"{words} ago"


AGES = ((86400, "day"), (3600, "h"), (60, "min"), (1, "s"))


def span_in_full(seconds: float) -> str:
    """As one would write it after ``--timeout``: ``1h30m``, ``90s`` is ``1m30s``, ``0.5s``."""
    whole, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= length:
            parts.append(f"{whole // length}{unit}")
            whole %= length
    rest = round(whole + seconds - int(seconds), 3)
    return "".join(parts) + (f"{rest:g}s" if rest or not parts else "")


def size(number: int) -> str:
    """``1 GiB``, ``1.5 KiB``, ``7 bytes``."""
    if number < 1024:
        return count(number, "byte")
    power = min((number.bit_length() - 1) // 10, 5)
    return f"{number / 1024**power:.1f}".removesuffix(".0") + " " + ("", "KiB", "MiB", "GiB", "TiB", "PiB")[power]


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def running_time(job: View, now: float) -> str:
    """How long it ran or runs; while it has not started, how long it has been there."""
    start = moment(job["started_at"])
    end = moment(job["ended_at"])
    if start is None:
        return span((end or now) - (moment(job["created_at"]) or now))
    return span((end or now) - start)


# --- jobs ---------------------------------------------------------------------------------------------------

LEFT_OUT = ("COST", "TURNS", "AGENT", "ENDED", "CHANGES", "EXIT", "TIME")
"""What a narrow terminal does without, the first one first."""
NARROW = 100
ROOM = 24
"""So many places the last column should have."""
LEAST = {"NAME": 8, "STATE": 10}
"""To so many places a column is cut in the end."""


def job_table(
    jobs: Sequence[View],
    now: float,
    width: int | None = None,
    style: Style | None = None,
    branches: Sequence[str] | None = None,
) -> list[str]:
    """``ps``. Some columns are there only if they say something; in a narrow terminal TASK has some room. ``branches``:
    what stands before each name, to draw who delegated what."""
    names = 20 if width is not None and width < NARROW else None
    before = branches or [""] * len(jobs)
    columns = {
        "ID": [str(job["id"]) for job in jobs],
        "NAME": [
            branch + (job["name"] if names is None else cut(job["name"], names))
            for branch, job in zip(before, jobs, strict=True)
        ],
        "STATE": [state_words(job) for job in jobs],
        "AGENT": [one_line(job["agent"], 20) for job in jobs],
        "TIME": [running_time(job, now) for job in jobs],
        "EXIT": [exit_word(job) for job in jobs],
        "ENDED": [ago(job["ended_at"], now) for job in jobs],
        "TURNS": [str(job["progress"]["turns"]) if job["progress"] else "-" for job in jobs],
        "COST": [money(job["progress"]["cost"]) if has_spent(job) else "-" for job in jobs],
        "CHANGES": [changes_word(job) for job in jobs],
        "TASK": [task_words(job) for job in jobs],
    }
    if set(columns["AGENT"]) <= {"command"}:
        del columns["AGENT"]
    for name in [name for name in ("ENDED", "TURNS", "COST", "CHANGES") if set(columns[name]) <= {"-"}]:
        del columns[name]
    fit(columns, width)
    return table(list(columns), list(zip(*columns.values(), strict=True)), width, style)


def task_words(job: View) -> str:
    return activity(job) or one_line(job["task"] or command_text(job["argv"]))


def fit(columns: dict[str, list[str]], width: int | None, left_out: Sequence[str] = LEFT_OUT) -> None:
    """Leave out, and at last cut names and states, until the last column has some room."""

    def lacking() -> int:
        sizes = [max(columns_of(cell) for cell in (name, *cells)) + 2 for name, cells in columns.items()]
        return 0 if width is None else ROOM - width + sum(sizes[:-1])

    for name in left_out:
        if lacking() <= 0:
            return
        columns.pop(name, None)
    for name, least in LEAST.items():
        if lacking() > 0:
            size = max(least, max(columns_of(cell) for cell in columns[name]) - lacking())
            columns[name] = [cut(cell, size) for cell in columns[name]]


def changes_word(job: View) -> str:
    """``+12 -3``: what there is to take home."""
    stat = (job["result"] or {}).get("diffstat")
    if not isinstance(stat, dict) or not stat["files"] or not job["worktree"] or is_merged(job):
        return "-"
    return f"+{stat['insertions']} -{stat['deletions']}"


def trash_table(trash: Sequence[View], days: int, width: int | None = None) -> list[str]:
    columns = ("ID", "NAME", "STATE", "REMOVED", "KEPT UNTIL", "TASK")
    rows = [
        [
            str(job["id"]),
            job["name"],
            state_words(job),
            day_and_minute(moment(job["removed_at"]) or 0.0),
            day_and_minute((moment(job["removed_at"]) or 0.0) + days * 86400),
            one_line(job["task"] or command_text(job["argv"])),
        ]
        for job in trash
    ]
    return table(columns, rows, width)


def day_and_minute(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def has_spent(job: View) -> bool:
    return bool(job["progress"]) and job["progress"]["turns"] > 0


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
        return f"{job['outcome']} (merged)" if is_merged(job) else str(job["outcome"])
    if job["state"] == "preparing":
        return f"preparing ({PHASES.get(job['waiting'] or '', 'the worktree')})"
    if job["waiting"] and not (job["progress"] and job["state"] in ("waiting", "parked")):
        return f"{job['state']} ({one_line(job['waiting'], 60)})"
    return str(job["state"])


PHASES = {"worktree": "making a worktree", "checkout": "checking out files", "fill": "copying ignored files"}


def is_merged(job: View) -> bool:
    """Is what this attempt did in a branch?"""
    return bool(job["merged"]) and job["merged"]["attempt"] == job["attempt"]


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
            return f"{head} was not started: {reason}{quotes_hint(job['argv'])}"
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


def swept_sentence(job: View) -> str | None:
    """What a job that ended by itself left behind, and what became of it."""
    swept = job["swept"]
    if not swept or job["outcome"] not in ("succeeded", "failed"):
        return None
    names = ", ".join(one_line(str(p["command"]), 40) for p in swept[:3]) + (", …" if len(swept) > 3 else "")
    were = "process it left behind was ended" if len(swept) == 1 else "processes it left behind were ended"
    return f"job {job['id']} ({job['name']}): {len(swept)} {were}: {names}; --leave PATTERN keeps such"


def quotes_hint(argv: Sequence[str]) -> str:
    """For who put a whole command between quotes."""
    if len(argv) != 1 or " " not in argv[0].strip():
        return ""
    return f"; a command is given word by word, as in: agentd run {one_line(argv[0], 200)}"


def base_sentence(answer: View, with_changes: bool) -> str:
    """What a new job starts from: a commit, with the branch that stands there, or a snapshot of the calling tree."""
    job, branch = answer["job"], (answer["base_ref"] or "").removeprefix("refs/heads/")
    where = f" ({one_line(branch, 100)})" if branch else ""
    if answer["snapshot"]:
        return f"job {job['id']} has your changes, as snapshot {answer['snapshot'][:10]}{where}"
    nothing = "; your tree has no changes to take along" if with_changes else ""
    return f"job {job['id']} starts from {job['base'][:10]}{where}{nothing}"


def excluded_sentence(id: int, excluded: View) -> str:
    parts = [f"{excluded[kind]} {kind}" for kind in ("modified", "untracked") if excluded[kind]]
    names = ", ".join(one_line(str(name), 80) for name in excluded["examples"][:5])
    more = ", …" if excluded["modified"] + excluded["untracked"] > len(excluded["examples"][:5]) else ""
    count = excluded["modified"] + excluded["untracked"]
    noun = "file" if count == 1 else "files"
    is_not = "is" if count == 1 else "are"
    return f"{', '.join(parts)} {noun} in your tree {is_not} not in job {id}: {names}{more}; use --with-changes"


# --- as a shell shows them ----------------------------------------------------------------------------------


def granted_lines(answer: View) -> list[str]:
    """What ``lock`` says when it has it."""
    if not answer["claims"]:
        return ["this job holds it already"]
    names = ", ".join(f"{claim['name']} (token {claim['token']})" for claim in answer["claims"])
    lines = [one_line(f"{'granted' if answer['is_new'] else 'held already'}: {names}")]
    return lines + [
        one_line(f"{one['holder']} has written to {one['name']} too; look before you merge") for one in answer["beside"]
    ]


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
    if job["exit_code"] is None or job["outcome"] in ("killed", "timed_out", "limited"):
        return str(job["outcome"]).replace("_", " ").capitalize()
    return "Done" if job["exit_code"] == 0 else f"Exit {job['exit_code']}"


# --- tables -------------------------------------------------------------------------------------------------


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    style: Style | None = None,
) -> list[str]:
    """Aligned lines. With a ``width`` the last column is cut to fit; without, nothing is cut or wrapped."""
    sizes = [max(columns_of(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    room = None if width is None else max(LEAST_LAST, width - sum(sizes[:-1]) - 2 * len(sizes[:-1]))
    lines = []
    for number, row in enumerate((columns, *rows), -1):
        *cells, last = row
        shown = [padded(cell, size) for cell, size in zip(cells, sizes[:-1], strict=True)]
        shown.append(last if room is None else cut(last, room))
        if style is not None:
            shown = [paint(cell, style(number, name)) for cell, name in zip(shown, columns, strict=True)]
        lines.append("  ".join(shown).rstrip())
    return lines


LEAST_LAST = 4


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
