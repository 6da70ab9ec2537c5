"""The script that stands in for a model: it says what it is, answers by the request alone, and does what it is told."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.scripted import FAULTS, Server

TURNS = [
    {"say": "First.", "calls": [{"tool": "bash", "input": {"command": "ls"}}]},
    {"say": "Second.", "usage": {"input_tokens": 5, "output_tokens": 7}},
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    script = {
        "scripts": [
            {"task": "sing", "turns": [{"say": "La."}], "replies": [{"when": "stop it", "say": "I stop."}]},
            {"task": "", "turns": TURNS},
        ]
    }
    server = Server(script, record=tmp_path / "requests")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    yield server
    server.shutdown()
    server.server_close()


def post(server: Server, *messages: str) -> tuple[int, str]:
    """Messages of the user and the model in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": [{"type": "text", "text": text}]} for n, text in enumerate(messages)]
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    link.request("POST", "/v1/messages", json.dumps({"model": "m", "messages": said, "stream": True}))
    answer = link.getresponse()
    body = answer.read().decode()
    link.close()
    return answer.status, body


def events(body: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data: ")]


def text(body: str) -> str:
    deltas = [event["delta"] for event in events(body) if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


def test_it_says_that_it_is_a_script(server: Server) -> None:
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    link.request("GET", "/")
    answer = link.getresponse()
    assert "not a model" in answer.read().decode()
    assert answer.getheader("server", "").startswith("agentd-scripted")
    link.close()
    assert events(post(server, "x")[1])[0]["message"]["model"] == "script:m"
    assert "This is a script, not a model." in text(post(server, "x", "y", "z", "a", "b")[1])


def test_the_turn_is_chosen_by_the_request(server: Server) -> None:
    for _ in range(2):
        assert text(post(server, "do it")[1]) == "First."
        assert text(post(server, "do it", "First.", "result")[1]) == "Second."
        assert text(post(server, "please sing")[1]) == "La."
        assert text(post(server, "please sing", "La.", "stop it")[1]) == "I stop."
        assert text(post(server, "do it [the script goes on at turn 1]")[1]) == "Second."


def test_the_events_of_an_answer(server: Server) -> None:
    status, body = post(server, "do it")
    assert status == 200
    kinds = [event["type"] for event in events(body)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    tool = events(body)[5]["content_block"]
    assert (tool["name"], tool["input"], events(body)[-2]["delta"]["stop_reason"]) == ("bash", {}, "tool_use")
    second = events(post(server, "do it", "First.", "result")[1])
    assert second[0]["message"]["usage"]["input_tokens"] == 5 and second[-2]["usage"] == {"output_tokens": 7}


def test_what_was_asked_is_written_down(server: Server, tmp_path: Path) -> None:
    post(server, "do it")
    (line,) = (tmp_path / "requests").read_text().splitlines()
    assert {"at", "bytes", "task", "turn", "fault", "key", "path"} == set(json.loads(line))


def test_a_request_that_is_none(server: Server) -> None:
    assert post(server)[0] == 400


def test_every_fault_is_in_the_list() -> None:
    source = Path(sys.modules["agentd.scripted"].__file__ or "").read_text()
    for fault in FAULTS:
        assert fault.isdigit() or source.count(f'"{fault}"') >= 2, fault


def test_as_a_program(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(TURNS))
    argv = [sys.executable, "-m", "agentd.scripted"]
    with subprocess.Popen([*argv, str(script)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        said = program.stdout.readline()
        program.terminate()
    assert said.startswith("http://127.0.0.1:") and said.endswith(" (a script, not a model)\n")
    done = subprocess.run([*argv, str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("cannot read the script ")
