"""Who runs next, and who may ask: functions of jobs and limits."""

import heapq
from collections.abc import Iterable

from agentd.core.errors import NotNow
from agentd.core.job import Job

MAX_DEPTH = 3


def admissible(queued: Iterable[int], free: int) -> list[int]:
    """The ids of the queued jobs that may start now, when so many slots are free: oldest first, and no job
    overtakes another."""
    return heapq.nsmallest(free, queued) if free > 0 else []


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
