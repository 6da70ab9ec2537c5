"""The table of verbs, and typer told to load each only when it is called.

What typer makes of a verb is kept: the resident process has it made before it is called.
"""

import functools
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from agentd import __version__
from agentd.cli.render import one_line
from agentd.core.errors import Usage

# verb -> module, function in it, one line of help. To add a verb: write the module, add the line.
VERBS: dict[str, tuple[str, str, str]] = {
    "delegate": ("agentd.cli.delegate", "delegate", "Hand over a task or a command, in a git worktree of its own."),
    "run": ("agentd.cli.run", "run", "Run a command in place; -d: in the background."),
    "ps": ("agentd.cli.ps", "ps", "List jobs."),
    "jobs": ("agentd.cli.ps", "jobs", "List your own jobs as a shell does."),
    "top": ("agentd.cli.top", "top", "Show what jobs use: CPU, memory, output, cost; live."),
    "logs": ("agentd.cli.logs", "logs", "Show a job's output; -f: as it comes."),
    "wait": ("agentd.cli.wait", "wait", "Wait for jobs, and exit as they did."),
    "attach": ("agentd.cli.attach", "attach", "Be at the terminal of a job that was started with -t."),
    "fg": ("agentd.cli.control", "fg", "Bring a job to the foreground."),
    "bg": ("agentd.cli.control", "bg", "Let stopped jobs go on in the background."),
    "stop": ("agentd.cli.control", "stop", "Stop jobs with all their processes; their time limits wait."),
    "cont": ("agentd.cli.control", "cont", "Let stopped jobs go on."),
    "kill": ("agentd.cli.kill", "kill", "End jobs with all their processes, or send a signal."),
    "send": ("agentd.cli.send", "send", "Send text to an agent, or to a job's standard input."),
    "answer": ("agentd.cli.answer", "answer", "Answer what an agent asks."),
    "inbox": ("agentd.cli.inbox", "inbox", "List all that waits for you."),
    "interrupt": ("agentd.cli.interrupt", "interrupt", "Break off what an agent does now."),
    "inspect": ("agentd.cli.inspect", "inspect", "Show everything about a job."),
    "path": ("agentd.cli.path", "path", "Print the path of a job's worktree."),
    "events": ("agentd.cli.events", "events", "Show what has happened; -f: as it happens."),
    "result": ("agentd.cli.result", "result", "Show what came of a job: facts that agentd saw itself."),
    "diff": ("agentd.cli.diff", "diff", "Show what a job changed, also while it runs."),
    "merge": ("agentd.cli.merge", "merge", "Bring a job's work home, into a branch."),
    "lock": ("agentd.cli.lock", "lock", "Claim paths or resources; with -- CMD: while it runs."),
    "unlock": ("agentd.cli.lock", "unlock", "Give back what you claimed."),
    "locks": ("agentd.cli.locks", "", "Show who holds what, and who waits; why, graph, history, break."),
    "restart": ("agentd.cli.restart", "restart", "Start ended jobs again, in the same place."),
    "profiles": ("agentd.cli.profiles", "profiles", "List the profiles of the built-in agent."),
    "rm": ("agentd.cli.rm", "rm", "Move ended jobs to the trash."),
    "undo": ("agentd.cli.undo", "undo", "Take jobs out of the trash; alone: list the trash."),
    "shell": ("agentd.cli.shell", "shell", "Make agentd a part of bash, zsh, fish or tmux."),
    "daemon": ("agentd.cli.daemon", "", "Start, stop, restart or look at the daemon."),
    "doctor": ("agentd.cli.doctor", "doctor", "Say what is weaker or wrong on this system, and what to do."),
    "demo": ("agentd.cli.demo", "demo", "Show all of it on a small repository; leaves nothing."),
}
DAEMON_VERBS: dict[str, tuple[str, str, str]] = {
    "start": ("agentd.cli.daemon", "start", "Start the daemon, if it is not running."),
    "stop": ("agentd.cli.daemon", "stop", "Stop the daemon; jobs go on unless --kill-jobs."),
    "restart": ("agentd.cli.daemon", "restart", "Stop it and start it anew; jobs go on."),
    "status": ("agentd.cli.daemon", "status", "Is it running? 0: yes, 3: no."),
    "doctor": ("agentd.cli.doctor", "doctor", "The same as agentd doctor."),
}
LOCKS_VERBS: dict[str, tuple[str, str, str]] = {
    "why": ("agentd.cli.locks", "why", "Who holds what NAME meets, and what can be done."),
    "graph": ("agentd.cli.locks", "graph", "Who waits for whom."),
    "history": ("agentd.cli.locks", "history", "What happened to locks."),
    "break": ("agentd.cli.locks", "break_", "Take a lock away from who holds it."),
}
GROUPS = {"daemon": DAEMON_VERBS, "locks": LOCKS_VERBS}
# What the verbs are called elsewhere.
ELSEWHERE = {
    **dict.fromkeys(("ls", "list", "status", "queue"), "ps"),
    "stats": "top",
    **dict.fromkeys(("add", "submit", "spawn", "task"), "delegate"),
    **dict.fromkeys(("exec", "start"), "run -d"),
    **dict.fromkeys(("log", "output", "tail", "follow", "cat"), "logs"),
    **dict.fromkeys(("pause", "suspend"), "stop"),
    **dict.fromkeys(("resume", "unpause", "continue"), "cont"),
    **dict.fromkeys(("show", "info", "describe"), "inspect"),
    **dict.fromkeys(("remove", "delete", "prune", "drop"), "rm"),
    **dict.fromkeys(("trash", "restore"), "undo"),
}
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """A group whose commands are rows of a table: help needs none of them, a call imports one."""

    def table(self) -> dict[str, tuple[str, str, str]]:
        return GROUPS.get(str(self.name), VERBS)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table():
            return None
        module, function, _ = self.table()[cmd_name]
        return command(cmd_name, getattr(import_module(module), function)) if function else group(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, help) for verb, (_, _, help) in self.table().items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in self.table():
            import difflib

            known = ELSEWHERE.get(word) if self.table() is VERBS else None
            close = known or "".join(difflib.get_close_matches(word, self.table(), n=1, cutoff=0.5))
            hint = f"did you mean {close}?" if close else f"agentd {self.name_in_path()}--help lists them"
            raise Usage(f'there is no verb "{one_line(word, 80)}"; {hint}', "no_such_verb")
        return super().resolve_command(ctx, args)

    def name_in_path(self) -> str:
        return f"{self.name} " if self.name in GROUPS else ""


class PlainCommand(TyperCommand):
    """All commands but those below. Its help speaks of words, not of Python's types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [usage_word(piece) for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.buffer = [re.sub(r" <(?:list\[)?str\]?>", "", text) for text in formatter.buffer]


def usage_word(piece: str) -> str:
    """``[[TASK]]``, ``[JOB…]...`` and ``{JOB…}...`` as one would write them."""
    word = piece.removesuffix("...")
    inner = word.strip("[]{}")
    return f"[{inner}]" if word.startswith("[") else inner


class AfterDashes(PlainCommand):
    """What follows ``--`` is the command, whatever it looks like: it is in ``ctx.meta["command"]``, if given."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*(piece for piece in super().collect_usage_pieces(ctx) if piece != "[more]"), "[-- CMD…]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


SIGNAL = re.compile(r"-([0-9]+|[A-Z][A-Z0-9]+)")
TAKES_VALUE = ("-s", "--signal", "--grace")


class SignalCommand(PlainCommand):
    """``-9``, ``-KILL`` and ``-SIGKILL`` are signals, as kill(1) has it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        words = [
            f"--signal={word[1:]}" if SIGNAL.fullmatch(word) and previous not in TAKES_VALUE else word
            for previous, word in zip(["", *before], before, strict=False)
        ]
        return super().parse_args(ctx, words + args[len(before) :])


SPECIAL: dict[str, type[TyperCommand]] = {"delegate": AfterDashes, "lock": AfterDashes, "kill": SignalCommand}


def plain(**more: Any) -> typer.Typer:
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **more)


@functools.cache
def command(name: str, function: Callable[..., Any]) -> Any:
    app = plain()
    settings = dict(SETTINGS)
    if name == "run":
        settings["allow_interspersed_args"] = False  # from its first word on, all is the command's
    app.command(name, cls=SPECIAL.get(name, PlainCommand), context_settings=settings)(function)
    return typer.main.get_command(app)


@functools.cache
def command_line() -> Any:
    app = plain(cls=LazyGroup, name="agentd", context_settings=SETTINGS, subcommand_metavar="VERB …")
    app.callback()(top)
    return typer.main.get_command(app)


@functools.cache
def group(name: str) -> Any:
    """``agentd locks`` alone does something, ``agentd daemon`` does not."""
    module = import_module(VERBS[name][0])
    alone = getattr(module, name, None) if name == "locks" else None
    app = plain(cls=LazyGroup, name=name, context_settings=SETTINGS, invoke_without_command=alone is not None)
    app.callback()(alone or (lambda: None))
    found = typer.main.get_command(app)
    found.help = found.help or VERBS[name][2]
    return found


def show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"agentd {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hand a task to a background job, have the prompt back at once, be told when it ends.

    agentd VERB --help tells about a verb; agentd(1) is the manual.
    """


def spelled_out(args: Sequence[str]) -> list[str]:
    """``help [VERB]`` and ``version`` are options elsewhere."""
    match list(args):
        case ["help", *verb]:
            return [*verb, "--help"]
        case ["version"]:
            return ["--version"]
    return list(args)


# --- for the door -------------------------------------------------------------------------------------------


def wants_json(args: Sequence[str]) -> bool:
    """Was ``--json`` asked for? Told from the words, since it must be known when they cannot be parsed."""
    own = list(args)
    if own[:1] == ["run"]:
        own = own[: command_start(own)]
    if "--" in own:
        own = own[: own.index("--")]
    return "--json" in own


RUN_FLAGS = (
    "-d",
    "--detach",
    "-i",
    "--input",
    "-t",
    "--tty",
    "-q",
    "--quiet",
    "--json",
    "--no-color",
    "-h",
    "--help",
    "-di",
    "-id",
)


def command_start(words: Sequence[str]) -> int:
    """Where in ``run …`` the command begins: at the first word that is neither an option nor an option's value."""
    place = 1
    while place < len(words) and words[place].startswith("-"):
        word = words[place]
        has_value = word not in RUN_FLAGS and not (word.startswith("--") and "=" in word)
        is_joined = not word.startswith("--") and len(word) > 2
        place += 2 if has_value and not is_joined else 1
    return place


def sentence(error: TyperException, args: Sequence[str]) -> str:
    """What is wrong with the command line, in our words, with the way to the help."""
    said = re.sub(r"\s+", " ", error.format_message()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    verb = next((f" {word}" for word in args if word in VERBS), "")
    path = getattr(context, "command_path", None) or f"agentd{verb}"
    option = one_line(str(getattr(error, "option_name", "")), 80)
    if option:
        wrong = wrong_option(option, said)
    elif said.startswith("Missing command"):
        wrong = f"{path.rpartition(' ')[2]} what? There is {', '.join(DAEMON_VERBS)}"
    elif said.startswith("Missing argument"):
        wrong = f"{path.rpartition(' ')[2]} what? Name a job; agentd ps --all lists them"
    elif extra := re.match(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", said):
        wrong = f'what is "{one_line(extra[1], 80)}"? {path} takes fewer words'
    else:
        wrong = said[:1].lower() + said[1:]
    return wrong if "did you mean" in wrong else f"{wrong}; see: {path} --help"


def wrong_option(option: str, said: str) -> str:
    if "requires an argument" in said:
        return f"{option} needs a value"
    if "does not take a value" in said:
        return f"{option} takes no value"
    near = re.search(r"\(Possible options: (.*)\)|Did you mean (.*)\?", said)
    return f"there is no option {option}" + (f"; did you mean {near[1] or near[2]}?" if near else "")
