"""``inspect`` for people: a job's document in, lines out. Pure."""

from collections.abc import Iterator, Sequence

from agentd.cli.render import (
    View,
    command_text,
    event_line,
    exit_word,
    fact,
    indented,
    money,
    one_line,
    running_time,
    spent_words,
    state_words,
)

LABEL = 15


def sheet(document: View, now: float, width: int | None = None) -> list[str]:
    """``inspect`` for people."""
    job, spec = document["job"], document["spec"]
    worktree = document["worktree"] or {}
    pairs = [
        ("job", f"{job['id']}  {job['name']}" + ("  (in the trash)" if job["removed"] else "")),
        ("state", state_words(job) + (f", exit {exit_word(job)}" if job["state"] == "done" else "")),
        ("reason", job["reason"]),
        ("result", result_words(job["result"] or {})),
        ("task", job["task"]),
        ("command", None if job["progress"] else command_text(job["argv"])),
        ("agent", job["agent"]),
        ("profile", profile_words(spec.get("profile") or {})),
        ("owner", f"{one_line(job['owner'])}  (%{job['number']})"),
        ("called from", job["cwd"]),
        ("worktree", job["worktree"]),
        ("branch", job["branch"]),
        ("base", job["base"]),
        ("not there", ", ".join(worktree.get("missing") or [])),
        ("parent", job["parent"]),
        ("created", job["created_at"]),
        ("started", job["started_at"]),
        ("ended", job["ended_at"]),
        ("starts again", job["again_at"]),
        ("time", running_time(job, now)),
        ("pid", job["pid"] if job["state"] != "done" else None),
        ("limits", limit_words(spec)),
        ("ended with it", process_words(job["swept"])),
        ("left alive", process_words(job["left"])),
    ]
    lines = [f"{name + ':':<{LABEL}}{one_line(str(value))}" for name, value in pairs if value not in (None, "")]
    lines += agent_lines(job, width)
    for attempt in document["attempts"]:
        log = attempt["log"]
        lines.append(
            f"{'attempt ' + str(attempt['attempt']) + ':':<{LABEL}}{one_line(attempt['path'])}"
            f"  (stdout {log['out']} bytes, stderr {log['err']} bytes)"
        )
    if document["events"]:
        lines += ["events:", *(event_line(event) for event in document["events"][-20:])]
    return lines


def agent_lines(job: View, width: int | None) -> Iterator[str]:
    """What an agent says and spends. Its text may have lines; none of them begins where ours do."""
    progress = job["progress"]
    if not progress:
        return
    if progress["turns"]:
        yield f"{'spent:':<{LABEL}}{spent_words(progress['turns'], progress['tokens'], progress['cost'])}"
    is_done = job["state"] == "done"
    question = progress["question"] if job["state"] == "waiting" else None
    texts = [
        ("doing", None if is_done else progress["doing"]),
        ("plan", progress["plan"]),
        ("asks", question and question["text"]),
        *((f"  {number}", text) for number, text in enumerate(question["options"] if question else [], 1)),
        ("its words", progress["words"]),
    ]
    for name, text in texts:
        if text:
            first, *more = indented(text, " " * LABEL, width)
            yield f"{name + ':':<{LABEL}}{first.lstrip()}"
            yield from more


def profile_words(profile: View) -> str:
    if not profile:
        return ""
    name, model = profile.get("name") or "-", profile.get("model") or "no model"
    return f"{name} ({model}{', ' + profile['endpoint'] if profile.get('endpoint') else ''})"


def result_words(result: View) -> str:
    stat = result.get("diffstat")
    if isinstance(stat, dict):
        return " ".join(f"{key}={fact(value)}" for key, value in stat.items())
    if result.get("error"):
        return f"error: {one_line(str(result['error']))}"
    if result.get("changed") is False:
        return "no changes"
    return one_line(str(stat)) if stat else ""


def limit_words(spec: View) -> str:
    names = ("timeout", "idle_timeout", "processes")
    budget = spec.get("budget") or {}
    parts = [f"{name.replace('_', '-')} {spec[name]:g}" for name in names if spec.get(name)]
    parts += [f"{name.replace('_', '-')} {size_words(spec[name])}" for name in ("memory", "log_max") if spec.get(name)]
    parts += [f"{name} {budget[name]:,}" for name in ("turns", "tokens") if budget.get(name)]
    return ", ".join(parts + ([f"cost {money(budget['cost'])}"] if budget.get("cost") else []))


def size_words(size: int) -> str:
    """As it can be given: ``2G``."""
    for unit, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def process_words(processes: Sequence[View]) -> str:
    return "; ".join(f"{p['pid']} {one_line(str(p['command']), 80)}" for p in processes)
