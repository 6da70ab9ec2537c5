"""Parked: the model cannot be asked for a while. What one runner learns of a credential's limit, all who use it know.

The shared file holds a moment (seconds since 1970) and the reason; until then nobody asks. It is only ever put off.
"""

import asyncio
import fcntl
import os
import random
import time

FIRST, LONGEST = 1.0, 300.0
SLICE = 30.0  # a clock that was set, or a machine that slept, is noticed after so long
SPREAD = 0.1  # who waited together does not ask together


class Parking:
    def __init__(self, path: str | None) -> None:
        self.path = path

    def shared(self) -> tuple[float, str]:
        if self.path is None:
            return 0.0, ""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return parsed(file.read())
        except OSError:
            return 0.0, ""

    def share(self, until: float, why: str) -> None:
        if self.path is None:
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # then each finds it out by itself
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            known, _ = parsed(os.pread(fd, 4096, 0).decode("utf-8", "replace"))
            if until > known:
                line = f"{until:.3f} {why}"[:1000].replace("\n", " ").encode() + b"\n"
                os.pwrite(fd, line, 0)
                os.ftruncate(fd, len(line))
        except OSError:
            pass  # a full disk: as above
        finally:
            os.close(fd)

    def until(self, tries: int, after: float | None = None, first: float = FIRST) -> float:
        """When to ask again, after so many refusals in a row. ``after``: what the server said."""
        wait = min(LONGEST, first * 2.0 ** min(tries - 1, 20))
        if after is not None:  # "at once" again and again is no answer
            return time.time() + max(after, wait / 10) * (1 + SPREAD * random.random())
        return time.time() + wait * (0.5 + random.random() / 2)

    def is_over(self, until: float) -> bool:
        return time.time() >= until

    async def wait(self, until: float) -> None:
        while (left := until - time.time()) > 0:
            await asyncio.sleep(min(left, SLICE))


def parsed(text: str) -> tuple[float, str]:
    moment, _, why = text.strip().partition(" ")
    try:
        return float(moment), why
    except ValueError:
        return 0.0, ""
