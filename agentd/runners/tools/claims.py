"""Before a file is written: does somebody else claim it? Asked of the daemon, through the job's own socket.

While nobody claims anything a mark is missing in the state folder, and then nothing is asked. If the daemon is dead or
slow the write goes on: a claim guards what is merged, and the merge looks again.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from agentd import jobdir, paths
from agentd.core import patterns
from agentd.core.lock_policy import ONE_WRITER, Policy, policy_of

from .results import ToolError

ANSWER_S = 1.0
WAIT_S = 3.0
"""For somebody else to let go of it, before the model is told."""
LINE_BYTES = 1 << 20


class Claims:
    def __init__(self, socket: str, state_dir: str, worktree: str, policy: Mapping[str, Policy]) -> None:
        self.socket = socket
        self.mark = paths.claimed_mark(state_dir)
        self.worktree = worktree
        self.policy = policy

    async def before_write(self, path: str) -> None:
        """Returns when the file may be written; ToolError, with all there is to know, if somebody else claims it."""
        inside = os.path.relpath(os.path.realpath(os.path.join(self.worktree, path)), self.worktree)
        policy = policy_of(inside, self.policy)
        if inside.startswith("../") or not (policy in ONE_WRITER or os.path.exists(self.mark)):
            return
        blocked = await self._blocked(inside)
        if blocked is None and policy not in ONE_WRITER:
            return
        mode = "append" if policy == "share" else "exclusive"
        wants = [{"name": patterns.typed(inside), "mode": mode}]
        asked = {"wants": wants, "cwd": self.worktree, "wait": WAIT_S, "reason": "it writes there"}
        refused = (await self._ask("lock.acquire", WAIT_S + ANSWER_S, asked)).get("error")
        if refused is None:
            return
        if refused.get("data", {}).get("code") == "deadlock":
            raise ToolError(f"[agentd:deadlock] {path} was not written: {refused['message']}")
        blocked = await self._blocked(inside)
        if blocked is not None:
            raise ToolError(f"{path} was not written.\n{blocked}")

    async def _blocked(self, inside: str) -> str | None:
        answer = await self._ask("lock.check", ANSWER_S, {"paths": [inside], "cwd": self.worktree})
        return next((one["text"] for one in answer.get("result", {}).get("blocked", ())), None)

    async def _ask(self, method: str, patience: float, params: dict[str, Any]) -> dict[str, Any]:
        """The answer; empty if there is none in time."""
        try:
            link = jobdir.connect(self.socket, blocking=False)
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(sock=link, limit=LINE_BYTES)
                try:
                    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                    writer.write(json.dumps(request).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError):  # TimeoutError is an OSError
            return {}
        return answer if isinstance(answer, dict) else {}
