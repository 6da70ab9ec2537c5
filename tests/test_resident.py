"""A verb that the resident process answers is the verb itself: byte for byte, and with all that is its caller's."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import clishell
import faultlab
import gitrepo
import pytest
from clishell import Shell
from residentlab import HERE, THERE, both_ways, bring_up, is_taken, pid_of, scripted_both_ways

from agentd import door, paths
from agentd.cli import verbs


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


# --- which way a call goes -----------------------------------------------------------------------------------


def test_every_verb_has_its_row_in_the_table() -> None:
    assert {*verbs.VERBS, "?"} == {*door.SHORT}
    assert {*door.ASKING} <= {*verbs.VERBS}


@pytest.mark.parametrize(
    ("words", "is_short"),
    [
        ("logs --help", True),
        ("ps", True), ("ps --watch", False), ("ps --watch --help", False), ("", True), ("--help", True),
        ("run -d true", True), ("run --detach true", True), ("run true -d", False), ("run", False),
        ("logs 1", True), ("logs -f 1", False), ("logs -tf 1", False), ("logs --follow 1", False),
        ("events --as f", True), ("events --follow", False), ("events -f --json", False), ("pss", True),
        ("answer 1", False), ("answer 1 yes", True), ("answer -q 1", False), ("daemon stop", False),
        ("daemon stop --help", True), ("doctor", False), ("doctor -h", True), ("delegate -- ls --help", True),
    ],
)  # fmt: skip
def test_what_talks_with_a_person_or_goes_on_stays_here(words: str, is_short: bool) -> None:
    assert door.is_short(words.split()) is is_short


def test_the_first_verb_starts_it_and_it_ends_with_the_daemon(agentd: Shell) -> None:
    assert not is_taken(agentd, "ps")
    bring_up(agentd)
    for words in (["ps"], ["--help"], ["kill", "--help"], ["nonsense"], ["wait", "7"], ["run", "-d", "true"]):
        assert is_taken(agentd, *words), words
    for words in (["run", "true"], ["doctor"], ["ps", "-q"]):
        assert is_taken(agentd, *words) == (words == ["ps", "-q"]), words
    assert not is_taken(agentd, "ps", AGENTD_DEBUG="1")
    assert not is_taken(agentd, "ps", TYPER_USE_RICH="0")
    agentd.ok("daemon", "stop")
    faultlab.until(lambda: pid_of(agentd.state) == 0)
    faultlab.until(lambda: not (agentd.state / paths.RESIDENT_SOCKET).exists())


def test_without_a_daemon_none_is_started(agentd: Shell) -> None:
    agentd.ok("--help", AGENTD_WITHOUT="")
    agentd("logs", "7", AGENTD_WITHOUT="")
    assert not (agentd.state / paths.RESIDENT_LOCK).exists()


def test_switched_off_none_is_started_or_asked(agentd: Shell) -> None:
    agentd.ok("ps", **HERE)
    assert not (agentd.state / paths.RESIDENT_LOCK).exists()
    said = [line for line in agentd("doctor", **HERE).out.splitlines() if "short verbs" in line]
    assert said == ["weaker  short verbs: switched off by AGENTD_WITHOUT: each takes a tenth of a second longer"]


def test_doctor_tells_who_answers(agentd: Shell) -> None:
    pid = bring_up(agentd)
    assert f"ok      short verbs: answered by a process with all imports done (pid {pid})\n" in agentd("doctor").out


def test_a_job_is_not_served(agentd: Shell) -> None:
    bring_up(agentd)
    inside = f'PYTHONPROFILEIMPORTTIME=1 "{sys.executable}" -m agentd ps'
    id = agentd.job("sh", "-c", inside)
    agentd.ok("wait", id)
    assert " typer" in agentd.ok("logs", id)


def test_a_folder_that_is_open_to_others_gets_none(agentd: Shell) -> None:
    agentd.ok("ps", **HERE)
    agentd.state.chmod(0o755)
    agentd.ok("ps", AGENTD_WITHOUT="")
    agentd.state.chmod(0o700)
    assert not (agentd.state / paths.RESIDENT_LOCK).exists()


# --- the same on both ways -----------------------------------------------------------------------------------


def test_what_is_said_is_the_same_byte_for_byte(agentd: Shell) -> None:
    bring_up(agentd)
    for command in ("exit 3", "printf 'a\\nb\\033\\377'; echo e >&2", "kill -9 $$"):
        agentd("wait", agentd.job("sh", "-c", command))
    failing = [["pss"], ["ps", "--nonsense"], ["logs"], ["inspect", "99", "--json"], ["kill", "1"], ["rm"]]
    asking = [["ps", "-a"], ["ps", "-a", "--json"], ["jobs", "-a"], ["logs", "2"], ["logs", "-t", "2"], ["wait", "1"]]
    asking += [["wait", "3", "--json"], ["events", "--json"], ["events"], ["inspect", "2"], ["inbox"], ["undo"]]
    helping = [[], ["--version"], ["help", "ps"], *([verb, "--help"] for verb in verbs.VERBS)]
    for words in failing + asking + helping:
        both_ways(agentd, *words)
    assert both_ways(agentd, "wait", "1").code == 3
    assert both_ways(agentd, "wait", "3").code == 137
    assert both_ways(agentd, "logs", "2").out == "a\nb\x1b\xffe\n"
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()[:16]  # in UTC; as a local time long past, or far away
    east, west = (both_ways(agentd, "logs", "2", "--since", soon, TZ=zone).out for zone in ("UTC-9", "UTC+9"))
    assert (east, west) == ("a\nb\x1b\xffe\n", "")
    for environment in ({"PYTHONUNBUFFERED": "1"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}):
        both_ways(agentd, "wait", "1", "2", "--print", **environment)


def test_a_job_gets_what_is_its_callers(agentd: Shell) -> None:
    bring_up(agentd)
    show = "sh -c 'umask; ulimit -n; ulimit -c; pwd; echo $MARK $AGENTD_OWNER'"
    script = f"umask 027; ulimit -n 200; ulimit -c 0; export MARK=$'\\377 x'; cd /usr; agentd run -d {show} >/dev/null"
    for way in ("", "nice -n 3 "):
        scripted_both_ways(agentd, script.replace("agentd run", f'{way}"{sys.executable}" -m agentd run'))
    said = [both_ways(agentd, "logs", str(id)).out for id in (1, 2, 3, 4)]
    assert said == ["0027\n200\n0\n/usr\n\xff x\n"] * 4


def test_a_job_is_of_its_callers_session(agentd: Shell) -> None:
    bring_up(agentd)
    for way in (HERE, THERE):
        script = f'"{sys.executable}" -m agentd run -d true >/dev/null; echo $$'
        done = subprocess.run(
            ["sh", "-c", script], env=os.environ | way, capture_output=True, text=True, start_new_session=True
        )
        owner = agentd.json("ps", "-a", "--json")[-1]["owner"]
        assert owner.rpartition(":")[2] == done.stdout.strip()


def test_a_removed_folder_and_closed_streams(agentd: Shell, tmp_path: Path) -> None:
    bring_up(agentd)
    gone = scripted_both_ways(agentd, f"mkdir {tmp_path}/d; cd {tmp_path}/d; rmdir {tmp_path}/d; agentd run -d ls 2>&1")
    assert gone == "agentd: the current folder has been removed; go to another one, and try again\n"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"):
        scripted_both_ways(agentd, f"agentd ps -a {closed}; echo $?")
        scripted_both_ways(agentd, f"agentd nonsense {closed}; echo $?")


def test_a_reader_that_leaves(agentd: Shell) -> None:
    bring_up(agentd)
    id = agentd.job("sh", "-c", "yes | head -c 3000000")
    agentd.ok("wait", id)
    script = f"agentd logs {id} | head -1; echo ${{PIPESTATUS[0]}}"
    assert scripted_both_ways(agentd, script) == "y\n141\n"
    assert scripted_both_ways(agentd, f"trap '' PIPE; {script}") == "y\n141\n"


def test_another_character_set(agentd: Shell) -> None:
    bring_up(agentd)
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    assert not is_taken(agentd, "ps", **ascii_only)
    assert is_taken(agentd, "ps", LC_ALL="C")
    agentd("wait", agentd.job("echo", "é\udcff"))
    for environment in (ascii_only, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}):
        both = [agentd("ps", "-a", "--no-trunc", **(environment | way)) for way in (HERE, {"AGENTD_WITHOUT": ""})]
        assert both[0] == both[1]


def test_a_huge_environment(agentd: Shell) -> None:
    bring_up(agentd)
    many = {f"HUGE{number}": "x" * 120_000 for number in range(3)}
    assert agentd("run", "-d", "true", **(many | THERE)) == (0, "1\n", "")
    said = both_ways(agentd, "run", "-d", "true", **{f"HUGE{number}": "x" * 120_000 for number in range(9)})
    assert said.code == 2 and "message larger than" in said.err
    secret = agentd.job("sh", "-c", 'printf %s "$HUGE_TOKEN" | wc -c', flags=["-e", f"HUGE_TOKEN={'x' * 100_000}"])
    agentd.ok("wait", secret)
    assert agentd.ok("logs", secret).strip() == "100000"


def test_input_that_is_piped_in(agentd: Shell) -> None:
    bring_up(agentd)
    id = agentd.job("cat", flags=["-i"])
    for way in (HERE, THERE):
        assert agentd("send", id, input=b"one\n\xff\n", **way).code == 0
    agentd.ok("send", id, "--eof", "last")
    agentd.ok("wait", id)
    assert agentd.ok("logs", id) == "one\n\xff\n" * 2 + "last\n"


def test_a_delegate_from_a_repository(agentd: Shell, tmp_path: Path) -> None:
    repo = gitrepo.make_repo(tmp_path / "repo")
    bring_up(agentd)
    for number, way in enumerate((HERE, THERE), 1):
        said = agentd("delegate", "--name", f"n{number}", "--", "true", cwd=repo, **way)
        assert said.out == f"{number}\n" and said.code == 0
        assert re.sub(r"job \d", "job N", said.err).startswith("agentd: job N starts from ")


def on_terminal(words: list[str], columns: int, way: dict[str, str]) -> bytes:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with subprocess.Popen([*clishell.AGENTD, *words], stdout=theirs, stderr=theirs, env=os.environ | way) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # a terminal without a writer is an error on Linux
                break
        process.wait(clishell.PATIENCE_S)
    os.close(ours)
    return said


def test_a_terminal_of_any_width(agentd: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_PAGER", "cat")
    monkeypatch.delenv("COLUMNS", raising=False)  # it would count more than the terminal
    bring_up(agentd)
    agentd("wait", agentd.job("echo", "word " * 60))
    seen = set()
    for columns in (30, 80, 200):
        for words in (["ps", "-a"], ["logs", "1"], ["inspect", "1"], ["--help"]):
            here, there = (on_terminal(words, columns, way) for way in (HERE, THERE))
            assert re.sub(rb"\d+ s", b"N s", here) == re.sub(rb"\d+ s", b"N s", there), words
        seen.add(on_terminal(["ps", "-a"], columns, THERE))
    assert len(seen) == 3


# --- what it must not do -------------------------------------------------------------------------------------


def test_nothing_of_a_caller_stays_in_it(agentd: Shell, tmp_path: Path) -> None:
    pid = bring_up(agentd)
    folder = tmp_path / "folder"
    folder.mkdir()
    files = set(os.listdir(f"/proc/{pid}/fd"))
    secret = "s3cret-" + os.urandom(8).hex()
    for _ in range(3):
        agentd.ok("run", "-d", "true", secret, cwd=folder, CALLERS_TOKEN=secret, **THERE)
    assert is_taken(agentd, "ps")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert set(os.listdir(f"/proc/{pid}/fd")) == files
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in "012"} == {"/dev/null"}
    assert secret.encode() not in memory(pid)
    names = {pair.partition(b"=")[0] for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert b"HOME" not in names and b"PATH" not in names


def memory(pid: int) -> bytes:
    found = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                begin, end = (int(word, 16) for word in place.split("-"))
                file.seek(begin)
                found += file.read(end - begin) or b""
    return found


def test_who_connects_and_says_nothing_is_in_nobodys_way(agentd: Shell) -> None:
    bring_up(agentd)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as liar:
        os.chdir(agentd.state)  # its path may be too long for a socket
        silent.connect(paths.RESIDENT_SOCKET)
        liar.connect(paths.RESIDENT_SOCKET)
        liar.sendall((5).to_bytes(8, sys.byteorder) + b"lies!")
        said = b"".join(iter(lambda: liar.recv(100), b""))
        assert re.fullmatch(rb"[1-9][0-9]*-.+", said)
        assert is_taken(agentd, "ps") and agentd("ps", "-q", **THERE) == (0, "", "")


def test_it_is_for_its_user_alone(agentd: Shell) -> None:
    bring_up(agentd)
    assert (agentd.state / paths.RESIDENT_SOCKET).stat().st_mode & 0o777 == 0o600
    assert (agentd.state / paths.RESIDENT_LOCK).stat().st_mode & 0o777 == 0o600
    assert json.loads(agentd.ok("ps", "--json")) == []
