"""``agentd lock NAME… [-- CMD…]`` and ``agentd unlock``."""

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from agentd import claimfile, process
from agentd.cli import as_utf8, options, render
from agentd.client import Client, default_owner
from agentd.core.errors import EXIT_DEADLOCK, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, AgentdError, NotNow, Usage

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME…]", help="Paths and patterns, res:NAME, file:PATH.")]
DEFAULT_WAIT = "60s"


def lock(
    ctx: typer.Context,
    names: Names = None,
    shared: Annotated[bool, typer.Option("--shared", help="Beside others who share.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Beside others who only add.")] = False,
    res: options.Res = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="TIME", help="How long; 0s: not at all, 0: any. Default: 60s; with CMD: 0."),
    ] = None,
    ticket: Annotated[str | None, typer.Option("--ticket", metavar="N", help="Go on waiting for what N asked.")] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="What others are told.")] = "",
    broad: Annotated[bool, typer.Option("--broad", help="More than half of all files is meant.")] = False,
    owner: options.Owner = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Claim paths or resources; with a command: while it runs, as flock(1).

    Without a command the claim is yours until agentd unlock, at most as long as the terminal's session; inside a job it
    is the job's.
    """
    argv: list[str] | None = ctx.meta.get("command")
    if shared and append:
        raise Usage("--shared and --append exclude each other; give one", "usage")
    if argv is not None and not argv:
        raise Usage("the command after -- is missing, such as: agentd lock src/a.py -- vim src/a.py", "no_command")
    if json and argv:
        raise Usage("--json is for a claim without a command, whose output it would be", "usage")
    mode = "shared" if shared else "append" if append else "exclusive"
    wants = [{"name": as_utf8(name), "mode": mode} for name in [*(names or []), *(f"res:{r}" for r in res or [])]]
    asked: dict[str, Any] = {
        "wants": wants,
        "cwd": options.here(),
        "reason": reason,
        "broad": broad,
        "ticket": options.number("--ticket", ticket, 1),
        "wait": patience(wait, argv is not None),
    }
    if not wants and ticket is None:
        raise Usage("lock what? Name a path, such as src/a.py, or a resource: --res port-3000", "empty")
    if argv:
        run_locked(argv, asked, options.owner_name(owner), quiet)
    with Client(owner=options.owner_name(owner)) as client:
        answer = acquire(client, asked, is_silent=quiet or json)
    if json:
        return options.print_json({"ok": True, **answer})
    if not quiet:
        for line in render.granted_lines(answer):
            options.say(line)


def patience(text: str | None, has_command: bool) -> float | None:
    """Seconds, None for no limit."""
    if text is None:
        return None if has_command else options.seconds("--wait", DEFAULT_WAIT)
    found = options.seconds("--wait", text)
    return None if text == "0" else found


def acquire(client: Client, asked: dict[str, Any], is_silent: bool) -> dict[str, Any]:
    """Who has to wait is told for whom, before the waiting begins."""
    if os.environ.get("AGENTD_LOCKS"):
        refuse_own_circle(client, asked)
    if not is_silent and asked["wait"] != 0:
        try:
            return client.lock(**asked | {"wait": 0})
        except NotNow as error:
            if error.code != "busy":
                raise
            who = error.message.partition("\n")[0].removeprefix("[agentd:locked] ")
            options.say(f"waiting: {render.one_line(who)}")
    return client.lock(**asked)


def refuse_own_circle(client: Client, asked: dict[str, Any]) -> None:
    """A command under a claim would wait for its own end if it asked for what that claim keeps from it."""
    above = set(process.ancestors(os.getppid()))
    for want in asked["wants"]:
        found = client.ask("lock.explain", name=want["name"], cwd=asked["cwd"], owner=client.owner)
        for claim in found["claims"]:
            can_share = claim["mode"] == want["mode"] != "exclusive"
            if claim["holder"]["kind"] == "command" and claim["holder"]["pid"] in above and not can_share:
                who = f"{claim['holder']['said']}, under which this runs, holds {claim['name']}"
                raise AgentdError(render.one_line(f"{who}: it would wait for itself"), "deadlock", EXIT_DEADLOCK)


def run_locked(argv: list[str], asked: dict[str, Any], owner: str | None, quiet: bool) -> NoReturn:
    """Become the command, with the claim's descriptor in hand: it stands as long as anything of the command lives."""
    with Client(owner=owner) as client:
        record = {
            "label": " ".join(argv)[:200],
            "owner": client.owner if owner is not None else default_owner(),
            "wants": asked["wants"],
            "cwd": asked["cwd"],
            "reason": asked["reason"],
        }
        try:
            key, fd = claimfile.make(client.state_dir, record)
        except OSError as error:
            what = f"cannot write a claim in {client.state_dir}: {error.strerror}; the command is not run"
            raise NotNow(what, "unavailable") from None
        try:
            answer = acquire(client, asked | {"claim": key}, is_silent=quiet)
            claimfile.rewrite(fd, record | {"token": answer["token"], "granted": answer["granted"]})
        except AgentdError as error:
            claimfile.remove(client.state_dir, key)
            raise not_run(error) from None
        except BaseException:
            claimfile.remove(client.state_dir, key)
            raise
    sys.stdout.flush()
    sys.stderr.flush()
    environment = os.environ | {"AGENTD_LOCKS": " ".join(claim["name"] for claim in answer["claims"])}
    try:
        reset_signals()
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        claimfile.remove(client.state_dir, key)
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        code = EXIT_NOT_FOUND if is_missing else EXIT_NOT_EXECUTABLE
        what = f"cannot run {render.one_line(argv[0], 80)}: {error.strerror}"
        raise AgentdError(what, "not_found" if is_missing else "not_executable", code) from None


def not_run(error: AgentdError) -> AgentdError:
    """Where no daemon can be had the answer is: not now."""
    if error.code in ("no_daemon", "daemon_failed", "daemon_dies", "daemon_stopped"):
        return NotNow(f"{error.message}; the command is not run", "unavailable")
    return error


def reset_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ; the command shall have them as a shell would give them."""
    import signal

    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def unlock(
    names: Names = None,
    res: options.Res = None,
    all: Annotated[bool, typer.Option("--all", help="All that is yours.")] = False,
    owner: options.Owner = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Give back what you claimed, and your place in the queue for it."""
    wanted = [*(names or []), *(f"res:{name}" for name in res or [])]
    if all == bool(wanted):
        raise Usage("unlock what? Name what you locked, or give --all", "empty")
    with Client(owner=options.owner_name(owner)) as client:
        answer = client.unlock([as_utf8(name) for name in wanted], all=all, cwd=options.here())
    if json:
        return options.print_json({"ok": True, **answer})
    if not quiet:
        gone = [*answer["released"], *(f"ticket {number}" for number in answer["withdrawn"])]
        options.say(f"released {', '.join(map(render.one_line, gone))}" if gone else "already free")
        if answer["still"]:
            also = render.one_line(" ".join(answer["still"]))
            options.say(f"what you still hold meets it; to give that back too: agentd unlock {also}")
