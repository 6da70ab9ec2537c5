"""python -m bench.instant SCRIPT RECORD: a model server on 127.0.0.1 that answers at once, in four dialects.

It speaks the Messages API, Chat Completions, Responses and the Gemini API, so that every agent gets the same script
from the same program. A script is a list of turns, ``{"say": TEXT, "run": COMMAND, "hold": SECONDS}``; ``run`` becomes
a call of whatever shell tool the request offers. The turn is chosen by the number of the model's turns in the request.
A request without tools is a side request (a title, a router); it gets a word. Each request leaves a line in RECORD.
"""

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, TextIO

Turn = dict[str, Any]
Body = dict[str, Any]
Events = Iterator[Body]
SHELLS = ("bash", "Bash", "exec_command", "run_shell_command")
ASIDE: Turn = {"say": "A title."}


class Dialect(NamedTuple):
    path: str
    """What the path of its requests ends with."""
    turns: Callable[[Body], int]
    """The model's turns in a request."""
    tools: Callable[[Body], list[Body]]
    events: Callable[[Turn, int, Body], Events]
    ends_with: str = ""


# --- what a call of the shell looks like ----------------------------------------------------------------------


def shell_of(tools: list[Body]) -> tuple[str, str, bool]:
    """The shell tool that is offered: its name, its parameter for the command, and whether it wants a description."""
    for tool in tools:
        if tool["name"] in SHELLS:
            known = tool.get("input_schema") or tool.get("parameters") or tool.get("parametersJsonSchema") or {}
            names = known.get("properties", {})
            return tool["name"], "cmd" if "cmd" in names else "command", "description" in names
    raise ValueError(f"no shell among the tools: {[tool['name'] for tool in tools]}")


def call_of(turn: Turn, tools: list[Body]) -> tuple[str, dict[str, str]] | None:
    if "run" not in turn:
        return None
    name, parameter, wants_description = shell_of(tools)
    return name, {parameter: turn["run"]} | ({"description": "Look"} if wants_description else {})


# --- Messages -------------------------------------------------------------------------------------------------


def messages_turns(request: Body) -> int:
    return sum(message["role"] == "assistant" for message in request["messages"])


def messages_tools(request: Body) -> list[Body]:
    return [tool for tool in request.get("tools", ()) if "input_schema" in tool]


def messages_events(turn: Turn, number: int, request: Body) -> Events:
    call = call_of(turn, messages_tools(request))
    usage = {"input_tokens": 10, "output_tokens": 1}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": request["model"], "content": []}
    yield {"type": "message_start", "message": message | {"stop_reason": None, "stop_sequence": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": turn["say"]}}
    yield {"type": "content_block_stop", "index": 0}
    if call is not None:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": call[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call[1])}
        yield {"type": "content_block_start", "index": 1, "content_block": block}
        yield {"type": "content_block_delta", "index": 1, "delta": delta}
        yield {"type": "content_block_stop", "index": 1}
    stop = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 9}}
    yield {"type": "message_stop"}


# --- Chat Completions -----------------------------------------------------------------------------------------


def chat_tools(request: Body) -> list[Body]:
    return [tool["function"] for tool in request.get("tools", ())]


def chat_events(turn: Turn, number: int, request: Body) -> Events:
    call = call_of(turn, chat_tools(request))
    head = {"id": f"chat_{number}", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}

    def chunk(delta: Body, reason: str | None = None) -> Body:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    yield chunk({"content": turn["say"]})
    if call is not None:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        yield chunk({"tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": function}]})
    yield chunk({}, "tool_calls" if call else "stop")
    yield head | {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}}


# --- Responses ------------------------------------------------------------------------------------------------


def responses_turns(request: Body) -> int:
    return sum(item.get("type") == "function_call" for item in request["input"])


def responses_tools(request: Body) -> list[Body]:
    return [tool for tool in request.get("tools", ()) if tool["type"] == "function"]


def responses_events(turn: Turn, number: int, request: Body) -> Events:
    call = call_of(turn, responses_tools(request))
    text = {"type": "output_text", "text": turn["say"], "annotations": []}
    said: Body = {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed"}
    items = [said | {"content": [text]}]
    if call is not None:
        named = {"call_id": f"call_{number}", "name": call[0], "arguments": json.dumps(call[1])}
        items.append({"type": "function_call", "id": f"fc_{number}", "status": "completed"} | named)
    response: Body = {"id": f"resp_{number}", "object": "response", "status": "in_progress", "output": []}
    yield {"type": "response.created", "response": response}
    for index, item in enumerate(items):
        empty: Body = item | ({"content": []} if item is items[0] else {"arguments": ""})
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
        if item is items[0]:
            where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
            yield {"type": "response.output_text.delta", **where, "delta": turn["say"]}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    usage: Body = {"input_tokens": 10, "output_tokens": 9, "total_tokens": 19}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    done = response | {"status": "completed", "output": items, "usage": usage}
    yield {"type": "response.completed", "response": done}


# --- Gemini ---------------------------------------------------------------------------------------------------


def gemini_turns(request: Body) -> int:
    return sum(content["role"] == "model" for content in request["contents"])


def gemini_tools(request: Body) -> list[Body]:
    return [tool for group in request.get("tools", ()) for tool in group.get("functionDeclarations", ())]


def gemini_events(turn: Turn, number: int, request: Body) -> Events:
    call = call_of(turn, gemini_tools(request))
    parts: list[Body] = [{"text": turn["say"]}]
    if call is not None:
        parts.append({"functionCall": {"id": f"call_{number}", "name": call[0], "args": call[1]}})
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 9, "totalTokenCount": 19}
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0, "finishReason": "STOP"}
    yield {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "script"}


DIALECTS = (
    Dialect("/messages", messages_turns, messages_tools, messages_events),
    Dialect("/chat/completions", messages_turns, chat_tools, chat_events, "data: [DONE]\n\n"),
    Dialect("/responses", responses_turns, responses_tools, responses_events),
    Dialect(":streamGenerateContent", gemini_turns, gemini_tools, gemini_events),
)


# --- the server -----------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.reply(200, b"", "text/plain")

    def do_CONNECT(self) -> None:
        self.note(refused=self.path)
        self.reply(403, b"only loopback here\n", "text/plain")

    def do_GET(self) -> None:
        self.reply(200, b'{"data": [], "models": []}', "application/json")

    def do_POST(self) -> None:
        at = time.time()
        body = self.body()
        path = self.path.partition("?")[0]
        dialect = next((one for one in DIALECTS if path.endswith(one.path)), None)
        if dialect is None:
            self.note(at=at, path=path, bytes=len(body), tools=0, turn=-1)
            return self.reply(200, b'{"input_tokens": 1, "totalTokens": 1}', "application/json")
        request = json.loads(body)
        number, tools = dialect.turns(request), len(dialect.tools(request))
        self.note(at=at, path=path, bytes=len(body), tools=tools, turn=number, body=body.decode())
        turn = self.server.script[min(number, len(self.server.script) - 1)] if tools else ASIDE
        time.sleep(turn.get("hold", 0))
        events = dialect.events(turn, number, request)
        text = "".join(f"{name_of(event)}data: {json.dumps(event)}\n\n" for event in events) + dialect.ends_with
        self.reply(200, text.encode(), "text/event-stream")

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(pieces)
        else:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def note(self, **fields: Any) -> None:
        self.server.record.write(json.dumps(fields) + "\n")  # one write, so lines of several threads stay whole
        self.server.record.flush()

    def reply(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def name_of(event: Body) -> str:
    return f"event: {event['type']}\n" if "type" in event else ""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: list[Turn], record: TextIO) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.record = record

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is nothing to tell
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main(argv: list[str]) -> None:
    with Path(argv[1]).open("a") as record:
        server = Server(json.loads(Path(argv[0]).read_bytes()), record)
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
