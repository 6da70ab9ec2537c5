"""What can be typed after ``agentd``, taken from the verbs themselves: for the completion of shells."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from agentd.cli import verbs

KINDS_OF_AGENT = "=builtin,command"
SIGNALS = "=HUP,INT,QUIT,KILL,TERM,STOP,CONT,USR1,USR2"
BY_METAVAR = {"COMMIT": "branch", "BRANCH": "branch", "DIR": "folder", "JOB": "job", "KIND": KINDS_OF_AGENT}
BY_OPTION = {
    "--profile": "profile",
    "--signal": SIGNALS,
    "-s": SIGNALS,
    "--restart": "=on-failure,no",
    "--notify": "=bell,desktop",
}
JOBS = {
    **dict.fromkeys(("kill", "wait", "send", "interrupt"), "live"),
    **dict.fromkeys(("rm", "restart", "merge"), "done"),
    "answer": "asking",
    "undo": "trash",
}
"""Which jobs a verb is for, where that is not all."""
FIXED = {"run": "command...", "shell": "=bash,zsh,fish,tmux"}
FILES = ("lock", "unlock")


class Option(NamedTuple):
    name: str
    takes: str
    """What follows it: ``-`` (nothing), ``text``, ``job``, ``branch``, ``profile``, ``folder``, or ``=`` and the words,
    with commas."""
    help: str


class Verb(NamedTuple):
    name: str
    help: str
    options: tuple[Option, ...]
    arguments: str
    """What stands where, as ``job text``; ``job...``: any number."""


def table() -> Iterator[Verb]:
    """All verbs, those of groups as ``daemon start``; the first is ``agentd`` itself."""
    top = verbs.command_line()
    yield Verb("", "", tuple(options(top)), "")
    for name, (_, _, help) in verbs.VERBS.items():
        command = top.get_command(None, name)
        yield Verb(name, help, tuple(options(command)), "" if name in verbs.GROUPS else arguments(name, command))
        for inner, (_, _, help_of_inner) in verbs.GROUPS.get(name, {}).items():
            of_group = command.get_command(None, inner)
            yield Verb(f"{name} {inner}", help_of_inner, tuple(options(of_group)), arguments(inner, of_group))


def options(command: Any) -> Iterator[Option]:
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.param_type_name != "option":
            continue
        takes = "-" if parameter.is_flag else value_kind(parameter)
        for name in (*parameter.opts, *parameter.secondary_opts):
            yield Option(name, takes, one_line(parameter.help))
    yield Option("--help", "-", "Show help.")


def value_kind(option: Any) -> str:
    return next((BY_OPTION[name] for name in option.opts if name in BY_OPTION), BY_METAVAR.get(option.metavar, "text"))


def arguments(verb: str, command: Any) -> str:
    if verb in FIXED:
        return FIXED[verb]
    kinds = []
    for parameter in command.params:
        if parameter.param_type_name != "argument" or getattr(parameter, "hidden", False):
            continue
        metavar = (parameter.metavar or "").strip("[]…")
        kind = JOBS.get(verb, "job") if metavar == "JOB" else "file" if verb in FILES else "text"
        kinds.append(kind + ("..." if parameter.nargs == -1 else ""))
    return " ".join(kinds)


def one_line(help: str | None) -> str:
    return " ".join((help or "").split())
