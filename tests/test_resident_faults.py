"""The resident process and its forks, stopped, killed and replaced; and the signals of a terminal."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import clishell
import faultlab
import pytest
from breaking import fill, needs_root, small_disk
from clishell import Running, Shell
from residentlab import HERE, THERE, both_ways, bring_up, fork_of, forks, is_taken, kill, pid_of, state_of

from agentd import paths

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


def waiting(agentd: Shell, id: str) -> tuple[Running, int]:
    """A ``wait`` that the resident process carries out, and the fork that does."""
    verb = agentd.start("wait", id)
    return verb, fork_of("wait", agentd.state)


# --- signals to the caller ------------------------------------------------------------------------------------


def test_ctrl_c_is_the_verbs(agentd: Shell) -> None:
    resident = bring_up(agentd)
    id = agentd.job("sleep", "1000")
    verb, fork = waiting(agentd, id)
    verb.interrupt()
    assert verb.finish() == (130, "", "")
    faultlab.until(lambda: not os.path.exists(f"/proc/{fork}"))
    assert pid_of(agentd.state) == resident and is_taken(agentd, "ps")


def test_an_ignored_ctrl_c_is_ignored(agentd: Shell) -> None:
    bring_up(agentd)
    id = agentd.job("sh", "-c", "read x; exit 3", flags=["-i"])
    script = f'trap "" INT; exec "{sys.executable}" -m agentd wait {id}'
    with subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL, env=os.environ | THERE) as verb:
        fork = fork_of("wait", agentd.state)
        verb.send_signal(signal.SIGINT)
        os.kill(fork, signal.SIGINT)
        agentd.ok("send", id, "go")
        assert verb.wait(30) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_who_ends_takes_its_fork_along(agentd: Shell, number: signal.Signals) -> None:
    bring_up(agentd)
    verb, fork = waiting(agentd, agentd.job("sleep", "1000"))
    verb.process.send_signal(number)
    assert verb.finish() == (-number, "", "")
    faultlab.until(lambda: not os.path.exists(f"/proc/{fork}"))


class Terminal:
    """An interactive bash in a terminal of its own, which knows ``agentd``."""

    def __init__(self, is_there: bool) -> None:
        self.is_there = is_there
        way = THERE if is_there else HERE
        environment = {**os.environ, **way, "PS1": "$ ", "TERM": "xterm", "HISTFILE": "", "INPUTRC": "/dev/null"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            with suppress(BaseException):
                os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
            os._exit(1)
        self.seen = ""
        self.type(f'agentd() {{ "{sys.executable}" -m agentd "$@"; }}; echo rea"dy"')
        self.until("ready")

    def type(self, text: str, end: str = "\n") -> None:
        os.write(self.fd, (text + end).encode())

    def until(self, text: str) -> None:
        """Until it shows this, after what it has shown so far."""
        while text not in self.seen:
            assert select.select([self.fd], [], [], clishell.PATIENCE_S)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=["here", "there"])
def terminal(request: pytest.FixtureRequest, agentd: Shell) -> Iterator[Terminal]:
    bring_up(agentd)
    terminal = Terminal(is_there=request.param == "there")
    yield terminal
    terminal.close()


def test_ctrl_z_bg_fg_and_a_resized_terminal(agentd: Shell, terminal: Terminal) -> None:
    id = agentd.job("sh", "-c", "read x; exit 7", flags=["-i"])
    terminal.type(f"agentd wait {id}")
    if terminal.is_there:
        fork = fork_of("wait", agentd.state)
    else:
        faultlab.until(lambda: is_connected(id))
    termios.tcsetwinsize(terminal.fd, (24, 100))  # SIGWINCH
    terminal.type("\x1a", end="")
    terminal.until("Stopped")
    if terminal.is_there:
        faultlab.until(lambda: state_of(fork) == "T")
    terminal.type('bg; echo go"es on"')
    terminal.until("goes on")
    if terminal.is_there:
        faultlab.until(lambda: state_of(fork) == "S")
    terminal.type("fg")
    terminal.until("-m agentd")  # as bash tells what it brings back
    agentd.ok("send", id, "go")
    terminal.until("$ ")
    terminal.type('echo code $?; stty size; agentd ps -q; echo en"d"')
    terminal.until("code 7\r\n24 100\r\n")
    terminal.until("end")


def is_connected(id: str) -> bool:
    """Does a ``wait`` of that job talk to the daemon?"""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for pid in waits(id) for fd in os.listdir(f"/proc/{pid}/fd")]
    return any(link.startswith("socket:") for link in links)


def maps_of_waits(id: str) -> list[str]:
    return [Path(f"/proc/{pid}/maps").read_text() for pid in waits(id)]


def waits(id: str) -> list[str]:
    """The processes of that command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:-1] == [b"-m", b"agentd", b"wait", id.encode()]:
                found.append(pid)
    return found


def test_ctrl_c_at_a_terminal_and_what_is_in_the_background(agentd: Shell, terminal: Terminal) -> None:
    id = agentd.job("sleep", "1000")
    terminal.type(f'agentd wait {id} & agentd wait 99; echo "code" $?')
    terminal.until("no job 99")
    terminal.until("code 127")
    # In the terminal's background it is a process of its own, which has imported all that it needs.
    faultlab.until(lambda: any("pydantic_core" in maps for maps in maps_of_waits(id)))
    assert forks("wait", agentd.state) == []
    agentd.ok("kill", "-9", id)
    terminal.until("was killed")


# --- deaths ---------------------------------------------------------------------------------------------------


def test_calls_outlive_the_resident_process(agentd: Shell) -> None:
    resident = bring_up(agentd)
    id = agentd.job("sh", "-c", "read x; exit 5", flags=["-i"])
    verb, _ = waiting(agentd, id)
    kill(resident)
    agentd.ok("send", id, "go", AGENTD_WITHOUT="")
    assert verb.finish().code == 5
    faultlab.until(lambda: pid_of(agentd.state) not in (0, resident))
    assert is_taken(agentd, "ps")


def test_a_question_is_asked_again_if_its_fork_is_killed(agentd: Shell) -> None:
    bring_up(agentd)
    id = agentd.job("sh", "-c", "read x; exit 5", flags=["-i"])
    verb, fork = waiting(agentd, id)
    kill(fork)
    agentd.ok("send", id, "go")
    assert verb.finish() == (5, "", "")


def test_a_deed_is_not_done_again_if_its_fork_is_killed(agentd: Shell) -> None:
    bring_up(agentd)
    id = agentd.job("cat", flags=["-i"])
    verb = agentd.start("send", id, stdin=subprocess.PIPE)
    fork = fork_of("send", agentd.state)
    assert verb.process.stdin is not None
    verb.process.stdin.write(b"once\n")
    verb.process.stdin.flush()
    faultlab.until(lambda: agentd.ok("logs", id) == "once\n")
    kill(fork)
    killed = "the process that carried out this send was killed, so whether it was done is not known"
    assert verb.finish() == (125, "", f"agentd: {killed}; look with: agentd ps --all\n")
    assert agentd.ok("logs", id) == "once\n"


def test_a_spare_that_is_killed_is_replaced(agentd: Shell) -> None:
    resident = bring_up(agentd)
    for _ in range(2):
        faultlab.until(lambda: len(spares(resident)) == 1)  # the last call's fork is on its way out
        (spare,) = spares(resident)
        kill(spare)
        faultlab.until(lambda spare=spare: spares(resident) not in ([], [spare]))
    assert is_taken(agentd, "ps")


def spares(resident: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{resident}/task/{resident}/children").read_text().split()]


def test_one_that_is_stopped_costs_time_only(agentd: Shell) -> None:
    resident = bring_up(agentd)
    for pid in (resident, *spares(resident)):
        os.kill(pid, signal.SIGSTOP)
    assert agentd("run", "-d", "true", AGENTD_WITHOUT="") == (0, "1\n", "")
    for pid in (*spares(resident), resident):
        os.kill(pid, signal.SIGCONT)
    faultlab.until(lambda: is_taken(agentd, "ps"))
    assert agentd.ok("ps", "-aq") == "1\n"  # what the stopped one got is not done later


def test_many_calls_at_once(agentd: Shell) -> None:
    bring_up(agentd)
    agentd.ok("wait", agentd.job("true"))
    count = 200 if os.environ.get("AGENTD_LONG") else 60
    command = [*clishell.AGENTD, "ps", "-aq"]
    calls = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)]
    said = [(*call.communicate(timeout=120), call.returncode) for call in calls]
    assert said == [(b"1\n", b"", 0)] * count


# --- what is on the disk --------------------------------------------------------------------------------------


def test_an_older_one_after_an_upgrade(agentd: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "agentd", tmp_path / "lib" / "agentd", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    older = bring_up(agentd)
    for file, old, new in (
        ("cli/ps.py", "there are no jobs yet", "there is nothing"),
        ("__init__.py", '__version__ = "', '__version__ = "9.'),
    ):
        module = tmp_path / "lib" / "agentd" / file
        aside = module.with_suffix(".new")
        aside.write_text(module.read_text().replace(old, new))
        aside.rename(module)
        said = agentd("ps", AGENTD_WITHOUT="")
        assert (said.code, said.err) == (0, "agentd: there is nothing; agentd delegate --help says how to start one\n")
        faultlab.until(lambda older=older: pid_of(agentd.state) not in (0, older))
        older = bring_up(agentd)
        assert both_ways(agentd, "ps").err == said.err
    assert agentd.ok("--version", **THERE).startswith("agentd 9.")


def test_another_agentd_is_not_answered(agentd: Shell, tmp_path: Path) -> None:
    bring_up(agentd)
    shutil.copytree(ROOT / "agentd", tmp_path / "lib" / "agentd", ignore=shutil.ignore_patterns("__pycache__"))
    assert not is_taken(agentd, "ps", PYTHONPATH=str(tmp_path / "lib"))
    assert is_taken(agentd, "ps")


def test_a_caller_that_may_more_gets_one_of_its_own(agentd: Shell) -> None:
    """Once it is there, it serves both."""
    script = f'ulimit -S -n 300; ulimit -H -n 300; exec "{sys.executable}" -m agentd ps -q'
    subprocess.run(["bash", "-c", script], check=True, env=os.environ | {"AGENTD_WITHOUT": ""})
    faultlab.until(lambda: pid_of(agentd.state) > 0)
    limited = pid_of(agentd.state)
    agentd.ok("ps", AGENTD_WITHOUT="")
    faultlab.until(lambda: pid_of(agentd.state) not in (0, limited))
    assert is_taken(agentd, "ps")
    subprocess.run(["bash", "-c", script], check=True, env=os.environ | THERE)
    assert agentd("ps", "-q", **THERE).code == 0


@needs_root
def test_a_full_disk_is_no_hindrance(agentd: Shell, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        env = {"AGENTD_STATE_DIR": str(disk / "state"), "AGENTD_WITHOUT": ""}
        agentd.ok("run", "true", **(env | HERE))
        ballast = fill(disk)
        assert agentd("ps", "-aq", **env) == (0, "1\n", "")
        ballast.unlink()
        agentd.ok("ps", **env)
        faultlab.until(lambda: pid_of(disk / "state") > 0)
        ballast = fill(disk)
        assert is_taken(agentd, "ps", **{"AGENTD_STATE_DIR": env["AGENTD_STATE_DIR"]})
        ballast.unlink()
        agentd.ok("daemon", "stop", "--kill-jobs", **env)
        faultlab.until(lambda: pid_of(disk / "state") == 0)


def test_where_its_files_cannot_be_made_verbs_go_on(agentd: Shell) -> None:
    agentd.ok("ps", **HERE)
    (agentd.state / paths.RESIDENT_LOCK).mkdir()
    assert agentd("ps", "-q", AGENTD_WITHOUT="") == (0, "", "")
    (agentd.state / paths.RESIDENT_LOCK).rmdir()
    (agentd.state / paths.RESIDENT_SOCKET).mkdir()
    assert agentd("ps", "-q", AGENTD_WITHOUT="") == (0, "", "")
    (agentd.state / paths.RESIDENT_SOCKET).rmdir()
    bring_up(agentd)


def test_it_keeps_no_pipe_of_who_started_it(agentd: Shell) -> None:
    """Whoever waits for the end of the first verb's output does not wait for the resident process."""
    agentd.ok("ps", **HERE)
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", f'exec 9>&1; "{sys.executable}" -m agentd ps -q'],
        stdout=subprocess.PIPE,
        env=os.environ | {"AGENTD_WITHOUT": ""},
        timeout=clishell.PATIENCE_S,
    )
    assert done.returncode == 0 and time.monotonic() - began < clishell.PATIENCE_S
    faultlab.until(lambda: pid_of(agentd.state) > 0)
