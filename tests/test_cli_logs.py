"""A job's output: shown, followed over every death of ours, and passed through by ``run``."""

import contextlib
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import clishell
import faultlab
import pytest
from clishell import Shell

from agentd import jobdir
from agentd.cli import render

INTERLEAVED = "for i in 1 2 3; do echo out$i; echo err$i >&2; done"
GATED = 'echo one; read word < gate; echo two; echo "$word" >&2'


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


class Gate:
    """A FIFO at which a job waits for a word. It is held open here: if it were opened for each word, the job could
    come for the next one before the last was closed, and find an end of file."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR)

    def say(self, word: str) -> None:
        os.write(self.fd, word.encode() + b"\n")


@pytest.fixture
def gate(agentd: Shell) -> Iterator[Gate]:
    gate = Gate(agentd.cwd / "gate")
    yield gate
    os.close(gate.fd)


def keeper_of(agentd: Shell, id: str) -> int:
    """The process that listens at keeper.sock; after a death, its adopter's."""
    while True:
        try:
            link = jobdir.connect(f"{agentd.path(id)}/keeper.sock")
        except (ConnectionRefusedError, FileNotFoundError):
            continue
        with link:
            return int(struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def numbered(agentd: Shell, lines: int) -> str:
    """A script that writes so many lines of 100 bytes and then waits at the gate."""
    script = agentd.cwd / "numbered.py"
    script.write_text(
        f"import sys\nfor n in range({lines}): print(f'{{n:099d}}')\nsys.stdout.flush()\n"
        "open('gate').readline()\nprint('end')\n"
    )
    return str(script)


# --- logs -------------------------------------------------------------------------------------------------------


def test_both_streams_in_the_order_in_which_they_came(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "echo a; echo b >&2; echo c")
    assert agentd.ok("logs", "1", "--stdout") == "a\nc\n"
    assert agentd.ok("logs", "1", "--stderr") == "b\n"
    assert sorted(agentd.ok("logs", "1").split()) == ["a", "b", "c"]


def test_the_tail_goes_over_both_streams(agentd: Shell, gate: Gate) -> None:
    script = "echo a1; echo a2; read _ < gate; echo b1 >&2; echo b2 >&2; read _ < gate; printf 'c1\\nc2'"
    follower = agentd.start("logs", "-f", agentd.job("sh", "-c", script))
    follower.until(b"a2\n")
    gate.say("go")
    follower.until(b"b2\n")
    gate.say("go")
    whole = "a1\na2\nb1\nb2\nc1\nc2"
    assert follower.finish() == (0, whole, "")
    assert agentd.ok("logs", "1") == whole
    lines = whole.splitlines(keepends=True)
    for count in range(7):
        assert agentd.ok("logs", "1", "-n", str(count)) == "".join(lines[len(lines) - count :])
    assert agentd.ok("logs", "1", "--tail", "2", "--stdout") == "c1\nc2"
    assert agentd.ok("logs", "1", "--tail", "1", "--stderr") == "b2\n"


def test_since_and_timestamps(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "printf 'a\\nb'; echo c")
    assert agentd.ok("logs", "1", "--since", "1h") == "a\nbc\n"
    assert agentd.ok("logs", "1", "--since", "2099-01-01") == ""
    assert agentd("logs", "1", "--since", "yesterday").code == 2
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamp} a\n{stamp} bc\n", agentd.ok("logs", "-t", "1"))


def test_each_line_has_its_own_time_after_the_end_too(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "for n in 1 2 3; do date +%s.%N; sleep 0.4; done")
    lines = [line.split() for line in agentd.ok("logs", "-t", "1").splitlines()]
    late = [datetime.fromisoformat(stamp).timestamp() - float(said) for stamp, said in lines]
    assert len(late) == 3 and all(-0.01 < each < 0.35 for each in late), late
    assert len({stamp for stamp, _ in lines}) == 3


def test_bytes_are_exact_in_a_pipe_and_harmless_on_a_terminal(agentd: Shell) -> None:
    text = b"\x1b[31mred\x1b[0m \x1b]0;title\x07\xff\x00\xc3\xa9\n"
    agentd("run", "printf", "".join(f"\\{byte:03o}" for byte in text))
    assert agentd.ok("logs", "1").encode("latin-1") == text
    assert on_terminal(agentd, "logs", "1") == "red \\udcff\\x00é\r\n".encode()
    assert on_terminal(agentd, "logs", "--raw", "1") == text.replace(b"\n", b"\r\n")


def on_terminal(agentd: Shell, *words: str) -> bytes:
    """What a terminal gets."""
    ours, theirs = pty.openpty()
    unpaged = os.environ | {"AGENTD_PAGER": "cat"}
    process = subprocess.Popen([*clishell.AGENTD, *words], stdout=theirs, stderr=theirs, cwd=agentd.cwd, env=unpaged)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # a terminal without a writer is an error on Linux
        while data := os.read(ours, 4096):
            said += data
    os.close(ours)
    assert process.wait(clishell.PATIENCE_S) == 0, said
    return said


def test_what_log_max_dropped_is_told(agentd: Shell, gate: Gate) -> None:
    id = agentd.job(sys.executable, numbered(agentd, 8000), flags=["--log-max", "256K"])
    gate.say("")
    agentd("wait", id)
    said = agentd("logs", id)
    kept = said.out
    assert kept.endswith(f"{7999:099d}\nend\n") and len(kept) < 400_000
    dropped = 800_004 - len(kept)
    told = f"{render.size(dropped)} of output are missing here: --log-max keeps the last 256 KiB"
    assert said.err == f"agentd: {told}\n"
    assert agentd("logs", "-n", "1", id) == (0, "end\n", "")


def test_it_works_while_the_daemon_is_dead(agentd: Shell, gate: Gate) -> None:
    agentd.job("sh", "-c", GATED, flags=["--name", "speaker"])
    agentd("wait", "--for", "running", "1")
    daemon = agentd.json("daemon", "status", "--json")["pid"]
    os.kill(daemon, signal.SIGKILL)
    follower = agentd.start("logs", "-f", "--exit-code", "speaker")
    follower.until(b"one\n")
    assert agentd.ok("logs", "1") == "one\n"
    gate.say("three")
    assert follower.finish() == (0, "one\ntwo\nthree\n", "")
    assert agentd("logs", "speake").code == 1
    assert not running(daemon)


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


# --- logs -f ----------------------------------------------------------------------------------------------------


def test_follow_goes_over_rotation(agentd: Shell, gate: Gate) -> None:
    id = agentd.job(sys.executable, numbered(agentd, 20_000), flags=["--log-max", "4M"])
    follower = agentd.start("logs", "-f", id)
    follower.until(f"{19_999:099d}\n".encode())
    assert len(list(agentd.path(id).glob("log.out.*"))) > 2
    gate.say("")
    said = follower.finish()
    assert said.out == "".join(f"{n:099d}\n" for n in range(20_000)) + "end\n"
    assert (said.code, said.err) == (0, "")


def test_follow_goes_over_the_death_of_its_keeper(agentd: Shell, gate: Gate) -> None:
    script = "echo up; for i in 1 2 3; do read word < gate; echo $i $word; done; exit 9"
    id = agentd.job("sh", "-c", script)
    follower = agentd.start("logs", "-f", "--exit-code", id)
    follower.until(b"up\n")
    for round in (b"1", b"2", b"3"):
        os.kill(keeper_of(agentd, id), signal.SIGKILL)
        gate.say("go")
        follower.until(round + b" go\n")
    assert follower.finish() == (9, "up\n1 go\n2 go\n3 go\n", "")


def test_follow_goes_over_the_death_of_everybody(agentd: Shell, gate: Gate) -> None:
    id = agentd.job("sh", "-c", GATED)
    follower = agentd.start("logs", "-f", id)
    follower.until(b"one\n")
    status = agentd.json("daemon", "status", "--json")
    for pid in (status["pid"], status["zygote"], keeper_of(agentd, id)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agentd.ok("daemon", "start")
    gate.say("three")
    assert follower.finish().out == "one\ntwo\nthree\n"


def test_follow_waits_for_a_job_that_has_not_started(agentd: Shell, tmp_path: Path) -> None:
    config = tmp_path / "agentd.toml"
    config.write_text("[limits]\nrunning = 1\n")
    agentd.ok("daemon", "start", AGENTD_CONFIG=str(config))
    first, second = agentd.job("sleep", "1000"), agentd.job("echo", "at last")
    third = agentd.job("echo", "never")
    assert [job["state"] for job in agentd.json("ps", "--json")][1:] == ["queued", "queued"]
    follower, other = agentd.start("logs", "-f", second), agentd.start("logs", "-f", "--exit-code", third)
    agentd.ok("kill", third)
    assert other.finish().code == agentd("wait", third).code == 130
    agentd.ok("kill", first)
    assert follower.finish() == (0, "at last\n", "")


def test_ctrl_c_leaves_logs_and_harms_nobody(agentd: Shell, gate: Gate) -> None:
    id = agentd.job("sh", "-c", GATED)
    follower = agentd.start("logs", "-f", id)
    follower.until(b"one\n")
    follower.interrupt()
    assert follower.finish() == (130, "one\n", "")
    gate.say("")
    assert agentd("wait", id).code == 0


def test_a_reader_that_leaves_ends_logs_quietly(agentd: Shell, gate: Gate) -> None:
    id = agentd.job(sys.executable, numbered(agentd, 5000))
    gate.say("")
    agentd("wait", id)
    command = f"{sys.executable} -m agentd logs {id} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{0:099d}\n141\n", "")


# --- run in the foreground --------------------------------------------------------------------------------------


def test_run_passes_each_stream_to_its_own(agentd: Shell) -> None:
    assert agentd("run", "sh", "-c", INTERLEAVED) == (0, "out1\nout2\nout3\n", "err1\nerr2\nerr3\n")
    big = "import sys; [print('x' * 1000) or print('y' * 1000, file=sys.stderr) for _ in range(2000)]"
    said = agentd("run", sys.executable, "-c", big)
    assert (said.code, said.out, said.err) == (0, ("x" * 1000 + "\n") * 2000, ("y" * 1000 + "\n") * 2000)


def test_run_passes_input_and_its_end_on(agentd: Shell) -> None:
    data = bytes(range(256)) * 4000
    said = agentd("run", "-i", "cat", input=data)
    assert (said.code, said.err) == (0, "")
    assert said.out.encode("latin-1") == data
    assert agentd("run", "cat", input=b"not without -i").out == ""
    assert agentd("run", "-i", "true", input=data).code == 0


def test_run_answers_while_input_is_typed(agentd: Shell) -> None:
    job = agentd.start("run", "-i", "sh", "-c", "while read line; do echo got $line; done", stdin=subprocess.PIPE)
    assert job.process.stdin is not None
    for word in (b"a", b"b"):
        job.process.stdin.write(word + b"\n")
        job.process.stdin.flush()
        job.until(b"got " + word + b"\n")
    assert job.finish() == (0, "got a\ngot b\n", "")


def test_ctrl_c_interrupts_the_job_and_its_children(agentd: Shell) -> None:
    job = agentd.start("run", "bash", "-c", "echo up; sleep 1000; echo not reached")
    job.until(b"up\n")
    leader = agentd.record("1", "agent.json")["agent"]["pid"]
    faultlab.until(lambda: Path(f"/proc/{leader}/task/{leader}/children").read_text() != "")
    job.interrupt()
    assert job.finish() == (130, "up\n", "")
    assert agentd.json("ps", "-a", "--json")[0]["outcome"] == "failed"


def test_a_job_may_live_on_after_ctrl_c_and_a_second_one_kills(agentd: Shell) -> None:
    script = "trap 'echo caught' INT; echo up; while :; do sleep 0.02; done"
    job = agentd.start("run", "bash", "-c", script)
    job.until(b"up\n")
    job.interrupt()
    job.until(b"caught\n")
    job.interrupt()
    assert job.finish() == (137, "up\ncaught\n", "")


def test_ctrl_c_kills_a_job_that_has_not_started(agentd: Shell, tmp_path: Path) -> None:
    config = tmp_path / "agentd.toml"
    config.write_text("[limits]\nrunning = 1\n")
    agentd.ok("daemon", "start", AGENTD_CONFIG=str(config))
    agentd.job("sleep", "1000")
    job = agentd.start("run", "echo", "never")
    faultlab.until(lambda: len(agentd.json("ps", "--json")) == 2)
    job.interrupt()
    assert job.finish().code == 130


def test_a_run_whose_reader_leaves_ends_as_a_pipe_would_have_it(agentd: Shell) -> None:
    command = f"{sys.executable} -m agentd run yes | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("y\n141\n", "")
    assert agentd.json("ps", "--json") == []


def test_run_outlives_the_daemon(agentd: Shell, gate: Gate) -> None:
    job = agentd.start("run", "sh", "-c", GATED + "; exit 4")
    job.until(b"one\n")
    os.kill(agentd.json("daemon", "status", "--json")["pid"], signal.SIGKILL)
    gate.say("three")
    assert job.finish() == (4, "one\ntwo\n", "three\n")


def test_a_follower_at_rest_does_nothing(agentd: Shell, gate: Gate) -> None:
    """No polling: blocked in poll(2), it uses no processor time until there is something to do."""
    id = agentd.job("sh", "-c", GATED)
    follower = agentd.start("logs", "-f", id)
    follower.until(b"one\n")
    pid = follower.process.pid
    faultlab.until(lambda: Path(f"/proc/{pid}/wchan").read_text().startswith(("do_sys_poll", "poll_schedule", "0")))

    def switches() -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1])  # type: ignore[index]

    before = switches()
    assert not select.select([follower.process.stdout], [], [], 0.5)[0]
    assert switches() <= before + 1
    gate.say("")
    assert follower.finish().code == 0
