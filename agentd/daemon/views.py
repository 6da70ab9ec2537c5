"""What clients are shown of a job: pure."""

from datetime import UTC, datetime
from typing import Any

from agentd.core.job import (
    Done,
    Job,
    Preparing,
    Progress,
    Running,
    Trashed,
    Waiting,
    Worktree,
    shown_state,
    wait_code,
)
from agentd.core.text import decode
from agentd.store import Entry


def iso(at: float | None) -> str | None:
    """ISO 8601, UTC, milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_view(job: Job) -> dict[str, Any]:
    """A row of ``ps --json``."""
    state, place = job.state, job.place
    how = state.how if isinstance(state, Done) else None
    tree = place if isinstance(place, Worktree) else None
    return {
        "id": job.id,
        "name": job.name,
        "state": shown_state(job),
        "outcome": how.outcome if how else None,
        "agent": job.agent,
        "task": job.task,
        "argv": list(job.argv),
        "cwd": place.cwd,
        "repo": tree.repo if tree else None,
        "worktree": tree.path if tree and not tree.is_gone else None,
        "branch": tree.branch if tree and not tree.is_gone else None,
        "base": tree.base if tree else None,
        "owner": job.owner,
        "number": job.number,
        "parent": job.parent,
        "depth": job.depth,
        "attempt": job.attempt,
        "pid": job.pid,
        "exit_code": how.exit_code if how else None,
        "signal": how.signal if how else None,
        "reason": how.reason if how else None,
        "wait_code": wait_code(how) if how else None,
        "waiting": waiting_for(job),
        "waiting_since": iso(waiting_since(job)),
        "log_whole": how.log_whole if how else None,
        "swept": [{"pid": p.pid, "command": p.command} for p in how.swept] if how else [],
        "left": [{"pid": p.pid, "command": p.command} for p in how.left] if how else [],
        "result": job.result,
        "progress": progress_view(job.progress),
        "merged": merged_view(job),
        "overlaps": [],
        "removed": isinstance(job.shelf, Trashed),
        "removed_at": iso(job.shelf.since) if isinstance(job.shelf, Trashed) else None,
        "created_at": iso(job.created),
        "started_at": iso(job.started),
        "ended_at": iso(state.ended) if isinstance(state, Done) else None,
        "tty": job.has_terminal,
        "restart": job.restart,
        "again_at": iso(state.again_at) if isinstance(state, Done) else None,
    }


def progress_view(progress: Progress | None) -> dict[str, Any] | None:
    """Of an agent that is driven by a model; null of others."""
    if progress is None:
        return None
    question = progress.question
    asked = None if question is None else {"id": question.id, "text": question.text, "options": question.options}
    return {
        "turns": progress.turns,
        "tokens": progress.tokens,
        "cost": progress.cost,
        "doing": progress.doing,
        "plan": progress.plan,
        "question": asked,
        "words": progress.words,
    }


def merged_view(job: Job) -> dict[str, Any] | None:
    """Where its work was brought last, and whether by this attempt."""
    if job.merged is None:
        return None
    merged = job.merged
    return {
        "into": merged.into,
        "from": merged.old,
        "to": merged.new,
        "work": merged.work,
        "attempt": merged.attempt,
        "at": iso(merged.at),
    }


def waiting_for(job: Job) -> str | None:
    """What it waits for, or the phase of its preparation."""
    progress = job.progress or Progress()
    match job.state:
        case Running() if progress.question is not None:
            return progress.question.text
        case Running() if progress.is_held:
            return "interrupted; send it a message"
        case Running() if progress.parked is not None:
            return f"{progress.parked.why}, until {iso(progress.parked.until)}"
        case Waiting(needs=needs):
            return "needs " + ", ".join(needs)
        case Preparing(phase=phase):
            return phase
    return None


def waiting_since(job: Job) -> float | None:
    """When it began to wait for somebody."""
    progress = job.progress or Progress()
    match job.state:
        case Running() if progress.question is not None:
            return progress.question.since
        case Running() if progress.is_held:
            return progress.held_since
        case Waiting(since=since):
            return since
    return None


def event_view(entry: Entry) -> dict[str, Any]:
    """A line of ``events --json``."""
    return {
        "seq": entry.seq,
        "at": iso(entry.at),
        "type": entry.type,
        "job": entry.job or None,
        "attempt": entry.attempt or None,
        "data": decode(entry.data),
    }
