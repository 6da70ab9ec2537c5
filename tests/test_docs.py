"""The texts say what the program does, and no more: verbs, flags, settings, methods, events, codes; links lead
somewhere, and the dialogue of the protocol's manual takes place."""

import ast
import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import Client, jobdir
from agentd.agents import KINDS
from agentd.cli import verbs
from agentd.cli.daemon import stop_daemon
from agentd.config import Config, Profile, Rates
from agentd.core import errors, job, machine
from agentd.daemon.views import job_view
from agentd.protocol import METHODS
from agentd.runners.conversation import ARROWS

ROOT = Path(__file__).resolve().parent.parent
MAN = ("agentd.1", "agentd.toml.5", "agentd-protocol.7", "agentd-transcript.5")
TRANSCRIPT = "agentd-transcript.5"
PROTOCOL = "agentd-protocol.7"
MORE = "..."
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def plain(text: str) -> str:
    """A manual page with its escapes and fonts taken out."""
    text = re.sub(r"\\f[A-Z]", "", text).replace("\\-", "-").replace("\\(dq", '"').replace("\\&", "")
    return re.sub(r"^\.(?:[BI]|BR|BI|IR|RB|RI)\s+", "", text, flags=re.MULTILINE)


@functools.cache
def page(name: str) -> str:
    return plain((ROOT / "man" / name).read_text())


def part(name: str, heading: str) -> str:
    """What stands in a page under a heading that begins so: a section, or a subsection."""
    level, until = ("SH", r"^\.SH ") if heading.isupper() else ("SS", r"^\.S[SH] ")
    found = re.search(rf"^\.{level} {re.escape(heading)}(?![\w.-])(.*?)(?={until}|\Z)", page(name), re.M | re.S)
    assert found is not None, f"{name} has no heading {heading}"
    return found[1]


def terms(text: str) -> list[str]:
    """The heads of its paragraphs."""
    return re.findall(r"^\.TP\n(.*)$", text, re.MULTILINE)


def words(heads: list[str]) -> list[str]:
    """The names that heads are about: what follows in brackets is told of them."""
    return [word for head in heads for word in re.split(r'[", ]+', head.partition("(")[0]) if word]


@pytest.mark.parametrize("name", MAN)
@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_a_page_is_clean(name: str) -> None:
    command = ["groff", "-man", "-ww", "-z", "-Tutf8", str(ROOT / "man" / name)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stderr == ""


# --- agentd(1) ----------------------------------------------------------------------------------------------


def help_of(*verb: str) -> str:
    """What ``agentd VERB --help`` prints."""
    command = [sys.executable, "-m", "agentd", *verb, "--help"]
    environment = {**os.environ, "COLUMNS": "200"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def flags_in_help(text: str) -> set[str]:
    return {flag for line in re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE) for flag in FLAG.findall(line)}


def flags_in_heads(text: str) -> set[str]:
    return set(FLAG.findall(" ".join(terms(text))))


def test_the_verbs_are_those_of_the_manual() -> None:
    heads = re.findall(r"^\.SS (\w+)", part("agentd.1", "VERBS"), re.MULTILINE)
    assert heads == list(verbs.VERBS)
    said = help_of()
    assert re.findall(r"^  (\w+)  ", said.partition("Verbs:\n")[2], re.MULTILINE) == heads
    assert "--version" in said


@pytest.mark.parametrize("verb", [verb for verb in verbs.VERBS if verb not in verbs.GROUPS])
def test_the_flags_of_a_verb_are_those_of_the_manual(verb: str) -> None:
    told = flags_in_heads(part("agentd.1", verb))
    if verb == "run":
        told |= flags_in_heads(part("agentd.1", "delegate").partition("These are options of")[2])
    common = flags_in_heads(part("agentd.1", "OPTIONS OF ALL VERBS")) - {"--version"}
    assert flags_in_help(help_of(verb)) == told | common


def test_the_verbs_of_the_daemon_are_those_of_the_manual() -> None:
    heading = re.search(r"^\.SS daemon (.*)$", page("agentd.1"), re.MULTILINE)
    assert heading is not None and heading[1].split(" | ") == list(verbs.DAEMON_VERBS)
    told = flags_in_heads(part("agentd.1", "daemon")) | flags_in_heads(part("agentd.1", "doctor"))
    common = flags_in_heads(part("agentd.1", "OPTIONS OF ALL VERBS")) - {"--version"}
    asked = [flags_in_help(help_of("daemon", verb)) for verb in verbs.DAEMON_VERBS]
    assert set().union(*asked) == told | common


def test_the_verbs_of_locks_are_those_of_the_manual() -> None:
    heading = re.search(r"^\.SS locks (.*)$", page("agentd.1"), re.MULTILINE)
    assert heading is not None and re.findall(r"[a-z]+", heading[1].lower().replace("name", "")) == list(
        verbs.LOCKS_VERBS
    )
    told = flags_in_heads(part("agentd.1", "locks"))
    common = flags_in_heads(part("agentd.1", "OPTIONS OF ALL VERBS")) - {"--version"}
    asked = [flags_in_help(help_of("locks", *verb)) for verb in ([], *([verb] for verb in verbs.LOCKS_VERBS))]
    assert set().union(*asked) <= told | common
    assert told <= set().union(*asked)


def codes_of_errors() -> set[str]:
    """Those of the table in core/errors.py, and 3, which is of ``daemon status`` alone."""
    rows = str(errors.__doc__).splitlines()
    return {row.split()[0] for row in rows if re.match(r"\d", row)} | {"3"}


def test_the_exit_codes_of_the_manual_are_those_of_the_errors() -> None:
    heads = terms(part("agentd.1", "EXIT STATUS").partition("pass on how")[0])
    assert {head.replace(" ", "") for head in heads} == codes_of_errors()


def section_of_readme(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the README."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.replace("\\|", "/").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip("| ") for cell in row] for row in rows[2:]]


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    assert {code for row in section_of_readme("Exit codes") for code in row[0].split(", ")} == codes_of_errors()


def test_the_readme_lists_every_verb() -> None:
    assert {verb for row in section_of_readme("Verbs") for verb in re.findall(r"`(\w+)", row[0])} == set(verbs.VERBS)


def test_the_kinds_of_agent_are_those_of_the_manual() -> None:
    entry = part("agentd.1", "delegate").partition("--agent")[2].partition(".TP")[0]
    assert set(re.findall(r"There is\s+(\w+)", entry)) == set(KINDS)


# --- agentd.toml(5) -----------------------------------------------------------------------------------------


def test_the_settings_and_their_defaults_are_those_of_the_manual() -> None:
    told: dict[str, dict[str, Any]] = {}
    for table in re.findall(r"^\.SS \[([\w.]+)\]", part("agentd.toml.5", "KEYS"), re.MULTILINE):
        keys = [head.split(' " = ', 1) for head in terms(part("agentd.toml.5", f"[{table}]"))]
        told[table] = {key: json.loads(value[:-1]) for key, value in keys}
    rates = words(terms(part("agentd.toml.5", '[prices."MODEL"]')))
    assert sorted(rates) == sorted(field.name for field in msgspec.structs.fields(Rates))
    assert told.pop("profiles.NAME") == json.loads(msgspec.json.encode(msgspec.to_builtins(Profile())))
    assert told | {"profiles": {}, "prices": {}} == json.loads(msgspec.json.encode(msgspec.to_builtins(Config())))


# --- agentd-protocol(7) -------------------------------------------------------------------------------------


def test_the_methods_are_those_of_the_manual() -> None:
    heads = re.findall(r"^\.SS ([\w.]+)( \*)?$", part(PROTOCOL, "METHODS"), re.MULTILINE)
    assert [(name, bool(star)) for name, star in heads] == [(name, m.is_narrow) for name, m in METHODS.items()]


@pytest.mark.parametrize("method", list(METHODS))
def test_the_parameters_of_a_method_are_those_of_the_manual(method: str) -> None:
    told = words(terms(part(PROTOCOL, method)))
    assert sorted(told) == sorted(field.name for field in msgspec.structs.fields(METHODS[method].params))


def test_the_job_object_is_that_of_the_manual() -> None:
    bare = job.Job(1, "a", "command", "", ("x",), "me", 1, 0.0, job.InPlace("/"), job.Queued(0.0))
    assert sorted(words(terms(part(PROTOCOL, "The job object")))) == sorted(job_view(bare))


def test_the_states_and_outcomes_are_those_of_the_manuals() -> None:
    assert set(terms(part(PROTOCOL, "States"))) == {*machine.TABLE, job.PARKED}
    outcomes = {value for name, value in vars(job).items() if name.isupper() and isinstance(value, str)} - {job.PARKED}
    assert set(terms(part(PROTOCOL, "Outcomes"))) == outcomes
    assert set(words(terms(part("agentd.1", "EXIT STATUS").partition("pass on how")[2]))) == outcomes


def sources(*folders: str) -> Iterator[ast.AST]:
    for folder in folders:
        for file in sorted((ROOT / "agentd" / folder).glob("*.py")):
            yield from ast.walk(ast.parse(file.read_text()))


def test_the_events_are_those_of_the_manual() -> None:
    event = re.compile(r"(job|worktree|repository|subscriber|lock)\.(?!json$)[a-z_]+|agentd\.trouble|overlap")
    texts = [str(node.value) for node in sources("core", "daemon") if isinstance(node, ast.Constant)]
    written = {text for text in texts if event.fullmatch(text)} - set(METHODS)
    # Those two are put together from what a keeper says.
    assert set(words(terms(part(PROTOCOL, "EVENTS")))) == written | {"job.log_blocked", "job.log_unblocked"}


def test_the_words_for_errors_are_those_of_the_manual() -> None:
    kinds = {"Refused": "1", "refuse": "1", "Usage": "2", "NotNow": "75", "Fault": "125"}
    used: dict[str, set[str]] = {exit: set() for exit in kinds.values()}
    for node in sources("core", "daemon", "git", "agents"):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in kinds:
            code = next((k.value for k in node.keywords if k.arg == "code"), node.args[1] if node.args[1:] else None)
            if isinstance(code, ast.Constant):
                used[kinds[name]].add(str(code.value))
    entries = part(PROTOCOL, "Errors").partition("the words by")[2].split(".TP\n")[1:]
    told = {entry.partition("\n")[0]: entry.partition("\n")[2].partition(".PP")[0] for entry in entries}
    assert set(told) == set(used)
    # Without a daemon nobody is answered: what stands in the way of its start is read elsewhere.
    unheard = {"low_limits", "remote_state", "unsafe_folder"}
    for exit, text in told.items():
        missing = used[exit] - unheard - set(re.findall(r"\w+", text))
        assert not missing, (exit, missing)
    everywhere = set().union(*used.values()) | {"fault", "bad_config", "bad_value"}
    assert set(re.findall(r"\w+", " ".join(told.values()))) <= everywhere


# --- links --------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


# --- the dialogue -------------------------------------------------------------------------------------------


def dialogue() -> list[tuple[str, str]]:
    text = (ROOT / "man" / PROTOCOL).read_text()
    return re.findall(r"^([<>]) (\{.*\})$", text[text.index(".SH EXAMPLE") :], re.MULTILINE)


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


class Talk:
    """Lines to and from a daemon through two descriptors."""

    def __init__(self, to: int, of: int, close: Callable[[], None]) -> None:
        self.to, self.of, self.close = to, of, close
        self.rest = b""

    def ask(self, line: str) -> list[str]:
        """Send a request; all lines up to its answer, that included."""
        os.write(self.to, line.encode() + b"\n")
        found: list[str] = []
        while not found or json.loads(found[-1]).get("id") != json.loads(line)["id"]:
            found.append(self.read_line())
        return found

    def read_line(self) -> str:
        while b"\n" not in self.rest:
            assert select.select([self.of], [], [], 30)[0], "no answer within 30 s"
            data = os.read(self.of, 1 << 16)
            assert data, "the daemon hung up"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()


def over_a_socket(state_dir: str, path: str) -> Talk:
    link = jobdir.connect(path)
    return Talk(link.fileno(), link.fileno(), link.close)


def over_socat(state_dir: str, path: str) -> Talk:
    """The command of the manual, word for word, in the state folder."""
    text = page(PROTOCOL)
    command = text[text.index("socat - UNIX") :].partition("\n")[0]
    child = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"], cwd=state_dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None

    def close() -> None:
        child.kill()
        child.communicate()

    return Talk(child.stdin.fileno(), child.stdout.fileno(), close)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """socat takes no path of more than 107 bytes, and a test's own folder can be longer."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        yield folder


@pytest.mark.parametrize("over", [over_a_socket, over_socat])
def test_the_dialogue_takes_place(
    over: Callable[[str, str], Talk], short_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over is over_socat and shutil.which("socat") is None:
        pytest.skip("no socat")
    monkeypatch.setenv("AGENTD_STATE_DIR", short_folder)
    lines = dialogue()
    assert {way for way, _ in lines} == {"<", ">"}
    with Client() as client:
        path = str(client.ask("daemon.status")["socket"])
    try:
        talk = over(client.state_dir, path)
        try:
            received: list[str] = []
            for way, line in lines:
                if way == ">":
                    received = talk.ask(line)
                else:
                    check(pattern(line), take(received, pattern(line)), line)
        finally:
            talk.close()
    finally:
        stop_daemon(kill_jobs=True)


def take(received: list[str], wanted: Any) -> Any:
    """The answer, or the event of the wanted number."""
    for line in received:
        got = json.loads(line)
        if "id" in wanted and got.get("id") == wanted["id"]:
            return got
        if "id" not in wanted and got.get("params", {}).get("seq") == wanted["params"]["seq"]:
            return got
    raise AssertionError(f"nothing of the kind came: {wanted}")


# --- agentd-transcript(5) -----------------------------------------------------------------------------------


def written_records() -> dict[str, set[str]]:
    """Type of record -> the members that it is written with by name, in any place of the runners."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "agentd" / "runners").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("write", "wait_for") and node.args:
                kind = node.args[0]
                if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
                    name = "waiting" if getattr(node.func, "attr", "") == "wait_for" else kind.value
                    found.setdefault(name, set()).update(word.arg for word in node.keywords if word.arg)
    return found


def test_the_records_are_those_of_the_manual() -> None:
    heads = [term.removeprefix(".B ") for term in terms(part(TRANSCRIPT, "RECORDS"))]
    assert sorted(heads) == sorted(written_records())
    assert set(ARROWS) <= set(heads)


@pytest.mark.parametrize("kind", sorted(written_records()))
def test_the_members_of_a_record_are_those_of_the_manual(kind: str) -> None:
    after = part(TRANSCRIPT, "RECORDS").partition(f".TP\n{kind}\n")[2]
    told = re.split(r"^\.(?:TP|SS)", after, maxsplit=1, flags=re.MULTILINE)[0]
    missing = {member for member in written_records()[kind] if not re.search(rf"\b{member}\b", told)}
    assert missing == set()
