"""The table of verbs, and typer told to load each only when it is called."""

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
    "logs": ("agentd.cli.logs", "logs", "Show a job's output; -f: as it comes."),
    "wait": ("agentd.cli.wait", "wait", "Wait for jobs, and exit as they did."),
    "kill": ("agentd.cli.kill", "kill", "End jobs with all their processes, or send a signal."),
    "send": ("agentd.cli.send", "send", "Send text to an agent, or to a job's standard input."),
    "answer": ("agentd.cli.answer", "answer", "Answer what an agent asks."),
    "inbox": ("agentd.cli.inbox", "inbox", "List all that waits for you."),
    "interrupt": ("agentd.cli.interrupt", "interrupt", "Break off what an agent does now."),
    "inspect": ("agentd.cli.inspect", "inspect", "Show everything about a job."),
    "events": ("agentd.cli.events", "events", "Show what has happened; -f: as it happens."),
    "restart": ("agentd.cli.restart", "restart", "Start an ended job again, in the same place."),
    "profiles": ("agentd.cli.profiles", "profiles", "List the profiles of the built-in agent."),
    "rm": ("agentd.cli.rm", "rm", "Move ended jobs to the trash."),
    "undo": ("agentd.cli.undo", "undo", "Take a job out of the trash; alone: list the trash."),
    "daemon": ("agentd.cli.daemon", "", "Start, stop or look at the daemon."),
    "doctor": ("agentd.cli.doctor", "doctor", "Say what is weaker or wrong on this system, and what to do."),
}
DAEMON_VERBS: dict[str, tuple[str, str, str]] = {
    "start": ("agentd.cli.daemon", "start", "Start the daemon, if it is not running."),
    "stop": ("agentd.cli.daemon", "stop", "Stop the daemon; jobs go on unless --kill-jobs."),
    "status": ("agentd.cli.daemon", "status", "Is it running? 0: yes, 3: no."),
    "doctor": ("agentd.cli.doctor", "doctor", "The same as agentd doctor."),
}
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """A group whose commands are rows of a table: help needs none of them, a call imports one."""

    def table(self) -> dict[str, tuple[str, str, str]]:
        return DAEMON_VERBS if self.name == "daemon" else VERBS

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table():
            return None
        module, function, _ = self.table()[cmd_name]
        return command(cmd_name, getattr(import_module(module), function)) if function else daemon_group()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, help) for verb, (_, _, help) in self.table().items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in self.table():
            import difflib

            close = difflib.get_close_matches(word, self.table(), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"agentd {self.name_in_path()}--help lists them"
            raise Usage(f'there is no verb "{one_line(word, 80)}"; {hint}', "no_such_verb")
        return super().resolve_command(ctx, args)

    def name_in_path(self) -> str:
        return "daemon " if self.name == "daemon" else ""


class PlainCommand(TyperCommand):
    """All commands but those below."""


class AfterDashes(TyperCommand):
    """What follows ``--`` is the command, whatever it looks like: it is in ``ctx.meta["command"]``, if given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


class SignalCommand(TyperCommand):
    """``-9``, ``-KILL`` and ``-SIGKILL`` are signals, as kill(1) has it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        signals = [f"--signal={word[1:]}" if re.fullmatch(r"-(\d+|[A-Z][A-Z0-9]+)", word) else word for word in before]
        return super().parse_args(ctx, signals + args[len(before) :])


SPECIAL: dict[str, type[TyperCommand]] = {"delegate": AfterDashes, "kill": SignalCommand}


def plain(**more: Any) -> typer.Typer:
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **more)


def command(name: str, function: Callable[..., Any]) -> Any:
    app = plain()
    settings = dict(SETTINGS)
    if name == "run":
        settings["allow_interspersed_args"] = False  # from its first word on, all is the command's
    app.command(name, cls=SPECIAL.get(name, PlainCommand), context_settings=settings)(function)
    return typer.main.get_command(app)


def command_line() -> Any:
    app = plain(cls=LazyGroup, name="agentd", context_settings=SETTINGS, subcommand_metavar="VERB …")
    app.callback()(top)
    return typer.main.get_command(app)


def daemon_group() -> Any:
    app = plain(cls=LazyGroup, name="daemon", context_settings=SETTINGS, subcommand_metavar="VERB …")
    app.callback()(lambda: None)
    group = typer.main.get_command(app)
    group.help = VERBS["daemon"][2]
    return group


def show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"agentd {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hand a task to a background job, have the prompt back at once, be told when it ends.

    agentd VERB --help tells about a verb; agentd(1) is the manual.
    """


# --- for the door -------------------------------------------------------------------------------------------


def wants_json(args: Sequence[str]) -> bool:
    """Was ``--json`` asked for? Told from the words, since it must be known when they cannot be parsed."""
    own = list(args)
    if own[:1] == ["run"]:
        own = own[: command_start(own)]
    if "--" in own:
        own = own[: own.index("--")]
    return "--json" in own


RUN_FLAGS = ("-d", "--detach", "-i", "--input", "-q", "--quiet", "--json", "--no-color", "-h", "--help", "-di", "-id")


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
    """typer's words for a wrong command line, with the way to the help."""
    said = error.format_message().strip().rstrip(".")
    said = re.sub(r"\s+", " ", said)
    verb = next((word for word in args if word in VERBS), "")
    if re.match(r"(got|no|missing|option|invalid|there|could)\b", said.lower()):
        said = said[0].lower() + said[1:]
    return f"{said}; see: agentd {verb + ' ' if verb else ''}--help"
