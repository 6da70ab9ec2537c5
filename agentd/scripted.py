"""A script that stands in for a model: the Messages API on 127.0.0.1, for tests and demonstrations.

It plainly says so: answers carry ``script:`` before the model's name, and ``GET /`` tells what it is. It is
deterministic and keeps no conversation: the turn is chosen by the request alone, by the task's text and the number of
the model's turns in it. So it does not matter who asks, how many at once, or whether somebody was killed in between.

    python -m agentd.scripted SCRIPT.json [--port N] [--record FILE [--bodies]]

A script is a list of turns, or ``{"scripts": [{"task": TEXT, "turns": [...], "replies": [...]}, ...]}``: the first
whose TEXT stands in the first message is taken. A reply ``{"when": TEXT, ...}`` goes before the turns if TEXT stands
in the last message. A turn or reply may have:

=============  =======================================================================================================
say            text
calls          ``[{"tool": NAME, "input": {...}}, ...]``
stop           the reason it stops; by itself ``tool_use`` or ``end_turn``
usage          what it cost; by itself counted from the bytes
repeat         this turn stands for all that would follow it
delay          seconds before the first byte; ``pause``: seconds between two events
fault          see :data:`FAULTS`; ``times``: for so many requests of this turn (1; 0: for ever), then it is answered
=============  =======================================================================================================

``[the script goes on at turn N]`` in the first message says how many turns a summary has swallowed.
"""

import argparse
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Turn = dict[str, Any]
Event = dict[str, Any]

FAULTS = {
    "429": "rate limited; `retry_after`: seconds, or null for no such header",
    "529": "overloaded; `retry_after` as above",
    "500": "an internal error (any other status works, too)",
    "drop": "the connection ends before a byte",
    "cut": "the connection ends after `events` events (3)",
    "malformed": "an event that is no JSON, after `events` events (3)",
    "error": "an `error` event of the type `error_type` (api_error), after `events` events (3)",
    "empty": "an answer without content",
    "refusal": "the model refuses",
    "max_tokens": "the limit of tokens is met in the middle of the last tool call",
    "bad_input": "the last tool call's input is no JSON",
}
END = {"say": "The script has no more turns. (This is a script, not a model.)"}
SWALLOWED = re.compile(r"\[the script goes on at turn (\d+)\]")
PIECE = 24
WORDS = {429: "rate_limit_error", 529: "overloaded_error", 500: "api_error", 401: "authentication_error"}


class Script:
    def __init__(self, text: Any) -> None:
        scripts = text["scripts"] if isinstance(text, dict) else [{"task": "", "turns": text}]
        self.scripts: list[dict[str, Any]] = scripts
        self.lock = threading.Lock()
        self.seen: Counter[tuple[str, int]] = Counter()

    def choose(self, request: dict[str, Any]) -> tuple[Turn, int]:
        """The turn for a request, and its number. Only a fault's ``times`` is remembered."""
        messages = request["messages"]
        first, last = text_of(messages[0]), text_of(messages[-1])
        number = sum(message["role"] == "assistant" for message in messages)
        swallowed = SWALLOWED.search(first)
        number += int(swallowed[1]) if swallowed else 0
        script: dict[str, Any] = next((one for one in self.scripts if one.get("task", "") in first), {"turns": []})
        replies = [reply for reply in script.get("replies", []) if reply["when"] in last]
        turn = replies[0] if replies else turn_of(script["turns"], number)
        if "fault" in turn:
            with self.lock:
                self.seen[first, number] += 1
                times = turn.get("times", 1)
                if times and self.seen[first, number] > times:
                    turn = {name: value for name, value in turn.items() if name != "fault"}
        return turn, number


def turn_of(turns: list[Turn], number: int) -> Turn:
    if number < len(turns):
        return turns[number]
    return turns[-1] if turns and turns[-1].get("repeat") else END


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = [block.get("text") or block.get("content") or "" for block in content]
    return "\n".join(text for text in texts if isinstance(text, str))


# --- the answer on the wire ---------------------------------------------------------------------------------


def content_of(turn: Turn, number: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if turn.get("say"):
        blocks.append({"type": "text", "text": turn["say"]})
    for index, call in enumerate(turn.get("calls", [])):
        block_id = f"toolu_{number}_{index}"
        blocks.append({"type": "tool_use", "id": block_id, "name": call["tool"], "input": call.get("input", {})})
    return blocks


def events(turn: Turn, number: int, model: str, size: int) -> Iterator[Event]:
    """The events of an answer, as the real server sends them."""
    fault = str(turn.get("fault", ""))
    blocks = [] if fault in ("empty", "refusal") else content_of(turn, number)
    stop = turn.get("stop") or ("tool_use" if turn.get("calls") else "end_turn")
    stop = {"refusal": "refusal", "max_tokens": "max_tokens", "empty": "end_turn"}.get(fault, stop)
    usage = {"input_tokens": size // 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    usage |= {"output_tokens": 1} | turn.get("usage", {})
    message: Event = {"id": f"script_{number}", "type": "message", "role": "assistant", "model": f"script:{model}"}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": message}
    yield {"type": "ping"}
    for index, block in enumerate(blocks):
        is_last = index == len(blocks) - 1
        yield from block_events(index, block, fault if is_last else "")
    written = turn.get("usage", {}).get("output_tokens", len(json.dumps(blocks)) // 4)
    delta = {"stop_reason": stop, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": written}}
    yield {"type": "message_stop"}


def block_events(index: int, block: dict[str, Any], fault: str) -> Iterator[Event]:
    if block["type"] == "text":
        yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
        pieces = [("text_delta", "text", piece) for piece in cut_up(block["text"])]
    else:
        text = json.dumps(block["input"])
        if fault == "max_tokens":
            text = text[: len(text) // 2]
        elif fault == "bad_input":
            text = text.replace('"', "'")
        yield {"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}}
        pieces = [("input_json_delta", "partial_json", piece) for piece in cut_up(text)]
    for kind, name, piece in pieces:
        yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: piece}}
    yield {"type": "content_block_stop", "index": index}


def cut_up(text: str) -> list[str]:
    size = max(PIECE, len(text) // 64)
    return [text[start : start + size] for start in range(0, len(text), size)]


# --- the server ---------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, script: Any, port: int = 0, record: Path | None = None, bodies: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = Script(script)
        self.record = record.open("a") if record else None
        self.bodies = bodies
        self.recording = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is nothing to tell
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def note(self, **fields: Any) -> None:
        if self.record is not None:
            with self.recording:
                self.record.write(json.dumps(fields) + "\n")
                self.record.flush()

    def server_close(self) -> None:
        super().server_close()
        if self.record is not None:
            self.record.close()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "agentd-scripted"
    wbufsize = 65536
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"what": "a script of agentd's for tests and demonstrations, not a model"})

    def do_POST(self) -> None:
        began = time.time()
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            request = json.loads(body)
            turn, number = self.server.script.choose(request)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self.fail(400, f"the script cannot read this request: {error!r}")
        fault = str(turn.get("fault", ""))
        task = text_of(request["messages"][0])[:200]
        has_key = bool(self.headers.get("authorization") or self.headers.get("x-api-key"))
        told = {"at": began, "path": self.path, "bytes": len(body), "task": task, "turn": number, "fault": fault}
        self.server.note(**told, key=has_key, **({"body": request} if self.server.bodies else {}))
        time.sleep(turn.get("delay", 0))
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault.isdigit():
            return self.fail(int(fault), "by order of the script", turn.get("retry_after"))
        self.stream(turn, list(events(turn, number, request.get("model", "?"), len(body))), fault)

    def stream(self, turn: Turn, answer: list[Event], fault: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "script")
        self.end_headers()
        breaks_after = turn.get("events", 3) if fault in ("cut", "malformed", "error") else len(answer) + 1
        for count, event in enumerate(answer):
            if count == breaks_after:
                return self.break_off(turn, fault)
            self.send(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
            if turn.get("pause"):
                self.wfile.flush()
                time.sleep(turn["pause"])
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self, turn: Turn, fault: str) -> None:
        if fault == "malformed":
            self.send('event: content_block_delta\ndata: {"type": "content_block_delta", "index"\n\n')
        elif fault == "error":
            error = {"type": turn.get("error_type", "api_error"), "message": "by order of the script"}
            self.send(f"event: error\ndata: {json.dumps({'type': 'error', 'error': error})}\n\n")
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def fail(self, status: int, why: str, retry_after: float | None = None) -> None:
        error = {"type": WORDS.get(status, "invalid_request_error"), "message": why}
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self.reply(status, {"type": "error", "error": error}, headers)

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agentd.scripted", description="A script in place of a model.")
    parser.add_argument("script", type=Path, help="a JSON file")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--record", type=Path, help="append a line for each request to this file")
    parser.add_argument("--bodies", action="store_true", help="with the whole request in it")
    options = parser.parse_args()
    try:
        script = json.loads(options.script.read_bytes())
    except (OSError, ValueError) as error:
        print(f"cannot read the script {options.script}: {error}", file=sys.stderr)
        return 2
    server = Server(script, options.port, options.record, options.bodies)
    print(f"{server.url} (a script, not a model)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
