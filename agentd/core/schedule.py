"""Who runs next, and who may ask: functions of jobs and limits."""

import heapq
from collections.abc import Iterable

from agentd.core.errors import NotNow
from agentd.core.job import FAILED, LOST, REBOOTED, Ended, Job

MAX_DEPTH = 3
RESTARTS = ("no", "on-failure")
MOST_TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
WORTH_S = 60.0
"""A command that ran for so long came to something."""


def admissible(queued: Iterable[int], free: int) -> list[int]:
    """The ids of the queued jobs that may start now, when so many slots are free: oldest first, and no job
    overtakes another."""
    return heapq.nsmallest(free, queued) if free > 0 else []


def came_to_something(job: Job, started: float | None, ended: float) -> bool:
    """Did its last attempt get anywhere? An agent: it had an answer of its model."""
    if job.progress is not None:
        return job.progress.turns > job.progress.turns_before
    return started is not None and ended - started >= WORTH_S


def next_attempt(job: Job, how: Ended, at: float, tries: int) -> float | None:
    """When it starts again by itself; None if it does not. ``tries``: attempts in a row that came to nothing."""
    if job.restart != "on-failure" or how.outcome not in (FAILED, LOST, REBOOTED) or tries > MOST_TRIES:
        return None
    return at + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, tries - 1))


def depth_below(parent: Job | None) -> int:
    """The depth of a job that ``parent`` (None: a person) delegates."""
    depth = 1 if parent is None else parent.depth + 1
    if depth > MAX_DEPTH:
        assert parent is not None
        raise NotNow(
            f"job {parent.id} cannot delegate: it is {MAX_DEPTH} levels deep, and deeper is not allowed;"
            " do the work in this job, or hand it back to the one that delegated it",
            "depth_limit",
        )
    return depth


def refuse_when_full(queued: int, queued_limit: int) -> None:
    if queued >= queued_limit:
        raise NotNow(
            f"cannot delegate: {queued} jobs are waiting already (limits.queued = {queued_limit});"
            " wait for some to end, or raise the limit in agentd.toml",
            "queue_full",
        )
