"""What was observed -> the events that are true.

The daemon looks at an attempt's files when it starts and whenever it is nudged; both ways go through here, so a
lost nudge and a crash are the same case. The answer is complete and may be repeated.
"""

from agentd.core import events as on
from agentd.core.fact import Fact
from agentd.core.job import Job, Running, Starting, Stopped, Stopping, outcome

Record = dict[str, object]


class Seen(Fact, frozen=True):
    """The records of one attempt as they are on disk; None: not there."""

    agent: Record | None = None
    noexec: bool = False
    kill: Record | None = None
    exit: Record | None = None
    end: Record | None = None


def true_events(job: Job, seen: Seen, now: float) -> list[on.Event]:
    """The events that bring ``job`` to what its files say, in order."""
    if not isinstance(job.state, Starting | Running | Stopped | Stopping):
        return []
    found: list[on.Event] = []
    started, pid = _start_of(seen)
    if seen.end is not None:
        if started is not None and pid is not None and job.pid is None:
            found.append(on.AgentStarted(started, pid))
        return [*found, on.AttemptEnded(_time(seen.end), started, pid, outcome(seen.exit or {}, seen.end))]
    if started is None or pid is None or seen.agent is None:
        return []
    if job.pid is None:
        found.append(on.AgentStarted(started, pid))
    if seen.exit is not None:
        return [*found, on.LeaderExited(_time(seen.exit))] if not isinstance(job.state, Stopping) else found
    if seen.kill is not None and seen.kill.get("reason") in ("timed_out", "limited"):
        return [*found, on.LimitReached(_order_time(seen), str(seen.kill.get("limit")))]
    if seen.agent.get("stopped") is not None and not isinstance(job.state, Stopped):
        found.append(on.AgentStopped(now))
    elif seen.agent.get("stopped") is None and isinstance(job.state, Stopped):
        found.append(on.AgentContinued(now))
    return found


def _start_of(seen: Seen) -> tuple[float | None, int | None]:
    """When it was executed, and as whom; (None, None) if it never was."""
    if seen.agent is None or seen.noexec or (seen.exit or {}).get("reason") == "unstarted":
        return None, None
    who = seen.agent["agent"]
    assert isinstance(who, dict)
    return _time(seen.agent, "started_at"), int(who["pid"])


def _order_time(seen: Seen) -> float:
    # The order's clock counts from boot, as does the start's: the difference is a time of day again.
    assert seen.kill is not None and seen.agent is not None
    return _time(seen.agent, "started_at") + _time(seen.kill) - _time(seen.agent, "started")


def _time(record: Record, key: str = "at") -> float:
    value = record[key]
    assert isinstance(value, int | float)
    return float(value)
