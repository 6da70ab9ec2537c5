"""The built-in agent as its user has it: the real command line and daemon, and a script in place of the model."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sysconfig
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
import pytest
from clishell import Shell

from agentd.cli import render
from agentd.scripted import Server

KEY = "sk-test-0123456789"
ASK = {"tool": "ask", "input": {"question": "Which\x1b[2J colour?", "options": ["red", "blue"]}}
ASKING = [{"say": "A question.", "calls": [ASK]}, {"say": "So be it."}]


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, agentd: Shell) -> Iterator[Callable[[Any], None]]:
    """The model does as the script says. It comes after the daemon, whose jobs end before it does."""
    servers: list[Server] = []

    def serve(turns: Any) -> None:
        server = Server(turns)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def repo(tmp_path: Path) -> str:
    return gitrepo.make_repo(tmp_path / "repo")


def delegate(agentd: Shell, *words: str) -> str:
    return agentd.ok("delegate", "--in-place", "-q", *words).strip()


def asking(agentd: Shell, *words: str) -> str:
    """A job that waits for an answer; its id."""
    id = delegate(agentd, *words, "choose")
    assert agentd("wait", id, "--for", "waiting").code == 0
    return id


def bash(command: str) -> dict[str, Any]:
    return {"tool": "bash", "input": {"command": command}}


def test_without_a_key_no_job_is_made(
    agentd: Shell, script: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(ASKING)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    said = agentd("delegate", "--in-place", "choose")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("agentd: there is no key for the model: ANTHROPIC_API_KEY is not set here; set it, or ")
    assert agentd.json("ps", "-a", "--json") == []
    assert agentd("delegate", "--in-place", "-q", "--", "true").code == 0


# --- delegate -------------------------------------------------------------------------------------------------


def test_a_task_is_done_in_a_worktree_and_everything_is_told(
    agentd: Shell, script: Callable[[Any], None], repo: str
) -> None:
    edit = {"tool": "edit", "input": {"path": "src/f1.txt", "old": "line 1", "new": "line one"}}
    script([{"calls": [edit, {"tool": "note", "input": {"text": "first\nthe line"}}]}, {"say": "Changed it."}])
    said = agentd(
        "delegate", "--model", "claude-haiku-5-5", "--max-turns", "9", "--max-cost", "1.5", "Fix it", cwd=repo
    )
    assert said.code == 0 and said.out == "1\n" and said.err.startswith("agentd: job 1 starts from ")
    assert agentd("wait", "1") == (0, "", "")
    assert Path(repo, "src/f1.txt").read_text() == "line 1\n"
    job = agentd.json("ps", "-a", "--json")[0]
    assert Path(job["worktree"], "src/f1.txt").read_text() == "line one\n"
    assert (job["progress"]["turns"], job["progress"]["words"]) == (2, "Changed it.")
    agentd.ok("result", "1")  # what it changed is known
    header, row = agentd.ok("ps", "-a").splitlines()
    assert header.split() == [
        "ID",
        "NAME",
        "STATE",
        "AGENT",
        "TIME",
        "EXIT",
        "ENDED",
        "TURNS",
        "COST",
        "CHANGES",
        "TASK",
    ]
    assert re.fullmatch(
        r"1   fix-it  succeeded  builtin  \d+s +0     (?:just now|\d+ s ago) +2      \$0\.\d{4}  \+1 -1 +  Fix it", row
    )
    told = agentd.ok("inspect", "1")
    assert "\nprofile:       default (claude-haiku-5-5)\n" in told and "\ncommand:" not in told
    assert re.search(r"^limits: (.*\n +)*turns 9\n +cost \$1\.50$", told, re.M)
    assert re.search(r"^spent: +2 turns, [\d,]+ tokens, \$0\.\d{4}$", told, re.M)
    assert "\nplan:          first\n               the line\n" in told and "\nits words:     Changed it.\n" in told
    assert agentd.ok("result", "1").endswith("\nwhat the agent says:\n  Changed it.\n")


def test_in_place_it_works_where_one_stands(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"calls": [{"tool": "write", "input": {"path": "new.txt", "content": "here\n"}}]}, {"say": "Written."}])
    delegate(agentd, "write")
    assert agentd("wait", "1").code == 0 and (agentd.cwd / "new.txt").read_text() == "here\n"


def test_what_does_not_go_together_is_refused_in_a_line(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([])

    def refusal(*words: str) -> str:
        said = agentd(*words)
        assert said.code == 2 and said.out == "" and said.err.count("\n") == 1, said
        return said.err

    for flag in ("profile", "model", "max-turns", "max-tokens", "max-cost"):
        told = f"agentd: --{flag} is for the built-in agent; leave it out, or the command after --\n"
        assert refusal("delegate", f"--{flag}", "1", "--", "true") == told
        assert f"there is no option --{flag}" in refusal("run", f"--{flag}", "1", "true")
    assert 'there is no profile "nope"; there is: default' in refusal(
        "delegate", "--in-place", "--profile", "nope", "x"
    )
    assert "the price of other is not known" in refusal("delegate", "--in-place", "--model=other", "--max-cost=1", "x")
    assert "there is no restart policy" in refusal("delegate", "--in-place", "--restart", "always", "--", "true")
    for value in ("-1", "nan", "inf", "much"):
        assert "--max-cost" in refusal("delegate", "--max-cost", value, "x")
    assert agentd.json("ps", "-a", "--json") == []


def test_without_the_sdk_the_refusal_says_how_to_install_it(agentd: Shell, tmp_path: Path) -> None:
    """An environment like this one, with all packages but that one."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("anthropic") and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    command = [str(tmp_path / "venv" / "bin" / "python"), "-m", "agentd"]
    done = subprocess.run([*command, "delegate", "fix it"], capture_output=True, text=True, cwd=agentd.cwd)
    told = "agentd: the built-in agent needs the Anthropic SDK: pip install 'agentd[agent]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    done = subprocess.run([*command, "run", "true"], capture_output=True, text=True, cwd=agentd.cwd)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_limit_ends_it_and_is_named(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"calls": [bash("true")], "repeat": True}])
    delegate(agentd, "--max-turns", "2", "for ever")
    assert agentd("wait", "1").code == 124
    assert agentd.json("inspect", "1", "--json")["job"]["outcome"] == "limited"
    assert re.search(r"^ended    (stopped|limited)\n         .*turns", agentd.ok("logs", "1"), re.M)


# --- questions ------------------------------------------------------------------------------------------------


def test_a_question_is_seen_everywhere_and_answered_by_number(agentd: Shell, script: Callable[[Any], None]) -> None:
    script(ASKING)
    id = asking(agentd)
    assert re.search(r"  waiting  .*  asks: Which\\x1b\[2J colour\? \(1: red; 2: blue\)\n", agentd.ok("ps"))
    lines = agentd.ok("inbox").splitlines()
    assert re.fullmatch(r"job 1 \(choose\) asks, for \d+s", lines[0])
    assert lines[1:] == ["  Which colour?", "    1  red", "    2  blue", "  agentd answer 1 N"]
    (one,) = agentd.json("inbox", "--json")
    assert (one["job"], one["why"], one["options"], one["next"]) == (
        1,
        "question",
        ["red", "blue"],
        "agentd answer 1 N",
    )
    assert render.moment(one["since"]) is not None and agentd.ok("inbox", "-q") == "1\n"
    assert "\nasks:          Which colour?\n  1:           red\n" in agentd.ok("inspect", id)
    assert agentd("answer", id, "3") == (2, "", "agentd: there is no option 3: choose 1 to 2, or write a text\n")
    assert agentd("answer", id) == (2, "", "agentd: answer what? Give a TEXT: agentd answer 1 TEXT\n")
    assert agentd("answer", id, "2") == (0, "", 'agentd: job 1 is answered "blue"\n')
    assert agentd("wait", id).code == 0
    assert "\nasks     Which colour?\n           1  red\n           2  blue\n" in agentd.ok("logs", id)
    assert "\nyou      blue\n" in agentd.ok("logs", id)
    assert agentd("inbox") == (0, "", "agentd: nothing waits for you\n")
    assert agentd("answer", id, "1").err == "agentd: job 1 has already ended; what came of it: agentd result 1\n"


def test_an_answer_comes_from_standard_input_too(agentd: Shell, script: Callable[[Any], None]) -> None:
    script(ASKING)
    id = asking(agentd)
    assert agentd("answer", id, input=b"\xff").err == "agentd: standard input is no UTF-8 text (byte 0)\n"
    receipt = agentd.json("answer", id, "--json", input="neither, but grün\n".encode())
    assert receipt == {"n": 1, "state": "queued", "question": "q1", "text": "neither, but grün"}
    assert agentd("wait", id).code == 0
    assert "you      neither, but grün\n" in agentd.ok("logs", id).encode("latin-1").decode()


def test_a_child_of_a_job_asks_in_the_same_inbox(agentd: Shell, script: Callable[[Any], None]) -> None:
    script(ASKING)
    agentd.job(*clishell.AGENTD, "delegate", "--in-place", "choose")
    faultlab.until(lambda: agentd.ok("inbox", "-q") == "2\n")
    (one,) = agentd.json("inbox", "--json")
    assert (one["parent"], one["owner"]) == (1, "job:1")
    agentd.ok("answer", "2", "1")
    assert agentd("wait", "2").code == 0


# --- steering -------------------------------------------------------------------------------------------------


def test_it_is_told_interrupted_and_told_again(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"calls": [bash("sleep 1000")]}, {"say": "Stopped it."}])
    events = agentd.start("events", "-f", "--since", "0", "--json")
    id = delegate(agentd, "sleep")
    events.until(b'"doing": "bash: sleep 1000"')
    assert re.search(r"  running  .*  bash: sleep 1000\n", agentd.ok("ps"))
    assert agentd.json("send", id, "one", "--json") == {"n": 1, "state": "queued"}
    assert agentd("send", id, input=b"two\n") == (0, "", "")
    assert agentd("send", id, "--eof").code == 2 and agentd("send", id, "").code == 2
    events.until(b'"data": {"n": 2, "state": "accepted"}')
    told = "agentd: job 1 waits until it is told how to go on: agentd send 1 TEXT\n"
    assert agentd("interrupt", id) == (0, "", told)
    assert agentd("wait", id, "--for", "waiting").code == 0
    assert agentd.ok("inbox").splitlines()[1:] == ["  interrupted; send it a message", "  agentd send 1 TEXT"]
    assert agentd.json("inbox", "--json")[0]["since"] is not None
    assert agentd.json("send", id, "go on", "--json")["n"] == 4
    assert agentd("wait", id).code == 0
    events.until(b'"data": {"n": 4, "state": "consumed"}')
    receipts = re.findall(r'"n": (\d), "state": "consumed"', events.seen.decode())
    assert receipts == ["1", "2", "3", "4"]
    lines = agentd.ok("logs", id).splitlines()
    assert [line for line in lines if line.startswith(("you", "held", "goes"))] == [
        *["you      one", "you      two", "you      interrupted it"],
        *["held     interrupted; it waits for a message", "you      go on", "goes on"],
    ]
    assert agentd("send", id, "late") == (1, "", "agentd: job 1 has already ended; what came of it: agentd result 1\n")


def test_an_interrupt_may_say_what_to_do(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"calls": [bash("sleep 1000")]}, {"say": "As you like."}])
    events = agentd.start("events", "-f", "--since", "0", "--json")
    id = delegate(agentd, "sleep")
    events.until(b'"doing": "bash: sleep 1000"')
    assert agentd("interrupt", id, "stop that") == (0, "", "")
    assert agentd("wait", id).code == 0 and "\n         stop that\n" in agentd.ok("logs", id)


def test_commands_have_no_conversation(agentd: Shell) -> None:
    id = agentd.job("sleep", "100")
    assert agentd("interrupt", id).err == "agentd: job 1 is a command; to signal it: agentd kill -s INT 1\n"
    assert agentd("answer", id, "x").code == 1
    agentd.ok("kill", id)
    told = "agentd: job 1 is a command, which has no conversation to go on with; to run it again: agentd restart 1\n"
    assert agentd("restart", "--resume", id) == (1, "", told)
    assert agentd("restart", id)[:2] == (0, "1\n")


def test_a_restart_begins_anew_or_resumes(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"calls": [bash("sleep 1000")]}, {"say": "Here I am again."}])
    id = delegate(agentd, "sleep")
    assert agentd("wait", id, "--for", "running").code == 0
    agentd.ok("kill", id)
    said = agentd("restart", id)
    assert (said.code, said.out) == (0, "1\n")
    anew = "agentd: job 1 begins its conversation anew; restart --resume would go on with it\n"
    assert said.err == f"agentd: job 1 (sleep): attempt 2\n{anew}"
    faultlab.until(lambda: "bash     sleep 1000" in agentd.ok("logs", id))
    agentd.ok("kill", id)
    assert agentd("restart", "--resume", id) == (0, "1\n", "agentd: job 1 (sleep): attempt 3\n")
    assert agentd("wait", id).code == 0
    text = agentd.ok("logs", id)
    assert "goes on with the conversation of an earlier attempt" in text and "says     Here I am again." in text
    assert "task     sleep" in agentd.ok("logs", id, "--attempt", "2") and "ended    killed" in agentd.ok(
        "logs", id, "--attempt", "2"
    )


def test_profiles_tell_of_keys_and_never_show_them(agentd: Shell, home: Path, script: Callable[[Any], None]) -> None:
    settings = home / ".config" / "agentd"
    settings.mkdir(parents=True)
    (home / "key").write_text(KEY + "\n")
    (settings / "agentd.toml").write_text(
        '[agent]\nprofile = "cheap"\n'
        '[profiles.cheap]\nmodel = "claude-haiku-5-5"\nkey_file = "~/key"\nmax_turns = 1000\nmax_cost = 0.5\n'
        '[profiles.far]\nmodel = "far-1"\nendpoint = "http://far.invalid"\nkey_env = "FAR_KEY"\n'
    )
    script([{"say": "Cheap."}])
    lines = agentd.ok("profiles").splitlines()
    assert re.fullmatch(
        r"cheap\*  +claude-haiku-5-5  +http://127\S+  +1,000 turns, \$0.5000  +known +~/key, there", lines[2]
    )
    assert re.fullmatch(r"far  +far-1  +http://far.invalid  +-  +unknown  FAR_KEY, not there", lines[3])
    assert agentd.ok("profiles", "-q") == "default\ncheap\nfar\n"
    listed = agentd.json("profiles", "--json", FAR_KEY=KEY)
    assert [one["key"]["found"] for one in listed] == [True, True, True]
    assert KEY not in json.dumps(listed) and KEY not in "\n".join(lines)
    id = delegate(agentd, "anything")
    assert agentd("wait", id).code == 0
    assert "\nprofile:       cheap (claude-haiku-5-5)\n" in agentd.ok("inspect", id)


# --- logs -----------------------------------------------------------------------------------------------------

LONG_TALK = [
    {"say": "I look.", "calls": [bash("printf 'a\\033[2Jb\\n'; seq 100")]},
    {"say": "**Done** \u202e."},
]


def test_logs_for_people_and_for_programs(agentd: Shell, script: Callable[[Any], None]) -> None:
    script(LONG_TALK)
    id = delegate(agentd, "look")
    assert agentd("wait", id).code == 0
    text = agentd.ok("logs", id)
    shown = text.encode("latin-1").decode()
    assert "\x1b" not in text and "\u202e" not in shown
    assert "\nbash     printf 'a\\033[2Jb\\n'; seq 100\n         ab\n         1\n         … 95 more lines\n" in shown
    assert "\nsays     **Done** \\u202e.\n" in shown
    assert agentd.ok("logs", "-n", "2", id).splitlines()[0] == "ended    done"
    assert agentd.ok("logs", "-n", "0", id) == "" == agentd.ok("logs", "--since", "2199-01-01", "-n", "0", id)
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line) for line in agentd.ok("logs", "-t", id).splitlines()
    )
    stored = (agentd.path(id) / "transcript.ndjson").read_bytes()
    assert agentd.ok("logs", "--raw", id).encode("latin-1") == stored
    records = [json.loads(line) for line in agentd.ok("logs", "--json", id).splitlines()]
    assert records == [json.loads(line) for line in stored.splitlines()]
    assert agentd.ok("logs", "--stdout", id) == agentd.ok("logs", "--stderr", id) == ""


def test_a_transcript_that_was_written_to_breaks_nothing(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"say": "Fine."}])
    id = delegate(agentd, "anything")
    assert agentd("wait", id).code == 0
    forged = [
        *[b"{torn", b"[1]", b'{"type": "call", "input": 7}', b'{"type": "say"}', b"\xff\xfe", b"[" * 100_000],
        *[b'{"type": "note", "at": 1e999, "text": "\\u001b[2J\\nended    done"}', b'"' + b"x" * 10_000_000 + b'"'],
        b'{"type": "note", "text": "' + b"y" * 10_000_000 + b'"}',
    ]
    with open(agentd.path(id) / "transcript.ndjson", "ab") as file:
        file.write(b"".join(line + b"\n" for line in forged))
    text = agentd.ok("logs", id).encode("latin-1").decode()
    assert len(text) < 10_000 and text.count("\nended") == 1 and "\n         ended    done\n" in text
    assert text.count("damaged  a line of ") == 5
    assert [json.loads(line)["type"] for line in agentd.ok("logs", "--json", id).splitlines()].count("damaged") == 5


def test_what_its_runner_says_is_shown_in_its_place(agentd: Shell, script: Callable[[Any], None]) -> None:
    script([{"fault": "429", "retry_after": 3, "say": "There."}])
    id = delegate(agentd, "ask")
    assert agentd("wait", id).code == 0
    lines = [line for line in agentd.ok("logs", id).splitlines() if line]
    kinds = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert kinds == ["start", "task", "failed", "parked", "stderr", "goes", "says", "ended", "spent"]
    records = [json.loads(line) for line in agentd.ok("logs", "--json", id).splitlines()]
    assert any(one["type"] == "err" and one["text"].startswith("agentd: parked: ") for one in records)


def test_it_is_followed_while_the_daemon_is_dead(agentd: Shell, script: Callable[[Any], None]) -> None:
    os.mkfifo(agentd.cwd / "gate")
    gate = os.open(agentd.cwd / "gate", os.O_RDWR)
    try:
        script([{"say": "First.", "calls": [bash(f"read word < {agentd.cwd}/gate; echo $word")]}, {"say": "Last."}])
        id = delegate(agentd, "follow me")
        follower = agentd.start("logs", "-f", "--exit-code", id)
        follower.until(b"\nbash     read word")
        os.kill(agentd.json("daemon", "status", "--json")["pid"], signal.SIGKILL)
        pid = follower.process.pid
        faultlab.until(lambda: Path(f"/proc/{pid}/wchan").read_text().startswith(("do_sys_poll", "poll_schedule", "0")))
        before = switches(pid)
        assert not select.select([follower.process.stdout], [], [], 0.5)[0]
        assert switches(pid) <= before + 1
        os.write(gate, b"open\n")
        follower.until(b"\n         open\n")
        said = follower.finish()
        assert said.code == 0 and re.search(r"says     Last\.\n\nended    done\nspent    2 turns", said.out)
    finally:
        os.close(gate)


def switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1])  # type: ignore[index]


def on_terminal(agentd: Shell, *words: str) -> str:
    ours, theirs = pty.openpty()
    unpaged = os.environ | {"AGENTD_PAGER": "cat"}
    process = subprocess.Popen([*clishell.AGENTD, *words], stdout=theirs, stderr=theirs, cwd=agentd.cwd, env=unpaged)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # a terminal without a writer is an error on Linux
        while data := os.read(ours, 4096):
            said += data
    os.close(ours)
    assert process.wait(clishell.PATIENCE_S) == 0, said
    return said.decode()


def test_on_a_terminal_it_has_colours_and_nothing_that_drives_it(
    agentd: Shell, script: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    script(LONG_TALK)
    id = delegate(agentd, "look")
    live = on_terminal(agentd, "logs", "-f", id)
    later = on_terminal(agentd, "logs", id)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", later)
    assert "\x1b[" in later and "\x1b" not in bare and "\u202e" not in later
    assert "\r\nsays     Done \\u202e.\r\n" in bare and "\r\n         ab\r\n" in bare
    # Followed, a line tells what goes on just now, and is taken back.
    assert re.sub(r"\x1b\[2m[^\x1b\r\n]*\x1b\[0m\r\x1b\[K", "", live) == later
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal(agentd, "logs", id) + on_terminal(agentd, "ps", "-a")


def test_logs_of_a_command_are_json_too(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "echo one; printf 'two\\033' >&2")
    said = [json.loads(line) for line in agentd.ok("logs", "--json", "1").splitlines()]
    assert [(one["type"], one["text"]) for one in said] == [("out", "one"), ("err", "two\x1b")]
    assert all(one["at"] > 1.7e9 for one in said)


def test_rich_is_for_logs_alone(agentd: Shell) -> None:
    code = (
        "import sys; sys.argv = ['agentd', *sys.argv[1:]]\nfrom agentd.cli import main\nmain()\n"
        "print('rich' in sys.modules, file=sys.stderr)"
    )
    for verb in ("ps", "inbox", "profiles", "jobs"):
        command = [clishell.AGENTD[0], "-c", code, verb, "-q"]
        assert subprocess.run(command, capture_output=True, text=True).stderr == "False\n", verb
