"""From what lies on disk to what is true, and the same truth whichever files were seen on the way."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core import events as on
from agentd.core.job import (
    Done,
    Ended,
    InPlace,
    Job,
    Preparing,
    Process,
    Queued,
    Running,
    Starting,
    State,
    Stopped,
    Stopping,
    Waiting,
)
from agentd.core.machine import step
from agentd.core.recovery import Record, Seen, true_events

NOW = 1000.0
LADDER = (("INT", 0.0), ("TERM", 5.0), ("KILL", 15.0))
RUNGS = [["INT", 0.0], ["TERM", 5.0], ["KILL", 15.0]]
WHO = {"boot": "b", "pid": 40, "start": 1, "inode": 2}

# Boot is at 100: started_at - started. Orders carry the clock that counts from boot.
AGENT: Record = {"agent": WHO, "started_at": 105.0, "started": 5.0, "stopped": None}
HALTED: Record = {**AGENT, "stopped": 6.0}
KILL: Record = {"reason": "killed", "rungs": RUNGS, "at": 7.0}
LIMIT: Record = {"reason": "timed_out", "limit": "timeout", "rungs": RUNGS, "at": 7.0}
EXIT: Record = {"code": 0, "signal": None, "at": 108.0}
END: Record = {"at": 109.0, "log": {"out": 3, "err": 4}, "swept": [], "left": [], "reason": None, "order": None}
NEVER: Record = {"code": None, "signal": None, "reason": "unstarted", "errno": 2, "error": "no such file", "at": 106.0}
EARLY: Record = {**NEVER, "errno": 0, "error": "killed before it started"}
KILLED_END: Record = {**END, "reason": "killed", "order": {"rungs": RUNGS}}
LIMIT_END: Record = {**END, "reason": "timed_out", "order": {"rungs": RUNGS, "limit": "timeout"}}

OK = Ended("succeeded", exit_code=0, log_out=3, log_err=4)
BORN = on.AgentStarted(105.0, 40)


def job(state: State, **more: Any) -> Job:
    return Job(7, "fix", "command", "", ("make",), "me", 1, 1.0, InPlace("/src"), state, **more)


STATES: dict[str, State] = {
    "starting": Starting(1.0),
    "running": Running(105.0, 40),
    "stopped": Stopped(105.0, 40, 106.0),
    "stopping": Stopping(107.0, 105.0, 40, "killed", LADDER),
    "stopping, not started": Stopping(107.0, None, None, "killed", LADDER),
}
FILES: dict[str, Seen] = {
    "nothing": Seen(),
    "agent": Seen(agent=AGENT),
    "agent stopped": Seen(agent=HALTED),
    "agent, not executed": Seen(agent=AGENT, noexec=True),
    "order before the agent": Seen(kill=KILL),
    "agent, kill": Seen(agent=AGENT, kill=KILL),
    "agent, limit": Seen(agent=AGENT, kill=LIMIT),
    "agent, exit": Seen(agent=AGENT, exit=EXIT),
    "agent, exit, end": Seen(agent=AGENT, exit=EXIT, end=END),
    "not executed, end": Seen(agent=AGENT, noexec=True, exit=NEVER, end=END),
    "killed early": Seen(kill=KILL, exit=EARLY, end=KILLED_END),
    "end alone": Seen(end=END),
}
FOUND_END = on.AttemptEnded(109.0, 105.0, 40, OK)
FOUND_NEVER = on.AttemptEnded(
    109.0, None, None, Ended("unstarted", exit_code=127, reason="no such file", log_out=3, log_err=4)
)
FOUND_EARLY = on.AttemptEnded(
    109.0, None, None, Ended("killed", reason="killed before it started", order="INT", log_out=3, log_err=4)
)
FOUND_LOST = on.AttemptEnded(109.0, None, None, Ended("lost", reason="unknown", log_out=3, log_err=4))
REACHED = on.LimitReached(107.0, "timeout")
GONE = on.LeaderExited(108.0)
SAME_FOR_ALL = {
    "nothing": [],
    "agent, not executed": [],
    "order before the agent": [],
    "not executed, end": [FOUND_NEVER],
    "killed early": [FOUND_EARLY],
    "end alone": [FOUND_LOST],
}
TRUE: dict[str, dict[str, list[on.Event]]] = {
    "starting": {
        **SAME_FOR_ALL,
        "agent": [BORN],
        "agent stopped": [BORN, on.AgentStopped(NOW)],
        "agent, kill": [BORN],
        "agent, limit": [BORN, REACHED],
        "agent, exit": [BORN, GONE],
        "agent, exit, end": [BORN, FOUND_END],
    },
    "running": {
        **SAME_FOR_ALL,
        "agent": [],
        "agent stopped": [on.AgentStopped(NOW)],
        "agent, kill": [],
        "agent, limit": [REACHED],
        "agent, exit": [GONE],
        "agent, exit, end": [FOUND_END],
    },
    "stopped": {
        **SAME_FOR_ALL,
        "agent": [on.AgentContinued(NOW)],
        "agent stopped": [],
        "agent, kill": [on.AgentContinued(NOW)],
        "agent, limit": [REACHED],
        "agent, exit": [GONE],
        "agent, exit, end": [FOUND_END],
    },
    "stopping": {
        **SAME_FOR_ALL,
        "agent": [],
        "agent stopped": [on.AgentStopped(NOW)],
        "agent, kill": [],
        "agent, limit": [REACHED],
        "agent, exit": [],
        "agent, exit, end": [FOUND_END],
    },
    "stopping, not started": {
        **SAME_FOR_ALL,
        "agent": [BORN],
        "agent stopped": [BORN, on.AgentStopped(NOW)],
        "agent, kill": [BORN],
        "agent, limit": [BORN, REACHED],
        "agent, exit": [BORN],
        "agent, exit, end": [BORN, FOUND_END],
    },
}


def look(now: Job, seen: Seen) -> Job:
    """What the daemon does when it looks at an attempt's files."""
    for event in true_events(now, seen, NOW):
        now = step(now, event).job
    return now


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("state", STATES)
def test_what_was_seen_and_what_is_true(state: str, files: str) -> None:
    assert true_events(job(STATES[state]), FILES[files], NOW) == TRUE[state][files]


@pytest.mark.parametrize("state", [Queued(1.0), Waiting(1.0, ("K",)), Preparing(1.0), Done(9.0, 2.0, 40, OK)])
@pytest.mark.parametrize("files", FILES)
def test_files_say_nothing_of_a_job_that_has_no_attempt_under_way(state: State, files: str) -> None:
    assert true_events(job(state), FILES[files], NOW) == []


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("state", STATES)
def test_a_second_look_at_the_same_files_changes_nothing(state: str, files: str) -> None:
    once = look(job(STATES[state]), FILES[files])
    for event in true_events(once, FILES[files], NOW):
        assert step(once, event) == (once, (), ())


# The records of whole attempts, in the order in which they are written. Any look may miss any of them but the last.
ATTEMPTS: dict[str, list[dict[str, Any]]] = {
    "runs and ends": [{"agent": AGENT}, {"exit": EXIT}, {"end": END}],
    "is killed": [{"agent": AGENT}, {"kill": KILL}, {"exit": {**EXIT, "code": None, "signal": 2}}, {"end": KILLED_END}],
    "is killed before it starts": [{"kill": KILL}, {"exit": EARLY}, {"end": KILLED_END}],
    "meets its time limit": [{"agent": AGENT}, {"kill": LIMIT}, {"exit": EXIT}, {"end": LIMIT_END}],
    "is stopped, goes on, ends": [{"agent": AGENT}, {"agent": HALTED}, {"agent": AGENT}, {"exit": EXIT}, {"end": END}],
    "is stopped and killed": [{"agent": HALTED}, {"kill": KILL}, {"exit": EXIT}, {"end": KILLED_END}],
    "is not executed": [{"agent": AGENT}, {"noexec": True}, {"exit": NEVER}, {"end": END}],
    "is started again": [
        {"agent": AGENT},
        {"noexec": True},
        {"agent": None, "noexec": False},
        {"agent": AGENT},
        {"exit": EXIT},
        {"end": END},
    ],
    "is lost": [
        {"agent": AGENT},
        {"exit": {"code": None, "signal": None, "reason": "supervisor_lost", "at": 108.0}},
        {"end": END},
    ],
}


def moments(attempt: str) -> list[Seen]:
    """What lies on disk after each write."""
    now: dict[str, Any] = {}
    found = [Seen()]
    for written in ATTEMPTS[attempt]:
        now = now | written
        found.append(Seen(**now))
    return found


@given(
    some.sampled_from(sorted(ATTEMPTS)),
    some.sampled_from(["starting", "stopping, not started"]),
    some.data(),
)
def test_the_same_end_whichever_looks_were_taken(attempt: str, state: str, data: some.DataObject) -> None:
    seen = moments(attempt)
    looks = data.draw(some.lists(some.integers(0, len(seen) - 1)).map(sorted))
    now = job(STATES[state])
    completed = 0
    for moment in [*looks, len(seen) - 1, len(seen) - 1]:
        for event in true_events(now, seen[moment], NOW):
            after = step(now, event)
            completed += sum(notice.type == "job.completed" for notice in after.notices)
            now = after.job
    assert now == look(job(STATES[state]), seen[-1])
    assert now.is_done and completed == 1


def test_the_completion_names_who_was_ended_and_who_was_left() -> None:
    end = {**END, "swept": [{"pid": 50, "command": "sleep 9"}], "left": [{"pid": 51, "command": "sshd"}]}
    (_, event) = true_events(job(Starting(1.0)), Seen(agent=AGENT, exit=EXIT, end=end), NOW)
    assert isinstance(event, on.AttemptEnded)
    assert (event.how.swept, event.how.left) == ((Process(50, "sleep 9"),), (Process(51, "sshd"),))
