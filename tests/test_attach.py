"""Being at an agent's terminal, on bare PTYs: codes, modes, who types, sizes, what filters, what is refused."""

import os
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import pytest
from clishell import Shell
from terminals import Terminal

from agentd import jobdir

ECHO = 'stty -echo; echo ready; while read line; do echo "got $line"; done'
DETACH = b"\x10\x11"


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("AGENTD_OWNER", "me")
    yield from clishell.serve(tmp_path, monkeypatch)


def job(agentd: Shell, script: str) -> str:
    return agentd.job("sh", "-c", script, flags=["-t"])


def log(agentd: Shell, id: str) -> bytes:
    return b"".join(data for _, data in jobdir.read_range(str(agentd.path(id)), "out", 0, 1 << 40))


def until_logged(agentd: Shell, id: str, text: bytes) -> None:
    faultlab.until(lambda: text in log(agentd, id), 60.0, lambda: f"no {text!r} in {log(agentd, id)!r}")


def is_running(agentd: Shell, id: str) -> bool:
    return bool(agentd.json("inspect", "--json", id)["job"]["state"] == "running")


# --- what the agent has -------------------------------------------------------------------------------------


def test_the_agent_has_a_terminal_of_its_own(agentd: Shell) -> None:
    with Terminal(31, 97) as terminal:
        script = 'tty; stty size; [ -t 0 ] && [ -t 2 ] && : > /dev/tty && echo "$TERM-$LINES-$COLUMNS"; echo err >&2'
        terminal.start("run", "-d", "-t", "env", "TERM=x", "sh", "-c", script).finish()
    assert agentd("wait", "1").code == 0
    tty, size, *rest = log(agentd, "1").decode().splitlines()
    assert tty.startswith("/dev/pts/") and size == "31 97"
    assert rest == ["x--", "err"]
    assert jobdir.size(str(agentd.path("1")), "err") == 0
    assert agentd.json("inspect", "--json", "1")["job"]["tty"] is True


def test_without_a_terminal_to_copy_it_is_of_the_usual_size(agentd: Shell) -> None:
    id = agentd.job("sh", "-c", "echo $TERM; stty size", flags=["-t"])
    agentd("wait", id)
    assert log(agentd, id) == b"xterm-256color\r\n24 80\r\n" or os.environ.get("TERM")


def test_every_byte_is_in_the_log(agentd: Shell, tmp_path: Path) -> None:
    wanted = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(wanted)
    id = job(agentd, f"stty raw; cat {tmp_path}/data")
    assert agentd("wait", id).code == 0
    assert log(agentd, id) == wanted
    assert agentd("logs", id).out.encode("latin-1") == wanted


# --- attach and leave ---------------------------------------------------------------------------------------


def test_attach_shows_the_screen_takes_keys_and_exits_as_the_job(agentd: Shell) -> None:
    id = job(agentd, "echo hello; read x; echo got $x; exit 5")
    until_logged(agentd, id, b"hello")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"hello")
        terminal.type(b"there\r")
        terminal.until(b"got there")
        assert terminal.finish() == 5
        assert termios.tcgetattr(terminal.theirs) == terminal.modes


@pytest.mark.parametrize(("keys", "typed"), [(None, DETACH), ("ctrl-a,d", b"\x01d"), ("ctrl-]", b"\x1d")])
def test_it_is_left_by_keys_and_goes_on(agentd: Shell, keys: str | None, typed: bytes) -> None:
    id = job(agentd, ECHO)
    with Terminal() as terminal:
        terminal.start("attach", id, *(["--detach-keys", keys] if keys else [])).until(b"ready")
        begun = typed[:-1]  # and gone on with otherwise, it is the agent's
        terminal.type(begun + b"x\r")
        terminal.until(b"got " + begun + b"x")
        terminal.type(typed)
        terminal.until(b"detached")
        assert terminal.finish() == 0
        assert termios.tcgetattr(terminal.theirs) == terminal.modes
    assert is_running(agentd, id)


def test_ctrl_c_is_the_agents(agentd: Shell) -> None:
    id = job(agentd, "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"ready")
        terminal.type(b"\x03")
        assert terminal.finish() == 9
    assert b"caught" in log(agentd, id)


def test_modes_that_a_program_has_set_are_taken_back(agentd: Shell) -> None:
    script = r"printf '\033[?1049h\033[?25l\033[?1000h\033[?2004h\033=\033[2;5rdrawn'; read x"
    id = job(agentd, script)
    with Terminal() as terminal:
        at = terminal.start("attach", id).until(b"drawn")
        terminal.type(DETACH)
        assert terminal.finish() == 0
        left = terminal.seen[at:]
        for code in (b"?1000l", b"?2004l", b"\x1b>", b"\x1b[r", b"?1049l", b"?25h"):
            assert code in left
        assert left.index(b"?1000l") < left.index(b"?1049l")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_modes_are_restored_when_attach_is_ended_by_a_signal(agentd: Shell, number: int) -> None:
    id = job(agentd, r"printf '\033[?1049hdrawn'; read x")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"drawn")
        assert termios.tcgetattr(terminal.theirs) != terminal.modes
        assert terminal.process is not None
        terminal.process.send_signal(number)
        assert terminal.finish() == 128 + number
        assert termios.tcgetattr(terminal.theirs) == terminal.modes
        assert terminal.seen.index(b"?1049l") > terminal.seen.index(b"drawn")
    assert is_running(agentd, id)


def test_a_terminal_that_goes_takes_nothing_with_it(agentd: Shell) -> None:
    id = job(agentd, ECHO)
    terminal = Terminal()
    terminal.start("attach", id).until(b"ready")
    process = terminal.process
    assert process is not None
    terminal.hang_up()
    assert process.wait(60) == 128 + signal.SIGHUP
    with Terminal() as another:
        another.start("attach", id).until(b"ready")
        another.type(b"again\r")
        another.until(b"got again")


# --- several at once ----------------------------------------------------------------------------------------


def test_one_types_the_others_look_on_until_they_steal_it(agentd: Shell) -> None:
    id = job(agentd, ECHO)
    with Terminal() as first, Terminal() as second, Terminal() as third:
        first.start("attach", id).until(b"ready")
        second.start("attach", id).until(b"ready")
        assert b"somebody else types" in second.seen
        second.type(b"lost\r")
        second.until(b"\a")
        first.type(b"one\r")
        for terminal in (first, second):
            terminal.until(b"got one")
        third.start("attach", "--steal", id).until(b"got one")
        third.type(b"two\r")
        for terminal in (first, second, third):
            terminal.until(b"got two")
        first.until(b"\a")
        first.type(b"lost too\r" + DETACH)
        assert first.finish() == 0
        third.type(DETACH)
        assert third.finish() == 0
        second.type(b"heir\r")  # the next who wanted to
        second.until(b"got heir")
    assert b"lost" not in log(agentd, id)


def test_who_only_looks_types_nothing_and_disturbs_nobody(agentd: Shell) -> None:
    id = job(agentd, ECHO)
    with Terminal() as looking, Terminal() as typing:
        looking.start("attach", "-r", id).until(b"ready")
        looking.type(b"x\r")
        typing.start("attach", id).until(b"ready")
        typing.type(b"one\r")
        looking.until(b"got one")
        looking.type(b"\x03")
        assert looking.finish() == 130
        assert termios.tcgetattr(looking.theirs) == looking.modes
        typing.type(b"two\r")
        typing.until(b"got two")
    assert b"got x" not in log(agentd, id)


def test_output_goes_to_a_pipe_as_it_is(agentd: Shell) -> None:
    id = job(agentd, r"read x; printf 'a\033]0;title\007b'; exit 4")
    looking = agentd.start("attach", "--no-stdin", id)
    looking.until_connected()
    with Terminal() as terminal:
        terminal.start("attach", id)
        terminal.until(b"terminal of job")
        terminal.type(b"go\r")
        assert terminal.finish() == 4
    said = looking.finish()
    assert said.code == 4
    assert said.out.endswith("go\r\na\x1b]0;title\x07b")


# --- sizes --------------------------------------------------------------------------------------------------


SIZES = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"


def test_the_terminal_has_the_size_of_the_one_who_types(agentd: Shell) -> None:
    id = job(agentd, SIZES)
    until_logged(agentd, id, b"ready")
    with Terminal(30, 100) as typing, Terminal(50, 150) as looking:
        typing.start("attach", id).until(b"30 100")
        looking.start("attach", "-r", id).until(b"30 100")
        typing.set_size(31, 101)
        looking.until(b"31 101")
        looking.set_size(51, 151)
        typing.set_size(32, 102)
        looking.until(b"32 102")
        typing.set_size(0, 0)
        typing.set_size(33, 103)
        looking.until(b"33 103")
    assert b"151" not in log(agentd, id) and b"0 0" not in log(agentd, id)


def test_a_terminal_without_a_size_changes_nothing(agentd: Shell) -> None:
    id = job(agentd, f"stty size; {SIZES}")
    until_logged(agentd, id, b"ready")
    with Terminal(0, 0) as terminal:
        terminal.start("attach", id).until(b"ready")
        terminal.type(b"\x10\x11")
        assert terminal.finish() == 0
    assert log(agentd, id) == b"24 80\r\nready\r\n"


DRAWS = r"""
draw() { printf '\033[2J\033[Hdrawn at %s' "$(stty size)"; }
trap draw WINCH
printf '\033[?1049h\033[?1h'; draw
while :; do sleep 0.02; done
"""


def test_a_full_screen_program_draws_itself_anew(agentd: Shell) -> None:
    """Though its size is the same as before, and what it drew is no more in the part of the log that is looked at."""
    id = job(agentd, DRAWS)
    until_logged(agentd, id, b"drawn at 24 80")
    with Terminal(24, 80) as terminal:
        at = terminal.start("attach", id).until(b"\x1b[?1049h")
        at = terminal.until(b"drawn at 24 80", at)
        assert b"\x1b[?1h" in terminal.seen
        at = terminal.until(b"drawn at 23 80", at)
        terminal.until(b"drawn at 24 80", at)


# --- what a screen is spared --------------------------------------------------------------------------------


def test_what_is_no_drawing_is_left_out(agentd: Shell) -> None:
    tricks = r"\033]0;title\007\033]52;c;aGk=\007\033[21t\033_G\033\\\033]8;;http://x\033\\link"
    id = job(agentd, rf"printf 'before {tricks} 1\033[c'; read x; printf 'live {tricks} 2\033[c'; read x")
    with Terminal() as terminal, Terminal() as raw:
        terminal.start("attach", id).until(b" 1")
        terminal.type(b"\r")
        terminal.until(b" 2\x1b[c")  # it may be asked what it is: by whom its answer goes to
        for trick in (b"title", b"\x1b]52", b"\x1b[21t", b"\x1b_G"):
            assert trick not in terminal.seen
        assert terminal.seen.count(b"\x1b]8;;http://x") == 2
        assert terminal.seen.count(b"\x1b[c") == 1
        raw.start("attach", "-r", "--raw", id).until(b"live")
        assert b"\x1b]52;c;aGk=" in raw.seen


def test_far_behind_one_is_shown_the_newest(agentd: Shell) -> None:
    id = job(agentd, "echo ready; read x; seq 2000000; echo the end; read x")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"ready")
        assert terminal.process is not None
        os.kill(terminal.process.pid, signal.SIGSTOP)
        with Terminal() as another:
            another.start("attach", "--steal", id).until(b"ready")
            another.type(b"\r")
            until_logged(agentd, id, b"the end")  # nobody waited for the one who does not read
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.until(b"bytes are skipped here")
        terminal.until(b"the end")
        assert len(terminal.seen) < 2_000_000


def test_much_that_is_typed_at_once_arrives(agentd: Shell, tmp_path: Path) -> None:
    wanted = b"".join(b"%07d," % n for n in range(60_000))
    id = job(agentd, f"stty raw -echo; echo ready; head -c {len(wanted)} > {tmp_path}/typed; sleep 100")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"ready")
        for at in range(0, len(wanted), 1000):
            terminal.type(wanted[at : at + 1000])
        faultlab.until(lambda: (tmp_path / "typed").read_bytes() == wanted, 60.0)


# --- bad input ----------------------------------------------------------------------------------------------


def at_a_terminal(*words: str) -> tuple[int, str]:
    with Terminal() as terminal:
        terminal.start(*words)
        code = terminal.finish()
        return code, terminal.seen.decode().replace("\r\n", "\n")


def test_what_cannot_be_attached_to(agentd: Shell) -> None:
    plain = agentd.job("sleep", "100")
    ended = agentd.job("true", flags=["-t"])
    agentd("wait", ended)
    assert at_a_terminal("attach", plain) == (
        1,
        f"agentd: job {plain} has no terminal, as it was started without -t; its output: agentd logs -f {plain}\n",
    )
    assert at_a_terminal("attach", ended) == (
        1,
        f"agentd: job {ended} has already ended; what it wrote: agentd logs {ended}\n",
    )
    assert at_a_terminal("attach", "99") == (1, "agentd: no job 99; agentd ps --all lists them\n")
    assert at_a_terminal("attach", "nobody")[0] == 1
    assert at_a_terminal("send", ended, "x")[0] == 1


@pytest.mark.parametrize("keys", ["", "ctrl-", "ctrl-é", "p,,q", "ctrl-pq", "f1", "ctrl-\x1b", "é"])
def test_keys_that_are_none(agentd: Shell, keys: str) -> None:
    said = agentd("attach", "1", "--detach-keys", keys)
    assert said.code == 2
    assert said.err.startswith("agentd: --detach-keys: keys such as ctrl-p,ctrl-q or ctrl-a,d, not ")


def test_where_no_terminal_is(agentd: Shell) -> None:
    id = job(agentd, "read x")
    said = agentd("attach", id)
    assert (said.code, said.err) == (
        2,
        "agentd: attach needs a terminal, and standard input is none; to only look: agentd attach --no-stdin, or"
        " agentd logs -f\n",
    )
    assert agentd("attach", "--steal", "-r", id).code == 2
    said = agentd("run", "-t", "true")
    assert (said.code, said.err) == (
        2,
        "agentd: -t in the foreground needs a terminal here; add -d, and look at it later: agentd attach\n",
    )
    said = agentd("delegate", "-t", "fix the build")
    assert said.code == 2 and "built-in agent has no use for one" in said.err
    said = agentd("send", id, "x")
    assert (said.code, said.err) == (1, f"agentd: job {id} has a terminal; to type there: agentd attach {id}\n")


def test_logs_at_a_terminal_drive_nothing(agentd: Shell) -> None:
    id = job(agentd, r"printf 'a\033]0;title\007\033[2Jb\n'")
    agentd("wait", id)
    code, seen = at_a_terminal("logs", "--no-pager", id)
    assert (code, seen) == (0, "ab\n")
    assert agentd("logs", id).out == "a\x1b]0;title\x07\x1b[2Jb\r\n"


# --- when ours die ------------------------------------------------------------------------------------------


def pid_of(title: str) -> int:
    found: list[int] = []

    def is_there() -> bool:
        marked = faultlab.with_environment(f"AGENTD_LAB={os.environ['AGENTD_LAB']}")
        found[:] = [pid for pid in marked if faultlab.command_of(pid).startswith(title)]
        return bool(found)

    faultlab.until(is_there, 60.0, lambda: f"no {title}")
    return found[0]


@pytest.mark.parametrize(
    "victims",
    [("agentd-keeper",), ("agentd-zygote", "agentd-keeper"), ("agentd-keeper", "agentd-daemon")],
)
def test_who_is_attached_stays_so(agentd: Shell, victims: tuple[str, ...]) -> None:
    id = job(agentd, ECHO)
    with Terminal() as terminal, Terminal() as looking:
        terminal.start("attach", id).until(b"ready")
        looking.start("attach", "-r", id).until(b"ready")
        for round in range(2):
            for pid in [pid_of(title) for title in victims]:
                os.kill(pid, signal.SIGKILL)
            agentd.ok("ps")  # a dead daemon's successor
            word = b"round %d" % round
            type_surely(terminal, agentd, id, word)
            looking.until(b"got " + word)
        terminal.type(DETACH)
        assert terminal.finish() == 0
        assert termios.tcgetattr(terminal.theirs) == terminal.modes
        looking.type(DETACH)
        assert looking.finish() == 0


def type_surely(terminal: Terminal, agentd: Shell, id: str, word: bytes) -> None:
    """What is typed before the adopter is there may be lost, so an empty line is typed until one is answered."""
    at = len(terminal.seen)

    def is_answered() -> bool:
        terminal.type(b"\r")
        return log(agentd, id).count(b"got \r\n") > before

    before = log(agentd, id).count(b"got \r\n")
    faultlab.until(is_answered, 60.0)
    terminal.type(word + b"\r")
    terminal.until(b"got " + word, at)


def test_attach_needs_no_daemon(agentd: Shell) -> None:
    id = job(agentd, ECHO)
    until_logged(agentd, id, b"ready")
    agentd.ok("daemon", "stop")
    with Terminal() as terminal:
        terminal.start("attach", id).until(b"ready")
        terminal.type(b"x\r")
        terminal.until(b"got x")
        terminal.type(DETACH)
        assert terminal.finish() == 0
    assert agentd("daemon", "status").code == 3
