"""What a person sees who meets the command line for the first time."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clishell
import gitrepo
import pytest
from clishell import Shell
from test_cli_render import view

from agentd import client, protocol
from agentd.cli import render
from agentd.cli.sheet import limit_lines, process_lines, result_lines, sheet
from agentd.client import Client
from agentd.core.errors import Usage


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


@pytest.fixture
def repo(tmp_path: Path) -> str:
    return gitrepo.make_repo(tmp_path / "repo")


# --- restart --------------------------------------------------------------------------------------------------


def test_restart_prints_the_id_alone(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "exit 3")
    assert agentd("restart", "1") == (0, "1\n", "agentd: job 1 (sh): attempt 2\n")
    agentd("wait", "1")
    assert agentd("restart", "-q", "1") == (0, "1\n", "")
    agentd("wait", "1")
    (job,) = agentd.json("restart", "--json", "1")
    assert (job["id"], job["attempt"]) == (1, 4)


# --- inspect --------------------------------------------------------------------------------------------------


def document(**changes: Any) -> dict[str, Any]:
    more = {"owner": "me", "cwd": "/", "base": "b" * 40, "parent": None, "removed": False, "swept": [], "left": []}
    more |= {"worktree": None, "branch": None, "result": None, "merged": None}
    job = view(**more)
    attempt = {"attempt": 1, "path": "/state/jobs/7/1", "log": {"out": 1536, "err": 1}}
    return {"job": job, "spec": {}, "worktree": None, "attempts": [attempt], "events": []} | changes


def test_a_sheet_has_sizes_and_times_a_person_writes() -> None:
    spec = {"timeout": 5400.0, "idle_timeout": 90.5, "memory": 2 << 30, "processes": 100, "log_max": 1 << 30}
    assert limit_lines(spec) == [
        "timeout 1h30m",
        "idle-timeout 1m30.5s",
        "memory 2 GiB",
        "processes 100",
        "log-max 1 GiB",
    ]
    assert limit_lines({"timeout": None, "log_max": 0}) == []
    lines = sheet(document(spec=spec), 0.0)
    assert "limits:        timeout 1h30m" in lines
    assert "               idle-timeout 1m30.5s" in lines
    assert lines[-2:] == ["attempt 1:     /state/jobs/7/1", "               stdout 1.5 KiB, stderr 1 byte"]


def test_a_sheet_has_one_of_a_list_in_a_line() -> None:
    paths = [["a.py", 3, 1], ["picture.png", None, None], ["odd\x1b[31m", 1, 0]]
    stat = {"files": 4, "insertions": 5, "deletions": 2, "paths": paths}
    told = ["4 files, +5 -2", "a.py  +3 -1", "picture.png  binary", "odd\x1b[31m  +1 -0", "and 1 more file"]
    assert result_lines({"diffstat": stat}) == told
    assert result_lines({"changed": False}) == ["no changes"]
    assert process_lines([{"pid": 7, "command": "sleep 9"}, {"pid": 8, "command": "x"}]) == ["7 sleep 9", "8 x"]
    missing = document(worktree={"missing": ["node_modules", ".venv"]})
    missing["job"] |= {"result": {"diffstat": stat}}
    lines = sheet(missing, 0.0)
    assert "not there:     node_modules" in lines and "               .venv" in lines
    assert "result:        4 files, +5 -2" in lines and "               odd\\x1b[31m  +1 -0" in lines


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1 GiB"),
        (5 << 40, "5 TiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes(number: int, shown: str) -> None:
    assert render.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.5, "0.5s"), (7, "7s"), (90, "1m30s"), (5400, "1h30m"), (90061.25, "1d1h1m1.25s")]
)
def test_times_in_full(seconds: float, shown: str) -> None:
    assert render.span_in_full(seconds) == shown


def test_inspect_shows_no_raw_number(agentd: Shell, repo: str) -> None:
    script = "echo two > made; echo x >> src/f1.txt"
    agentd.ok(
        "delegate", "-q", "--name", "it", "--timeout", "90m", "--memory", "2G", "--", "sh", "-c", script, cwd=repo
    )
    agentd("wait", "it")
    follower = agentd.start("events", "-f", "--since", "0")
    follower.until(b"job.result")
    said = agentd.ok("inspect", "it")
    assert re.search(r"^result: +2 files, \+2 -0\n {15}made  \+1 -0\n {15}src/f1.txt  \+1 -0$", said, re.M), said
    assert re.search(r"^limits: +timeout 1h30m\n {15}memory 2 GiB\n {15}log-max 1 GiB$", said, re.M), said
    assert re.search(r"^ {15}stdout 0 bytes, stderr 0 bytes$", said, re.M), said
    assert "diffstat=2:files,+2,-0" in said and re.search(r"started_at=\d{4}-\d\d-\d\dT", said)
    raw = agentd.json("inspect", "--json", "it")
    assert raw["spec"]["log_max"] == 1 << 30 and raw["job"]["result"]["diffstat"]["paths"][0] == ["made", 1, 0]


# --- ps -------------------------------------------------------------------------------------------------------


def test_an_empty_list_says_where_the_jobs_are(agentd: Shell) -> None:
    head = "ID  NAME  STATE  TIME  EXIT  TASK\n"
    assert agentd("ps") == (0, head, "agentd: there are no jobs yet; agentd delegate --help says how to start one\n")
    agentd("run", "true")
    assert agentd("ps") == (0, head, "agentd: 1 job has ended; agentd ps --all shows it\n")
    agentd("run", "true")
    assert agentd("ps", "--mine").err == "agentd: 2 jobs have ended; agentd ps --all --mine shows them\n"
    assert agentd("ps", AGENTD_OWNER="other").err == "agentd: 2 jobs have ended; agentd ps --all shows them\n"
    assert agentd("ps", "--mine", AGENTD_OWNER="other").err.startswith("agentd: there are no jobs yet")
    for quiet in (["-q"], ["--json"], ["--all"], ["-n", "5"], ["-l"]):
        assert agentd("ps", *quiet).err == ""
    agentd.ok("rm", "1", "2")
    assert agentd("ps").err.startswith("agentd: there are no jobs yet")


def test_hidden_jobs_are_told_to_a_terminal_only(agentd: Shell) -> None:
    agentd("run", "true")
    agentd.job("sleep", "1000")
    assert agentd("ps").err == ""
    assert on_terminal("ps").endswith("agentd: 1 job has ended; agentd ps --all shows it\r\n")


def on_terminal(*words: str) -> str:
    """What a terminal shows of both streams."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*clishell.AGENTD, *words], stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # a terminal without a writer is an error on Linux
        while data := os.read(ours, 4096):
            said += data
    os.close(ours)
    assert process.wait(clishell.PATIENCE_S) == 0, said
    return said.decode()


# --- delegate -------------------------------------------------------------------------------------------------


def test_with_changes_tells_of_the_snapshot(agentd: Shell, repo: str) -> None:
    clean = agentd("delegate", "--with-changes", "--", "true", cwd=repo)
    head = gitrepo.run(repo, "rev-parse", "HEAD")
    assert clean.err == f"agentd: job 1 starts from {head[:10]} (main); your tree has no changes to take along\n"
    Path(repo, "src", "f1.txt").write_text("changed\n")
    taken = agentd("delegate", "--with-changes", "--", "true", cwd=repo)
    base = agentd.json("inspect", "--json", "2")["job"]["base"]
    assert base != head
    assert taken == (0, "2\n", f"agentd: job 2 has your changes, as snapshot {base[:10]} (main)\n")


# --- wait and the daemon --------------------------------------------------------------------------------------


def test_a_wait_that_is_cut_off_is_not_the_jobs_code(agentd: Shell) -> None:
    own = agentd.job("sh", "-c", "exit 75")
    assert agentd("wait", own) == (75, "", "")
    assert json.loads(agentd("wait", "--json", own).out)[0]["wait_code"] == 75
    id = agentd.job("sleep", "1000")
    waiting, json_waiting = agentd.start("wait", id), agentd.start("wait", "--json", id)
    waiting.until_connected()
    json_waiting.until_connected()
    both_wait(agentd, 2)
    assert agentd("daemon", "stop") == (0, "", "agentd: stopped; 1 job goes on\n")
    told = "the wait was cut off, for the daemon was stopped: this 75 is not the job's; jobs go on, so wait again"
    assert waiting.finish() == (75, "", f"agentd: {told}\n")
    said = json_waiting.finish()
    assert (said.code, said.err) == (75, "")
    assert json.loads(said.out) == {"ok": False, "code": "daemon_stopped", "error": told}
    # Jobs can be ended without a daemon, too: one is started to do it.
    assert agentd("daemon", "stop", "--kill-jobs") == (0, "", "agentd: stopped; 1 job was ended\n")
    assert agentd("daemon", "stop", "--kill-jobs") == (0, "", "agentd: no daemon is running\n")


def both_wait(agentd: Shell, count: int) -> None:
    """Until so many clients have been answered their first question, the ids, and asked the second."""
    log = agentd.state / "daemon.log"
    pid = agentd.json("daemon", "status", "--json")["pid"]

    def waiters() -> int:
        size = log.stat().st_size
        os.kill(pid, 12)  # SIGUSR2: what each task waits for
        clishell.faultlab.until(lambda: b"say_tasks" in log.read_bytes()[size:] or log.stat().st_size > size)
        return log.read_bytes()[size:].count(b"do_jobs_wait")

    clishell.faultlab.until(lambda: waiters() == count)


def test_stop_says_how_many_jobs_go_on_or_were_ended(agentd: Shell) -> None:
    agentd.ok("daemon", "start", "-q")
    assert agentd("daemon", "stop").err == "agentd: stopped; no job was running\n"
    first, second = agentd.job("sleep", "1000"), agentd.job("sleep", "1000")
    agentd("wait", "--for", "running", first, second)
    assert agentd("daemon", "stop", "--kill-jobs") == (0, "", "agentd: stopped; 2 jobs were ended\n")
    assert [job["outcome"] for job in agentd.json("ps", "--all", "--json")] == ["killed", "killed"]
    assert agentd.json("daemon", "stop", "--kill-jobs", "--json") == {"stopped": True, "jobs": 0, "killed": 0}
    assert agentd.json("daemon", "stop", "--json") == {"stopped": False, "jobs": 0, "killed": 0}


def test_a_job_is_told_which_verbs_it_has(agentd: Shell) -> None:
    agentd_inside = f"{sys.executable} -m agentd"
    script = "; ".join(f"{agentd_inside} {words}" for words in ("kill 1", "events", "daemon stop", "restart 1"))
    said = agentd("run", "sh", "-c", script)
    allowed = "delegate, run, ps, jobs, logs, wait, inspect, result, diff, lock, unlock and locks"
    rest = f"is not allowed inside a job; {allowed} are"
    assert said.err.splitlines() == [
        f"agentd: agentd {verb} {rest}" for verb in ("kill", "events", "daemon", "restart")
    ]
    inside = "{0} run -d true && {0} run true && {0} ps && {0} jobs && {0} logs 3 && {0} inspect 3 && {0} wait 4"
    assert agentd("run", "sh", "-c", inside.format(agentd_inside)).code == 0


# --- logs -----------------------------------------------------------------------------------------------------


def test_logs_says_why_there_is_nothing(agentd: Shell, tmp_path: Path) -> None:
    config = tmp_path / "agentd.toml"
    config.write_text("[limits]\nrunning = 1\n")
    agentd.ok("daemon", "start", AGENTD_CONFIG=str(config))
    silent, queued, dropped = agentd.job("sleep", "1000"), agentd.job("true"), agentd.job("true")
    agentd("wait", "--for", "running", silent)
    comes = "agentd logs -f shows what comes"
    assert agentd("logs", silent) == (0, "", f"agentd: job {silent} has written nothing yet; {comes}\n")
    assert agentd("logs", queued) == (0, "", f"agentd: job {queued} has not started yet; {comes}\n")
    assert agentd("logs", "-q", queued) == (0, "", "")
    agentd.ok("kill", dropped)
    why = "so it wrote nothing: it was killed before it started"
    assert agentd("logs", dropped) == (0, "", f"agentd: job {dropped} was not started, {why}\n")
    agentd.ok("kill", silent)
    agentd("wait", queued)
    assert agentd("logs", queued) == (0, "", f"agentd: job {queued} has ended and wrote nothing\n")
    assert agentd("logs", "99") == (1, "", "agentd: no job 99; agentd ps --all lists them\n")
    speaker = agentd.job("echo", "hello")
    agentd("wait", speaker)
    assert agentd("logs", speaker, "-n", "0") == (0, "", "")


# --- what is refused before anything is begun -----------------------------------------------------------------


def test_a_question_that_cannot_be_read_is_answered(agentd: Shell) -> None:
    with Client() as client, pytest.raises(Usage, match="a number is out of bounds"):
        client.ask("jobs.wait", jobs=[1 << 70])
    with Client() as client, pytest.raises(Usage, match="a number is out of bounds"):
        list(client.events(since=1 << 70, follow=False))


@pytest.mark.parametrize("limit", ["memory", "processes", "log_max"])
def test_a_negative_limit_is_refused_over_the_wire(agentd: Shell, limit: str) -> None:
    with Client() as client, pytest.raises(Usage, match="a limit must not be negative"):
        client.delegate(["true"], in_place=True, **{limit: -1})
    assert agentd.json("ps", "-a", "--json") == []


def test_the_client_knows_the_limit_of_the_wire() -> None:
    assert client.MAX_MESSAGE == protocol.MAX_MESSAGE


def test_without_a_home_it_says_what_to_set(agentd: Shell) -> None:
    """A user whom no list knows, in a mapped user namespace of one id."""
    script = f"unset HOME AGENTD_STATE_DIR XDG_STATE_HOME; exec {sys.executable} -m agentd ps"
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    nobody = 54321
    command = ["unshare", "--user", f"--map-user={nobody}", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip("no user namespaces here")
    told = "agentd: cannot tell where your home is: HOME is not set; set it, or AGENTD_STATE_DIR\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_name_that_is_too_long_for_the_system(agentd: Shell) -> None:
    place = f"/tmp/{'d' * 300}"
    told = f"agentd: cannot read {place}/daemon.json: File name too long; set AGENTD_STATE_DIR to a folder of yours\n"
    assert agentd("ps", AGENTD_STATE_DIR=place) == (1, "", told)


def test_a_command_in_quotes_gets_a_hint(agentd: Shell) -> None:
    why = "was not started: cannot run echo hi: No such file or directory"
    hint = "a command is given word by word, as in: agentd run echo hi"
    assert agentd("run", "echo hi") == (127, "", f"agentd: job 1 (echo-hi) {why}; {hint}\n")


# --- jobs and places ------------------------------------------------------------------------------------------


def test_the_name_of_a_job_in_the_trash_is_free(agentd: Shell) -> None:
    agentd("run", "--name", "same", "true")
    assert agentd("rm", "same", "same") == (0, "1\n", "")
    assert agentd("run", "-d", "--name", "same", "true").out == "2\n"
    said = agentd("undo", "1")
    assert said.code == 1 and said.err.startswith('agentd: cannot put job 1 back: the name "same" is taken by job 2')


def test_a_folder_removed_under_a_running_job(agentd: Shell, tmp_path: Path) -> None:
    place, gate = tmp_path / "gone", tmp_path / "gate"
    place.mkdir()
    os.mkfifo(gate)
    job = agentd.start(
        "run", "-w", str(place), "sh", "-c", f"echo up; read _ < {gate}; ls {place} && echo there; exit 3"
    )
    job.until(b"up\n")
    place.rmdir()
    gate.write_text("go\n")
    said = job.finish()
    assert said.code == 3 and "there" not in said.out and "No such file or directory" in said.err
    assert agentd.json("ps", "-a", "--json")[0]["outcome"] == "failed"


def test_words_are_bytes_in_any_character_set(agentd: Shell) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "WHO": "jörg"}
    said = agentd("run", "--owner", "jörg", "sh", "-c", 'echo "$1 $WHO"', "sh", "grüße", **ascii_only)
    assert said.out.encode("latin-1") == "grüße jörg\n".encode()
    (job,) = agentd.json("ps", "--all", "--json")
    assert (job["owner"], job["argv"]) == ("jörg", ["sh", "-c", 'echo "$1 $WHO"', "sh", "grüße"])


def test_closed_streams_get_no_file_of_ours(agentd: Shell) -> None:
    """With all three closed, what the command writes must not land in the connection to the daemon."""
    script = f"exec {sys.executable} -m agentd run sh -c 'echo out; echo err >&2; exit 4' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=agentd.cwd).returncode == 4
    assert sorted(agentd.ok("logs", "1").split()) == ["err", "out"]
