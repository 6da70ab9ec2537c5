"""The job state machine: every pair of state and event, the law above the table, and the lives of a job."""

import re
import string
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from agentd.core import effects as do
from agentd.core import events as on
from agentd.core.errors import Fault, Refused
from agentd.core.job import (
    STATES,
    Done,
    Ended,
    InPlace,
    Job,
    Kept,
    Merged,
    Preparing,
    Process,
    Progress,
    Queued,
    Removing,
    Running,
    Shelf,
    Starting,
    State,
    Stopped,
    Stopping,
    Trashed,
    Waiting,
    Worktree,
    state_name,
)
from agentd.core.machine import TABLE, Notice, Step, owed, step

LADDER = (("INT", 0.0), ("TERM", 5.0), ("KILL", 15.0))
NINE = (("KILL", 0.0),)
HERE = InPlace("/src")
TREE = Worktree("/src", "/src", "/w/7-fix", "agentd/7/fix", "ba5e", plan={})
MADE = replace(TREE, admin="7-fix")
GONE = replace(MADE, is_gone=True)
OK = Ended("succeeded", exit_code=0)
FAILED = Ended("failed", exit_code=3)

READ = Progress(offset=100, turns=1, plan="a plan")

EVENTS = {event.__name__: event for event in get_args(on.Event)}
FACTS = [name for name in EVENTS if not name.endswith("Asked")]


def job(state: State, place: InPlace | Worktree = HERE, shelf: Shelf | None = None, **more: Any) -> Job:
    return Job(
        id=7,
        name="fix",
        agent="command",
        task="fix it",
        argv=("make",),
        owner="me",
        number=1,
        created=1.0,
        place=place,
        state=state,
        shelf=shelf or Kept(),
        **more,
    )


SAMPLES: dict[str, Job] = {
    "queued": job(Queued(1.0)),
    "queued, no worktree": job(Queued(1.0), TREE),
    "queued, worktree made": job(Queued(1.0), MADE, attempt=2),
    "waiting": job(Waiting(1.0, ("A_KEY",)), secrets=("A_KEY",)),
    "preparing": job(Preparing(1.0), TREE),
    "starting": job(Starting(1.0)),
    "running": job(Running(2.0, 40)),
    "stopped": job(Stopped(2.0, 40, 3.0)),
    "stopping, killed": job(Stopping(3.0, 2.0, 40, "killed", LADDER)),
    "stopping, not started": job(Stopping(3.0, None, None, "killed", LADDER)),
    "stopping, exited": job(Stopping(3.0, 2.0, 40, "exited")),
    "done": job(Done(9.0, 2.0, 40, OK)),
    "done, and again": job(Done(9.0, 2.0, 40, FAILED, again_at=10.0), restart="on-failure"),
    "done, settled, and again": job(Done(9.0, 2.0, 40, FAILED, is_settled=True, again_at=10.0), restart="on-failure"),
    "done, settled": job(Done(9.0, 2.0, 40, OK, is_settled=True)),
    "done, removing": job(Done(9.0, 2.0, 40, OK, is_settled=True), shelf=Removing(10.0)),
    "done, trashed": job(Done(9.0, 2.0, 40, OK, is_settled=True), shelf=Trashed(10.0, {"folder": "/t"})),
}

OCCURRENCES: dict[str, on.Event] = {
    "Admitted": on.Admitted(20.0),
    "SecretsLost": on.SecretsLost(20.0, ("A_KEY",)),
    "SecretsGiven": on.SecretsGiven(20.0),
    "PhaseBegun": on.PhaseBegun(20.0, "checkout"),
    "WorktreeMade": on.WorktreeMade(20.0, "7-fix"),
    "StartFailed": on.StartFailed(20.0, "the disk is full"),
    "AgentStarted": on.AgentStarted(20.0, 40),
    "AgentStopped": on.AgentStopped(20.0),
    "AgentContinued": on.AgentContinued(20.0),
    "LimitReached": on.LimitReached(20.0, "timeout"),
    "TranscriptRead": on.TranscriptRead(20.0, 1, 0, READ, (on.Told("job.note", {"text": "a plan"}),)),
    "LeaderExited": on.LeaderExited(20.0),
    "AttemptEnded": on.AttemptEnded(20.0, 2.0, 40, OK),
    "KillAsked": on.KillAsked(20.0, "user", LADDER),
    "RestartAsked": on.RestartAsked(20.0, "user"),
    "ResultSettled": on.ResultSettled(20.0, {"changed": False}, False),
    "WorkMerged": on.WorkMerged(20.0, Merged(20.0, 1, "w0rk", "main", "01d", "2e3")),
    "RemoveAsked": on.RemoveAsked(20.0, "user"),
    "RemovedToTrash": on.RemovedToTrash(20.0, {"folder": "/t"}),
    "RemoveFailed": on.RemoveFailed(20.0, "read-only"),
    "RestoreAsked": on.RestoreAsked(20.0, "user"),
}

# What each sample becomes: its state, then what is told, then what is ordered. A sentence is a refusal.
# What is not written here must change nothing, tell nothing and order nothing.
NOT_DONE = "job 7 is still {}; wait for it, or end it with: agentd kill 7"
ENDED_ALREADY = "job 7 has already ended; what came of it: agentd result 7"
NOT_REMOVED = "job 7 is not in the trash; agentd undo lists what is"
NOT_IN_TRASH = "job 7 is not in the trash: it is {}; agentd undo lists what is"


def live(state: str) -> dict[str, str]:
    return {
        "RestartAsked": NOT_DONE.format(state),
        "RemoveAsked": NOT_DONE.format(state),
        "RestoreAsked": NOT_IN_TRASH.format(state),
        "WorkMerged": f"{state} | job.merged | ",
    }


COMPLETED = "done | job.completed | SettleResult"
EXPECTED: dict[str, dict[str, str]] = {
    "queued": {
        **live("queued"),
        "Admitted": "starting | job.starting | LaunchAttempt",
        "SecretsLost": "waiting | job.waiting | ",
        "KillAsked": COMPLETED,
    },
    "queued, no worktree": {
        **live("queued"),
        "Admitted": "preparing | job.preparing | PrepareWorktree",
        "SecretsLost": "waiting | job.waiting | ",
        "KillAsked": COMPLETED,
    },
    "queued, worktree made": {
        **live("queued"),
        "Admitted": "starting | job.starting | LaunchAttempt",
        "SecretsLost": "waiting | job.waiting | ",
        "KillAsked": COMPLETED,
    },
    "waiting": {
        **live("waiting"),
        "SecretsGiven": "queued | job.queued | Reschedule",
        "KillAsked": COMPLETED,
    },
    "preparing": {
        **live("preparing"),
        "SecretsLost": "waiting | job.waiting | Reschedule",
        "PhaseBegun": "preparing | job.preparing | ",
        "WorktreeMade": "starting | worktree.made | LaunchAttempt",
        "StartFailed": COMPLETED + " Reschedule",
        "KillAsked": "done | job.completed | AbandonWorktree SettleResult Reschedule",
    },
    "starting": {
        **live("starting"),
        "TranscriptRead": "starting | job.note | ",
        "SecretsLost": "waiting | job.waiting | Reschedule",
        "StartFailed": COMPLETED + " Reschedule",
        "AgentStarted": "running | job.started | ",
        "LimitReached": "stopping | job.stopping | ",
        "LeaderExited": "stopping | job.stopping | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "running": {
        **live("running"),
        "TranscriptRead": "running | job.note | ",
        "AgentStopped": "stopped | job.stopped | ",
        "LimitReached": "stopping | job.stopping | ",
        "LeaderExited": "stopping | job.stopping | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "stopped": {
        **live("stopped"),
        "TranscriptRead": "stopped | job.note | ",
        "AgentContinued": "running | job.continued | ",
        "LimitReached": "stopping | job.stopping | ",
        "LeaderExited": "stopping | job.stopping | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "stopping, killed": {
        **live("stopping"),
        "TranscriptRead": "stopping | job.note | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "stopping, not started": {
        **live("stopping"),
        "TranscriptRead": "stopping | job.note | ",
        "SecretsLost": COMPLETED + " Reschedule",
        "StartFailed": COMPLETED + " Reschedule",
        "AgentStarted": "stopping | job.started | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "stopping, exited": {
        **live("stopping"),
        "TranscriptRead": "stopping | job.note | ",
        "AttemptEnded": COMPLETED + " Reschedule",
        "KillAsked": "stopping | job.stopping | EndAttempt",
    },
    "done": {
        "KillAsked": ENDED_ALREADY,
        "WorkMerged": "done | job.merged | ",
        "RestartAsked": "job 7 has just ended and its result is being saved; try again",
        "ResultSettled": "done | job.result | ",
        "RemoveAsked": "job 7 has just ended and its result is being saved; try again",
        "RestoreAsked": NOT_REMOVED,
    },
    "done, settled": {
        "KillAsked": ENDED_ALREADY,
        "WorkMerged": "done | job.merged | ",
        "RestartAsked": "queued | job.restarted | Reschedule",
        "RemoveAsked": "done |  | MoveToTrash",
        "RestoreAsked": NOT_REMOVED,
    },
    "done, and again": {
        "WorkMerged": "done | job.merged | ",
        "KillAsked": "done | job.given_up | ",
        "RestartAsked": "job 7 has just ended and its result is being saved; try again",
        "ResultSettled": "done | job.result | StartAgain",
        "RemoveAsked": "job 7 has just ended and its result is being saved; try again",
        "RestoreAsked": NOT_REMOVED,
    },
    "done, settled, and again": {
        "WorkMerged": "done | job.merged | ",
        "KillAsked": "done | job.given_up | ",
        "RestartAsked": "queued | job.restarted | Reschedule",
        "RemoveAsked": "job 7 starts again by itself; stop that with: agentd kill 7",
        "RestoreAsked": NOT_REMOVED,
    },
    "done, removing": {
        "KillAsked": ENDED_ALREADY,
        "WorkMerged": "done | job.merged | ",
        "RestartAsked": "job 7 is in the trash; put it back with: agentd undo 7",
        "RemoveAsked": "done |  | MoveToTrash",
        "RemovedToTrash": "done | job.removed | ",
        "RemoveFailed": "done | job.remove_failed | ",
        "RestoreAsked": NOT_REMOVED,
    },
    "done, trashed": {
        "KillAsked": ENDED_ALREADY,
        "WorkMerged": "done | job.merged | ",
        "RestartAsked": "job 7 is in the trash; put it back with: agentd undo 7",
        "RemoveAsked": "job 7 is in the trash already; agentd undo lists it",
        "RestoreAsked": "done | job.restored | ",
    },
}


def kinds(things: tuple[do.Effect, ...]) -> list[str]:
    return [type(thing).__name__ for thing in things]


def told(after: Step) -> str:
    return (
        f"{state_name(after.job.state)} | {' '.join(n.type for n in after.notices)} | {' '.join(kinds(after.effects))}"
    )


# Every pair


def test_no_pair_is_missing() -> None:
    assert set(TABLE) == set(STATES) == {state_name(sample.state) for sample in SAMPLES.values()}
    assert set(OCCURRENCES) == set(EVENTS)
    assert set(EXPECTED) == set(SAMPLES)
    for state, row in TABLE.items():
        assert set(row) == set(EVENTS), state


@pytest.mark.parametrize("event", OCCURRENCES)
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_pair_is_answered_ignored_or_refused(sample: str, event: str) -> None:
    before = SAMPLES[sample]
    expected = EXPECTED[sample].get(event)
    try:
        after = step(before, OCCURRENCES[event])
    except Refused as refusal:
        assert refusal.message == expected
        assert refusal.code.replace("_", "").isalpha() and refusal.exit == 1
        return
    if expected is None:
        assert after == Step(before)
    else:
        assert told(after) == expected


def test_a_sentence_has_no_placeholder_left_and_says_what_to_do() -> None:
    sentences = set()
    for before in SAMPLES.values():
        for event in OCCURRENCES.values():
            try:
                step(before, event)
            except Refused as refusal:
                sentences.add(refusal.message)
    for sentence in sentences:
        assert not list(filter(None, (field for _, field, _, _ in string.Formatter().parse(sentence))))
        assert sentence.startswith("job 7 ") and not sentence.endswith(".")
    silent = {s for s in sentences if not re.search(r"agentd (kill|undo|result) 7|agentd undo lists|try again", s)}
    assert silent == set()
    assert len(sentences) > 4


def test_a_missing_pair_would_say_so() -> None:
    class NeverHeardOf(do.Fact, frozen=True):
        at: float

    with pytest.raises(Fault, match=r"no answer to NeverHeardOf in state queued \(job 7\)"):
        step(SAMPLES["queued"], NeverHeardOf(1.0))  # type: ignore[arg-type]


# The law: facts twice, one completion, attempts, coupling, what is owed


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_fact_told_twice_changes_nothing_and_orders_nothing(sample: str, fact: str) -> None:
    once = step(SAMPLES[sample], OCCURRENCES[fact])
    assert step(once.job, OCCURRENCES[fact]) == Step(once.job)


times = some.floats(0, 100)
pids = some.integers(2, 5)
ladders = some.sampled_from([LADDER, NINE])
hows = some.sampled_from([OK, FAILED, Ended("lost", reason="unknown"), Ended("killed", signal=9)])
happenings = some.one_of(
    some.sampled_from(list(OCCURRENCES.values())),
    some.builds(on.Admitted, times),
    some.builds(on.AgentStarted, times, pids),
    some.builds(on.AttemptEnded, times, some.just(2.0), pids, hows),
    some.builds(on.KillAsked, times, some.just("user"), ladders),
    some.builds(on.ResultSettled, times, some.just({}), some.booleans()),
    some.builds(on.RestartAsked, times, some.just("user"), some.sampled_from([(), ("A_KEY",)])),
    some.builds(on.PhaseBegun, times, some.sampled_from(["checkout", "fill"])),
)
begun = some.sampled_from([SAMPLES["queued"], SAMPLES["queued, no worktree"], SAMPLES["waiting"]])


def life(first: Job, events: list[on.Event]) -> list[tuple[Job, on.Event, Step]]:
    """Each step of a job to which all this happens; what is refused does not happen."""
    steps = []
    now = first
    for event in events:
        try:
            after = step(now, event)
        except Refused:
            continue
        steps.append((now, event, after))
        now = after.job
    return steps


@given(begun, some.lists(happenings, max_size=40))
def test_one_completion_for_each_attempt_that_ended(first: Job, events: list[on.Event]) -> None:
    completed = []
    ended = []
    for before, _, after in life(first, events):
        completed += [after.job.attempt for notice in after.notices if notice.type == "job.completed"]
        if after.job.is_done and not before.is_done:
            ended.append(after.job.attempt)
    assert completed == ended == sorted(set(completed))


@given(begun, some.lists(happenings, max_size=40))
def test_only_a_restart_makes_an_attempt(first: Job, events: list[on.Event]) -> None:
    for before, event, after in life(first, events):
        grown = after.job.attempt - before.attempt
        assert grown == (1 if isinstance(event, on.RestartAsked) else 0)
        if before.is_done and not after.job.is_done:
            assert grown == 1


@given(begun, some.lists(happenings, max_size=40))
def test_reschedule_comes_with_every_slot_freed_or_wanted(first: Job, events: list[on.Event]) -> None:
    for before, _, after in life(first, events):
        freed = before.is_active and not after.job.is_active
        wanted = isinstance(after.job.state, Queued) and not isinstance(before.state, Queued)
        assert kinds(after.effects).count("Reschedule") == (1 if freed or wanted else 0)


@given(begun, some.lists(happenings, max_size=40))
def test_an_order_that_a_crash_swallows_is_owed(first: Job, events: list[on.Event]) -> None:
    """Whatever a step orders is given again by owed(), should the daemon die before it is carried out."""
    for _, _, after in life(first, events):
        lost = [effect for effect in after.effects if not isinstance(effect, do.Reschedule)]
        assert [effect for effect in lost if effect not in owed(after.job)] == []


@given(begun, some.lists(happenings, max_size=40))
def test_who_and_what_a_job_is_never_changes(first: Job, events: list[on.Event]) -> None:
    for before, _, after in life(first, events):
        fixed = ("id", "name", "agent", "task", "argv", "owner", "number", "created", "secrets", "key")
        assert [getattr(before, name) for name in fixed] == [getattr(after.job, name) for name in fixed]
        assert all(isinstance(notice, Notice) for notice in after.notices)


@pytest.mark.parametrize(
    ("sample", "orders"),
    [
        ("queued", ()),
        ("waiting", ()),
        ("preparing", (do.PrepareWorktree(),)),
        ("starting", (do.LaunchAttempt(),)),
        ("running", (do.LaunchAttempt(),)),
        ("stopped", (do.LaunchAttempt(),)),
        ("stopping, killed", (do.LaunchAttempt(), do.EndAttempt(LADDER))),
        ("stopping, exited", (do.LaunchAttempt(),)),
        ("done", (do.SettleResult(),)),
        ("done, settled", ()),
        ("done, removing", (do.MoveToTrash(),)),
        ("done, trashed", ()),
    ],
)
def test_what_a_state_owes(sample: str, orders: tuple[do.Effect, ...]) -> None:
    assert owed(SAMPLES[sample]) == orders


def test_a_worktree_that_no_attempt_used_is_owed_its_removal() -> None:
    assert owed(job(Done(9.0, None, None, OK), TREE)) == (do.AbandonWorktree(), do.SettleResult())
    assert owed(job(Done(9.0, None, None, OK), MADE)) == (do.SettleResult(),)


# The lives of a job: these events, then exactly these states, words and orders


class Life:
    """Plays events on a job and compares what came of each, as whole objects."""

    def __init__(self, first: Job) -> None:
        self.job = first

    def hears(self, event: on.Event) -> Step:
        after = step(self.job, event)
        self.job = after.job
        return after


def completed(outcome: str, at: float, started: float | None = None, **more: object) -> Notice:
    data: dict[str, object] = {
        "name": "fix",
        "owner": "me",
        "outcome": outcome,
        "exit_code": None,
        "signal": None,
        "reason": None,
        "started_at": started,
        "ended_at": at,
        "log_whole": True,
        "swept": [],
        "left": [],
    }
    return Notice("job.completed", data | more)


def test_a_job_in_place() -> None:
    it = Life(job(Queued(1.0)))
    assert it.hears(on.Admitted(2.0)) == (
        job(Starting(2.0)),
        (Notice("job.starting", {}),),
        (do.LaunchAttempt(),),
    )
    assert it.hears(on.AgentStarted(3.0, 40)) == (
        job(Running(3.0, 40)),
        (Notice("job.started", {"pid": 40, "started_at": 3.0}),),
        (),
    )
    how = Ended("succeeded", exit_code=0, swept=(Process(41, "sleep 99"),))
    assert it.hears(on.LeaderExited(8.0)) == (
        job(Stopping(8.0, 3.0, 40, "exited")),
        (Notice("job.stopping", {"why": "exited"}),),
        (),
    )
    assert it.hears(on.AttemptEnded(9.0, 3.0, 40, how)) == (
        job(Done(9.0, 3.0, 40, how)),
        (completed("succeeded", 9.0, 3.0, exit_code=0, swept=[{"pid": 41, "command": "sleep 99"}]),),
        (do.SettleResult(), do.Reschedule()),
    )
    assert it.hears(on.ResultSettled(10.0, {"outcome": "succeeded"}, False)) == (
        job(Done(9.0, 3.0, 40, how, is_settled=True), result={"outcome": "succeeded"}),
        (Notice("job.result", {"outcome": "succeeded"}),),
        (),
    )


def test_a_job_in_a_worktree() -> None:
    it = Life(job(Queued(1.0), TREE))
    assert it.hears(on.Admitted(2.0)) == (
        job(Preparing(2.0, "worktree"), TREE),
        (Notice("job.preparing", {"phase": "worktree"}),),
        (do.PrepareWorktree(),),
    )
    assert it.hears(on.PhaseBegun(3.0, "checkout")) == (
        job(Preparing(3.0, "checkout"), TREE),
        (Notice("job.preparing", {"phase": "checkout"}),),
        (),
    )
    assert it.hears(on.WorktreeMade(4.0, "7-fix", copied=(".env",), missing=("node_modules",))) == (
        job(Starting(4.0), MADE),
        (
            Notice(
                "worktree.made",
                {"path": "/w/7-fix", "copied": [".env"], "linked": [], "missing": ["node_modules"], "notes": []},
            ),
        ),
        (do.LaunchAttempt(),),
    )
    it.hears(on.AgentStarted(5.0, 40))
    assert it.hears(on.AttemptEnded(9.0, 5.0, 40, FAILED)) == (
        job(Done(9.0, 5.0, 40, FAILED), MADE),
        (completed("failed", 9.0, 5.0, exit_code=3),),
        (do.SettleResult(), do.Reschedule()),
    )
    # It ended equal to its base: the worktree has gone, and a restart makes it anew.
    it.hears(on.ResultSettled(10.0, {"changed": False}, True))
    assert it.job.place == GONE
    assert it.hears(on.RestartAsked(11.0, "user")) == (
        job(Queued(11.0), TREE, attempt=2),
        (Notice("job.restarted", {"attempt": 2, "by": "user"}),),
        (do.Reschedule(),),
    )
    assert kinds(it.hears(on.Admitted(12.0)).effects) == ["PrepareWorktree"]


def test_a_restart_in_a_worktree_that_stands() -> None:
    it = Life(job(Done(9.0, 5.0, 40, FAILED, is_settled=True), MADE, result={"changed": True}))
    it.hears(on.RestartAsked(11.0, "user"))
    assert it.hears(on.Admitted(12.0)) == (
        job(Starting(12.0), MADE, attempt=2),
        (Notice("job.starting", {}),),
        (do.LaunchAttempt(),),
    )


@pytest.mark.parametrize("sample", ["queued", "queued, no worktree", "waiting"])
def test_killed_while_nothing_was_made(sample: str) -> None:
    it = Life(SAMPLES[sample])
    how = Ended("killed", reason="by user", order="INT")
    after = it.hears(on.KillAsked(5.0, "user", LADDER))
    assert after == (
        replace(SAMPLES[sample], state=Done(5.0, None, None, how)),
        (completed("killed", 5.0, reason="by user"),),
        (do.SettleResult(),),
    )


def test_killed_while_preparing() -> None:
    it = Life(SAMPLES["preparing"])
    how = Ended("killed", reason="by user", order="KILL")
    assert it.hears(on.KillAsked(5.0, "user", NINE)) == (
        job(Done(5.0, None, None, how), TREE),
        (completed("killed", 5.0, reason="by user"),),
        (do.AbandonWorktree(), do.SettleResult(), do.Reschedule()),
    )
    # What the work in progress still says comes too late.
    for late in (on.PhaseBegun(6.0, "fill"), on.WorktreeMade(6.0, "7-fix"), on.StartFailed(6.0, "gone")):
        assert it.hears(late) == Step(it.job)


def test_killed_while_starting() -> None:
    it = Life(SAMPLES["starting"])
    assert it.hears(on.KillAsked(5.0, "user", LADDER)) == (
        job(Stopping(5.0, None, None, "killed", LADDER)),
        (Notice("job.stopping", {"why": "killed", "by": "user", "signal": "INT"}),),
        (do.EndAttempt(LADDER),),
    )
    # It had been executed just then.
    assert it.hears(on.AgentStarted(6.0, 40)) == (
        job(Stopping(5.0, 6.0, 40, "killed", LADDER)),
        (Notice("job.started", {"pid": 40, "started_at": 6.0}),),
        (),
    )
    how = Ended("killed", signal=2, reason="killed", order="INT")
    assert it.hears(on.AttemptEnded(7.0, 6.0, 40, how)).notices == (
        completed("killed", 7.0, 6.0, signal=2, reason="killed"),
    )


@pytest.mark.parametrize("why", [on.StartFailed(6.0, "no space"), on.SecretsLost(6.0, ("A_KEY",))])
def test_killed_while_starting_and_then_it_cannot_start(why: on.Event) -> None:
    it = Life(SAMPLES["starting"])
    it.hears(on.KillAsked(5.0, "user", LADDER))
    how = Ended("killed", reason="killed before it started", order="INT")
    assert it.hears(why) == (
        job(Done(6.0, None, None, how)),
        (completed("killed", 6.0, reason="killed before it started"),),
        (do.SettleResult(), do.Reschedule()),
    )


@pytest.mark.parametrize("sample", ["running", "stopped"])
def test_killed_while_running_or_stopped(sample: str) -> None:
    it = Life(SAMPLES[sample])
    assert it.hears(on.KillAsked(5.0, "user", LADDER)) == (
        job(Stopping(5.0, 2.0, 40, "killed", LADDER)),
        (Notice("job.stopping", {"why": "killed", "by": "user", "signal": "INT"}),),
        (do.EndAttempt(LADDER),),
    )


def test_killed_again_climbs_the_new_ladder() -> None:
    it = Life(SAMPLES["stopping, killed"])
    assert it.hears(on.KillAsked(6.0, "user", NINE)) == (
        job(Stopping(6.0, 2.0, 40, "killed", NINE)),
        (Notice("job.stopping", {"why": "killed", "by": "user", "signal": "KILL"}),),
        (do.EndAttempt(NINE),),
    )
    assert owed(it.job) == (do.LaunchAttempt(), do.EndAttempt(NINE))


def test_killed_while_its_tree_is_swept() -> None:
    it = Life(SAMPLES["stopping, exited"])
    assert it.hears(on.KillAsked(6.0, "user", NINE)).effects == (do.EndAttempt(NINE),)


def test_stopped_and_continued() -> None:
    it = Life(SAMPLES["running"])
    assert it.hears(on.AgentStopped(3.0)) == (job(Stopped(2.0, 40, 3.0)), (Notice("job.stopped", {}),), ())
    assert it.hears(on.AgentContinued(4.0)) == (job(Running(2.0, 40)), (Notice("job.continued", {}),), ())


def test_a_time_limit() -> None:
    it = Life(SAMPLES["running"])
    assert it.hears(on.LimitReached(5.0, "idle_timeout")) == (
        job(Stopping(5.0, 2.0, 40, "idle_timeout")),
        (Notice("job.stopping", {"why": "idle_timeout"}),),
        (),
    )
    how = Ended("timed_out", signal=2, reason="idle_timeout", order="INT")
    assert it.hears(on.AttemptEnded(6.0, 2.0, 40, how)) == (
        job(Done(6.0, 2.0, 40, how)),
        (completed("timed_out", 6.0, 2.0, signal=2, reason="idle_timeout"),),
        (do.SettleResult(), do.Reschedule()),
    )


@pytest.mark.parametrize("sample", ["preparing", "starting"])
def test_unstarted(sample: str) -> None:
    it = Life(SAMPLES[sample])
    after = it.hears(on.StartFailed(5.0, "the disk is full"))
    assert after.job.state == Done(5.0, None, None, Ended("unstarted", exit_code=125, reason="the disk is full"))
    assert after.notices == (completed("unstarted", 5.0, exit_code=125, reason="the disk is full"),)


def test_an_end_that_was_seen_before_its_start() -> None:
    it = Life(SAMPLES["starting"])
    assert it.hears(on.AttemptEnded(9.0, 5.0, 40, OK)) == (
        job(Done(9.0, 5.0, 40, OK)),
        (completed("succeeded", 9.0, 5.0, exit_code=0),),
        (do.SettleResult(), do.Reschedule()),
    )
    assert it.hears(on.AgentStarted(5.0, 40)) == Step(it.job)


def test_restart() -> None:
    it = Life(job(Done(9.0, 2.0, 40, FAILED, is_settled=True), result={"outcome": "failed"}))
    assert it.hears(on.RestartAsked(10.0, "user")) == (
        job(Queued(10.0), attempt=2),
        (Notice("job.restarted", {"attempt": 2, "by": "user"}),),
        (do.Reschedule(),),
    )
    it.hears(on.Admitted(11.0))
    it.hears(on.AgentStarted(12.0, 50))
    assert it.hears(on.AttemptEnded(13.0, 12.0, 50, OK)).job == job(Done(13.0, 12.0, 50, OK), attempt=2)


def test_restart_that_lacks_a_secret() -> None:
    it = Life(job(Done(9.0, 2.0, 40, FAILED, is_settled=True), secrets=("A_KEY",)))
    assert it.hears(on.RestartAsked(10.0, "user", ("A_KEY",))) == (
        job(Waiting(10.0, ("A_KEY",)), secrets=("A_KEY",), attempt=2),
        (Notice("job.restarted", {"attempt": 2, "by": "user"}),),
        (),
    )


def test_removed_and_put_back() -> None:
    done = Done(9.0, 2.0, 40, OK, is_settled=True)
    it = Life(job(done))
    assert it.hears(on.RemoveAsked(10.0, "user")) == (job(done, shelf=Removing(10.0)), (), (do.MoveToTrash(),))
    assert it.hears(on.RemovedToTrash(11.0, {"folder": "/t/7"})) == (
        job(done, shelf=Trashed(11.0, {"folder": "/t/7"})),
        (Notice("job.removed", {}),),
        (),
    )
    assert it.hears(on.RestoreAsked(12.0, "user")) == (job(done), (Notice("job.restored", {"by": "user"}),), ())
    # The word of a removal that is over does not remove it again.
    assert it.hears(on.RemovedToTrash(11.0, {"folder": "/t/7"})) == Step(job(done))
    assert it.hears(on.RemoveFailed(11.0, "late")) == Step(job(done))


def test_a_removal_that_fails_keeps_the_job() -> None:
    done = Done(9.0, 2.0, 40, OK, is_settled=True)
    it = Life(job(done, shelf=Removing(10.0)))
    assert it.hears(on.RemoveFailed(11.0, "read-only")) == (
        job(done),
        (Notice("job.remove_failed", {"error": "read-only"}),),
        (),
    )


@pytest.mark.parametrize("sample", ["queued", "preparing", "starting"])
def test_secrets_lost_and_given(sample: str) -> None:
    before = replace(SAMPLES[sample], secrets=("A_KEY", "B_TOKEN"))
    it = Life(before)
    waiting = replace(before, state=Waiting(5.0, ("A_KEY",)))
    after = it.hears(on.SecretsLost(5.0, ("A_KEY",)))
    assert after[:2] == (waiting, (Notice("job.waiting", {"needs": ["A_KEY"]}),))
    assert kinds(after.effects) == ([] if sample == "queued" else ["Reschedule"])
    assert it.hears(on.SecretsGiven(6.0)) == (
        replace(before, state=Queued(6.0)),
        (Notice("job.queued", {}),),
        (do.Reschedule(),),
    )


def test_secrets_lost_after_the_start_do_not_matter() -> None:
    for sample in ("running", "stopped", "stopping, killed", "stopping, exited", "done"):
        assert step(SAMPLES[sample], on.SecretsLost(5.0, ("A_KEY",))) == Step(SAMPLES[sample])


def test_a_merge_is_remembered_and_told_from_where_to_where() -> None:
    merged = Merged(20.0, 1, "w0rk", "main", "01d", "2e3")
    assert step(SAMPLES["done, settled"], on.WorkMerged(20.0, merged)) == Step(
        replace(SAMPLES["done, settled"], merged=merged),
        (Notice("job.merged", {"what": "w0rk", "into": "main", "from": "01d", "to": "2e3"}),),
    )
    again = step(replace(SAMPLES["done, settled"], merged=merged), on.RestartAsked(30.0, "user"))
    assert again.job.merged == merged
