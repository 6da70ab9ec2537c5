"""What tools give back, and how much of it."""

from collections import deque
from dataclasses import dataclass

LIMIT = 30_000


class ToolError(Exception):
    """A sentence for the model: what was not done, why, and what to do."""


@dataclass(frozen=True)
class Result:
    text: str
    is_error: bool = False


class Bounded:
    """The beginning and the end of a stream of any length; the middle is counted and dropped as it comes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.half = limit // 2
        self.head = bytearray()
        self.tail: deque[bytes] = deque()
        self.tail_size = 0
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if not data:
            return
        self.tail.append(data[-self.half :])
        self.tail_size += len(self.tail[-1])
        while self.tail_size - len(self.tail[0]) >= self.half:
            self.tail_size -= len(self.tail.popleft())

    def data(self) -> bytes:
        """What is kept; all of it, if less than the limit came."""
        return bytes(self.head) + b"".join(self.tail)[-self.half :]

    def text(self, more: str = "") -> str:
        """``more``: how what was cut out can be seen."""
        tail = b"".join(self.tail)[-self.half :]
        cut = self.total - len(self.head) - len(tail)
        if cut <= 0:
            return readable(bytes(self.head) + tail, "replace")
        head = readable(bytes(self.head), "ignore")
        word = f"[agentd: {cut} of {self.total} bytes cut out here{more and '; ' + more}]"
        return f"{head}\n{word}\n{readable(tail, 'ignore')}"


def readable(data: bytes, errors: str) -> str:
    """Text that every model server takes: NUL is none."""
    return data.decode("utf-8", errors).replace("\0", "")


def bounded(data: bytes, more: str = "", limit: int = LIMIT) -> str:
    kept = Bounded(limit)
    kept.add(data)
    return kept.text(more)
