"""``agentd demo``: all of it on a small repository, in a place of its own, which is gone when it is over."""

import contextlib
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from agentd.cli import options, render
from agentd.core.errors import Refused, Usage
from agentd.demo import shop
from agentd.demo.stage import Stage, stage
from agentd.demo.story import Story

KEY, ENDPOINT = "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"
LIMITS = ("--max-turns", "30", "--max-tokens", "300000", "--timeout", "5m")
"""Of each of the two agents, if a real model drives them."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""They would keep an agent from a server on this machine."""


def demo(
    is_kept: Annotated[bool, typer.Option("--keep", help="Leave the repository, to be looked at.")] = False,
    is_script: Annotated[bool, typer.Option("--script", help="No real model, though there is a key.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Another model than the default one.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Show all of it on a small repository, in a temporary folder with a daemon of its own; 0 if all was right.

    With ANTHROPIC_API_KEY a real model (at ANTHROPIC_BASE_URL) mends a broken build, which costs a few cents; without
    it a script plays the model.
    """
    check_machine()
    is_real = bool(os.environ.get(KEY)) and not is_script
    if model is not None and not is_real:
        raise Usage(f"--model is for a real model, which needs {KEY}; without it a script plays the model", "usage")
    began = time.monotonic()
    with shown_on(json, quiet) as out, player(is_real, model) as (agent, variables):
        colors = {"NO_COLOR": "1"} if no_color else {}
        with stage(out, variables | colors, is_kept) as here:
            introduce(here, is_real)
            try:
                facts = Story(here, agent).tell()
            finally:
                shop.open_gate(here.shop, here.environment)
        facts |= {"ok": True, "checks": here.checks, "model": "real" if is_real else "script"}
        facts |= {"seconds": round(time.monotonic() - began, 1), "repository": str(here.shop) if is_kept else None}
        conclude(here, facts)
    if json:
        options.print_json(facts)


def check_machine() -> None:
    if shutil.which("git") is None:
        raise Refused("cannot find git: install it", "no_git")
    if importlib.util.find_spec("anthropic") is None:
        raise Refused("the demonstration needs the Anthropic SDK: pip install 'agentd[agent]'", "no_sdk")


@contextlib.contextmanager
def shown_on(json: bool, quiet: bool) -> Iterator[int]:
    """With --json standard output is for the answer."""
    if not quiet:
        yield 2 if json else 1
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        yield nowhere
    finally:
        os.close(nowhere)


@contextlib.contextmanager
def player(is_real: bool, model: str | None) -> Iterator[tuple[tuple[str, ...], dict[str, str | None]]]:
    """Who plays the model: the options of delegate that say so, and the variables."""
    if is_real:
        yield (*LIMITS, *(("--model", model) if model else ())), {}
        return
    from agentd.scripted import Server

    server = Server(shop.SCRIPT)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        proxies = {name: None for proxy in PROXIES for name in (proxy, proxy.upper())}
        yield ("--model", "script"), {**proxies, KEY: "none-needed", ENDPOINT: server.url}
    finally:
        server.shutdown()
        server.server_close()


def introduce(here: Stage, is_real: bool) -> None:
    if is_real:
        where = render.one_line(os.environ.get(ENDPOINT) or "the default server", 200)
        here.note(f"The model is a real one, at {where}. That costs a few cents; how much is told at the end.")
    else:
        here.note("The model is a script of agentd's, not a model: there is no ANTHROPIC_API_KEY. All else is real.")
    here.note(f"It all happens in {here.place}; your own jobs, settings and repositories are not touched.")


def conclude(here: Stage, facts: dict[str, Any]) -> None:
    spent = facts["spent"]
    words = render.spent_words(spent["turns"], spent["tokens"], spent["cost"])
    here.write("")
    here.show(f"== Everything was as it should be, in {facts['seconds']:.0f} s. {left(facts)}")
    here.note(f"spent: {words}" if facts["model"] == "real" else "spent: nothing; a script played the model")


def left(facts: dict[str, Any]) -> str:
    return f"The repository is in {facts['repository']}" if facts["repository"] else "Nothing is left."
