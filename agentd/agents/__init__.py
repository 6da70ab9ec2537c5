"""The kinds of agent: one module a kind. A kind describes how it is run; it spawns nothing.

To add one: write a module with the names of :class:`Kind`, and list it in :data:`KINDS`.
"""

from typing import Protocol

from agentd.agents import command
from agentd.core.errors import Usage


class Kind(Protocol):
    """What a module in this folder provides."""

    def environment(self, caller: dict[str, str]) -> dict[str, str]:
        """The variables that reach the agent, of those its caller has."""

    def argv(self, task: str, command: tuple[str, ...]) -> tuple[str, ...]:
        """What is executed; Usage if the kind cannot do with these."""


KINDS: dict[str, Kind] = {
    "command": command,
}
PLANNED = ("builtin", "claude", "codex", "opencode", "gemini")


def kind(name: str) -> Kind:
    if name in KINDS:
        return KINDS[name]
    if name in PLANNED:
        raise Usage(
            f'agent "{name}" is not built yet; give a command after --, such as:'
            ' agentd delegate "fix the build" -- make',
            "no_such_agent",
        )
    raise Usage(f'there is no agent "{name}"; there is: {", ".join(KINDS)}', "no_such_agent")
