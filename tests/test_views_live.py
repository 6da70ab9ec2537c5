"""Views of real jobs, in a terminal of their own: live, without a daemon, for those who cannot see, and under
attack."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
import pytest
from clishell import AGENTD, PATIENCE_S, Shell
from test_views import OUR_CODES

from agentd.cli import render

HOSTILE = b"\x1b[2J\x1b]0;t\x07\x9b31m\xe2\x80\xae\xff\r\x08\x1b]52;c;aGk=\x1b\\\xe6\xbc\xa2\x00"
TASK = "\x1b]0;t\x07 \x1b[2J\u202e\x9b31m\n\u2028 漢字\udcff"
RUN_ALL = "import sys, json; from agentd import cli; [cli.guarded(words) for words in json.loads(sys.argv[1])]"


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    for agentd in clishell.serve(tmp_path, monkeypatch):
        agentd.cwd = Path(gitrepo.make_repo(tmp_path / "repo"))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("AGENTD_OWNER", "me")
        for name in ("NO_COLOR", "COLUMNS", "LINES", "PAGER", "GIT_PAGER", "LESS"):
            monkeypatch.delenv(name, raising=False)
        yield agentd


class Terminal:
    """A verb in a terminal of its own, whose line discipline changes no byte of its output."""

    def __init__(self, command: Sequence[str], cwd: Path, columns: int = 100, **env: str) -> None:
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        mode = termios.tcgetattr(theirs)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, mode)
        self.mode = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=os.environ | env, start_new_session=True
        )
        self.theirs = theirs
        self.seen = b""

    def until(self, pattern: bytes) -> None:
        while not re.search(pattern, self.seen):
            assert select.select([self.fd], [], [], PATIENCE_S)[0], f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 1 << 16)

    def forget(self) -> None:
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def finish(self) -> tuple[int, bytes]:
        """Its exit code, and all that it wrote; the terminal must be as it was."""
        code = None
        while code is None or select.select([self.fd], [], [], 0)[0]:
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 1 << 16)
            code = self.process.poll()
        assert termios.tcgetattr(self.theirs) == self.mode
        os.close(self.fd)
        os.close(self.theirs)
        return code, self.seen


def seen(agentd: Shell, *words: str, columns: Any = 100, **env: str) -> str:
    code, said = Terminal([*AGENTD, *words], agentd.cwd, columns, **env).finish()
    assert code == 0, said
    return said.decode()


# --- trees ----------------------------------------------------------------------------------------------------------


def family(agentd: Shell) -> None:
    """1 `top` delegated 2 `low`; both run. 3 `other` has ended."""
    inner = f"{sys.executable} -m agentd run -d -q --name low sh -c 'while :; do :; done' && exec sleep 1000"
    agentd.job("sh", "-c", inner, flags=["--name", "top"])
    faultlab.until(lambda: "low" in agentd.ok("ps"))
    agentd.ok("wait", "--for", "running", "low")
    agentd("run", "--name", "other", "true")


def test_ps_shows_who_delegated_what(agentd: Shell) -> None:
    family(agentd)
    rows = [line.split()[:3] for line in agentd.ok("ps", "--tree").splitlines()]
    assert rows[1:] == [["1", "top", "running"], ["2", "└─".encode().decode("latin-1"), "low"]]
    assert [one["parent"] for one in agentd.json("ps", "--tree", "--json")] == [None, 1]


# --- top ------------------------------------------------------------------------------------------------------------


def test_top_counts_each_tree_by_itself_and_works_without_a_daemon(agentd: Shell) -> None:
    family(agentd)
    loud = "yes > /dev/null & while :; do echo 0123456789; done"
    agentd.job("sh", "-c", loud, flags=["--name", "loud"])
    agentd.ok("wait", "--for", "running", "loud")
    uses = {one["name"]: one for one in agentd.json("top", "--json")}
    assert set(uses) == {"top", "low", "loud"}
    assert (uses["top"]["processes"], uses["low"]["processes"], uses["loud"]["processes"]) == (1, 1, 2)
    assert uses["top"]["cpu"] < 0.05 < uses["low"]["cpu"] + uses["loud"]["cpu"]
    assert uses["loud"]["log_per_second"] > 1000 and uses["low"]["log_per_second"] == 0
    assert all(one["memory"] > 100_000 for one in uses.values())
    agentd.ok("daemon", "stop")
    offline = agentd.ok("top")
    assert "no daemon is running; this is what the files tell" in offline
    assert [line.split()[1] for line in offline.splitlines()[3:]] != [] and "running" in offline
    assert agentd("daemon", "status").code == 3, "top has started a daemon"


def test_top_is_live_and_gives_the_terminal_back(agentd: Shell) -> None:
    agentd.job("sleep", "1000", flags=["--name", "one"])
    top = Terminal([*AGENTD, "top", "--interval", "60s"], agentd.cwd)
    top.until(rb"(?s)one .*q quit")
    agentd.job("sleep", "1000", flags=["--name", "two"])
    top.until(rb"two ")  # by the event: the next look is a minute away
    top.type(b"k1\n")
    top.until(rb"job 1 is being ended")
    agentd("wait", "one")
    top.forget()
    os.kill(top.process.pid, signal.SIGWINCH)
    top.until(rb"q quit|being ended")
    assert b"one " not in top.seen
    top.type(b"q")
    code, said = top.finish()
    assert code == 0 and said.endswith(b"\x1b[?25h\x1b[?1049l")
    top = Terminal([*AGENTD, "top"], agentd.cwd)
    top.until(rb"q quit")
    os.kill(top.process.pid, signal.SIGTERM)
    code, said = top.finish()
    assert code == 143 and said.endswith(b"\x1b[?1049l")


def test_top_outlives_the_daemon(agentd: Shell) -> None:
    agentd.job("sleep", "1000", flags=["--name", "one"])
    top = Terminal([*AGENTD, "top", "--interval", "0.5s"], agentd.cwd)
    top.until(rb"one .*0%")
    agentd.ok("daemon", "stop")
    top.until(rb"no daemon is running[^H]*one ")
    assert agentd("daemon", "status").code == 3
    agentd.job("sleep", "1000", flags=["--name", "two"])
    top.until(rb"two ")
    top.forget()
    top.until(rb"(?s)\x1b\[H.*q quit")
    assert b"no daemon" not in top.seen and b"one " in top.seen
    top.type(b"q")
    assert top.finish()[0] == 0


# --- where one stands -----------------------------------------------------------------------------------------------


def test_agentd_alone_says_where_one_stands_and_starts_no_daemon(agentd: Shell) -> None:
    before = agentd.ok()
    assert before.startswith("No daemon is running") and "Next:" in before
    assert agentd("daemon", "status").code == 3
    agentd.ok("delegate", "-q", "--name", "change", "--", "sh", "-c", "echo x > new")
    agentd.ok("wait", "change")
    agentd.job("sleep", "1000", flags=["--name", "other", "--owner", "you"])
    faultlab.until(lambda: "agentd merge 1" in agentd.ok())
    said = agentd.ok()
    assert "2 jobs: 1 succeeded, 1 running" in said and "  agentd logs -f 2 " in said
    elsewhere = agentd.cwd.parent / "elsewhere"
    elsewhere.mkdir()
    said = agentd.ok(cwd=elsewhere, AGENTD_OWNER="nobody")
    assert "No jobs of this shell" in said and "1 job goes on elsewhere: agentd ps" in said
    agentd.ok("daemon", "stop")
    said = agentd.ok()
    assert said.startswith("No daemon is running") and "change" in said and "other" in said
    assert agentd("daemon", "status").code == 3


# --- terminals ------------------------------------------------------------------------------------------------------


def test_a_pager_is_for_people_and_not_for_what_goes_on(agentd: Shell) -> None:
    agentd("run", "--name", "say", "echo", "hello")
    shout = {"AGENTD_PAGER": "tr a-z A-Z"}
    for verb in ("logs", "inspect"):
        assert "HELLO" in seen(agentd, verb, "say", **shout), verb
        assert "hello" in seen(agentd, verb, "say", "--no-pager", **shout)
        assert "hello" in agentd.ok(verb, "say", **shout)
        assert "hello" in seen(agentd, verb, "say", TERM="dumb", **shout)
    assert seen(agentd, "logs", "-f", "say", **shout) == "hello\n"
    assert "hello" in seen(agentd, "logs", "say", AGENTD_PAGER="/nonexistent/pager")
    agentd("run", "--name", "much", "seq", "200000")
    assert seen(agentd, "logs", "much", AGENTD_PAGER="head -n 1") == "1\n"


def test_colours_are_off_where_they_are_not_wanted(agentd: Shell) -> None:
    agentd("run", "--name", "say", "false")
    for words in (["ps", "-a"], ["inspect", "say"], ["events", "--since", "0"], ["top", "--no-stream"], []):
        asked = {"AGENTD_PAGER": "cat"}
        assert "\x1b[" in seen(agentd, *words, **asked), words
        assert "\x1b" not in seen(agentd, *words, NO_COLOR="1", **asked)
        assert "\x1b" not in seen(agentd, *words, TERM="dumb", **asked)
        assert "\x1b" not in agentd.ok(*words)
    assert "\x1b" not in seen(agentd, "top", TERM="dumb"), "a screen is taken over where there is none"


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_every_width_is_kept(agentd: Shell, columns: int) -> None:
    agentd("run", "--name", "a-name-that-is-rather-long", "sh", "-c", "exit 3 # " + "words " * 40)
    agentd.job("sleep", "1000", flags=["--name", "asleep"])
    for words in (
        ["ps", "-a"],
        ["ps", "-a", "--tree"],
        ["inspect", "1"],
        ["events", "--since", "0"],
        ["top", "--no-stream"],
    ):
        lines = OUR_CODES.sub("", seen(agentd, *words, columns=columns, AGENTD_PAGER="cat")).splitlines()
        assert [line for line in lines if render.columns_of(line) > columns] == [], words


# --- hostile text ---------------------------------------------------------------------------------------------------


def test_no_verb_lets_a_job_drive_the_terminal(agentd: Shell) -> None:
    script = agentd.cwd.parent / "hostile"
    script.write_bytes(
        b"printf '%s' '" + HOSTILE.replace(b"\x00", b"") + b"' | tee \"$(printf '\\033[31m')\"; printf x >&2; exit 3"
    )
    agentd.ok("delegate", "-q", "--name", "evil", TASK.encode("utf-8", "surrogateescape"), "--", "sh", str(script))
    agentd("wait", "evil")
    agentd.job("sleep", "1000", "\x1b[2J\u202e", flags=["--name", "evil-args"])
    faultlab.until(lambda: agentd.json("inspect", "evil", "--json")["job"]["result"] is not None)
    evil = "\x1b[2J\u202e\udcff\n"
    verbs = [
        *[[], ["ps", "-a"], ["ps", "-a", "--tree", "--no-trunc"], ["jobs", "-a"], ["top", "--no-stream"], ["inbox"]],
        *[
            ["logs", "evil"],
            ["logs", "-t", "evil"],
            ["logs", "-f", "evil"],
            ["logs", "--json", "evil"],
            ["wait", "evil"],
        ],
        *[
            ["inspect", "evil"],
            ["inspect", "evil-args"],
            ["events", "--since", "0"],
            ["result", "evil"],
            ["path", "evil"],
        ],
        *[["diff", "evil"], ["diff", "--stat", "evil"], ["diff", "--name-only", "evil"], ["locks"], ["profiles"]],
        *[["send", "evil", evil], ["answer", "evil", evil], ["merge", "evil", "--into", evil], ["interrupt", "evil"]],
        *[
            [verb, evil]
            for verb in ("logs", "wait", "inspect", "result", "diff", "path", "kill", "restart", "rm", "undo")
        ],
        *[[verb, evil] for verb in ("send", "answer", "interrupt", "merge", "locks", "daemon", "top", "ps", evil)],
        *[
            ["run", "--name", evil, "true"],
            ["run", "-d", evil],
            ["lock", evil],
            ["lock", evil, "--", "true"],
            ["unlock", evil],
        ],
        *[["top", "--sort", evil], ["events", "--as", evil], ["events", "--job", evil], ["locks", "why", evil]],
        *[["delegate", "--base", evil, "--", "true"], ["run", "-w", evil, "true"], ["run", "-e", evil, "true"]],
        *[["wait", "--for", evil, "evil"], ["kill", "-s", evil, "evil"], ["logs", "--since", evil, "evil"]],
        *[["rm", "evil"], ["undo"], ["undo", "evil"]],
    ]
    command = [sys.executable, "-c", RUN_ALL, json.dumps(verbs)]
    code, said = Terminal(command, agentd.cwd, AGENTD_PAGER="cat").finish()
    assert code == 0, said
    shown = OUR_CODES.sub("", said.decode("utf-8", "surrogateescape"))
    found = render.HARMFUL.search(shown.replace("\n", "").replace("\t", ""))
    assert found is None, shown[max(0, shown.index(found[0]) - 200) :][:400].encode("unicode-escape")
    assert "Traceback" not in shown and "agentd failed" not in shown
    assert shown.count("漢字") > 5, "the views do not show the task"
