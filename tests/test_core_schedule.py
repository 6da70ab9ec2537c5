"""Who runs next, and who may ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core.errors import NotNow
from agentd.core.job import (
    Done,
    Ended,
    InPlace,
    Job,
    Preparing,
    Queued,
    Running,
    Starting,
    State,
    Stopped,
    Stopping,
    Waiting,
)
from agentd.core.jobs import Jobs
from agentd.core.schedule import admissible, depth_below, refuse_when_full

QUEUED = Queued(1.0)
RUNNING = Running(1.0, 40)
WAITING = Waiting(1.0, ("K",))
DONE = Done(2.0, 1.0, 40, Ended("succeeded", exit_code=0))
ACTIVE = (Preparing(1.0), Starting(1.0), RUNNING, Stopped(1.0, 40, 2.0), Stopping(2.0, 1.0, 40, "exited"))


def job(id: int, state: State, depth: int = 1) -> Job:
    return Job(id, f"j{id}", "command", "", ("x",), "me", id, 1.0, InPlace("/"), state, depth=depth)


def admitted_of(jobs: list[Job], limit: int) -> list[int]:
    known = Jobs()
    for one in jobs:
        known.remember(one)
    return admissible(known.queued, limit - known.active)


@pytest.mark.parametrize(
    ("states", "limit", "admitted"),
    [
        ([], 4, []),
        ([QUEUED, QUEUED, QUEUED], 2, [1, 2]),
        ([RUNNING, QUEUED, QUEUED], 2, [2]),
        ([RUNNING, RUNNING, QUEUED], 2, []),
        ([RUNNING, RUNNING, RUNNING, QUEUED], 2, []),  # the limit was lowered
        ([DONE, WAITING, QUEUED], 1, [3]),  # neither holds a slot
        ([QUEUED], 0, []),
        ([*ACTIVE, QUEUED], 5, []),  # each of them holds one
        ([*ACTIVE, QUEUED], 6, [6]),
    ],
)
def test_the_oldest_run_first_as_far_as_slots_go(states: list[State], limit: int, admitted: list[int]) -> None:
    jobs = [job(n + 1, state) for n, state in enumerate(states)]
    assert admitted_of(jobs, limit) == admitted
    assert admitted_of([*reversed(jobs)], limit) == admitted


@given(some.lists(some.sampled_from([QUEUED, WAITING, DONE, *ACTIVE])), some.integers(0, 8))
def test_the_limit_holds_and_nobody_overtakes(states: list[State], limit: int) -> None:
    jobs = [job(n + 1, state) for n, state in enumerate(states)]
    chosen = admitted_of(jobs, limit)
    queued = [one.id for one in jobs if one.state is QUEUED]
    active = sum(one.is_active for one in jobs)
    assert chosen == queued[: len(chosen)]
    assert len(chosen) == min(len(queued), max(0, limit - active))


def test_three_levels_deep_is_enough() -> None:
    assert depth_below(None) == 1
    assert depth_below(job(1, RUNNING, 1)) == 2
    assert depth_below(job(2, RUNNING, 2)) == 3
    with pytest.raises(NotNow, match="job 3 cannot delegate: it is 3 levels deep") as refusal:
        depth_below(job(3, RUNNING, 3))
    assert (refusal.value.exit, refusal.value.code) == (75, "depth_limit")


def test_a_full_queue_refuses() -> None:
    refuse_when_full(9, 10)
    with pytest.raises(NotNow, match=r"10 jobs are waiting already \(limits.queued = 10\)") as refusal:
        refuse_when_full(10, 10)
    assert (refusal.value.exit, refusal.value.code) == (75, "queue_full")
