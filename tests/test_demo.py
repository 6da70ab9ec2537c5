"""The demonstration shows what it says it shows, and leaves nothing, whatever ends it."""

import copy
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import faultlab
import pytest

from agentd import process
from agentd.demo import shop
from agentd.scripted import Server

ROOT = Path(__file__).resolve().parent.parent
DEMO = [sys.executable, "-m", "agentd", "demo"]
PATIENCE_S = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Ended(NamedTuple):
    code: int
    text: str


class Show:
    """As on a fresh machine: nothing but HOME and PATH, and a folder for what is temporary."""

    def __init__(self, home: Path, place: Path) -> None:
        place.mkdir()
        self.place = place
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(place)}
        if "AGENTD_WITHOUT" in os.environ:
            self.environment["AGENTD_WITHOUT"] = os.environ["AGENTD_WITHOUT"]

    def start(self, *words: str | Path, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            words,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )

    def run(self, *words: str | Path, **more: str) -> Ended:
        said = self.place.parent / "said"  # not a pipe: a process that is left would hold it open
        with said.open("w") as file:
            done = subprocess.run(
                words, env={**self.environment, **more}, stdout=file, stderr=file, cwd="/", timeout=PATIENCE_S
            )
        return Ended(done.returncode, said.read_text())

    def nothing_is_left(self) -> bool:
        """No folder, and no process that had its home in one: what belongs to it knows it by that."""
        mine = f"HOME={self.place}/".encode()

        def is_mine(pid: int) -> bool:
            try:
                pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                return False
            return any(pair.startswith(mine) for pair in pairs) and not process.is_zombie(pid)

        return not list(self.place.iterdir()) and not any(
            map(is_mine, map(int, filter(str.isdigit, os.listdir("/proc"))))
        )


@pytest.fixture
def show(home: Path, tmp_path: Path) -> Show:
    return Show(home, tmp_path / "tmp")


@pytest.fixture
def model() -> Iterator[Callable[[Any], str]]:
    """A server for a script; its address."""
    servers: list[Server] = []

    def serve(script: Any) -> str:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].url

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def changed(edit: Callable[[list[dict[str, Any]]], None]) -> Any:
    """The script of the demonstration, with other turns for the task."""
    script = copy.deepcopy(shop.SCRIPT)
    edit(script["scripts"][0]["turns"])
    return script


def test_a_script_plays_the_model_and_nothing_is_left(show: Show, home: Path) -> None:
    before = sorted(home.rglob("*"))
    ended = show.run(ROOT / "scripts" / "demo", CHECK_VENV=sys.prefix)
    assert ended.code == 0, ended.text
    assert "The model is a script of agentd's, not a model" in ended.text
    assert "which came first: the prompt" in ended.text and "100, less 25 %: 75.00" in ended.text
    assert "Nothing is left." in ended.text and "\x1b" not in ended.text
    assert "environment:" not in ended.text  # none was made: the one that was given is good
    assert show.nothing_is_left() and sorted(home.rglob("*")) == before


def test_with_a_key_the_model_is_that_of_the_server_and_its_price_is_told(
    show: Show, model: Callable[[Any], str]
) -> None:
    url = model(shop.SCRIPT)
    ended = show.run(*DEMO, "--json", ANTHROPIC_API_KEY="sk-test-0123456789", ANTHROPIC_BASE_URL=url)
    assert ended.code == 0, ended.text
    told, answer = ended.text.rstrip("\n").rsplit("\n", 1)
    facts = json.loads(answer)
    assert facts["ok"] is True and facts["model"] == "real" and facts["repository"] is None
    assert facts["spent"]["turns"] == 7 and facts["spent"]["cost"] > 0
    assert f"The model is a real one, at {url}." in told and "spent: 7 turns" in told and "script played" not in told
    assert facts["worktree_after_ms"] > 0 and "sk-test-0123456789" not in ended.text
    assert show.nothing_is_left()


def test_the_script_can_be_had_beside_a_key_and_a_proxy_and_the_repository_kept(show: Show) -> None:
    nowhere = "http://127.0.0.1:9"
    proxies = {"http_proxy": nowhere, "HTTPS_PROXY": nowhere, "ANTHROPIC_API_KEY": "x", "ANTHROPIC_BASE_URL": nowhere}
    ended = show.run(*DEMO, "--script", "--keep", "--quiet", **proxies)
    assert (ended.code, ended.text) == (0, "")
    (place,) = show.place.iterdir()
    assert [entry.name for entry in place.iterdir()] == ["shop"]
    bill = subprocess.run([sys.executable, "shop.pyz", "100", "25"], cwd=place / "shop", capture_output=True, text=True)
    assert bill.stdout == "75.00\n"
    status = subprocess.run(["git", "status", "--porcelain"], cwd=place / "shop", capture_output=True, text=True)
    assert (status.returncode, status.stdout) == (0, "")
    assert subprocess.run(["git", "config", "filter.gate.smudge"], cwd=place / "shop").returncode == 1


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda turns: turns.__setitem__(slice(2, 4), []), "did it change anything: no; it should be yes"),
        (
            lambda turns: turns[2]["calls"][1]["input"].update(new=shop.WRONG + "  # looked at"),
            "exit code of the build: 1; it should be 0",
        ),
        (
            lambda turns: turns.__setitem__(slice(1, None), [{"fault": "refusal", "times": 0, "repeat": True}]),
            "exit code of agentd wait fix: 2; it should be 0",
        ),
    ],
    ids=["mends nothing", "mends it wrongly", "refuses"],
)
def test_a_model_that_does_not_mend_it_is_told_in_a_line(
    show: Show, model: Callable[[Any], str], edit: Callable[[list[dict[str, Any]]], None], told: str
) -> None:
    ended = show.run(*DEMO, ANTHROPIC_API_KEY="sk-test-0123456789", ANTHROPIC_BASE_URL=model(changed(edit)))
    assert ended.code == 1, ended.text
    assert ended.text.splitlines()[-1] == f"agentd: the demonstration went wrong: {told}"
    assert show.nothing_is_left()


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, "== A repository"),
        (signal.SIGINT, "agentd daemon start"),
        (signal.SIGINT, "agentd wait fix"),
        (signal.SIGTERM, "== How they end"),
        (signal.SIGHUP, "agentd logs -f main"),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(show: Show, number: signal.Signals, at: str) -> None:
    demo = show.start(*DEMO)
    assert demo.stdout is not None
    with demo:
        assert any(at in line for line in demo.stdout)
        demo.send_signal(number)
        rest = demo.stdout.read()
        assert demo.wait(PATIENCE_S) == 128 + number, rest
    assert "Traceback" not in rest
    assert show.nothing_is_left()


def test_ctrl_c_in_a_terminal_goes_to_its_commands_too_and_leaves_nothing(show: Show) -> None:
    """Twice: the second one must not disturb the cleaning up."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/")
        os.execve(DEMO[0], DEMO, show.environment)
    seen = read_until(terminal, b"agentd wait fix")
    assert b"\x1b[1m$ agentd wait fix" in seen
    os.write(terminal, b"\x03\x03")
    read_until(terminal, None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    faultlab.until(show.nothing_is_left)


def read_until(fd: int, text: bytes | None) -> bytes:
    """All that comes, until ``text`` has, or the other side has gone."""
    seen = b""
    while text is None or text not in seen:
        assert select.select([fd], [], [], PATIENCE_S)[0], seen
        try:
            data = os.read(fd, 1 << 16)
        except OSError:
            data = b""
        if not data:
            assert text is None, seen
            break
        seen += data
    return seen


def test_who_reads_no_further_ends_it(show: Show) -> None:
    demo = show.start(*DEMO)
    assert demo.stdout is not None
    with demo:
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(PATIENCE_S) == 128 + signal.SIGPIPE
    assert show.nothing_is_left()


def test_what_does_not_go_together_is_refused(show: Show) -> None:
    ended = show.run(*DEMO, "--model", "some-model")
    assert ended.code == 2 and ended.text.startswith(
        "agentd: --model is for a real model, which needs ANTHROPIC_API_KEY"
    )
    assert show.nothing_is_left()


SAID = {
    "ps": {"waiting", "failed", "+12 -0", "more-wares"},
    "tree": {"└─ pack", "└─ sign"},
    "top": {"CPU", "LOG/S", "load"},
    "logs": {"asks", "you", "leave it", "done"},
}


def test_the_pictures_are_drawn_from_a_real_run(show: Show, tmp_path: Path) -> None:
    ended = show.run(sys.executable, ROOT / "scripts" / "picture", "--to", tmp_path)
    assert (ended.code, ended.text.split()) == (0, [str(tmp_path / f"{name}.svg") for name in SAID])
    for name, words in SAID.items():
        picture = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        width = float(picture.attrib["viewBox"].split()[2])
        texts = [element for element in picture.iter() if element.tag.endswith("}text")]
        assert words <= {element.text for element in texts}
        for element in texts[1:]:
            assert float(element.attrib["x"]) + float(element.attrib["textLength"]) < width, element.text
    assert show.nothing_is_left()
