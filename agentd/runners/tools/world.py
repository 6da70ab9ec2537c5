"""What tools work on: the worktree, the shell, and the two ways to speak of something but to the model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .shell import Shell
from .worktree import Worktree


@dataclass
class World:
    worktree: Worktree
    shell: Shell
    ask: Callable[[str, list[str]], Awaitable[str]]
    note: Callable[[str], None]

    async def close(self, ends_commands: bool) -> None:
        """What runs in the background is the keeper's to end, who tells of it and knows what is meant to stay."""
        if ends_commands:
            await self.shell.close()
        self.worktree.close()
