"""Limits are kept outside the agent: before each request the keeper is asked whether it may be made."""

import asyncio
import json
import sys
from typing import Any

from agentd import jobdir

SOCKET = "keeper.sock"
FIRST_WAIT, LONGEST_WAIT = 1 / 64, 1.0


class Gate:
    def __init__(self, path: str, is_asked: bool) -> None:
        self.path = f"{path}/{SOCKET}"
        self.is_asked = is_asked

    async def ask(self, turn: int) -> dict[str, Any]:
        """The keeper's answer. If it has died, the next one's: until then nothing is spent."""
        wait = FIRST_WAIT
        while self.is_asked:
            answer = await self._exchange({"turn": turn})
            if answer is not None:
                return answer
            if wait == LONGEST_WAIT / 2:
                print("agentd: no keeper answers; waiting for one", file=sys.stderr)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)
        return {"go": True}

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any] | None:
        try:
            link = jobdir.connect(self.path, blocking=False)
        except OSError:
            return None
        reader, writer = await asyncio.open_unix_connection(sock=link)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            answer = json.loads(await reader.readline())
        except (OSError, ValueError):
            return None  # it died before it answered
        finally:
            writer.close()
        return answer if isinstance(answer, dict) and "go" in answer else None

    def tell(self, news: str) -> None:
        """Something in the transcript that somebody waits for. Never waits itself: the transcript is the truth."""
        if not self.is_asked:
            return
        try:
            link = jobdir.connect(self.path, blocking=False)
        except OSError:
            return
        try:
            link.send(json.dumps({"news": news}).encode() + b"\n")
        except OSError:
            pass
        finally:
            link.close()
