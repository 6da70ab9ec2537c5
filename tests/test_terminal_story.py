"""In a real terminal: tmux, a shell, and a person's fingers. What is to be seen is waited for, nothing is timed."""

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import pytest
from clishell import Shell
from terminals import Tmux, Window

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux: apt-get install tmux")
SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell}: apt-get install it"))
    for shell in ("bash", "zsh")
]


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("AGENTD_OWNER", "me")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    for shell in clishell.serve(tmp_path, monkeypatch):
        monkeypatch.chdir(shell.cwd)
        yield shell


@pytest.fixture
def tmux(tmp_path: Path, agentd: Shell) -> Iterator[Tmux]:
    with Tmux(tmp_path, "bash") as tmux:
        yield tmux


def state(agentd: Shell, ref: str = "%+") -> str:
    return str(agentd.json("inspect", "--json", ref)["job"]["state"])


COUNTER = """\
trap 'echo "size $(stty size)"' WINCH
i=0
while [ ! -e go ]; do i=$((i+1)); echo "line $i"; sleep 0.3; done
echo the end; exit 3
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_whole_story(tmp_path: Path, agentd: Shell, shell: str) -> None:
    (agentd.cwd / "count").write_text(COUNTER)
    with Tmux(tmp_path, shell) as tmux:
        first = tmux.window("first")
        first.line("agentd run -t sh count")
        first.until("line 2")
        first.keys("C-z")
        first.until("[1]+  Stopped                 sh count")
        first.line("echo code=$?; agentd jobs; clear")
        first.line("agentd jobs")
        first.until("[1]+  Stopped                 sh count")
        first.line("clear; agentd bg; agentd jobs")
        first.until("[1]+ sh count &", "[1]+  Running                 sh count &")
        first.line("clear; agentd fg")
        first.until("line", without="$")  # in front, where keys are agentd's
        assert state(agentd) == "running"
        first.keys("C-b")
        first.until("goes on in the background")
        second = tmux.window("second", rows=30, columns=100)
        second.line("agentd attach 1")
        second.until("size 30 100")
        second.resize(35, 120)
        second.until("size 35 120")
        second.keys("C-p", "C-q")
        second.until("detached from job 1")
        second.line("echo code=$?")
        second.until("code=0")
        (agentd.cwd / "go").touch()
        first.line("clear; agentd wait 1; echo code=$?")
        first.until("code=3")
        first.line("clear; agentd jobs -a")
        first.until("[1]+  Exit 3                  sh count")


def test_a_plain_run_is_stopped_and_brought_back(agentd: Shell, tmux: Tmux) -> None:
    (agentd.cwd / "count").write_text(COUNTER)
    window = tmux.window("plain")
    window.line("agentd run sh count; echo code=$?")
    window.until("line 2")
    window.keys("C-z")
    window.until("[1]+  Stopped                 sh count", "code=148")
    window.line("clear; agentd fg; echo code=$?")
    window.until("line", without="$")
    window.keys("C-b")
    window.until("[1]+ sh count &", "code=0")
    window.line("clear; agentd fg; echo code=$?")
    window.until("line", without="$")
    (agentd.cwd / "go").touch()
    window.until("the end", "code=3")


# --- programs that have the whole screen --------------------------------------------------------------------

TEXT = "".join(f"text {n:04d}\n" for n in range(1, 2001))


def start_vim(agentd: Shell) -> list[str]:
    (agentd.cwd / "text").write_text(TEXT)
    return ["vim", "-u", "NONE", "-i", "NONE", "-n", "-N", "+set showmode", "text"]


def start_less(agentd: Shell) -> list[str]:
    (agentd.cwd / "text").write_text(TEXT)
    return ["less", "text"]


def start_top(agentd: Shell) -> list[str]:
    return ["top", "-d", "0.5"]


def page(program: str, window: Window) -> tuple[str, ...]:
    """Goes somewhere by a key; what the screen shows then."""
    if program == "vim":
        window.keys("1", "0", "0", "G")
        return ("text 0100",)
    if program == "less":
        window.keys("1", "0", "0", "g")
        return ("text 0100", "text 0101")
    return ("load average", "PID")


def quit(agentd: Shell, id: str, program: str, window: Window) -> None:
    if program == "vim":
        window.line(":q!")
    elif program == "less":
        window.keys("q")
    else:  # it throws away what is typed while it draws
        faultlab.until(lambda: (agentd.path(id) / "exit.json").exists() or window.keys("q") is not None, 60.0)
    window.until("\ncode=0")


def size_at(agentd: Shell, id: str) -> tuple[int, int]:
    """Of the job's own terminal."""
    with open(f"/proc/{agentd.record(id, 'agent.json')['agent']['pid']}/fd/0", "rb", buffering=0) as terminal:
        return os.get_terminal_size(terminal.fileno())[::-1]


PROGRAMS = {"vim": start_vim, "less": start_less, "top": start_top}
VICTIMS = [("agentd-keeper",), ("agentd-zygote",), ("agentd-daemon",)]
VICTIMS += [("agentd-keeper", "agentd-zygote"), ("agentd-keeper", "agentd-daemon"), ("agentd-zygote", "agentd-daemon")]


@pytest.mark.slow  # not steady beside other tests
@pytest.mark.parametrize("program", PROGRAMS)
def test_full_screen_programs_survive(agentd: Shell, tmux: Tmux, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program}: apt-get install it")
    id = agentd.job(*PROGRAMS[program](agentd), flags=["-t"])
    window = tmux.window("first")
    window.line(f"agentd attach {id}; echo code=$?")
    window.until(*(["text 0001"] if program != "top" else ["load average"]))
    shown = page(program, window)
    window.until(*shown)
    is_alternate = window.shows("#{alternate_on}")
    assert is_alternate == ("0" if program == "top" else "1")
    for victims in VICTIMS:
        kill(agentd, victims)
        window.keys("C-l")
        window.until(*shown)
    window.keys("C-p", "C-q")
    window.until("detached")
    assert (window.shows("#{alternate_on}"), window.shows("#{cursor_flag}")) == ("0", "1")
    assert (window.shows("#{keypad_flag}"), window.shows("#{keypad_cursor_flag}")) == ("0", "0")
    second = tmux.window("second", rows=40, columns=120)
    second.line(f"agentd attach {id}; echo code=$?")
    second.until(*shown)
    second.resize(30, 90)
    faultlab.until(lambda: size_at(agentd, id) == (30, 90), 60.0)
    second.until(*shown)
    assert second.shows("#{alternate_on}") == is_alternate
    quit(agentd, id, program, second)
    assert agentd("wait", id).code == 0


def kill(agentd: Shell, victims: tuple[str, ...]) -> None:
    """And wait for those who follow them."""
    mark = f"AGENTD_LAB={os.environ['AGENTD_LAB']}"

    def pids(title: str) -> list[int]:
        marked = faultlab.with_environment(mark)
        return [pid for pid in marked if faultlab.command_of(pid).startswith(title) and faultlab.state_of(pid) != "Z"]

    old = {title: pids(title) for title in victims}
    for pid in (pid for found in old.values() for pid in found):
        os.kill(pid, signal.SIGKILL)
    agentd.ok("ps")
    faultlab.until(lambda: all(set(pids(title)) - set(old[title]) for title in victims), 60.0)


def test_ctrl_z_and_fg_of_a_full_screen_program(agentd: Shell, tmux: Tmux) -> None:
    if shutil.which("vim") is None:
        pytest.skip("no vim: apt-get install it")
    window = tmux.window("vim")
    window.line("agentd run -t " + shlex.join(start_vim(agentd)))
    window.until("text 0001")
    window.keys("i")
    window.until("INSERT")
    window.keys("m", "i", "n", "e")
    window.until("minetext 0001")
    window.keys("C-z")
    window.until("[1]+  Stopped                 vim", without="text 0001")
    assert window.shows("#{alternate_on}") == "0"
    window.line("agentd fg")
    window.until("minetext 0001", "INSERT")
    window.keys("Escape", "Z", "Z")
    window.until("Stopped", without="minetext")
    assert (agentd.cwd / "text").read_text().startswith("minetext 0001\n")


def test_a_shell_as_the_job_has_job_control_of_its_own(agentd: Shell, tmux: Tmux) -> None:
    id = agentd.job("env", "PS1=inner> ", "bash", "--norc", "--noprofile", "-i", flags=["-t"])
    window = tmux.window("shell")
    window.line(f"agentd attach {id}; echo code=$?")
    window.until("inner>")
    window.line("sh -c 'echo up; exec sleep 1000'")
    window.until("\nup")  # a key that comes sooner is the shell's
    window.keys("C-z")
    window.until("Stopped")
    window.line("clear; fg")
    window.until("exec sleep 1000'", without="clear")
    window.keys("C-c")
    window.until("inner>")
    window.line("echo still $((40+2))")
    window.until("still 42")
    window.line("exit 7")
    window.until("\ncode=7")
