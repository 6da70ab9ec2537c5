"""spec.json: what an attempt is to run, durable before anybody is told of it."""

import asyncio
import os
import secrets as random
from typing import Any

import msgspec

from agentd import jobdir, protocol
from agentd.core.errors import NotNow, Refused
from agentd.core.job import Job, Worktree
from agentd.daemon.perform import Performer


def spec(
    performer: Performer, job: Job, ask: protocol.Delegate, argv: list[str], cwd: str, environment: dict[str, str]
) -> dict[str, Any]:
    return {
        "format": 1,
        "argv": argv,
        "cwd": cwd,
        "umask": ask.umask,
        "limits": {name: list(pair) for name, pair in ask.limits.items()},
        "stdin": ask.input,
        "timeout": ask.timeout,
        "idle_timeout": ask.idle_timeout,
        "memory": ask.memory,
        "processes": ask.processes,
        "log_max": ask.log_max,
        "leave": list(ask.leave),
        "with_changes": ask.with_changes,
        "state_dir": performer.state_dir,
        **identity(performer, job, environment),
    }


def identity(performer: Performer, job: Job, environment: dict[str, str]) -> dict[str, Any]:
    """The part of a spec that is an attempt's own."""
    nonce = random.token_hex(16)
    mine = {
        "AGENTD_JOB": str(job.id),
        "AGENTD_ATTEMPT": str(job.attempt),
        "AGENTD_NONCE": nonce,
        "AGENTD_SOCKET": f"{performer.attempt_dir(job)}/agent.sock",
        "AGENTD_BASE": job.place.base if isinstance(job.place, Worktree) else "",
    }
    cgroup = performer.cgroup
    return {
        "job": job.id,
        "attempt": job.attempt,
        "nonce": nonce,
        "env": environment | mine,
        "secrets": list(job.secrets),
        "cgroup": f"{cgroup}/{job.id}-{job.attempt}" if cgroup else None,
        "job_doc": msgspec.to_builtins(job),
    }


def next_spec(performer: Performer, before: Job, after: Job, resume: bool) -> dict[str, Any]:
    """That of the next attempt: as the last one's, in the same environment. An agent's conversation goes on, if it is
    to ``resume``; what it has spent counts in any case."""
    path = performer.attempt_dir(before)
    old = jobdir.read(path, "spec.json")
    if old is None:
        raise Refused(f"cannot restart job {before.id}: its files are gone; delegate it anew", "files_gone")
    environment = {name: value for name, value in old["env"].items() if not name.startswith("AGENTD_")}
    again = old | identity(performer, after, environment)
    progress = before.progress
    if progress is not None:
        again["resume"] = f"{path}/transcript.ndjson" if resume else None
        again["spent"] = {"turns": progress.turns, "tokens": progress.tokens, "cost": progress.cost}
    return again


async def save(performer: Performer, job: Job, spec: dict[str, Any]) -> None:
    """Durable, with the folders it lies in, before the id is answered."""
    path = performer.attempt_dir(job)
    try:
        await asyncio.to_thread(write, path, spec)
    except OSError as error:
        if jobdir.is_full(error):
            raise NotNow(f"cannot save job {job.id}: {error.strerror}; free some disk space", "disk_full") from None
        raise Refused(
            f"cannot save job {job.id} in {path}: {error.strerror}; agentd doctor says more", "state_not_writable"
        ) from None


def write(path: str, spec: dict[str, Any]) -> None:
    os.makedirs(path, 0o700, exist_ok=True)
    jobdir.write(path, "spec.json", spec)
    jobdir.sync_folder(os.path.dirname(path))
    jobdir.sync_folder(os.path.dirname(os.path.dirname(path)))
