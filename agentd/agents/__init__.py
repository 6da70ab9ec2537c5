"""The kinds of agent: one module a kind. A kind describes how it is run; it spawns nothing.

To add one: write a module with the names of :class:`Kind`, and list it in :data:`KINDS`.
"""

from typing import Protocol

from agentd.agents import builtin, command
from agentd.core.errors import Usage


class Kind(Protocol):
    """What a module in this folder provides."""

    def environment(self, caller: dict[str, str], more: tuple[str, ...] = ()) -> dict[str, str]:
        """The variables that reach the agent, of those its caller has; ``more``: those that agentd.toml grants."""

    def argv(self, task: str, command: tuple[str, ...]) -> tuple[str, ...]:
        """What is executed; Usage if the kind cannot do with these."""


KINDS: dict[str, Kind] = {
    "command": command,
    "builtin": builtin,
}
ZYGOTES = ("command", "builtin")
"""Kinds with a zygote of their own; the others are programs, and are executed from the first one's."""
PLANNED = ("claude", "codex", "opencode", "gemini")


def zygote_of(agent: str) -> str:
    return agent if agent in ZYGOTES else ZYGOTES[0]


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
