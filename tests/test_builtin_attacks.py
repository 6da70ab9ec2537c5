"""What an agent, its user and its surroundings can do to a run of the built-in agent, and what comes of it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from agentlab import Scene, bash, scene_of

from agentd.core.errors import Refused
from agentd.runners import conversation

ASK = {"tool": "ask", "input": {"question": "Which colour?", "options": ["red", "blue"]}}


TOO_LONG = "message larger than 1048576 bytes; shorten the text, the command or the environment"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield from scene_of(tmp_path, monkeypatch)


def results(scene: Scene, id: int) -> list[str]:
    return [record["content"] for record in scene.records(id) if record["type"] == "result"]


def test_a_shell_that_is_ended_left_or_closed_serves_the_next_command(scene: Scene) -> None:
    escape = "setsid nohup sleep 1000 > /dev/null 2>&1 & echo $!"
    commands = [
        "x=kept; kill -9 $$",
        "exec true",
        "x=kept; exit 3",
        "exec 1>&- 2>&-; sleep 0.2",
        "cd /; pwd",
        "trap '' EXIT; readonly y=1; set -u",
        "head -c 1000000 /dev/zero | tr '\\0' a",
        escape,
        "echo $x $PWD",
    ]
    scene.serve([*({"calls": [bash(command)]} for command in commands), {"say": "All done."}])
    id = scene.delegate("break out", in_place=False, cwd=scene.repo)
    job = scene.wait(id)
    said = results(scene, id)
    assert (job["outcome"], job["progress"]["words"]) == ("succeeded", "All done.")
    assert said[:6] == [
        "[agentd: ended by signal 9]",
        "(no output)",
        "[agentd: exit code 3]",
        "(no output)",
        "/",
        "(no output)",
    ]
    assert "970000 of 1000000 bytes cut out here" in said[6] and len(said[6]) < 31_000
    assert said[8] == "kept /"
    pid = int(said[7].split()[0])
    assert [process["pid"] for process in job["swept"]] == [pid], "what outlives the agent is ended, and named"
    assert faultlab.state_of(pid) in ("", "Z")


def test_an_agent_that_kills_its_own_runner_goes_on_and_is_told(scene: Scene) -> None:
    scene.serve([{"calls": [bash("echo once >> ran; kill -9 $PPID; sleep 1000")]}, {"say": "I will not do it again."}])
    id = scene.delegate("do no harm", restart="on-failure")
    faultlab.until(lambda: scene.client.job(id)["job"]["outcome"] == "succeeded", 60)
    job = scene.client.job(id)["job"]
    assert (job["attempt"], job["progress"]["words"]) == (2, "I will not do it again.")
    assert results(scene, id) == [conversation.UNKNOWN] and (scene.shell.cwd / "ran").read_text() == "once\n"


@pytest.mark.parametrize("deed", ["rm", "truncate -s 0"])
def test_who_takes_the_transcript_away_spends_nothing_unseen(scene: Scene, deed: str) -> None:
    transcript = scene.shell.state / "jobs/1/1/transcript.ndjson"
    again = {"calls": [bash("echo more >> work")], "repeat": True}
    scene.serve([{"calls": [bash("true")]}, {"calls": [bash(f"{deed} {transcript}")]}, again])
    id = scene.delegate("hide it", max_turns=20)
    job = scene.wait(id)
    assert (job["outcome"], job["wait_code"]) == ("limited", 124) and "its transcript lacks turns" in job["reason"]
    assert len(scene.requests()) <= 4


def test_a_foreign_line_does_not_keep_a_job_from_going_on(scene: Scene) -> None:
    transcript = scene.shell.state / "jobs/1/1/transcript.ndjson"
    scene.serve([{"calls": [bash(f"echo 'a line of my own' >> {transcript}")]}, {"say": "Once more."}])
    id = scene.delegate("write where you should not", max_turns=1)
    assert scene.wait(id)["outcome"] == "limited"
    scene.client.restart(id, resume=True)
    job = scene.wait(id)
    assert job["outcome"] == "limited", "what was spent counts"
    assert f"agentd: left out of {transcript} what is no record of a run: line 5" in scene.shell.ok("logs", str(id))


def test_an_answer_that_comes_twice_is_taken_once(scene: Scene) -> None:
    scene.serve([{"calls": [ASK, bash("cat gate")]}, {"say": "Blue it is."}])
    gate = scene.shell.cwd / "gate"
    os.mkfifo(gate)
    id = scene.delegate("choose")
    scene.wait(id, "waiting")
    scene.client.answer(id, "blue")
    faultlab.until(lambda: results(scene, id) == ["blue"])
    faultlab.until(lambda: scene.client.job(id)["job"]["progress"]["question"] is None)
    with pytest.raises(Refused, match="job 1 asks nothing just now"):
        scene.client.answer(id, "red")
    gate.write_text("open\n")
    assert scene.wait(id)["outcome"] == "succeeded"
    assert "Message from your user" not in json.dumps(scene.requests()[-1]["body"]["messages"])


def test_two_answers_before_it_looks_are_an_answer_and_a_message(scene: Scene) -> None:
    scene.serve([{"calls": [ASK]}, {"say": "So be it."}])
    id = scene.delegate("choose")
    scene.wait(id, "waiting")
    runner = scene.runner(id)
    assert runner is not None
    os.kill(runner, signal.SIGSTOP)
    scene.client.answer(id, "blue")
    scene.client.answer(id, "red")
    os.kill(runner, signal.SIGCONT)
    assert scene.wait(id)["outcome"] == "succeeded" and results(scene, id) == ["blue"]
    assert "Message from your user:\\nred" in json.dumps(scene.requests()[-1]["body"]["messages"])


def test_a_message_of_nearly_a_megabyte_arrives_whole_and_a_longer_one_is_refused(scene: Scene) -> None:
    scene.serve([{"calls": [ASK]}, {"say": "That is long."}])
    id = scene.delegate("read")
    scene.wait(id, "waiting")
    long = "long\n" * 150_000
    said = scene.shell("send", str(id), input=2 * long.encode())
    assert said == (2, "", f"agentd: cannot send the request: {TOO_LONG}\n")
    scene.client.send(id, long)
    assert scene.wait(id)["outcome"] == "succeeded"
    assert any(long in block.get("text", "") for block in scene.requests()[-1]["body"]["messages"][-1]["content"])


def test_interrupted_while_it_is_parked_it_waits_for_a_word_and_then_for_its_turn(scene: Scene) -> None:
    scene.serve([{"fault": "429", "retry_after": 600, "say": "never"}])
    id = scene.delegate("be patient")
    scene.wait(id, "parked")
    scene.client.interrupt(id, "")
    scene.wait(id, "waiting")
    scene.client.send(id, "go on")
    assert scene.wait(id, "parked")["state"] == "parked"
    assert len(scene.requests()) == 1
    began = time.monotonic()
    scene.shell.ok("kill", str(id))
    assert scene.wait(id)["outcome"] == "killed" and time.monotonic() - began < 20
