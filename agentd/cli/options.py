"""What several verbs share: options, their values, and how they talk."""

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from agentd.cli import as_utf8
from agentd.cli.render import one_line, shown
from agentd.core.errors import Refused, Usage

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No talk on stderr; ids only.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
NoPager = Annotated[bool, typer.Option("--no-pager", help="On a terminal: not through a pager.")]
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
Processes = Annotated[str | None, typer.Option("--processes", metavar="N", help="At most so many processes.")]
LEAST_MEMORY = 1 << 20
MOST_PROCESSES = 1 << 22  # no kernel has more
MOST = (1 << 63) - 1  # of any number: what the wire and the store take
LogMax = Annotated[str | None, typer.Option("--log-max", metavar="SIZE", help="Keep the last so much; 0: all.")]

Claim = Annotated[
    list[str] | None, typer.Option("--claim", metavar="PATH", help="Hold it first; it is queued until it can.")
]
Res = Annotated[list[str] | None, typer.Option("--res", metavar="NAME", help="A resource: a port, a database.")]
Restart = Annotated[
    str | None, typer.Option("--restart", metavar="WHEN", help="on-failure: try again, with pauses that grow.")
]

# Of delegate, for the built-in agent.
Profile = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="How; agentd profiles lists them.")]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Another model than the profile's.")]
MaxTurns = Annotated[str | None, typer.Option("--max-turns", metavar="N", help="At most so many; 0: any.")]
MaxTokens = Annotated[str | None, typer.Option("--max-tokens", metavar="N", help="At most so many; 0: any.")]
MaxCost = Annotated[
    str | None, typer.Option("--max-cost", metavar="DOLLARS", help="Spend at most so much; 0: any sum.")
]


def of_the_agent(
    profile: str | None, model: str | None, turns: str | None, tokens: str | None, cost: str | None, argv: object
) -> dict[str, Any]:
    """The parameters of jobs.delegate that these options stand for; Usage beside a command."""
    asked = {
        "profile": profile,
        "model": model,
        "max_turns": number("--max-turns", turns),
        "max_tokens": number("--max-tokens", tokens),
        "max_cost": dollars("--max-cost", cost),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if given and argv is not None:
        flag = next(iter(given)).replace("_", "-")
        raise Usage(f"--{flag} is for the built-in agent; leave it out, or the command after --", "usage")
    return given


def limits(
    name: str | None,
    env: list[str] | None,
    timeout: str | None,
    idle_timeout: str | None,
    leave: list[str] | None,
    memory: str | None,
    processes: str | None,
    log_max: str | None,
    restart: str | None,
) -> dict[str, Any]:
    """The parameters of jobs.delegate that these options stand for."""
    if "" in (leave or []):
        raise Usage("--leave: an empty pattern fits no process; give one such as 'ssh-agent*'", "bad_pattern")
    return {
        "name": name,
        "environment": environment(env or []),
        "timeout": seconds("--timeout", timeout) or None,
        "idle_timeout": seconds("--idle-timeout", idle_timeout) or None,
        "leave": leave or [],
        "memory": memory_limit(memory),
        "processes": number("--processes", processes, 1, MOST_PROCESSES),
        "log_max": size("--log-max", log_max),
        "restart": restart or "no",
    }


def claims(paths: list[str] | None, res: list[str] | None) -> list[dict[str, str]]:
    """The locks that a job holds before it starts, as jobs.delegate takes them."""
    return [{"name": as_utf8(word)} for word in [*(paths or []), *(f"res:{name}" for name in res or [])]]


def environment(asked: list[str]) -> dict[str, str]:
    found = {as_utf8(name): as_utf8(value) for name, value in os.environ.items()}
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
    from agentd.config import TooMuch, parse_duration  # with msgspec: only those who give a time pay for it

    try:
        return parse_duration(text)
    except TooMuch as error:
        raise Usage(f"{option}: {error}; leave it out for no limit", "bad_time") from None
    except ValueError:
        raise Usage(f'{option}: a time such as 30s, 5m or 1h30m, not "{one_line(text, 80)}"', "bad_time") from None


def size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from agentd.config import TooMuch, parse_size

    try:
        return parse_size(text)
    except TooMuch as error:
        raise Usage(f"{option}: {error}; leave it out for no limit", "bad_size") from None
    except ValueError:
        raise Usage(f'{option}: a size such as 64M or 2G, not "{one_line(text, 80)}"', "bad_size") from None


def memory_limit(text: str | None) -> int | None:
    found = size("--memory", text)
    if found is None or found >= LEAST_MEMORY:
        return found
    if found == 0:
        raise Usage("--memory: 0 would leave the job no memory; leave the option out for no limit", "bad_size")
    assert text is not None
    hint = f"did you mean {text}M?" if text.isdigit() else "give at least 1M"
    raise Usage(f"--memory: {text} is too little for any program ({found} bytes); {hint}", "bad_size")


def number(option: str, text: str | None, least: int = 0, most: int = MOST) -> int | None:
    """A whole number in plain digits; Usage otherwise."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    is_open = most == MOST and not (text.isascii() and text.isdigit() and len(text) > 1)  # else it is too large
    bounds = f"of at least {least}" if is_open else f"from {least} to {most}"
    hint = "; leave it out for no limit" if option == "--processes" else ""
    raise Usage(f'{option}: a whole number {bounds}, not "{one_line(text, 80)}"{hint}', "bad_number")


def dollars(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{0,8}(\.[0-9]{1,6})?", text) or not text:
        raise Usage(f'{option}: a sum in dollars such as 2.50, not "{one_line(text, 80)}"', "bad_limit")
    return float(text)


def owner_name(given: str | None) -> str | None:
    if given is not None and not (0 < len(given) <= 100 and given.isprintable()):
        raise Usage(f'--owner: 1-100 printable characters, not "{one_line(given, 80)}"', "bad_name")
    return given


def nearest(word: str, known: Sequence[str], else_: str) -> str:
    """``did you mean NAME?``, or what to do if nothing is like it."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else else_


def here() -> str:
    """The current folder."""
    try:
        return as_utf8(os.getcwd())
    except FileNotFoundError:
        raise Refused("the current folder has been removed; go to another one, and try again", "no_folder") from None


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
    """Talk: for people, never data. Whatever it quotes, nothing in it drives a terminal."""
    print(f"agentd: {shown(text)}", file=sys.stderr, flush=True)


def tell(text: str, end: str = "\n") -> None:
    """Talk that goes on."""
    print(shown(text), end=end, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value), flush=True)


def has_color(no_color: bool) -> bool:
    return not no_color and not os.environ.get("NO_COLOR") and is_screen()


def is_screen() -> bool:
    """Is standard output a terminal that can do more than a typewriter? What reads aloud says TERM=dumb."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")


def width() -> int | None:
    """The terminal's; None for a file or a pipe, where nothing is cut."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns
