"""What tools work on: the worktree, the shell, and the two ways to speak of something but to the model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .claims import Claims
from .shell import Shell
from .worktree import Worktree


@dataclass
class World:
    worktree: Worktree
    shell: Shell
    ask: Callable[[str, list[str]], Awaitable[str]]
    note: Callable[[str], None]
    claims: Claims | None = None
    """None: nobody is there to be asked."""

    async def may_write(self, path: str) -> None:
        """ToolError if somebody else claims it."""
        if self.claims is not None:
            await self.claims.before_write(path)

    async def close(self, ends_commands: bool) -> None:
        """What runs in the background is the keeper's to end, who tells of it and knows what is meant to stay."""
        if ends_commands:
            await self.shell.close()
        self.worktree.close()
