"""The model server that the bench gives to all agents: the same script in each of their four dialects."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = [{"say": "I look.", "run": "ls"}, {"say": "Done."}]
COMMAND: dict[str, Any] = {"properties": {"command": {}, "description": {}}}
CALLED = {"command": "ls", "description": "Look"}
CHAT = {"function": {"name": "bash", "parameters": COMMAND}}
CODEX = {"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {}}}}
GEMINI = {"functionDeclarations": [{"name": "run_shell_command", "parametersJsonSchema": COMMAND}]}
USER: dict[str, Any] = {"role": "user", "content": "Look."}
SAID: dict[str, Any] = {"role": "assistant", "content": "I look."}


class Served:
    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"
        (folder / "script.json").write_text(json.dumps(SCRIPT))
        argv = [sys.executable, "-m", "bench.instant", str(folder / "script.json"), str(self.record)]
        self.process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def ask(self, path: str, body: Any) -> list[dict[str, Any]]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.process.terminate()
    served.process.communicate()


def test_messages(server: Served) -> None:
    tools = [{"name": "Bash", "input_schema": COMMAND}]
    first = server.ask("/v1/messages?beta=true", {"model": "m", "tools": tools, "messages": [USER]})
    assert first[4]["content_block"] == {"type": "tool_use", "id": "toolu_0", "name": "Bash", "input": {}}
    assert json.loads(first[5]["delta"]["partial_json"]) == CALLED
    assert first[-2]["delta"]["stop_reason"] == "tool_use"
    second = server.ask("/v1/messages", {"model": "m", "tools": tools, "messages": [USER, SAID, USER]})
    assert (second[2]["delta"]["text"], second[-2]["delta"]["stop_reason"]) == ("Done.", "end_turn")


def test_our_own_shell_wants_no_description(server: Served) -> None:
    tools = [{"name": "bash", "input_schema": {"properties": {"command": {}}}}]
    events = server.ask("/v1/messages", {"model": "m", "tools": tools, "messages": [USER]})
    assert json.loads(events[5]["delta"]["partial_json"]) == {"command": "ls"}


def test_chat_completions(server: Served) -> None:
    first = server.ask("/v1/chat/completions", {"model": "m", "tools": [CHAT], "messages": [USER]})
    (call,) = first[2]["choices"][0]["delta"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("bash", CALLED)
    second = server.ask("/v1/chat/completions", {"model": "m", "tools": [CHAT], "messages": [USER, SAID, USER]})
    assert [chunk["choices"][0]["finish_reason"] for chunk in second[:-1]] == [None, None, "stop"]


def test_responses(server: Served) -> None:
    first = server.ask("/v1/responses", {"model": "m", "tools": [CODEX], "input": [USER]})
    message, call = first[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["name"], json.loads(call["arguments"])) == ("exec_command", {"cmd": "ls"})
    second = server.ask("/v1/responses", {"model": "m", "tools": [CODEX], "input": [USER, message, call]})
    assert [item["type"] for item in second[-1]["response"]["output"]] == ["message"]


def test_gemini(server: Served) -> None:
    path = "/v1beta/models/m:streamGenerateContent?alt=sse"
    turns = [{"role": "user", "parts": []}]
    (first,) = server.ask(path, {"tools": [GEMINI], "contents": turns})
    call = first["candidates"][0]["content"]["parts"][1]["functionCall"]
    assert (call["name"], call["args"]) == ("run_shell_command", CALLED)
    (second,) = server.ask(path, {"tools": [GEMINI], "contents": [*turns, {"role": "model", "parts": []}]})
    assert second["candidates"][0]["content"]["parts"] == [{"text": "Done."}]


def test_requests_beside_the_task_get_a_word_and_are_told_apart(server: Served) -> None:
    assert server.ask("/v1/messages", {"model": "m", "messages": [USER]})[2]["delta"]["text"] == "A title."
    server.ask("/v1/messages/count_tokens", {})
    seen = [json.loads(line) for line in server.record.read_text().splitlines()]
    assert [(line["tools"], line["turn"]) for line in seen] == [(0, 0), (0, -1)]


def test_nothing_else_is_reached_through_it(server: Served) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"https": server.url}))
    with pytest.raises(urllib.error.URLError, match="403"):
        opener.open("https://elsewhere.invalid/", timeout=30)
    assert json.loads(server.record.read_text())["refused"] == "elsewhere.invalid:443"
