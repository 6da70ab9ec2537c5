"""What the model server can do wrong, with the real SDK, and what the agent makes of it."""

import asyncio
import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from breaking import fill, needs_root, small_disk
from runnerlab import KEY, Lab, free_port

from agentd.runners.answers import Busy
from agentd.runners.model import Model
from agentd.runners.parking import Parking

Turn = dict[str, Any]
DONE: Turn = {"say": "Done."}
WORK: Turn = {"calls": [{"tool": "bash", "input": {"command": "echo worked >> log"}}]}


@pytest.mark.parametrize(
    ("fault", "requests", "said"),
    [
        ({"fault": "429", "retry_after": 0.1}, 2, "parked: 429 by order of the script"),
        ({"fault": "429"}, 2, "parked: 429"),
        ({"fault": "529", "retry_after": 0.1, "times": 3}, 4, "parked: 529"),
        ({"fault": "500", "retry_after": 0.1}, 2, "parked: 500"),
        ({"fault": "drop"}, 2, "parked: cannot reach 127.0.0.1: Server disconnected"),
        ({"fault": "cut"}, 2, "the connection was cut in the middle of the answer"),
        ({"fault": "cut", "events": 6}, 2, "the connection was cut in the middle of the answer"),
        ({"fault": "malformed"}, 2, "the answer is no stream of messages: Expecting"),
        ({"fault": "error"}, 2, "the server broke the answer off (api_error: by order of the script)"),
        ({"fault": "error", "error_type": "overloaded_error"}, 2, "parked: overloaded_error"),
        ({"fault": "empty"}, 2, "the model's answer was empty (end_turn); trying again (1 of 4)"),
        ({"pause": 0.05}, 1, ""),
        ({"delay": 0.3}, 1, ""),
    ],
)
def test_a_fault_that_passes(lab: Lab, fault: Turn, requests: int, said: str) -> None:
    run = lab.play([WORK, {**WORK, **fault}, DONE])
    assert run.code == 0, run.stderr()
    assert run.end()["outcome"] == "done" and run.end()["text"] == "Done."
    assert (lab.worktree / "log").read_text() == "worked\n" * 2
    assert len(lab.requests()) == requests + 2
    assert len(run.records("request")) == requests + 2
    assert len(run.records("failed")) == requests - 1
    assert said in run.stderr() if said else run.stderr() == ""


def test_a_parking_says_until_when_and_that_it_is_over(lab: Lab) -> None:
    run = lab.play([{**DONE, "fault": "429", "retry_after": 0.3}])
    (parked,) = run.records("parked")
    (went_on,) = run.records("running")
    assert 0.2 < parked["until"] - parked["at"] < 1.0
    assert parked["why"] == "429 by order of the script"
    assert went_on["at"] >= parked["until"] - 0.001


@pytest.mark.parametrize(
    ("fault", "code", "outcome", "said", "requests"),
    [
        (
            {"fault": "cut", "times": 0},
            1,
            "failed",
            "no answer could be used, 5 times in a row; the last time: the con",
            5,
        ),
        ({"fault": "malformed", "times": 0}, 1, "failed", "no answer could be used, 5 times in a row", 5),
        ({"fault": "empty", "times": 0}, 1, "failed", "the model's answer was empty (end_turn)", 5),
        ({"fault": "400"}, 1, "failed", "the model server rejects the request: 400 by order of the script", 1),
        ({"fault": "401"}, 1, "failed", "the model server rejects the request: 401 by order of the script", 1),
        ({"fault": "404"}, 1, "failed", "the model server rejects the request: 404 by order of the script", 1),
        ({"fault": "refusal"}, 2, "refused", "the model refused to answer", 1),
    ],
)
@pytest.mark.timeout(120)
def test_a_fault_that_stays(lab: Lab, fault: Turn, code: int, outcome: str, said: str, requests: int) -> None:
    run = lab.play([{**DONE, **fault}])
    assert (run.code, run.end()["outcome"], run.end()["code"]) == (code, outcome, code)
    assert said in run.end()["text"]
    assert f"agentd: {outcome}: " in run.stderr() and said in run.stderr()
    assert "Traceback" not in run.stderr()
    assert len(lab.requests()) == requests


def test_what_a_broken_answer_cost_is_written_down(lab: Lab) -> None:
    run = lab.play([{**DONE, "fault": "cut"}])
    assert run.records("failed")[0]["usage"]["input_tokens"] > 100


def test_a_call_that_was_cut_off_by_the_limit_of_tokens_is_not_run(lab: Lab) -> None:
    call = {"tool": "write", "input": {"path": "big", "content": "x" * 1000}}
    run = lab.play([{"calls": [call], "fault": "max_tokens"}, WORK, DONE])
    assert run.code == 0
    assert not (lab.worktree / "big").exists()
    assert run.results()[0].startswith("The answer was cut off at the limit of output tokens")
    told = lab.requests()[1]["body"]["messages"][-1]["content"][0]
    assert told["is_error"] and told["tool_use_id"] == "toolu_0_0"


def test_an_answer_that_was_cut_off_by_the_limit_of_tokens_goes_on(lab: Lab) -> None:
    run = lab.play([{"say": "It begins", "stop": "max_tokens"}, DONE])
    assert (run.code, run.end()["text"]) == (0, "Done.")
    assert "cut off" in lab.requests()[1]["body"]["messages"][-1]["content"][0]["text"]


def test_an_answer_that_is_always_cut_off_ends(lab: Lab) -> None:
    run = lab.play([{"say": "It begins", "stop": "max_tokens", "repeat": True}])
    assert run.code == 1 and "5 times in a row" in run.stderr()
    assert len(lab.requests()) == 5


def test_input_that_is_no_json_is_told_to_the_model(lab: Lab) -> None:
    run = lab.play([{**WORK, "fault": "bad_input"}, DONE])
    assert run.code == 0
    assert not (lab.worktree / "log").exists()
    assert "not valid JSON" in run.results()[0] and "{'command'" in run.results()[0]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            {"tool": "fly", "input": {}},
            "there is no tool fly; there are: bash, read, write, edit, glob, grep, ask, note",
        ),
        ({"tool": "read", "input": {}}, "`path` is missing; it takes: path, offset, limit"),
        ({"tool": "read", "input": {"path": 3}}, "`path` must be a text, not 3"),
        ({"tool": "read", "input": {"path": "x", "lines": 3}}, "there is no parameter `lines`"),
        ({"tool": "bash", "input": {}}, "give either `command`, or the `id`"),
    ],
)
def test_a_call_that_cannot_be_made_is_told_to_the_model(lab: Lab, call: Turn, told: str) -> None:
    run = lab.play([{"calls": [call]}, DONE])
    assert run.code == 0
    assert told in run.results()[0]
    assert lab.requests()[1]["body"]["messages"][-1]["content"][0]["is_error"]


def test_a_result_of_ten_megabytes(lab: Lab) -> None:
    command = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end"
    run = lab.play([{"calls": [{"tool": "bash", "input": {"command": command}}]}, DONE])
    assert run.code == 0
    (result,) = run.results()
    assert len(result) < 31_000
    assert "of 10000009 bytes cut out here" in result and result.endswith("the end")
    assert max(request["bytes"] for request in lab.requests()) < 50_000
    assert (run.path / "transcript.ndjson").stat().st_size < 100_000


def test_no_server_at_all_parks_until_there_is_one(lab: Lab) -> None:
    port = free_port()
    run = lab.start(profile={"endpoint": f"http://127.0.0.1:{port}"})
    assert "cannot reach 127.0.0.1" in run.until("parked")["why"]
    lab.serve([DONE], port)
    assert run.wait() == 0


def test_the_words_of_a_text_that_no_request_could_hold(lab: Lab) -> None:
    run = lab.play([{"say": "lone \ud800 surrogate", "calls": WORK["calls"]}, DONE])
    assert run.code == 0
    assert json.dumps(lab.requests()[1]["body"]["messages"][1]["content"][0]["text"]) == '"lone ? surrogate"'


def test_a_server_that_says_at_once_again_and_again_is_not_hammered(lab: Lab) -> None:
    run = lab.play([{**DONE, "fault": "429", "retry_after": 0, "times": 4}])
    assert run.code == 0
    first, *_, last = lab.requests()
    assert last["at"] - first["at"] > 1.0


def test_a_server_that_accepts_and_never_answers_holds_nobody_for_ever(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = lab.start(profile={"endpoint": endpoint})
        run.until("request")
        run.send("interrupt", "try again")
        run.until("request", 2)
        assert [record["why"] for record in run.records("failed")] == ["interrupted"]
        began = time.monotonic()
        run.kill(signal.SIGTERM)
        assert time.monotonic() - began < 10
        with pytest.raises(Busy, match=r"cannot reach 127\.0\.0\.1: "):
            asyncio.run(ask_with_little_patience(endpoint))


async def ask_with_little_patience(endpoint: str) -> None:
    model = Model({"endpoint": endpoint, "model": "script"}, KEY)
    model.client.timeout = 0.2
    try:
        await model.answer(model.parameters(["system"], [], [{"role": "user", "content": "hello"}]))
    finally:
        await model.close()


def test_a_server_without_an_address_parks_and_is_ended_at_once(lab: Lab) -> None:
    run = lab.start(profile={"endpoint": "http://no-such-host.invalid"})
    parked = run.until("parked")
    assert parked["why"].startswith("cannot reach no-such-host.invalid: ")
    began = time.monotonic()
    run.kill(signal.SIGTERM)
    assert time.monotonic() - began < 10


def test_a_proxy_that_does_not_answer_is_named_without_its_password(lab: Lab) -> None:
    lab.serve([DONE])
    proxy = f"127.0.0.1:{free_port()}"
    run = lab.start(environment={"http_proxy": f"http://me:secret@{proxy}"})
    assert run.until("parked")["why"].startswith(f"cannot reach 127.0.0.1 through the proxy {proxy}: ")
    run.kill()
    assert "secret" not in run.stderr() and lab.requests() == []
    past_it = lab.start(environment={"http_proxy": f"http://{proxy}", "no_proxy": "127.0.0.1"})
    assert past_it.wait() == 0 and past_it.end()["text"] == "Done."


def test_what_an_interrupted_answer_cost_is_written_down(lab: Lab) -> None:
    story = {"say": "a long story " * 100, "pause": 0.5, "usage": {"input_tokens": 4321}}
    lab.serve({"scripts": [{"turns": [story], "replies": [{"when": "shortly", "say": "It was."}]}]})
    run = lab.start()
    run.until("partial")
    run.send("interrupt", "say it shortly")
    assert run.wait() == 0
    (failed,) = run.records("failed")
    assert failed["usage"]["input_tokens"] == 4321


@needs_root
def test_a_full_disk_under_the_parking_costs_no_run(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=64k") as small:
        fill(small)
        parking = Parking(f"{small}/parking")
        parking.share(2e9, "429")
        assert parking.shared() == (0.0, "")
