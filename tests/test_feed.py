"""Events on their way to readers: stored first, in order, again and again until acknowledged."""

import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faultlab import until
from test_socket import PATIENCE, Lab, answers, assert_answered_soon, request, say

from agentd import paths
from agentd.core.errors import AgentdError
from agentd.protocol import MAX_BACKLOG

Event = dict[str, Any]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path / "home" / "state")
    yield lab
    lab.stop()


def completions(events: list[Event]) -> list[Event]:
    return [event for event in events if event["type"] == "job.completed"]


def settle(lab: Lab, *ids: int) -> None:
    """Wait until all has been told of these jobs; what is told of one after its completion is its result."""
    with lab.client() as client:
        missing = set(ids)
        for event in client.events(since=0):
            if event["type"] == "job.result":
                missing.discard(event["job"])
            if not missing:
                return


def test_what_is_told_of_one_job(lab: Lab) -> None:
    job = lab.run("sh", "-c", "exit 3", task="fail")
    settle(lab, job["id"])
    told = lab.events()
    assert [event["type"] for event in told] == [
        "job.created",
        "job.queued",
        "job.starting",
        "job.started",
        "job.completed",
        "job.result",
    ]
    assert [event["seq"] for event in told] == [1, 2, 3, 4, 5, 6]
    assert {(event["job"], event["attempt"]) for event in told} == {(job["id"], 1)}
    assert told[0]["data"] == {"name": "fail", "task": "fail", "argv": ["sh", "-c", "exit 3"], "agent": "command"}
    (completed,) = completions(told)
    assert completed["data"]["outcome"] == "failed" and completed["data"]["exit_code"] == 3
    assert completed["data"]["name"] == "fail" and completed["data"]["owner"] == "me"


def test_again_until_acknowledged(lab: Lab) -> None:
    with lab.client() as client:
        assert lab.events(name="reader") == []  # a name begins where it is first used
        first, second = lab.run("true"), lab.run("false")
        settle(lab, first["id"], second["id"])
        told = lab.events(name="reader")
        assert [event["job"] for event in completions(told)] == [first["id"], second["id"]]
        assert lab.events(name="reader") == told
        middle = completions(told)[0]["seq"]
        assert client.ack("reader", middle) == {"name": "reader", "acked": middle}
        assert lab.events(name="reader") == [event for event in told if event["seq"] > middle]
        # An older acknowledgement takes nothing back, and the daemon's death neither.
        assert client.ack("reader", middle - 1)["acked"] == middle
        lab.kill_daemon()
        assert lab.events(name="reader") == [event for event in told if event["seq"] > middle]
        client.ack("reader", told[-1]["seq"])
        assert lab.events(name="reader") == []


READER = """
import sys
from agentd import Client
for event in Client(sys.argv[1]).events(name="reader"):
    print(event["seq"], event["type"], flush=True)
"""


def test_a_client_that_dies_before_it_acknowledges(lab: Lab) -> None:
    """F13: what it had in hand is told again, by the same number."""
    lab.events(name="reader")
    job = lab.run("true")
    command = [sys.executable, "-c", READER, lab.state]
    heard = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            lines = iter(reader.stdout.readline, "")
            heard.append(list(itertools.takewhile(lambda line: "job.completed" not in line, lines)))
            reader.send_signal(signal.SIGKILL)
    assert heard[0] == heard[1] != []
    told = lab.events(name="reader")
    assert [event["job"] for event in completions(told)] == [job["id"]]


def test_one_completion_for_each_attempt_in_order(lab: Lab) -> None:
    lab.events(name="reader")
    with lab.client() as client:
        ids = [client.delegate(["sh", "-c", f"exit {n}"], cwd="/", in_place=True)["id"] for n in range(8)]
        client.wait(ids, timeout=PATIENCE)
        for id in ids[:3]:
            assert client.restart(id)["attempt"] == 2
        client.wait(ids, timeout=PATIENCE)
        settle(lab, *ids)
        told = lab.events(name="reader")
    assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})
    ended = [(event["job"], event["attempt"]) for event in completions(told)]
    assert sorted(ended) == sorted([*((id, 1) for id in ids), *((id, 2) for id in ids[:3])])
    for id in ids:
        mine = [event["type"] for event in told if event["job"] == id and event["attempt"] == 1]
        mine = [type for type in mine if type != "job.stopping"]  # told if the exit was seen before the end
        assert mine[: mine.index("job.completed")] == ["job.created", "job.queued", "job.starting", "job.started"]


def test_a_reader_that_is_too_slow_is_cut_off_and_misses_nothing(lab: Lab) -> None:
    """It reads nothing while more than its backlog is told; others are told all of it meanwhile."""
    lab.status()
    slow, raw = lab.client(), lab.connect()
    unhurried = slow.events(since=0)
    say(raw, request("events.subscribe", since=0))
    assert "result" in answers(raw)[0]
    with lab.client() as client:
        job = client.delegate(["sleep", "99"], cwd="/", in_place=True)
        client.wait([job["id"]], until="running", timeout=PATIENCE)
        heard = [next(unhurried)]
        long = [{"pid": 1, "command": "x" * 60_000}]
        said = {"job": job["id"], "attempt": 1, "what": "unkillable", "processes": long}
        for _ in range(1 + 12 * MAX_BACKLOG // 600_000):
            lab.nudge(json.dumps(said).encode())
        assert_answered_soon(lab)
        client.kill([job["id"]], "KILL")
        client.wait([job["id"]], timeout=PATIENCE)
    settle(lab, job["id"])  # a reader that reads has been told everything by now
    got = bytearray()
    while data := raw.recv(1 << 20):
        got += data
    *_, last = got.splitlines()
    assert json.loads(last)["method"] == "lagged" and got.count(b'"method":"lagged"') == 1
    assert MAX_BACKLOG < len(got) < MAX_BACKLOG + (2 << 20)
    # The client goes on where it was.
    for event in unhurried:
        heard.append(event)
        if event["type"] == "job.result":
            break
    assert [event["seq"] for event in heard] == list(range(1, heard[-1]["seq"] + 1))
    assert len(completions(heard)) == 1
    unhurried.close()  # type: ignore[attr-defined]


def test_many_readers_are_told_the_same(lab: Lab) -> None:
    lab.status()
    links = [lab.connect() for _ in range(50)]
    for link in links:
        say(link, request("events.subscribe", since=0))
    job = lab.run("true")
    settle(lab, job["id"])
    expected = lab.events()
    for link in links:
        _, *told = answers(link, 1 + len(expected))
        assert [message["params"] for message in told] == expected


def test_a_name_begins_at_delegate_with_an_owner(lab: Lab) -> None:
    before = lab.run("true")
    settle(lab, before["id"])
    with lab.client(owner="main-agent") as client:
        job = client.delegate(["true"], cwd="/", in_place=True)
        client.wait([job["id"]], timeout=PATIENCE)
    settle(lab, job["id"])
    told = lab.events(name="main-agent")
    assert {event["job"] for event in told} == {job["id"]}
    assert told[0]["type"] == "job.created"
    assert [event["job"] for event in completions(told)] == [job["id"]]


def test_a_name_sees_all_unless_filtered(lab: Lab) -> None:
    lab.events(name="reader")
    mine = lab.run("true")
    with lab.client(owner="somebody") as other:
        theirs = other.delegate(["true"], cwd="/", in_place=True)
        other.wait([theirs["id"]], timeout=PATIENCE)
        settle(lab, mine["id"], theirs["id"])
        assert {event["job"] for event in lab.events(name="reader")} == {mine["id"], theirs["id"]}
        filtered = list(other.events(name="reader", mine=True, follow=False))
        assert {event["job"] for event in filtered} == {theirs["id"]}
        assert {event["job"] for event in other.events(since=0, mine=True, follow=False)} == {theirs["id"]}


def test_a_name_outlives_the_removal_of_its_jobs(lab: Lab) -> None:
    lab.events(name="reader")
    job = lab.run("true")
    with lab.client() as client:
        client.remove(job["id"])
    told = lab.events(name="reader")
    assert [event["job"] for event in completions(told)] == [job["id"]]
    assert told[-1]["type"] == "job.removed"


def test_what_cannot_be_acknowledged(lab: Lab) -> None:
    with lab.client() as client:
        with pytest.raises(AgentdError, match="cannot acknowledge 99: the newest event is 0") as refusal:
            client.ack("reader", 99)
        assert (refusal.value.exit, refusal.value.code) == (1, "no_such_event")
        for name in ("", "x" * 101, "a\nb", "a\x1b"):
            with pytest.raises(AgentdError, match="no reader may be called"):
                list(client.events(name=name, follow=False))


def test_a_name_that_nobody_used_for_thirty_days_is_retired(lab: Lab) -> None:
    lab.events(name="forgotten")
    lab.events(name="recent")
    job = lab.run("true")
    settle(lab, job["id"])
    lab.stop()
    with closing(sqlite3.connect(f"{lab.state}/agentd.db")) as db, db:
        for name, days in (("forgotten", 31), ("recent", 29)):
            db.execute("UPDATE subscribers SET used = used - ? WHERE name = ?", (days * 86400.0, name))
    with lab.client() as client:
        for event in client.events(since=0):
            if event["type"] == "subscriber.retired":
                break
    assert event["data"] == {"name": "forgotten", "acked": 0} and event["job"] is None
    names = {one["name"] for one in lab.status()["subscribers"]}
    assert "recent" in names and "forgotten" not in names
    assert [e["job"] for e in completions(lab.events(name="recent"))] == [job["id"]]


def test_old_events_are_forgotten_when_every_named_reader_has_them(lab: Lab) -> None:
    lab.events(name="behind")
    jobs = [lab.run("true") for _ in range(3)]
    for job in jobs:
        settle(lab, job["id"])
    settings = Path(paths.config_file())
    settings.parent.mkdir(parents=True)
    settings.write_text("[events]\ndays = 10\n")
    acked = completions(lab.events())[0]["seq"]
    with lab.client() as client:
        client.ack("behind", acked)
        newest = client.ask("daemon.status")["newest_seq"]
        client.ack("me", newest)  # whose jobs they are
    for days, first in ((9, 1), (11, acked + 1)):
        lab.stop()
        with closing(sqlite3.connect(f"{lab.state}/agentd.db")) as db, db:
            db.execute("UPDATE events SET at = ?", (time.time() - days * 86400.0,))
        until(lambda first=first: lab.events()[0]["seq"] == first)
        assert lab.events()[-1]["seq"] == newest
    assert [event["job"] for event in completions(lab.events(name="behind"))] == [job["id"] for job in jobs[1:]]
    with lab.client() as client:
        client.ack("behind", newest)
    lab.stop()
    until(lambda: len(lab.events()) == 1)
    assert lab.run("true") and lab.events()[0]["seq"] == newest


def test_following_goes_on_over_the_daemons_death(lab: Lab) -> None:
    lab.status()
    with lab.client() as client:
        following = client.events(since=0)
        first = lab.run("true")
        heard = [event for _, event in zip(range(3), following, strict=False)]
        lab.kill_daemon()
        second = lab.run("true")
        for event in following:
            heard.append(event)
            if event["type"] == "job.completed" and event["job"] == second["id"]:
                break
    assert [event["seq"] for event in heard] == list(range(1, heard[-1]["seq"] + 1))
    assert [event["job"] for event in completions(heard)] == [first["id"], second["id"]]


def test_a_reader_that_leaves_while_it_is_caught_up_costs_nothing(lab: Lab) -> None:
    """Its question to the store is withdrawn; the store goes on."""
    lab.run("true")
    for _ in range(100):
        link = lab.connect()
        say(link, request("events.subscribe", since=0))
        link.close()
    assert lab.run("true")["outcome"] == "succeeded"
    assert len(completions(lab.events())) == 2
