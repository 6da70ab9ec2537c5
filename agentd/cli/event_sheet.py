"""Events as lines of text: whole for programs that read lines, a short sentence for people at a terminal. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from agentd.cli.paint import paint
from agentd.cli.render import PHASES, View, count, cut, money, one_line, padded, signal_word

WIDE = 80
FIRST = ("outcome", "exit_code", "signal", "reason")


def event_line(event: View) -> str:
    """``17  2026-01-31T12:00:01.123Z  job 7  job.completed  outcome=failed exit_code=3``: nothing is left out."""
    data = {key: event["data"][key] for key in FIRST if key in event["data"]} | event["data"]
    return f"{event['seq']:>6}  {event['at']}  {about(event):<8}  {one_line(event['type']):<18} {facts(data)}".rstrip()


def about(event: View) -> str:
    if not event["job"]:
        return "-"
    return f"job {event['job']}" + (f".{event['attempt']}" if (event["attempt"] or 1) > 1 else "")


def facts(data: View) -> str:
    known = {key: value for key, value in data.items() if value not in (None, [], {}, "")}
    return " ".join(f"{one_line(key, 60)}={fact(value, key)}" for key, value in known.items())


def fact(value: Any, key: str = "") -> str:
    if key.endswith("_at") and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if key == "diffstat" and isinstance(value, dict):
        return f"{count(value['files'], 'file').replace(' ', ':')},+{value['insertions']},-{value['deletions']}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return one_line(" ".join(value), 200)
    if isinstance(value, dict | list):
        import json

        return one_line(json.dumps(value), 200)
    return one_line(str(value), 200)


# --- for people ---------------------------------------------------------------------------------------------


class Teller:
    """What has to be remembered from event to event: names, and the day of the last one."""

    def __init__(self, width: int, is_colored: bool, names: dict[int, str]) -> None:
        self.width = width
        self.is_colored = is_colored
        self.names = names
        self.who = 16 if width >= WIDE else 10
        self.day = ""

    def lines(self, event: View, today: str) -> list[str]:
        """The event, and before the first of a day other than ``today`` or the last one, the day."""
        at = datetime.fromisoformat(event["at"]).astimezone()
        name = event["data"].get("name")
        if event["job"] and isinstance(name, str):
            self.names[event["job"]] = name
        day, self.day = self.day or today, at.strftime("%Y-%m-%d")
        lines = [] if self.day == day else [self.painted(f"-- {at.strftime('%a %d %B %Y')}", "dim")]
        return [*lines, self.line(event, at.strftime("%H:%M:%S"))]

    def line(self, event: View, clock: str) -> str:
        words, style = sentence(event)
        name = one_line(self.names.get(event["job"] or 0, ""), 40)
        who = padded(cut(f"{about(event).removeprefix('job ')} {name}".rstrip(), self.who), self.who)
        room = max(self.width - len(clock) - self.who - 4, 8)
        return f"{self.painted(clock, 'dim')}  {who}  {self.painted(cut(words, room), style)}"

    def painted(self, text: str, style: str) -> str:
        return paint(text, style) if self.is_colored else text


def sentence(event: View) -> tuple[str, str]:
    """What has happened, and its style. An event that is not known here is told by its facts."""
    told = SENTENCES.get(event["type"])
    data = event["data"]
    if told is not None:
        try:
            words, style = told(data)
            return one_line(words, 400), style
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            pass
    return f"{one_line(event['type'], 60)} {facts(data)}".rstrip(), ""


def created(data: View) -> tuple[str, str]:
    return f"new: {data.get('task') or ' '.join(data.get('argv') or [])}", "strong"


def completed(data: View) -> tuple[str, str]:
    outcome = str(data["outcome"]).replace("_", " ")
    if data.get("signal"):
        outcome += f" by {signal_word(data['signal'])}"
    elif data.get("exit_code"):
        outcome += f", exit {data['exit_code']}"
    spent = data.get("spent") or {}
    if spent.get("cost") is not None:
        outcome += f", {money(spent['cost'])}"
    reason = data.get("words") or data.get("reason")
    return f"{outcome}: {reason}" if reason else outcome, "good" if data["outcome"] == "succeeded" else "bad"


def result(data: View) -> tuple[str, str]:
    stat = data.get("diffstat")
    if not stat:
        return "no changes" if data.get("changed") is False else "its result is saved", "dim"
    return f"changed {count(stat['files'], 'file')}, +{stat['insertions']} -{stat['deletions']}", "changes"


def stopping(data: View) -> tuple[str, str]:
    words = {"exited": "its first process has ended", "killed": f"is being killed by {data.get('by', '?')}"}
    return words.get(data["why"], f"is being ended: {data['why']}"), "held"


def waiting(data: View) -> tuple[str, str]:
    if data.get("text"):
        return f"asks: {data['text']}", "asks"
    if data.get("needs"):
        return f"needs {', '.join(data['needs'])}", "asks"
    return f"waits for you: {data.get('why') or 'a message'}", "asks"


def progress(data: View) -> tuple[str, str]:
    return f"turn {data['turns']}" + (f": {data['doing']}" if data["doing"] else ""), "dim"


def merged(data: View) -> tuple[str, str]:
    return f"merged into {data['into']}", "changes"


def preparing(data: View) -> tuple[str, str]:
    return PHASES.get(data["phase"], str(data["phase"])), "begins"


def fixed(words: str, style: str = "") -> Callable[[View], tuple[str, str]]:
    return lambda _: (words, style)


SENTENCES: dict[str, Callable[[View], tuple[str, str]]] = {
    "job.created": created,
    "job.queued": fixed("queued", "dim"),
    "job.preparing": preparing,
    "worktree.made": fixed("its worktree is ready", "begins"),
    "job.starting": fixed("starting", "begins"),
    "job.started": lambda data: (f"runs, pid {data['pid']}", "good"),
    "job.stopped": fixed("stopped", "held"),
    "job.continued": fixed("goes on", "good"),
    "job.stopping": stopping,
    "job.waiting": waiting,
    "job.progress": progress,
    "job.note": lambda data: (f"notes: {data['text']}", ""),
    "job.parked": lambda data: (f"parked: {data['why']}", "held"),
    "job.input": lambda data: ("was sent a message" if data["state"] == "accepted" else "has read it", "dim"),
    "job.completed": completed,
    "job.result": result,
    "job.merged": merged,
    "job.restarted": lambda data: (f"starts again, attempt {data['attempt']}", "begins"),
    "job.given_up": fixed("does not start again", "held"),
    "job.removed": fixed("in the trash", "dim"),
    "job.restored": fixed("out of the trash", "dim"),
    "job.unkillable": fixed("cannot be ended", "bad"),
}
