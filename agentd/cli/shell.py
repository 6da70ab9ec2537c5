"""``agentd shell NAME``: a shell's own language for what it is to do at each prompt and at TAB."""

import os
import shlex
import sys
from typing import Annotated

import typer

from agentd import noticeboard
from agentd.cli import options, render, words
from agentd.client import default_owner, own_state_dir
from agentd.core.errors import Refused, Usage

SHELLS = ("bash", "zsh", "fish")
WHAT = "bash, zsh, fish or tmux"


def shell(
    name: Annotated[str, typer.Argument(metavar="[SHELL]", help=f"{WHAT}.")] = "",
    off: Annotated[bool, typer.Option("--off", help="Print what undoes it.")] = False,
    board: Annotated[bool, typer.Option("--board", help="Print the folder where this terminal is told.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Print what makes agentd a part of your shell: eval "$(agentd shell bash)".

    Jobs that have ended, stopped or ask are told before the next prompt; verbs, options, jobs and branches are
    completed. For tmux: a line for tmux.conf.
    """
    text = said(name, off, board)
    if json:
        return options.print_json({"shell": name or None, "text": text})
    sys.stdout.write(text)
    if sys.stdout.isatty() and not (quiet or off or board or name == "tmux"):
        options.say(f"this is for your shell to read; put into its start-up file: {how_to(name)}")


def said(name: str, off: bool, board: bool) -> str:
    if board:
        return f"{registered()}\n"
    if not name:
        raise Usage(f'shell what? Name yours: {WHAT}, such as: eval "$(agentd shell bash)"', "usage")
    if name not in (*SHELLS, "tmux"):
        raise Usage(f'there is no integration for "{render.one_line(name, 80)}"; there is {WHAT}', "usage")
    if name == "tmux":
        return tmux(off)
    if off:
        noticeboard_off()
        return OFF_IN_FISH if name == "fish" else OFF
    return "\n".join([*head(name, registered()), body(name)])


OFF = "if typeset -f __agentd_off >/dev/null; then __agentd_off; fi\n"
OFF_IN_FISH = "functions -q __agentd_off; and __agentd_off\n"


def how_to(name: str) -> str:
    return "agentd shell fish | source" if name == "fish" else f'eval "$(agentd shell {name})"'


def registered() -> str:
    state_dir = own_state_dir()
    try:
        found = noticeboard.register(state_dir, default_owner())
    except OSError as error:
        what = f"cannot keep state in {state_dir}: {error.strerror}; set AGENTD_STATE_DIR to a folder of yours"
        raise Refused(what, "state_not_writable") from None
    if found is None:
        raise Refused("cannot tell which terminal this is: no process leads its session", "no_session")
    return found


def noticeboard_off() -> None:
    found = noticeboard.path_here(own_state_dir(), default_owner())
    if found is not None:
        noticeboard.remove(found)


def tmux(off: bool) -> str:
    path = noticeboard.line_path(own_state_dir())
    if off:
        if os.path.exists(path):
            os.unlink(path)
        return ""
    noticeboard.prepare(own_state_dir())
    if not os.path.exists(path):
        noticeboard.replace(path, "")
    quoted = shlex.quote(path).replace("#", "##")
    return f"set -ga status-right {shlex.quote(f' #(cat {quoted} 2>/dev/null)')}\n"


def body(name: str) -> str:
    with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), "shells", f"agentd.{name}")) as file:
        return file.read()


def head(name: str, board: str) -> list[str]:
    """What the body reads: where the board is, whose it is, and the words there are."""
    verbs = list(words.table())
    whose = f"{os.environ.get('AGENTD_OWNER', '')}:{os.environ.get('AGENTD_STATE_DIR', '')}"
    if name == "fish":
        return fish_head(board, whose, verbs)
    declare = "declare" if name == "bash" else "typeset"
    lines = [f"{variable}={quote(value)}" for variable, value in (("__agentd_board", board), ("__agentd_whose", whose))]
    named = [(quote(verb.name or "agentd"), verb) for verb in verbs]
    rows = {
        "verbs": [(word, verb.help) for word, verb in named if verb.name],
        "arguments": [(word, verb.arguments) for word, verb in named],
        "options": [(word, "\n".join(option_lines(verb))) for word, verb in named],
    }
    for variable, pairs in rows.items():
        lines.append(f"{declare} -gA __agentd_{variable}")
        cells = [f"[{word}]={quote(value)}" if name == "bash" else f"{word} {quote(value)}" for word, value in pairs]
        lines.append(f"__agentd_{variable}=({' '.join(cells)})")
    return lines


def quote(text: str) -> str:
    """Also what looks safe: ``=word`` is expanded by zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def option_lines(verb: words.Verb) -> list[str]:
    return ["\t".join(option) for option in verb.options]


def fish_head(board: str, whose: str, verbs: list[words.Verb]) -> list[str]:
    named = [verb for verb in verbs if verb.name]
    rows: dict[str, list[str]] = {
        "board": [board],
        "whose": [whose],
        "verbs": [f"{verb.name}\t{verb.help}" for verb in named],
        "verb_names": [variable(verb) for verb in named],
    }
    for verb in verbs:
        rows[f"arguments_{variable(verb)}"] = [verb.arguments]
        rows[f"options_{variable(verb)}"] = option_lines(verb)
    return [f"set -g __agentd_{name} {' '.join(map(fish_quote, values))}" for name, values in rows.items()]


def variable(verb: words.Verb) -> str:
    return (verb.name or "agentd").replace(" ", "_").replace("-", "_")


def fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
