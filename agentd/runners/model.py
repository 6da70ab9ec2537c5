"""The model, through the Anthropic SDK: one request, one whole answer, or one of four reasons why there is none.

Of the SDK we use the client, its errors and its decoder of server-sent events. The events stay plain JSON: blocks that
this version does not know go back to the model as they came, and no typed object costs time and memory for each word.
"""

import json
import os
import ssl
from collections.abc import Callable
from typing import Any
from urllib.request import getproxies, proxy_bypass

import anthropic
import httpx2

from .answers import Answer, Broken, Busy, Rejected, TooLong

Block = dict[str, Any]
READ_TIMEOUT = 600.0

shared_tls: dict[tuple[str | None, ...], ssl.SSLContext] = {}
"""Made before the fork, by what says which certificates it holds: to read them takes 20 ms and 2 MB."""


def tls() -> ssl.SSLContext:
    """A job may bring certificates of its own; else it takes the context that is there."""
    source = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    if source not in shared_tls:
        shared_tls[source] = httpx2.create_ssl_context()
    return shared_tls[source]


class Model:
    """Made after the fork: a connection that two processes share gives answers to the wrong one."""

    def __init__(self, profile: dict[str, Any], key: str, trusts_environment: bool = True) -> None:
        self.profile = profile
        self.key = key
        self.usage: dict[str, Any] = {}
        """What is known to have been spent on the last answer that was asked for, whole or not."""
        http = anthropic.DefaultAsyncHttpxClient(verify=tls(), trust_env=trusts_environment)
        self.client = anthropic.AsyncAnthropic(
            api_key=key,
            base_url=profile.get("endpoint") or None,
            max_retries=0,
            timeout=httpx2.Timeout(READ_TIMEOUT, connect=10.0),
            http_client=http,
            open_telemetry=False,
        )
        # Left alone, the SDK starts a thread to find it out: 5 ms, and a thread to the end of the process.
        self.client._platform = "Linux"

    async def close(self) -> None:
        await self.client.close()

    def parameters(self, system: list[str], tools: list[Block], messages: list[Block]) -> dict[str, Any]:
        """The prefix of a request is that of the one before it, byte for byte. The mark behind the system prompt is
        shared by all jobs with the same tools and guidance; the automatic one moves on with the conversation."""
        blocks: list[Block] = [{"type": "text", "text": text} for text in system]
        blocks[-1]["cache_control"] = {"type": "ephemeral"}
        parameters: dict[str, Any] = {
            "model": self.profile["model"],
            "max_tokens": self.profile.get("max_tokens") or 32000,
            "system": blocks,
            "tools": tools,
            "messages": messages,
            "cache_control": {"type": "ephemeral"},
        }
        if self.profile.get("effort"):
            parameters["output_config"] = {"effort": self.profile["effort"]}
        if self.profile.get("thinking"):
            thinking = self.profile["thinking"]
            parameters["thinking"] = {"type": thinking} if isinstance(thinking, str) else thinking
        return parameters

    async def answer(self, parameters: dict[str, Any], on_text: Callable[[str], None] = lambda _: None) -> Answer:
        reading = Reading(on_text)
        self.usage = reading.answer.usage
        try:
            async with self.client.messages.with_streaming_response.create(**parameters, stream=True) as response:
                async for event in anthropic.AsyncStream.raw_events(response.http_response):
                    if reading.take(event.event, event.data):
                        return reading.whole()
            raise Broken("the connection was cut in the middle of the answer")
        except anthropic.APIStatusError as error:
            raise judged(error, self.key) from error
        except anthropic.APIConnectionError as error:
            url = self.client.base_url
            raise Busy(f"cannot reach {url.host}{by_proxy(url.scheme, url.host)}: {reason(error)}") from error
        except anthropic.AnthropicError as error:
            raise Rejected(reason(error)) from error
        except httpx2.TransportError as error:
            why = f"the connection was cut in the middle of the answer ({reason(error)})"
            raise Broken(why, reading.answer.usage) from error
        except Broken as error:
            error.usage = reading.answer.usage or None
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Broken(f"the answer is no stream of messages: {reason(error)}", reading.answer.usage) from error


class Reading:
    """The events of one answer, put together."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self.answer = Answer()
        self.on_text = on_text
        self.pieces: dict[int, list[str]] = {}  # of a tool's input, by the block's index
        self.ended: set[int] = set()

    def take(self, name: str | None, data: str) -> bool:
        """Whether this was the last event."""
        if not data or name == "ping":
            return False
        event = json.loads(data)
        arrow = EVENTS.get(event["type"])
        if arrow is not None:
            arrow(self, event)
        return bool(event["type"] == "message_stop")

    def on_start(self, event: Block) -> None:
        message = event["message"]
        self.answer.id, self.answer.model = message.get("id", ""), message.get("model", "")
        self.answer.usage.update(message.get("usage") or {})

    def on_block(self, event: Block) -> None:
        if event["index"] != len(self.answer.content):
            raise ValueError(f"block {event['index']} came out of order")
        self.answer.content.append(dict(event["content_block"]))

    def on_delta(self, event: Block) -> None:
        block, delta = self.answer.content[event["index"]], event["delta"]
        match delta["type"]:
            case "text_delta":
                block["text"] = block.get("text", "") + delta["text"]
                self.on_text(delta["text"])
            case "input_json_delta":
                self.pieces.setdefault(event["index"], []).append(delta["partial_json"])
            case "thinking_delta":
                block["thinking"] = block.get("thinking", "") + delta["thinking"]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or []), delta["citation"]]

    def on_block_end(self, event: Block) -> None:
        self.ended.add(event["index"])

    def on_message(self, event: Block) -> None:
        self.answer.stop = event["delta"].get("stop_reason")
        self.answer.usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})

    def on_error(self, event: Block) -> None:
        error = event.get("error") or {}
        why = f"{error.get('type', 'error')}: {error.get('message', '')}"
        if error.get("type") in ("overloaded_error", "rate_limit_error"):
            raise Busy(why, is_shared=True)
        raise Broken(f"the server broke the answer off ({why})")

    def whole(self) -> Answer:
        for index, block in enumerate(self.answer.content):
            if block["type"] == "tool_use" or index in self.pieces:
                self._give_input(index, block)
        # No lone surrogate: a request that held one could not be sent.
        text = json.dumps(self.answer.content, ensure_ascii=False)
        self.answer.content = json.loads(text.encode("utf-8", "replace"))
        # An empty text block is refused when it is sent back.
        self.answer.content = [b for b in self.answer.content if b["type"] != "text" or b["text"].strip()]
        return self.answer

    def _give_input(self, index: int, block: Block) -> None:
        text = "".join(self.pieces.get(index, []))
        if not text and index in self.ended and self.answer.stop != "max_tokens":
            return  # it came whole with the block, or has none
        try:
            block["input"] = json.loads(text)
            if not isinstance(block["input"], dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            block["input"] = {}
            self.answer.invalid[block["id"]] = (
                "The answer was cut off at the limit of output tokens in the middle of this call. It was not run."
                " Do it in smaller pieces."
                if self.answer.stop == "max_tokens"
                else f"The input of this call is not valid JSON ({error}). It was not run. It began: {text[:200]}"
            )


EVENTS = {
    "message_start": Reading.on_start,
    "content_block_start": Reading.on_block,
    "content_block_delta": Reading.on_delta,
    "content_block_stop": Reading.on_block_end,
    "message_delta": Reading.on_message,
    "error": Reading.on_error,
}


def judged(error: anthropic.APIStatusError, key: str) -> Exception:
    status = error.status_code
    said = (error.api_message or error.message).replace(key, "[key]")  # it is written down
    why = f"{status} {said}"[:500]
    if status in (408, 409, 429) or status >= 500:
        return Busy(why, retry_after(error.response.headers), is_shared=status in (429, 529))
    if status == 413 or (status == 400 and "prompt is too long" in said):
        return TooLong(why)
    return Rejected(why)


def retry_after(headers: httpx2.Headers) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < 7 * 86400:
            return seconds
    return None


def by_proxy(scheme: str, host: str) -> str:
    """Who set a proxy long ago looks for the fault there last. It may hold a password: only its place is told."""
    known = getproxies()
    proxy = known.get(scheme) or known.get("all")
    if not proxy or proxy_bypass(host):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]}"


def reason(error: BaseException) -> str:
    """The innermost cause has the words; the outer ones say "Connection error."."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip() or type(error).__name__
