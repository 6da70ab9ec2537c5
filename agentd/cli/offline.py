"""Jobs as the files tell of them, while no daemon runs: what it would say, as far as it stands there."""

import os
from datetime import UTC, datetime
from typing import Any

from agentd import follow
from agentd.cli.render import View
from agentd.core.job import outcome


def jobs(state_dir: str, all: bool = False) -> list[View]:
    """Those that have not ended; ``all``: those that have, too. The trash is left out."""
    try:
        ids = sorted(int(name) for name in os.listdir(f"{state_dir}/jobs") if name.isdigit())
    except OSError:
        return []
    homes = [f"{state_dir}/jobs/{id}" for id in ids]
    paths = [f"{home}/{numbers[-1]}" for home in homes if (numbers := follow.attempts(home))]
    return [view(path) for path in paths if all or not follow.has_ended(path)]


def view(path: str) -> View:
    spec, agent = follow.record(path, "spec.json") or {}, follow.record(path, "agent.json")
    document: dict[str, Any] = spec.get("job_doc") or {}
    place = document.get("place") or {}
    end = follow.record(path, "end.json")
    how = None if end is None else outcome(follow.record(path, "exit.json") or {}, end)
    return {
        "id": int(path.split("/")[-2]),
        "name": str(document.get("name", "?")),
        "state": "done" if end is not None else state(path, agent),
        "outcome": how.outcome if how else None,
        "agent": document.get("agent", "command"),
        "task": document.get("task", ""),
        "argv": document.get("argv") or [],
        "cwd": place.get("cwd", "/"),
        "repo": place.get("repo"),
        "worktree": place.get("path"),
        "base": place.get("base"),
        "owner": document.get("owner", ""),
        "number": document.get("number", 0),
        "parent": document.get("parent"),
        "attempt": int(path.split("/")[-1]),
        "pid": agent["agent"]["pid"] if agent else None,
        "exit_code": how.exit_code if how else None,
        "signal": how.signal if how else None,
        "reason": how.reason if how else None,
        "waiting": None,
        "waiting_since": None,
        "result": None,
        "progress": None,
        "merged": None,
        "created_at": iso(document.get("created", 0.0)),
        "started_at": iso(agent["started_at"]) if agent else None,
        "ended_at": iso(end["at"]) if end else None,
    }


def state(path: str, agent: dict[str, Any] | None) -> str:
    if agent is None:
        return "queued"
    if not follow.is_alive(path):
        return "gone"
    return "stopped" if agent.get("stopped") is not None else "running"


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
