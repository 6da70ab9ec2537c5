"""What the zygote does once, so that each fork need not: streamed turns with the SDK, against an answer of our own.

Everything that a request needs is then imported, compiled and cached, and shared by all children. Nothing is left
open: a client or an event loop must not live through a fork. The context for TLS may, and is kept.
"""

import asyncio
import json
from typing import Any

from . import model
from .answers import Broken, Busy
from .tools import schema

ANSWER: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "warm", "model": "none", "usage": {"input_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "warm"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 0}},
    {"type": "message_stop"},
]


TURNS = 10
"""The interpreter makes code faster once it has run some eight times: better here than in each child."""


def warm() -> None:
    for _ in range(TURNS):
        asyncio.run(one_turn())


async def one_turn() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = model.Model({"model": "none", "endpoint": f"http://127.0.0.1:{port}"}, "none", trusts_environment=False)
    try:
        messages = [{"role": "user", "content": [{"type": "text", "text": "warm"}]}]
        await client.answer(client.parameters(["warm"], schema(None), messages))
    except (Busy, Broken) as error:
        raise RuntimeError("cannot warm up: the loopback turn failed") from error
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in ANSWER).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    await writer.drain()
    writer.close()
