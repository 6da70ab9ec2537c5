"""The texts say what the program does: every verb, flag, key and method is described, links lead somewhere, and
the dialogue of the protocol's manual takes place."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from agentd import Client
from agentd.cli import verbs
from agentd.cli.daemon import stop_daemon
from agentd.config import Config
from agentd.protocol import METHODS

ROOT = Path(__file__).resolve().parent.parent
MORE = "..."


def roff(name: str) -> str:
    """A manual page with its escapes and fonts taken out."""
    text = (ROOT / "man" / name).read_text()
    text = re.sub(r"\\f[A-Z]", "", text).replace("\\-", "-").replace("\\(dq", '"').replace("\\&", "")
    return re.sub(r"^\.(?:[BI]|BR|BI|IR|RB|RI)\s+", "", text, flags=re.MULTILINE)


def all_verbs() -> Iterator[tuple[str, Any]]:
    app = verbs.command_line()
    context = typer.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        yield name, command
        if name == "daemon":
            for below in command.list_commands(context):
                yield f"daemon {below}", command.get_command(context, below)


def section(page: str, verb: str) -> str:
    """What stands under the verb's heading."""
    found = re.search(rf"^\.SS {re.escape(verb)}\b(.*?)(?=^\.S[SH] )", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"agentd(1) has no heading for {verb}"
    return found[1]


def test_every_verb_and_flag_is_in_the_manual() -> None:
    page = roff("agentd.1")
    common = page[page.index(".SH OPTIONS OF ALL VERBS") : page.index(".SH VERBS")]
    shared = section(page, "delegate")
    missing = []
    for verb, command in all_verbs():
        own = section(page, verb.split()[0])
        if verb == "run":
            own += shared[shared.index("These are options of") :]
        if verb == "daemon doctor":
            own += section(page, "doctor")
        for word in verb.split()[1:]:
            assert word in own, f"agentd(1) does not name {verb}"
        for option in command.params:
            for flag in getattr(option, "opts", []):
                if flag.startswith("--") and not re.search(rf"{flag}(?![\w-])", own + common):
                    missing.append(f"{verb} {flag}")
    assert not missing


def config_keys() -> Iterator[tuple[str, str]]:
    for table in msgspec.structs.fields(Config):
        for key in msgspec.structs.fields(table.type):
            yield table.name, key.name


@pytest.mark.parametrize(("table", "key"), list(config_keys()))
def test_every_setting_is_in_the_manual(table: str, key: str) -> None:
    page = roff("agentd.toml.5")
    assert re.search(rf"^{key} ", section(page, f"[{table}]".rstrip("]")), re.MULTILINE)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_and_parameter_is_in_the_manual(method: str) -> None:
    page = roff("agentd-protocol.7")
    found = re.search(rf"^\.SS {re.escape(method)}(?P<star> \*)?\n(?P<text>.*?)(?=^\.S[SH])", page, re.M | re.S)
    assert found is not None
    assert (found["star"] is not None) == METHODS[method].is_narrow
    for field in msgspec.structs.fields(METHODS[method].params):
        assert re.search(rf"\b{field.name}\b", found["text"]), field.name


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


# --- the dialogue -------------------------------------------------------------------------------------------


def dialogue() -> list[tuple[str, str]]:
    page = (ROOT / "man" / "agentd-protocol.7").read_text()
    return re.findall(r"^([<>]) (\{.*\})$", page[page.index(".SH EXAMPLE") :], re.MULTILINE)


def pattern(line: str) -> Any:
    """A received line of the manual; an object in which ``...`` stands may have more fields."""
    return json.loads(re.sub(r",?\.\.\.\}", f', "{MORE}": 0}}', line))


def check(wanted: Any, got: Any, where: str) -> None:
    if isinstance(wanted, dict):
        assert isinstance(got, dict), where
        named = set(wanted) - {MORE}
        assert named <= set(got) if MORE in wanted else named == set(got), where
        for key in named:
            check(wanted[key], got[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(got), where
        for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
            check(one, other, f"{where}[{number}]")
    else:
        assert wanted == got, where


def test_the_dialogue_takes_place() -> None:
    lines = dialogue()
    assert {way for way, _ in lines} == {"<", ">"}
    with Client() as client:
        path = client.ask("daemon.status")["socket"]
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(30)
            link.connect(path)
            file = link.makefile("rw", encoding="utf-8", newline="\n")
            received: list[str] = []
            for way, line in lines:
                if way == ">":
                    file.write(line + "\n")
                    file.flush()
                    received = read_answer(file, json.loads(line)["id"])
                else:
                    check(pattern(line), take(received, pattern(line)), line)
    finally:
        stop_daemon(kill_jobs=True)


def read_answer(file: Any, id: int) -> list[str]:
    """All lines up to the answer to ``id``, itself included."""
    found: list[str] = []
    while not found or json.loads(found[-1]).get("id") != id:
        line = file.readline()
        assert line, "the daemon hung up"
        found.append(line)
    return found


def take(received: list[str], wanted: Any) -> Any:
    """The answer, or the event of the wanted number."""
    for line in received:
        got = json.loads(line)
        if "id" in wanted and got.get("id") == wanted["id"]:
            return got
        if "id" not in wanted and got.get("params", {}).get("seq") == wanted["params"]["seq"]:
            return got
    raise AssertionError(f"nothing of the kind came: {wanted}")
