"""What several verbs share: options, their values, and how they talk."""

import os
import sys
from typing import Annotated, Any

import typer

from agentd.cli.render import one_line
from agentd.core.errors import Usage

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No talk on stderr; ids only.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours (also: NO_COLOR).")]

# Of delegate and run.
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="a-z 0-9 -, at most 40.")]
Env = Annotated[
    list[str] | None, typer.Option("-e", "--env", metavar="NAME[=VALUE]", help="Set a variable, or insist on one.")
]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="End it after 90s, 5m, 1h30m.")]
IdleTimeout = Annotated[
    str | None, typer.Option("--idle-timeout", metavar="TIME", help="End it when it is silent for so long.")
]
Owner = Annotated[str | None, typer.Option("--owner", metavar="NAME", help="Whose job it is (default: AGENTD_OWNER).")]
Leave = Annotated[
    list[str] | None, typer.Option("--leave", metavar="PATTERN", help="Processes that may outlive the job.")
]
Input = Annotated[bool, typer.Option("-i", "--input", help="Keep its standard input open.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="At most so much memory: 512M, 2G.")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", min=1, help="At most so many processes.")]
LogMax = Annotated[str | None, typer.Option("--log-max", metavar="SIZE", help="Keep the last so much; 0: all.")]

Restart = Annotated[
    str | None, typer.Option("--restart", metavar="WHEN", help="on-failure: try again, with pauses that grow.")
]

# Of delegate, for the built-in agent.
Profile = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="How; agentd profiles lists them.")]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Another model than the profile's.")]
MaxTurns = Annotated[int | None, typer.Option("--max-turns", metavar="N", min=0, help="At most so many; 0: any.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", min=0, help="At most so many; 0: any.")]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", metavar="DOLLARS", min=0, help="Spend at most so much; 0: any sum.")
]


def of_the_agent(
    profile: str | None, model: str | None, turns: int | None, tokens: int | None, cost: float | None, argv: object
) -> dict[str, Any]:
    """The parameters of jobs.delegate that these options stand for; Usage beside a command."""
    asked = {"profile": profile, "model": model, "max_turns": turns, "max_tokens": tokens, "max_cost": cost}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and argv is not None:
        flag = next(iter(given)).replace("_", "-")
        raise Usage(f"--{flag} is for the built-in agent; leave it out, or the command after --", "usage")
    if cost is not None and not cost < 1e9:
        raise Usage("--max-cost: a sum in dollars such as 2.50", "bad_limit")
    return given


def limits(
    name: str | None,
    env: list[str] | None,
    timeout: str | None,
    idle_timeout: str | None,
    leave: list[str] | None,
    memory: str | None,
    processes: int | None,
    log_max: str | None,
    restart: str | None,
) -> dict[str, Any]:
    """The parameters of jobs.delegate that these options stand for."""
    return {
        "name": name,
        "environment": environment(env or []),
        "timeout": seconds("--timeout", timeout) or None,
        "idle_timeout": seconds("--idle-timeout", idle_timeout) or None,
        "leave": leave or [],
        "memory": size("--memory", memory) or None,
        "processes": processes,
        "log_max": size("--log-max", log_max),
        "restart": restart or "no",
    }


def environment(asked: list[str]) -> dict[str, str]:
    found = dict(os.environ)
    for item in asked:
        name, equals, value = item.partition("=")
        if not name:
            raise Usage(f'--env: "{one_line(item, 80)}" has no name; write NAME=VALUE', "bad_environment")
        if equals:
            found[name] = value
        elif name not in found:
            raise Usage(f"--env: {one_line(name, 80)} is not set here; write {one_line(name, 80)}=VALUE", "not_set")
    return found


def seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    from agentd.config import parse_duration  # with msgspec: only those who give a time pay for it

    try:
        return parse_duration(text)
    except ValueError:
        raise Usage(f'{option}: a time such as 30s, 5m or 1h30m, not "{one_line(text, 80)}"', "bad_time") from None


def size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from agentd.config import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise Usage(f'{option}: a size such as 64M or 2G, not "{one_line(text, 80)}"', "bad_size") from None


def text_or_input(text: str | None, ask: str) -> str:
    """TEXT, else standard input without the newlines at its end; Usage with ``ask`` if there is nothing."""
    if text is None:
        try:
            data = b"" if os.isatty(0) else b"".join(iter(lambda: os.read(0, 1 << 18), b""))
            text = data.decode().rstrip("\n")
        except OSError:  # closed
            text = ""
        except UnicodeDecodeError as error:
            raise Usage(f"standard input is no UTF-8 text (byte {error.start})", "bad_text") from None
    if not text.strip():
        raise Usage(ask, "no_text")
    return text


def say(text: str) -> None:
    """Talk: for people, never data."""
    print(f"agentd: {text}", file=sys.stderr, flush=True)


def tell(text: str, end: str = "\n") -> None:
    """Talk that goes on."""
    print(text, end=end, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value), flush=True)


def has_color(no_color: bool) -> bool:
    return not no_color and not os.environ.get("NO_COLOR") and sys.stdout.isatty()


def width() -> int | None:
    """The terminal's; None for a file or a pipe, where nothing is cut."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns
