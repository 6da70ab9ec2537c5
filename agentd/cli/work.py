"""A job's work as lines of text: pure, as :mod:`agentd.cli.render` is."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agentd.cli.render import View, clean, count, exit_word, one_line, shown, span
from agentd.cli.sheet import changed_path, merged_words, process_lines

BOLD, RED, GREEN, CYAN, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[36m", "\x1b[m"
HEADS = ("diff ", "index ", "--- ", "+++ ", "new ", "deleted ", "old ", "similarity ", "rename ", "copy ", "Binary ")


def diff_lines(text: str, form: str, is_colored: bool) -> list[str]:
    """Every control shown, none taken out (a diff hides nothing), then coloured by us."""
    lines = text.split("\n")[: -1 if text.endswith("\n") else None] if text else []
    safe = [shown(line, keep="\t") for line in lines]
    if not is_colored or form == "names":
        return safe
    return [colored_stat(line) for line in safe] if form == "stat" else list(colored_patch(safe))


def colored_patch(lines: Iterable[str]) -> Iterable[str]:
    is_in_hunk = False
    for line in lines:
        if line.startswith("diff "):
            is_in_hunk = False
        if line.startswith("@@"):
            is_in_hunk = True
            head, marks, rest = line[2:].partition("@@")
            yield f"{CYAN}@@{head}{marks}{PLAIN}{rest}"
        elif not is_in_hunk and line.startswith(HEADS):
            yield f"{BOLD}{line}{PLAIN}"
        elif line.startswith(("+", "-")):
            yield f"{GREEN if line[0] == '+' else RED}{line}{PLAIN}"
        else:
            yield line


def colored_stat(line: str) -> str:
    graph = re.search(r"(\| +\d+ )(\+*)(-*)$", line)
    if graph is None:
        return line
    plus, minus = (f"{color}{marks}{PLAIN}" if marks else "" for color, marks in ((GREEN, graph[2]), (RED, graph[3])))
    return line[: graph.start()] + graph[1] + plus + minus


def merge_sentence(answer: View) -> str:
    job, merged = answer["job"], answer["merged"]
    head = f"job {job['id']} ({job['name']})"
    if merged is None:
        return f"{head}: no changes"
    into = one_line(merged["into"], 100)
    if not answer["is_new"]:
        return f"the work of {head} is in {into} already"
    change = changes((job["result"] or {}).get("diffstat"))
    return f"{head} is in {into}, from {merged['from'][:10]} to {merged['to'][:10]}" + (f": {change}" if change else "")


def changes(stat: Any) -> str:
    """``2 files, +10 -3``"""
    if not isinstance(stat, dict):
        return ""
    return f"{count(stat['files'], 'file')}, +{stat['insertions']} -{stat['deletions']}"


def result_sheet(result: View) -> list[str]:
    """``result`` for people: the facts, and apart from them what the agent says."""
    commits, stat = result["commits"], result["diffstat"]
    pairs = [
        ("job", f"{result['id']}  {result['name']}" + (f", attempt {result['attempt']}" * (result["attempt"] > 1))),
        ("state", result["outcome"] or result["state"]),
        ("exit", exit_word(result) if result["state"] == "done" else None),
        ("reason", result["reason"]),
        ("time", span(result["duration"]) if result["duration"] is not None else None),
        ("changes", changes(stat) or ("none" if result["changed"] is False else None)),
        ("commits", str(commits["count"]) if commits["count"] else None),
        ("branch", result["branch"]),
        ("worktree", result["worktree"]),
        ("snapshot", result["snapshot"]),
        ("merged", merged_words(result["merged"])),
        ("ended with it", "; ".join(process_lines(result["swept"]))),
        ("left alive", "; ".join(process_lines(result["left"]))),
        ("told", "; ".join(result["repository_changed"])),
        ("error", result["error"]),
    ]
    lines = [f"{name + ':':<15}{one_line(str(value))}" for name, value in pairs if value not in (None, "")]
    lines += more("commits:", commits["first"], commits["count"], commit_line)
    if stat:
        lines += more("files:", stat["paths"], stat["files"], file_line)
    if result["words"]:
        lines += [
            "what the agent says:",
            *(f"  {line}" for line in clean(str(result["words"])).expandtabs(4).split("\n")),
        ]
    return lines


def more(head: str, rows: Sequence[Any], total: int | None, line: Callable[[Any], str]) -> list[str]:
    if not rows:
        return []
    rest = (total or 0) - len(rows)
    return [head, *(f"  {line(row)}" for row in rows), *([f"  … and {rest} more"] if rest > 0 else [])]


def commit_line(commit: View) -> str:
    return f"{commit['commit'][:10]} {one_line(commit['subject'], 100)} ({one_line(commit['author'], 60)})"


def file_line(row: Sequence[Any]) -> str:
    return one_line(changed_path(*row))
