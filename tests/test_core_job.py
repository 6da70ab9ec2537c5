"""How an attempt ended, and the exit code that stands for it. What is unknown is never success."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core.job import Done, Ended, InPlace, Job, Process, Queued, Trashed, Worktree, outcome, wait_code

INT = {"rungs": [["INT", 0.0], ["TERM", 5.0], ["KILL", 15.0]]}
NINE = {"rungs": [["KILL", 0.0]]}


@pytest.mark.parametrize(
    ("exit", "end", "how", "code"),
    [
        ({"code": 0}, {}, Ended("succeeded", exit_code=0), 0),
        ({"code": 3}, {}, Ended("failed", exit_code=3), 3),
        ({"code": 255}, {}, Ended("failed", exit_code=255), 255),
        ({"signal": 11}, {}, Ended("failed", signal=11), 139),
        ({"signal": 9}, {}, Ended("failed", signal=9), 137),
        ({"signal": 9, "oom": True}, {}, Ended("failed", signal=9, reason="out of memory"), 137),
        # Killed: by the signal it died of, whatever it made of it.
        ({"signal": 2}, {"reason": "killed", "order": INT}, Ended("killed", None, 2, "killed", "INT"), 130),
        ({"signal": 9}, {"reason": "killed", "order": INT}, Ended("killed", None, 9, "killed", "INT"), 137),
        ({"code": 7}, {"reason": "killed", "order": INT}, Ended("killed", 7, None, "killed", "INT"), 7),
        ({"code": 0}, {"reason": "killed", "order": INT}, Ended("killed", 0, None, "killed", "INT"), 130),
        ({"code": 0}, {"reason": "killed", "order": NINE}, Ended("killed", 0, None, "killed", "KILL"), 137),
        (
            {"reason": "unstarted", "errno": 0, "error": "x"},
            {"reason": "killed", "order": INT},
            Ended("killed", reason="killed before it started", order="INT"),
            130,
        ),
        (
            {"signal": 15},
            {"reason": "timed_out", "order": {**INT, "limit": "idle_timeout"}},
            Ended("timed_out", None, 15, "idle_timeout", "INT"),
            124,
        ),
        ({"code": 0}, {"reason": "timed_out", "order": INT}, Ended("timed_out", 0, None, "timeout", "INT"), 124),
        # Not executed: as a shell says it.
        ({"reason": "unstarted", "errno": 2, "error": "no x"}, {}, Ended("unstarted", 127, None, "no x"), 127),
        ({"reason": "unstarted", "errno": 20, "error": "no x"}, {}, Ended("unstarted", 127, None, "no x"), 127),
        ({"reason": "unstarted", "errno": 13, "error": "may not"}, {}, Ended("unstarted", 126, None, "may not"), 126),
        ({"reason": "unstarted", "errno": 7, "error": "too long"}, {}, Ended("unstarted", 126, None, "too long"), 126),
        (
            {"reason": "unstarted", "errno": 2, "folder": True, "error": "no folder"},
            {},
            Ended("unstarted", 125, None, "no folder"),
            125,
        ),
        # Unknown.
        ({}, {}, Ended("lost", reason="unknown"), 125),
        ({"reason": "supervisor_lost"}, {}, Ended("lost", reason="supervisor_lost"), 125),
        (
            {"reason": "supervisor_lost"},
            {"reason": "killed", "order": INT},
            Ended("lost", reason="supervisor_lost"),
            125,
        ),
        ({"reason": "rebooted"}, {}, Ended("rebooted", reason="the machine was restarted while it ran"), 125),
    ],
)
def test_an_outcome_and_its_code(exit: dict[str, Any], end: dict[str, Any], how: Ended, code: int) -> None:
    found = outcome(exit, end)
    assert msgspec.structs.replace(found, order=how.order) == how
    assert found.order in (how.order, "INT")
    assert wait_code(found) == code


def test_the_order_log_and_processes_of_an_end() -> None:
    end = {"order": INT, "log": {"out": 10, "err": 20}, "swept": [{"pid": 5, "command": "sleep"}], "left": []}
    assert outcome({"code": 1}, end) == Ended(
        "failed", exit_code=1, order="INT", swept=(Process(5, "sleep"),), log_out=10, log_err=20
    )


words = some.sampled_from([None, "killed", "timed_out", "unstarted", "rebooted", "supervisor_lost", "odd"])
records = some.fixed_dictionaries(
    {},
    optional={
        "code": some.one_of(some.none(), some.integers(0, 255)),
        "signal": some.one_of(some.none(), some.integers(1, 64)),
        "reason": words,
        "errno": some.one_of(some.none(), some.integers(0, 133)),
        "error": some.text(max_size=5),
        "oom": some.booleans(),
        "folder": some.booleans(),
    },
)
ends = some.fixed_dictionaries(
    {},
    optional={
        "reason": words,
        "order": some.sampled_from([None, {}, INT, NINE, {**INT, "limit": "timeout"}]),
        "log": some.sampled_from([None, {}, {"out": 1}]),
        "swept": some.sampled_from([None, [], [{"pid": 1, "command": "x"}]]),
    },
)


@given(records, ends)
def test_success_is_known_or_it_is_none(exit: dict[str, Any], end: dict[str, Any]) -> None:
    how = outcome(exit, end)
    succeeded = exit.get("code") == 0 and exit.get("signal") is None and not exit.get("oom")
    if how.outcome == "succeeded":
        assert succeeded
    assert (wait_code(how) == 0) == (how.outcome == "succeeded")
    assert 0 <= wait_code(how) <= 255
    # A number is the record's own, or there is none.
    if how.outcome != "unstarted":
        assert how.exit_code in (None, exit.get("code"))
    assert how.signal in (None, exit.get("signal"))


def test_a_job_survives_being_stored() -> None:
    plan = {"repo": {"common": "/r/.git", "top": "/r"}, "job": 7, "base": "ba5e"}
    how = Ended("killed", signal=9, reason="killed", order="KILL", swept=(Process(5, "x"),))
    for place in (InPlace("/src"), Worktree("/src", "/r", "/w", "agentd/7/fix", "ba5e", plan, "7-fix", True)):
        for state in (Queued(1.5), Done(9.0, 2.0, 40, how, True)):
            job = Job(7, "fix", "command", "t", ("a", "b"), "me", 3, 1.0, place, state, shelf=Trashed(3.0, {"a": 1}))
            assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
