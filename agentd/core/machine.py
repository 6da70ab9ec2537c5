"""The job state machine: step(job, event) -> (job, notices, effects).

The law:

1. This module is the only one that changes a job, and :data:`TABLE` is the only door: it is keyed by the state's
   name, then by the event's. Every pair is written out. One that is answered names a function; one that changes
   nothing is ``ignore``, because it is late or was said before; one that a person may ask for in vain is
   ``refuse``, with the sentence they read.
2. Facts may be told twice (after a crash they are): a repeated fact changes nothing and orders nothing new.
3. An attempt is completed once: only arrows into ``done`` write ``job.completed``, and ``done`` has no arrow
   out but a restart, which is a new attempt.
4. Effects are orders that may be repeated. Those a state still owes after a crash are :func:`owed`.
5. Coupling: whatever leaves the active states, or enters ``queued``, also orders ``Reschedule``: a slot is free or
   wanted. That is said once, in :func:`step`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from agentd.core import effects as do
from agentd.core import events as on
from agentd.core import schedule
from agentd.core.errors import Fault, Refused
from agentd.core.job import (
    KILLED,
    UNSTARTED,
    Done,
    Ended,
    Job,
    Kept,
    Preparing,
    Progress,
    Queued,
    Removing,
    Running,
    Starting,
    State,
    Stopped,
    Stopping,
    Trashed,
    Waiting,
    Worktree,
    state_name,
)


class Notice(NamedTuple):
    """What subscribers are told: the type, and data that can be stored."""

    type: str
    data: dict[str, object]
    about: tuple[int, int, str] | None = None
    """Job, attempt and owner, where it is not the job that changes."""


class Step(NamedTuple):
    job: Job
    notices: tuple[Notice, ...] = ()
    effects: tuple[do.Effect, ...] = ()


def step(job: Job, event: on.Event) -> Step:
    """The job after ``event``; Refused if a person asked for what cannot be."""
    state, name = state_name(job.state), type(event).__name__
    row = TABLE[state]
    if name not in row:
        raise Fault(f"the state machine has no answer to {name} in state {state} (job {job.id})", "no_transition")
    after = row[name](job, event)
    was, now = job, after.job
    frees_a_slot = was.is_active and not now.is_active
    wants_a_slot = isinstance(now.state, Queued) and not isinstance(was.state, Queued)
    if frees_a_slot or wants_a_slot:
        after = after._replace(effects=(*after.effects, do.Reschedule()))
    return after


def owed(job: Job) -> tuple[do.Effect, ...]:
    """The orders of the job's state, to be given again after a crash."""
    match job.shelf, job.state:
        case Removing(), _:
            return (do.MoveToTrash(),)
        case Trashed(), _:
            return ()
        case _, Preparing():
            return (do.PrepareWorktree(),)
        case _, Stopping(rungs=rungs) if rungs:
            return (do.LaunchAttempt(), do.EndAttempt(rungs))
        case _, Starting() | Running() | Stopped() | Stopping():
            return (do.LaunchAttempt(),)
        case _, Done(is_settled=False) if isinstance(job.place, Worktree) and job.place.admin is None:
            return (do.AbandonWorktree(), do.SettleResult())
        case _, Done(is_settled=False):
            return (do.SettleResult(),)
        case _, Done(again_at=float()):
            return (do.StartAgain(),)
        case _:
            return ()


# --- the arrows, each named for what happens ----------------------------------------------------------------

Arrow = Callable[[Job, Any], Step]


def prepare_or_start(job: Job, event: on.Admitted) -> Step:
    if isinstance(job.place, Worktree) and job.place.admin is None:
        state: State = Preparing(event.at)
        return Step(
            replace(job, state=state),
            (Notice("job.preparing", {"phase": "worktree"}),),
            (do.PrepareWorktree(),),
        )
    return Step(replace(job, state=Starting(event.at)), (Notice("job.starting", {}),), (do.LaunchAttempt(),))


def wait_for_secrets(job: Job, event: on.SecretsLost) -> Step:
    needs: dict[str, object] = {"needs": list(event.names)}
    return Step(replace(job, state=Waiting(event.at, event.names)), (Notice("job.waiting", needs),))


def queue_again(job: Job, event: on.SecretsGiven) -> Step:
    return Step(replace(job, state=Queued(event.at)), (Notice("job.queued", {}),))


def begin_phase(job: Job, event: on.PhaseBegun) -> Step:
    assert isinstance(job.state, Preparing)
    if job.state.phase == event.phase:
        return Step(job)
    return Step(
        replace(job, state=Preparing(event.at, event.phase)),
        (Notice("job.preparing", {"phase": event.phase}),),
    )


def start_in_worktree(job: Job, event: on.WorktreeMade) -> Step:
    assert isinstance(job.place, Worktree)
    place = replace(job.place, admin=event.admin)
    data: dict[str, object] = {
        "path": place.path,
        "copied": list(event.copied),
        "linked": list(event.linked),
        "missing": list(event.missing),
        "notes": list(event.notes),
    }
    return Step(
        replace(job, place=place, state=Starting(event.at)),
        (Notice("worktree.made", data),),
        (do.LaunchAttempt(),),
    )


def end_unprepared(job: Job, event: on.StartFailed) -> Step:
    return complete(job, event.at, None, None, Ended(UNSTARTED, exit_code=125, reason=event.error))


def end_unstarted(job: Job, event: on.StartFailed | on.SecretsLost) -> Step:
    """It was being ended, and nobody will ever start it: no keeper comes to carry the order out."""
    assert isinstance(job.state, Stopping)
    if job.state.pid is not None or not job.state.rungs:
        return Step(job)
    how = Ended(KILLED, reason="killed before it started", order=job.state.rungs[0][0])
    return complete(job, event.at, None, None, how)


def run(job: Job, event: on.AgentStarted) -> Step:
    return Step(
        replace(job, state=Running(event.at, event.pid)),
        (Notice("job.started", {"pid": event.pid, "started_at": event.at}),),
    )


def note_start_while_stopping(job: Job, event: on.AgentStarted) -> Step:
    assert isinstance(job.state, Stopping)
    if job.state.pid is not None:
        return Step(job)
    return Step(
        replace(job, state=replace(job.state, started=event.at, pid=event.pid)),
        (Notice("job.started", {"pid": event.pid, "started_at": event.at}),),
    )


def stop(job: Job, event: on.AgentStopped) -> Step:
    assert isinstance(job.state, Running)
    state = Stopped(job.state.started, job.state.pid, event.at)
    return Step(replace(job, state=state), (Notice("job.stopped", {}),))


def go_on(job: Job, _: on.AgentContinued) -> Step:
    assert isinstance(job.state, Stopped)
    state = Running(job.state.started, job.state.pid)
    return Step(replace(job, state=state), (Notice("job.continued", {}),))


def read_on(job: Job, event: on.TranscriptRead) -> Step:
    known = job.progress or Progress()
    if event.attempt != job.attempt or event.start != known.offset:
        return Step(job)
    told = tuple(Notice(one.type, one.data) for one in event.told)
    return Step(replace(job, progress=event.progress), told)


def wind_down(job: Job, event: on.LeaderExited) -> Step:
    state = Stopping(event.at, job.started, job.pid, "exited")
    return Step(replace(job, state=state), (Notice("job.stopping", {"why": "exited"}),))


def reach_limit(job: Job, event: on.LimitReached) -> Step:
    state = Stopping(event.at, job.started, job.pid, event.limit)
    return Step(replace(job, state=state), (Notice("job.stopping", {"why": event.limit}),))


def end(job: Job, event: on.AttemptEnded) -> Step:
    return complete(job, event.at, event.started, event.pid, event.how)


def complete(job: Job, at: float, started: float | None, pid: int | None, how: Ended) -> Step:
    data: dict[str, object] = {
        "name": job.name,
        "owner": job.owner,
        "outcome": how.outcome,
        "exit_code": how.exit_code,
        "signal": how.signal,
        "reason": how.reason,
        "started_at": started,
        "ended_at": at,
        "log_whole": how.log_whole,
        "swept": [{"pid": p.pid, "command": p.command} for p in how.swept],
        "left": [{"pid": p.pid, "command": p.command} for p in how.left],
    }
    if job.progress is not None:
        spent = {"turns": job.progress.turns, "tokens": job.progress.tokens, "cost": job.progress.cost}
        data |= {"words": job.progress.words, "spent": spent}
    tries, again_at = 0, None
    if job.restart != "no":
        tries = 0 if schedule.came_to_something(job, started, at) else job.tries + 1
        again_at = data["again_at"] = schedule.next_attempt(job, how, at, tries)
    return Step(
        replace(job, state=Done(at, started, pid, how, again_at=again_at), tries=tries),
        (Notice("job.completed", data),),
        (do.SettleResult(),),
    )


def kill_unstarted(job: Job, event: on.KillAsked) -> Step:
    after = complete(job, event.at, None, None, Ended(KILLED, reason=f"by {event.by}", order=event.rungs[0][0]))
    if isinstance(job.state, Preparing):
        return after._replace(effects=(do.AbandonWorktree(), *after.effects))
    return after


def kill(job: Job, event: on.KillAsked) -> Step:
    state = Stopping(event.at, job.started, job.pid, "killed", event.rungs)
    notice = Notice("job.stopping", {"why": "killed", "by": event.by, "signal": event.rungs[0][0]})
    return Step(replace(job, state=state), (notice,), (do.EndAttempt(event.rungs),))


def restart(job: Job, event: on.RestartAsked) -> Step:
    if not isinstance(job.shelf, Kept):
        raise Refused(f"job {job.id} is in the trash; put it back with: agentd undo {job.id}", "removed")
    assert isinstance(job.state, Done)
    if not job.state.is_settled:
        raise Refused(f"job {job.id} has just ended and its result is being saved; try again", "not_settled")
    place = job.place
    if isinstance(place, Worktree) and place.is_gone:
        place = replace(place, admin=None, is_gone=False)
    state: State = Waiting(event.at, event.needs) if event.needs else Queued(event.at)
    progress = None if job.progress is None else job.progress.again()
    again = replace(job, attempt=job.attempt + 1, state=state, place=place, result=None, progress=progress)
    return Step(again, (Notice("job.restarted", {"attempt": again.attempt, "by": event.by}),))


def settle(job: Job, event: on.ResultSettled) -> Step:
    assert isinstance(job.state, Done)
    if job.state.is_settled:
        return Step(job)
    place = replace(job.place, is_gone=True) if event.is_gone and isinstance(job.place, Worktree) else job.place
    settled = replace(job, state=replace(job.state, is_settled=True), place=place, result=event.result)
    again = (do.StartAgain(),) if job.state.again_at is not None else ()
    return Step(settled, (Notice("job.result", event.result),), again)


def give_up(job: Job, event: on.KillAsked) -> Step:
    """It would have started again by itself."""
    assert isinstance(job.state, Done)
    if job.state.again_at is None:
        return ended_already(job, event)
    return Step(replace(job, state=replace(job.state, again_at=None)), (Notice("job.given_up", {"by": event.by}),))


def note_merge(job: Job, event: on.WorkMerged) -> Step:
    """True whatever has become of the job meanwhile."""
    merged = event.merged
    if job.merged == merged:
        return Step(job)
    data: dict[str, object] = {"what": merged.work, "into": merged.into, "from": merged.old, "to": merged.new}
    return Step(replace(job, merged=merged), (Notice("job.merged", data),))


def remove(job: Job, event: on.RemoveAsked) -> Step:
    if isinstance(job.shelf, Trashed):
        raise Refused(f"job {job.id} is in the trash already; agentd undo lists it", "removed")
    assert isinstance(job.state, Done)
    if not job.state.is_settled:
        raise Refused(f"job {job.id} has just ended and its result is being saved; try again", "not_settled")
    if job.state.again_at is not None:
        raise Refused(f"job {job.id} starts again by itself; stop that with: agentd kill {job.id}", "not_done")
    return Step(replace(job, shelf=Removing(event.at)), (), (do.MoveToTrash(),))


def put_in_trash(job: Job, event: on.RemovedToTrash) -> Step:
    if not isinstance(job.shelf, Removing):
        return Step(job)
    return Step(replace(job, shelf=Trashed(event.at, event.entry)), (Notice("job.removed", {}),))


def keep_after_all(job: Job, event: on.RemoveFailed) -> Step:
    if not isinstance(job.shelf, Removing):
        return Step(job)
    return Step(replace(job, shelf=Kept()), (Notice("job.remove_failed", {"error": event.error}),))


def restore(job: Job, event: on.RestoreAsked) -> Step:
    if not isinstance(job.shelf, Trashed):
        raise Refused(f"job {job.id} is not in the trash; agentd undo lists what is", "not_removed")
    place = job.place
    if isinstance(place, Worktree) and event.admin is not None:
        place = replace(place, admin=event.admin)
    return Step(replace(job, shelf=Kept(), place=place), (Notice("job.restored", {"by": event.by}),))


def ignore(job: Job, _: on.Event) -> Step:
    """Late, or said before: nothing changes."""
    return Step(job)


def refuse(sentence: str, code: str) -> Arrow:
    def refusal(job: Job, _: on.Event) -> Step:
        raise Refused(sentence.format(id=job.id, name=job.name, state=state_name(job.state)), code)

    return refusal


# --- the table ----------------------------------------------------------------------------------------------

running_still = refuse("job {id} is still {state}; wait for it, or end it with: agentd kill {id}", "not_done")
not_in_trash = refuse("job {id} is not in the trash: it is {state}; agentd undo lists what is", "not_removed")
ended_already = refuse("job {id} has already ended; what came of it: agentd result {id}", "already_ended")

Row = dict[str, Arrow]
LIVE: Row = {"RestartAsked": running_still, "RemoveAsked": running_still, "RestoreAsked": not_in_trash}
LATE: Row = {
    "ResultSettled": ignore,
    "WorkMerged": note_merge,
    "RemovedToTrash": ignore,
    "RemoveFailed": ignore,
}
UNTOUCHED: Row = {"SecretsLost": ignore, "SecretsGiven": ignore}
NO_AGENT: Row = {
    "TranscriptRead": ignore,
    "AgentStopped": ignore,
    "AgentContinued": ignore,
    "LimitReached": ignore,
    "LeaderExited": ignore,
}
NO_WORKTREE: Row = {"PhaseBegun": ignore, "WorktreeMade": ignore, "StartFailed": ignore}

TABLE: dict[str, Row] = {
    "queued": {
        **LIVE,
        **LATE,
        **NO_AGENT,
        **NO_WORKTREE,
        "Admitted": prepare_or_start,
        "SecretsLost": wait_for_secrets,
        "SecretsGiven": ignore,
        "AgentStarted": ignore,
        "AttemptEnded": ignore,
        "KillAsked": kill_unstarted,
    },
    "waiting": {
        **LIVE,
        **LATE,
        **NO_AGENT,
        **NO_WORKTREE,
        "Admitted": ignore,
        "SecretsLost": ignore,
        "SecretsGiven": queue_again,
        "AgentStarted": ignore,
        "AttemptEnded": ignore,
        "KillAsked": kill_unstarted,
    },
    "preparing": {
        **LIVE,
        **LATE,
        **NO_AGENT,
        "Admitted": ignore,
        "SecretsLost": wait_for_secrets,
        "SecretsGiven": ignore,
        "PhaseBegun": begin_phase,
        "WorktreeMade": start_in_worktree,
        "StartFailed": end_unprepared,
        "AgentStarted": ignore,
        "AttemptEnded": ignore,
        "KillAsked": kill_unstarted,
    },
    "starting": {
        **LIVE,
        **LATE,
        **NO_WORKTREE,
        "Admitted": ignore,
        "SecretsLost": wait_for_secrets,
        "SecretsGiven": ignore,
        "StartFailed": end_unprepared,
        "AgentStarted": run,
        "AgentStopped": ignore,
        "AgentContinued": ignore,
        "LimitReached": reach_limit,
        "TranscriptRead": read_on,
        "LeaderExited": wind_down,
        "AttemptEnded": end,
        "KillAsked": kill,
    },
    "running": {
        **LIVE,
        **LATE,
        **NO_WORKTREE,
        **UNTOUCHED,
        "Admitted": ignore,
        "AgentStarted": ignore,
        "AgentStopped": stop,
        "AgentContinued": ignore,
        "TranscriptRead": read_on,
        "LimitReached": reach_limit,
        "LeaderExited": wind_down,
        "AttemptEnded": end,
        "KillAsked": kill,
    },
    "stopped": {
        **LIVE,
        **LATE,
        **NO_WORKTREE,
        **UNTOUCHED,
        "Admitted": ignore,
        "AgentStarted": ignore,
        "AgentStopped": ignore,
        "AgentContinued": go_on,
        "TranscriptRead": read_on,
        "LimitReached": reach_limit,
        "LeaderExited": wind_down,
        "AttemptEnded": end,
        "KillAsked": kill,
    },
    "stopping": {
        **LIVE,
        **LATE,
        **NO_WORKTREE,
        "StartFailed": end_unstarted,
        "SecretsLost": end_unstarted,
        "SecretsGiven": ignore,
        "Admitted": ignore,
        "AgentStarted": note_start_while_stopping,
        "AgentStopped": ignore,
        "AgentContinued": ignore,
        "TranscriptRead": read_on,
        "LimitReached": ignore,
        "LeaderExited": ignore,
        "AttemptEnded": end,
        "KillAsked": kill,  # a second kill climbs a new ladder
    },
    "done": {
        **NO_AGENT,
        **NO_WORKTREE,
        **UNTOUCHED,
        "Admitted": ignore,
        "AgentStarted": ignore,
        "AttemptEnded": ignore,
        "KillAsked": give_up,
        "RestartAsked": restart,
        "ResultSettled": settle,
        "WorkMerged": note_merge,
        "RemoveAsked": remove,
        "RemovedToTrash": put_in_trash,
        "RemoveFailed": keep_after_all,
        "RestoreAsked": restore,
    },
}
