"""The shells' side: what a person at a prompt is told, in real bash, zsh and fish in a terminal."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import clishell
import faultlab
import pytest
from clishell import Shell
from terminal import EVAL, PLAIN, PROMPT, Open, Terminal, need

from agentd import noticeboard
from agentd.core.job import Done, Ended, InPlace, Job, Queued, Running, State, Stopped
from agentd.core.jobs import Jobs
from agentd.daemon import boards

SHELLS = ("bash", "zsh")


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """``agentd`` is on the PATH, as its users have it."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "agentd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m agentd "$@"\n')
    (bin / "agentd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    yield from clishell.serve(tmp_path, monkeypatch)


@pytest.fixture
def open_shell(agentd: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.chdir(agentd.cwd)
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(closing(Terminal(*words, **more)))


def row(number: int, mark: str, state: str, name: str) -> str:
    return f"[{number}]{mark}  {state:<24}{name}"


# --- what is told, and to whom ------------------------------------------------------------------------------


def test_five_shells_are_told_each_of_its_own_jobs(open_shell: Open) -> None:
    terminals = [open_shell(shell).integrate() for shell in ("bash", "zsh", "bash", "zsh", "bash")]
    for number, one in enumerate(terminals, 1):
        command = f"agentd run -d --name of-{number} sh -c 'echo out-{number}; exec sleep 600'"
        assert one(command) == [str(number)]
    for number, one in enumerate(terminals, 1):
        assert one("agentd jobs") == [row(1, "+", "Running", f"sh -c echo out-{number}; exec sleep 600 &")]
    for number, one in enumerate(terminals, 1):
        told = one("agentd kill -9 %1; agentd wait -q %1; agentd logs %1")
        assert told == [f"out-{number}", row(1, "+", "Killed", f"of-{number}")]
        for other in terminals:
            assert other("true") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_all_that_happens_is_told_once_and_in_order(open_shell: Open, shell: str) -> None:
    one = open_shell(shell).integrate()
    assert one("agentd run -d --name good true; agentd wait -q good") == ["1", row(1, "+", "Done", "good")]
    assert one("true") == []
    one("agentd run -d --name long sleep 600; agentd wait -q --for running long")
    said = one(
        "agentd run -d --name bad sh -c 'exit 3'; agentd wait -q bad;"
        " agentd kill -STOP long; agentd wait -q --for stopped long"
    )
    assert said == ["3", row(2, "-", "Exit 3", "bad"), row(1, "+", "Stopped", "long")]
    assert one("true") == []
    assert one("agentd kill -9 long; agentd wait -q long") == [row(1, "+", "Killed", "long")]
    assert one(EVAL[shell]) == [] and one(EVAL[shell]) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_that_was_seen_to_end_is_not_told(open_shell: Open, shell: str) -> None:
    one = open_shell(shell).integrate()
    assert one("agentd run sh -c 'echo here; exit 3'") == ["here"]
    assert one("true") == []
    assert one("agentd run -d --name two true; agentd wait -q two") == ["2", row(1, "+", "Done", "two")]


def test_a_shell_in_a_shell_tells_for_both(open_shell: Open) -> None:
    outer = open_shell("bash").integrate()
    assert outer(" ".join(PLAIN["bash"])) == []
    outer.integrate()
    assert outer("agentd run -d --name one true; agentd wait -q one") == ["1", row(1, "+", "Done", "one")]
    assert outer("exit") == ["exit"]
    assert outer("true") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_another_owner_in_the_same_shell_has_a_board_of_its_own(open_shell: Open, shell: str) -> None:
    one = open_shell(shell).integrate()
    assert one("export AGENTD_OWNER=me") == []
    assert one("agentd run -d --name one true; agentd wait -q one") == ["1", row(1, "+", "Done", "one")]
    assert one("unset AGENTD_OWNER") == []
    assert one("agentd run -d --name two true; agentd wait -q two") == ["2", row(1, "+", "Done", "two")]


# --- daemons that die ---------------------------------------------------------------------------------------


def test_what_ends_while_the_daemon_is_dead_is_told_once(agentd: Shell, open_shell: Open, tmp_path: Path) -> None:
    one = open_shell("bash").integrate()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    assert one(f"agentd run -d --name one cat {gate}") == ["1"]
    assert one("agentd wait -q --for running one; agentd daemon stop -q") == []
    gate.write_text("")
    faultlab.until((agentd.path("1") / "end.json").exists)
    assert one("true") == []
    assert one("agentd daemon start -q; agentd wait -q one") == [row(1, "+", "Done", "one")]
    for _ in range(2):
        os.kill(agentd.json("daemon", "status", "--json")["pid"], signal.SIGKILL)
        assert one("agentd wait -q one") == []


def test_what_a_daemon_had_saved_and_not_written_is_told_by_the_next(agentd: Shell, open_shell: Open) -> None:
    one = open_shell("bash")
    assert one("agentd run -d --name before true; agentd wait -q before") == ["1"]
    one.integrate()
    assert one("agentd run -d --name one true; agentd wait -q one") == ["2", row(1, "+", "Done", "one")]
    agentd.ok("daemon", "stop", "-q")
    (board,) = noticeboard.all_boards(str(agentd.state))
    # As if it had been killed after the commit, before the board was written.
    os.unlink(f"{board}/1")
    noticeboard.replace(f"{board}/state", "0 0 0")
    noticeboard.replace(f"{board}/told", "0")
    assert one(EVAL["bash"]) == []
    assert one("agentd daemon start -q") == [row(1, "+", "Done", "one")]
    agentd.ok("daemon", "restart", "-q")
    assert one("true") == []


def test_notices_that_were_told_are_cleared_away(agentd: Shell, open_shell: Open) -> None:
    one = open_shell("bash").integrate()
    for number in range(1, 4):
        told = one(f"agentd run -d --name n{number} true; agentd wait -q n{number}")
        assert told == [str(number), row(1, "+", "Done", f"n{number}")]
    (board,) = noticeboard.all_boards(str(agentd.state))
    assert sorted(name for name in os.listdir(board) if name.isdigit()) == ["3"]


# --- nothing is left, nothing is started --------------------------------------------------------------------


def of_children(pid: int) -> tuple[str, str]:
    """The children a process has, and the page faults of those it has waited for: no child is without."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(), fields[8]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_prompt_starts_no_process(agentd: Shell, open_shell: Open, shell: str) -> None:
    one = open_shell(shell).integrate()
    one("true")
    before = of_children(one.pid)
    assert before[0] == ""
    for _ in range(5):
        assert one("true") == []
    (board,) = noticeboard.all_boards(str(agentd.state))
    owner = json.loads(Path(f"{board}/who.json").read_text())["owner"]
    agentd.ok("run", "--owner", owner, "-d", "--name", "one", "true")
    agentd.ok("wait", "-q", "one")
    assert one("true") == [row(1, "+", "Done", "one")]
    assert of_children(one.pid) == before


def test_a_board_goes_with_its_terminal(agentd: Shell, open_shell: Open) -> None:
    one = open_shell("bash").integrate()
    one("agentd run -d sleep 600")
    (board,) = noticeboard.all_boards(str(agentd.state))
    os.kill(one.pid, signal.SIGKILL)
    os.waitpid(one.pid, 0)
    faultlab.until(lambda: not os.path.exists(os.path.dirname(board)))


def test_the_board_of_a_terminal_that_is_gone_is_removed_by_the_next(agentd: Shell, open_shell: Open) -> None:
    one = open_shell("bash").integrate()
    (board,) = noticeboard.all_boards(str(agentd.state))
    one.close()
    open_shell("bash").integrate()
    assert [found != board for found in noticeboard.all_boards(str(agentd.state))] == [True]


# --- a shell that has its own ways --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    ["PROMPT_COMMAND='echo mine $?'", "PROMPT_COMMAND=('echo mine $?' true)", "set -u; PROMPT_COMMAND='echo mine $?'"],
)
def test_bash_keeps_its_own_prompt_command(open_shell: Open, before: str) -> None:
    one = open_shell("bash")
    one(before)
    declared = one("declare -p PROMPT_COMMAND")
    assert one(EVAL["bash"]) + one(EVAL["bash"]) == ["mine 0", "mine 0"]
    assert one("sh -c 'exit 7'") == ["mine 7"]
    assert one("agentd run -d --name one true; agentd wait -q one") == ["1", row(1, "+", "Done", "one"), "mine 0"]
    assert one('eval "$(agentd shell bash --off)"') == ["mine 0"]
    assert one("declare -p PROMPT_COMMAND") == declared
    assert one("compgen -v __agentd; compgen -A function __agentd; complete -p agentd 2>/dev/null") == ["mine 1"]


ALIASES = "alias read=false local=false printf=false builtin=false return=false"


@pytest.mark.parametrize("options", ["set -eu", f"set -eu; {ALIASES}"])
def test_bash_with_strict_options_goes_on(agentd: Shell, open_shell: Open, options: str) -> None:
    one = open_shell("bash")
    one(options)
    one.integrate()
    assert one("! true") == []
    (board,) = noticeboard.all_boards(str(agentd.state))
    os.unlink(f"{board}/told")
    assert one("set -C; IFS=x; agentd run -d --name one true; agentd wait -q one") == ["1", row(1, "+", "Done", "one")]
    (flags,) = one("echo $-")
    assert {"e", "u", "C"} <= set(flags)


def test_zsh_keeps_its_own_hooks_and_options(open_shell: Open) -> None:
    one = open_shell("zsh")
    one(
        "mine() { echo mine $? }; precmd_functions=(mine); setopt nounset ksh_arrays sh_word_split noclobber err_return"
    )
    assert one(EVAL["zsh"]) + one(EVAL["zsh"]) == ["mine 0", "mine 0"]
    assert one("sh -c 'exit 7'") == ["mine 7"]
    assert one("agentd run -d --name one true; agentd wait -q one") == ["1", "mine 0", row(1, "+", "Done", "one")]
    assert one('eval "$(agentd shell zsh --off)"') == ["mine 0"]
    assert one("echo $precmd_functions; whence -m '__agentd*'; typeset -m '__agentd*'") == ["mine", "mine 1"]


FISH = """
agentd shell fish | source
agentd run -d --name one sh -c 'exit 3'; agentd wait -q one; emit fish_prompt
emit fish_prompt
agentd run sh -c 'echo here'; emit fish_prompt
agentd run -d --name two sleep 600; agentd wait -q --for running two; emit fish_prompt
echo $AGENTD_PROMPT
agentd kill -9 two; agentd wait -q two; emit fish_prompt
agentd shell fish | source; emit fish_prompt
agentd shell fish --off | source; emit fish_prompt
functions -a | string match '*agentd*'; set -n | string match '*agentd*'; complete -c agentd
"""


def test_fish_tells_and_is_left_as_it_was(agentd: Shell) -> None:
    need("fish")
    command = ["fish", "--no-config", "-c", FISH]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=agentd.cwd, timeout=180
    )
    assert done.stdout.decode().splitlines() == [
        *("1", row(1, "+", "Exit 3", "one")),
        "here",
        *("3", "[1&] ", row(1, "+", "Killed", "two")),
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_prompt_counts(open_shell: Open, shell: str) -> None:
    one = open_shell(shell).integrate()
    one("PS1='${AGENTD_PROMPT}'$PS1")
    one.type("agentd run -d sleep 600; agentd run -d sleep 600; agentd wait -q --for running %1 %2\n")
    assert one.until(PROMPT).endswith(f"[2&] {PROMPT}")
    assert one("echo $AGENTD_RUNNING $AGENTD_ASKING")[0] == "2 0"


def test_tmux_shows_a_line_that_is_kept(agentd: Shell, tmp_path: Path) -> None:
    line = agentd.ok("shell", "tmux")
    path = line.partition("#(cat ")[2].partition(" 2>")[0]
    agentd.job("sleep", "600")
    assert Path(path).read_text() == "1&\n"
    agentd.ok("kill", "-9", "1")
    agentd("wait", "1")
    assert Path(path).read_text() == "\n"
    need("tmux")
    (tmp_path / "tmux.conf").write_text(line)
    tmux = ["tmux", "-S", str(tmp_path / "tmux.sock"), "-f", str(tmp_path / "tmux.conf")]
    try:
        subprocess.run([*tmux, "new-session", "-d", "sleep", "600"], check=True, timeout=60)
        shown = subprocess.run([*tmux, "show", "-gv", "status-right"], capture_output=True, text=True, check=True)
        assert f"#(cat {path} 2>/dev/null)" in shown.stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, timeout=60)


# --- the words of a notice ----------------------------------------------------------------------------------


def job(id: int, state: State) -> Job:
    return Job(id, "fix-build", "command", "", ("true",), "me", id, 1.0, InPlace("/"), state)


def test_a_notice_says_in_bash_words_what_has_become_of_a_job() -> None:
    jobs = Jobs()
    done = job(3, Done(9.0, 1.0, 7, Ended("succeeded", exit_code=0)))
    ended = {"outcome": "succeeded", "exit_code": 0, "signal": None}
    jobs.remember(done)
    assert boards.notice(jobs, done, "job.completed", ended) == "[3]+  Done                    fix-build"
    jobs.remember(job(4, Running(2.0, 8)))
    assert boards.notice(jobs, done, "job.completed", ended) == "[3]-  Done                    fix-build"
    jobs.remember(job(5, Queued(2.0)))
    assert boards.notice(jobs, done, "job.completed", ended) == "[3]   Done                    fix-build"
    unknown = {"outcome": "lost", "exit_code": None, "signal": None}
    assert boards.notice(jobs, done, "job.completed", unknown) == row(3, " ", "Lost", "fix-build")
    stopped = job(6, Stopped(1.0, 7, 3.0))
    jobs.remember(stopped)
    assert boards.notice(jobs, stopped, "job.stopped", {}) == row(6, "+", "Stopped", "fix-build")
    asked = {"question": "q1", "text": "Which\x1b[2J\r\n port?", "options": ["80\x07", "8080"]}
    said = boards.notice(jobs, jobs[4], "job.waiting", asked)
    assert said == row(4, "-", "Asking", "fix-build: Which\\x1b[2J port? (1: 80\\x07; 2: 8080)")
    assert boards.notice(jobs, jobs[4], "job.waiting", {"why": "interrupted"}) is None
    needs = boards.notice(jobs, jobs[4], "job.waiting", {"needs": ["TOKEN"]})
    assert needs == row(4, "-", "Waiting", "fix-build: needs TOKEN")


def test_bad_words_are_told(agentd: Shell) -> None:
    assert agentd("shell").code == 2
    said = agentd("shell", "csh\x1b[2J")
    assert said.code == 2 and 'no integration for "csh\\x1b[2J"; there is bash, zsh, fish or tmux' in said.err


# --- a command when a job has ended -------------------------------------------------------------------------


def test_a_command_is_run_once_for_each_completion(agentd: Shell, tmp_path: Path) -> None:
    told = tmp_path / "told"
    how = f'echo "$AGENTD_JOB $AGENTD_OUTCOME $AGENTD_TEXT" >>{told}'
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    agentd.job("sh", "-c", "exit 3", flags=["--name", "one", "--notify", how])
    agentd("wait", "one")
    faultlab.until(lambda: told.exists() and told.read_text().endswith("\n"))
    agentd.job("cat", str(gate), flags=["--name", "two", "--notify", how])
    agentd.ok("wait", "--for", "running", "two")
    os.kill(agentd.json("daemon", "status", "--json")["pid"], signal.SIGKILL)
    gate.write_text("")
    faultlab.until((agentd.path("2") / "end.json").exists)
    agentd.ok("wait", "two")
    faultlab.until(lambda: len(told.read_text().splitlines()) == 2)
    # As if a daemon had been killed between the commit and the start of the command.
    agentd.ok("daemon", "stop", "-q")
    os.unlink(agentd.path("2") / "notified")
    for _ in range(2):
        agentd.ok("daemon", "restart", "-q")
        faultlab.until((agentd.path("2") / "notified").exists)
    agentd.job("true", flags=["--name", "three", "--notify", how])
    agentd.ok("wait", "three")
    faultlab.until(lambda: told.read_text().endswith("3 succeeded three: Done\n"))
    again = ["2 succeeded two: Done"] * 2
    assert told.read_text().splitlines() == ["1 failed one: Exit 3", *again, "3 succeeded three: Done"]


def test_a_command_that_hangs_holds_up_nobody(agentd: Shell, tmp_path: Path) -> None:
    gate, told = tmp_path / "gate", tmp_path / "told"
    os.mkfifo(gate)
    agentd.job("true", flags=["--notify", f"echo >{gate}"])
    agentd.job("true", flags=["--notify", f"echo told >{told}"])
    agentd.ok("wait", "1", "2")
    faultlab.until(told.exists)
    agentd.ok("daemon", "stop", "-q")
    assert gate.read_text() == "\n"


def test_the_settings_name_a_command_for_all_jobs(agentd: Shell, home: Path, tmp_path: Path) -> None:
    config = home / ".config" / "agentd" / "agentd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[notify]\ncommand = 'echo $AGENTD_NAME >>{tmp_path}/told'\n")
    inner = f"{sys.executable} -m agentd run -d --name inner true; {sys.executable} -m agentd wait inner"
    agentd.job("sh", "-c", inner, flags=["--name", "outer"])
    agentd.ok("wait", "outer")
    faultlab.until((tmp_path / "told").exists)
    assert not (agentd.path("2") / "notified").exists()
    refused = f"{sys.executable} -m agentd run -d --notify 'touch {tmp_path}/pwned' true"
    agentd.job("sh", "-c", refused, flags=["--name", "third"])
    assert agentd("wait", "third").code == 1
    assert "a job may not name a command to be run beside it" in agentd.ok("logs", "third")


def test_a_bell_rings_in_the_terminal_that_asked(open_shell: Open) -> None:
    one = open_shell("bash")
    one.type("agentd run -d --notify bell true\n")
    one.until("\x07")
    one.close()


def test_how_to_notify_must_be_something(agentd: Shell) -> None:
    assert agentd("run", "-d", "--notify", "", "true").code == 2
    said = agentd("run", "-d", "--notify", "bell", "true")
    assert (said.code, said.err) == (
        2,
        "agentd: --notify bell: standard error is no terminal; name a command instead\n",
    )
