"""Any program: it gets its caller's environment as a shell would give it, less what is git's or ours."""

from agentd.core.errors import Usage


def environment(caller: dict[str, str], _: tuple[str, ...] = ()) -> dict[str, str]:
    return {name: value for name, value in caller.items() if not name.startswith(("GIT_", "AGENTD_"))}


def argv(task: str, command: tuple[str, ...]) -> tuple[str, ...]:
    if not command:
        raise Usage("cannot run nothing: give a command after --, such as: agentd delegate -- make test", "no_command")
    return command
