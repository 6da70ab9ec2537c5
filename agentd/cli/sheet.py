"""``inspect`` for people: one job, whole, as lines of text. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from agentd.cli.event_sheet import Teller, event_line
from agentd.cli.paint import paint, state_style
from agentd.cli.render import (
    View,
    ago,
    command_text,
    count,
    exit_word,
    indented,
    local,
    money,
    one_line,
    running_time,
    size,
    span_in_full,
    spent_words,
    state_words,
    wrapped,
)

WIDTH = 15
SHOWN_EVENTS = 20


def sheet(
    document: View, now: float, is_there: bool = True, width: int | None = None, is_colored: bool = False
) -> list[str]:
    """``is_there``: whether the worktree's folder is. ``width``: a terminal's; nothing from outside is wrapped to its
    left edge."""
    job = document["job"]
    head, foot = rows(entries(document, now, is_there), width), rows(attempts(document), width)
    lines = [*head, *agent_lines(job, width), *foot]
    if is_colored:
        lines = [colored(line, job) for line in lines]
    events = document["events"][-SHOWN_EVENTS:]
    return (
        lines
        + [paint("events:", "dim" if is_colored else "")] * bool(events)
        + event_lines(events, job, now, width, is_colored)
    )


def event_lines(events: list[View], job: View, now: float, width: int | None, is_colored: bool) -> list[str]:
    if width is None:
        return [event_line(event) for event in events]
    teller = Teller(width, is_colored, {job["id"]: job["name"]})
    today = datetime.fromtimestamp(now).strftime("%Y-%m-%d")
    return [line for event in events for line in teller.lines(event, today)]


def colored(line: str, job: View) -> str:
    """Its label, which is one of ours: what comes from outside stands behind it."""
    label, text = line[:WIDTH], line[WIDTH:]
    style = {"job:": "strong", "state:": state_style(job), "asks:": "asks"}.get(label.strip(), "")
    return paint(label, "dim" if label.strip() else "") + paint(text, style)


def rows(entries: Iterable[tuple[str, object]], width: int | None = None) -> Iterator[str]:
    """Names and texts; a list has its name in its first row only."""
    room = None if width is None else width - WIDTH
    for name, value in entries:
        texts = value if isinstance(value, list) else [] if value in (None, "") else [str(value)]
        pieces = [piece for text in texts for piece in wrapped(one_line(text), room)]
        for label, text in zip([f"{name}:", *[""] * len(pieces)], pieces, strict=False):
            yield f"{label:<{WIDTH}}{text}"


def entries(document: View, now: float, is_there: bool) -> Iterator[tuple[str, object]]:
    job = document["job"]
    worktree = document["worktree"] or {}
    yield "job", f"{job['id']}  {job['name']}" + ("  (in the trash)" if job["removed"] else "")
    yield "state", state_words(job) + (f", exit {exit_word(job)}" if job["state"] == "done" else "")
    yield "reason", job["reason"]
    yield "result", result_lines(job["result"] or {})
    yield "merged", merged_words(job["merged"])
    yield "overlaps", overlap_lines(job.get("overlaps") or [])
    yield "task", job["task"]
    yield "command", None if job["progress"] else command_text(job["argv"])
    yield "agent", job["agent"]
    yield "profile", profile_words(document["spec"].get("profile"))
    yield "owner", f"{one_line(job['owner'])}  (%{job['number']})"
    yield "called from", job["cwd"]
    yield "worktree", worktree_lines(job, is_there)
    yield "branch", job["branch"]
    yield "base", job["base"]
    yield "not there", [str(name) for name in worktree.get("missing") or []]
    yield "parent", job["parent"]
    yield "created", when(job["created_at"], now)
    yield "started", when(job["started_at"], now)
    yield "ended", when(job["ended_at"], now)
    yield "starts again", when(job["again_at"], now)
    yield "time", running_time(job, now)
    yield "pid", job["pid"] if job["state"] != "done" else None
    yield "limits", limit_lines(document["spec"])
    yield "ended with it", process_lines(job["swept"])
    yield "left alive", process_lines(job["left"])


def when(text: str | None, now: float) -> str | None:
    return None if text is None else f"{local(text)} ({ago(text, now)})"


def attempts(document: View) -> Iterator[tuple[str, object]]:
    for attempt in document["attempts"]:
        log = attempt["log"]
        yield (
            f"attempt {attempt['attempt']}",
            [
                str(attempt["path"]),
                f"stdout {size(log['out'])}, stderr {size(log['err'])}",
            ],
        )


def agent_lines(job: View, width: int | None) -> Iterator[str]:
    """What an agent says and spends. Its text may have lines; none of them begins where ours do."""
    progress = job["progress"]
    if not progress:
        return
    is_done = job["state"] == "done"
    question = progress["question"] if job["state"] == "waiting" else None
    texts = [
        ("spent", progress["turns"] and spent_words(progress["turns"], progress["tokens"], progress["cost"])),
        ("doing", None if is_done else progress["doing"]),
        ("plan", progress["plan"]),
        ("asks", question and question["text"]),
        *((f"  {number}", text) for number, text in enumerate(question["options"] if question else [], 1)),
        ("its words", progress["words"]),
    ]
    for name, text in texts:
        if text:
            first, *more = indented(text, " " * WIDTH, width)
            yield f"{name + ':':<{WIDTH}}{first.lstrip()}"
            yield from more


def profile_words(profile: View | None) -> str:
    if not profile:
        return ""
    name, model = profile.get("name") or "-", profile.get("model") or "no model"
    return f"{name} ({model}{', ' + profile['endpoint'] if profile.get('endpoint') else ''})"


def worktree_lines(job: View, is_there: bool) -> list[str]:
    """Where it is; if it is gone, why, and where its content still is."""
    if job["base"] is None:
        return []  # it works in place
    if job["worktree"] is None:
        return ["removed, it ended equal to its base"]
    if is_there or job["state"] != "done" or job["removed"]:
        return [job["worktree"]]
    return [f"{job['worktree']} is gone", *snapshot_lines(job)]


def overlap_lines(overlaps: Sequence[View]) -> list[str]:
    """With whom it changes the same files, and whether the changes merge."""
    return [f"job {one['job']}, {one['verdict']}: {', '.join(one['conflicts'] or one['paths'])}" for one in overlaps]


def snapshot_lines(job: View) -> list[str]:
    """How to get at what a job whose worktree is gone had made."""
    if not (job["result"] or {}).get("snapshot"):
        return ["no snapshot was taken of it"]
    ref = f"refs/agentd/work/{job['id']}"
    return [f"{ref} has its files, as they were at its end:", f"git -C {quoted(job['repo'])} diff {job['base']} {ref}"]


def quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)


def result_lines(result: View) -> list[str]:
    left_out = [one_line(path, 80) for path in result.get("left_out", ())]
    return [*change_lines(result), *([f"not in its snapshot: {', '.join(left_out)}"] if left_out else [])]


def change_lines(result: View) -> list[str]:
    stat = result.get("diffstat")
    if isinstance(stat, dict):
        head = f"{count(stat['files'], 'file')}, +{stat['insertions']} -{stat['deletions']}"
        paths = [changed_path(*row) for row in stat["paths"]]
        left = stat["files"] - len(paths)
        return [head, *paths, *([f"and {count(left, 'more file')}"] if left > 0 else [])]
    if result.get("error"):
        return [f"error: {result['error']}"]
    changed = [f"no changes that git tracks; {result['kept']}"] if result.get("kept") else ["no changes"]
    return changed if result.get("changed") is False else []


def changed_path(path: str, added: int | None, deleted: int | None) -> str:
    return f"{path}  " + ("binary" if added is None else f"+{added} -{deleted}")


def merged_words(merged: View | None) -> str:
    if merged is None:
        return ""
    if merged["from"] == merged["to"]:
        return f"it was in {merged['into']} already, at {merged['to'][:10]}"
    return f"into {merged['into']}, from {merged['from'][:10]} to {merged['to'][:10]}, {merged['at']}"


def limit_lines(spec: View) -> list[str]:
    """Those that are set; ``log_max`` 0 keeps all."""
    forms = (("timeout", span_in_full), ("idle_timeout", span_in_full), ("memory", size), ("processes", str))
    lines = [f"{name.replace('_', '-')} {form(spec[name])}" for name, form in forms if spec.get(name)]
    if spec.get("log_max"):
        lines.append(f"log-max {size(spec['log_max'])}")
    budget = spec.get("budget") or {}
    lines += [f"{name} {budget[name]:,}" for name in ("turns", "tokens") if budget.get(name)]
    return [*lines, f"cost {money(budget['cost'])}"] if budget.get("cost") else lines


def process_lines(processes: Sequence[View]) -> list[str]:
    return [f"{p['pid']} {one_line(str(p['command']), 80)}" for p in processes]
