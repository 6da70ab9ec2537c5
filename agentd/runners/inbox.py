"""What was sent to the agent: input.ndjson, which the daemon writes, and runner.sock, by which it says that it did.

The file is the truth, a nudge only says: look. What was sent to an attempt that died before it took it is found in that
attempt's file. A message is known by its number and the moment it was sent, and taken once.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Iterator

from agentd import jobdir
from agentd.jobdir import Record

NAME = "input.ndjson"
SOCKET = "runner.sock"
KINDS = ("message", "answer", "interrupt", "notice")
"""A notice is from agentd itself: it is read like a message, but answers no question, and who is held stays held."""


class Inbox:
    def __init__(self, path: str, folders: list[str]) -> None:
        """``folders``: those of the attempts that this one goes on from, and its own, ``path``."""
        self.own = f"{path}/{NAME}"
        self.offsets = {f"{folder}/{NAME}": 0 for folder in folders}
        self.event = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.listener = jobdir.listen(f"{path}/{SOCKET}")
        self.listener.setblocking(False)
        self.links: dict[int, socket.socket] = {}
        self.loop.add_reader(self.listener, self._on_connection)

    def nudged(self) -> Awaitable[object]:
        """The next nudge after this call."""
        return self.event.wait()

    def look(self) -> Iterator[Record]:
        """What has been sent since the last look."""
        for file, offset in list(self.offsets.items()):
            if file != self.own:
                del self.offsets[file]  # that attempt is dead: nothing is sent to it any more
            try:
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with os.fdopen(fd, "rb") as data:
                data.seek(offset)
                for line in data:
                    if not line.endswith(b"\n"):
                        break  # it is being written, and a nudge follows
                    self.offsets[file] = offset = offset + len(line)
                    sent = understood(line)
                    if sent is None:
                        print(f"agentd: left out a line of {NAME} that is no input: {line[:100]!r}", file=sys.stderr)
                    else:
                        yield sent

    def close(self) -> None:
        for link in (self.listener, *self.links.values()):
            self.loop.remove_reader(link)
            link.close()

    def _on_connection(self) -> None:
        try:
            link, _ = self.listener.accept()
        except OSError:
            return
        if jobdir.peer_uid(link) != os.getuid():
            return link.close()
        link.setblocking(False)
        self.links[link.fileno()] = link
        self.loop.add_reader(link, self._on_line, link)
        self._wake()

    def _on_line(self, link: socket.socket) -> None:
        try:
            data = link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.loop.remove_reader(link)
            del self.links[link.fileno()]
            link.close()
        self._wake()

    def _wake(self) -> None:
        self.event.set()
        self.event = asyncio.Event()


def understood(line: bytes) -> Record | None:
    try:
        sent = json.loads(line)
        n, kind, at = sent["n"], sent["kind"], sent["at"]
        if kind not in KINDS or not isinstance(n, int) or not isinstance(at, int | float):
            return None
        text = sent.get("text") or ""
        return {"n": n, "sent": at, "kind": kind, "text": str(text), "question": sent.get("question")}
    except (ValueError, KeyError, TypeError):
        return None
