"""Every verb: what it prints, where, and its exit code."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clishell
import gitrepo
import pytest
from clishell import Shell


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


@pytest.fixture
def repo(tmp_path: Path) -> str:
    return gitrepo.make_repo(tmp_path / "repo")


# --- the door -------------------------------------------------------------------------------------------------


def test_help_needs_no_verb(agentd: Shell) -> None:
    helped = agentd("--help")
    assert helped.code == 0 and helped == agentd("-h")
    assert all(f"\n  {verb} " in helped.out for verb in ("delegate", "run", "ps", "logs", "wait", "kill", "doctor"))
    assert agentd("--version").out == "agentd 0.1.0\n"
    for verb in ("delegate", "run", "ps", "jobs", "logs", "wait", "kill", "send", "inspect", "events", "daemon"):
        assert agentd.ok(verb, "-h").startswith(f"Usage: agentd {verb} ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["delgate"], 'agentd: there is no verb "delgate"; did you mean delegate?\n'),
        (["daemon", "strat"], 'agentd: there is no verb "strat"; did you mean start?\n'),
        (["\x1b[31m"], 'agentd: there is no verb "\\x1b[31m"; agentd --help lists them\n'),
        (["logs"], "agentd: logs what? Name a job; agentd ps --all lists them; see: agentd logs --help\n"),
        (["ps", "--nonsense"], "agentd: there is no option --nonsense; see: agentd ps --help\n"),
        (["wait", "--timeout", "NaN", "1"], 'agentd: --timeout: a time such as 30s, 5m or 1h30m, not "NaN"\n'),
        (["wait", "--timeout", "-5", "1"], 'agentd: --timeout: a time such as 30s, 5m or 1h30m, not "-5"\n'),
        (["run", "--memory", "lots", "ls"], 'agentd: --memory: a size such as 64M or 2G, not "lots"\n'),
        (["run"], "agentd: run what? Give a command, such as: agentd run make test\n"),
        (
            ["run", "-e", "NOT_SET_HERE", "ls"],
            "agentd: --env: NOT_SET_HERE is not set here; write NOT_SET_HERE=VALUE\n",
        ),
        (["wait"], "agentd: wait for what? Name a job, such as: agentd wait 7, or use --mine, --all or --any\n"),
        (["events", "--ack", "3"], "agentd: --ack needs --as NAME: whose acknowledgement is it?\n"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(agentd: Shell, words: list[str], told: str) -> None:
    assert agentd(*words) == (2, "", told)


def test_with_json_a_failure_is_an_object_on_stdout(agentd: Shell) -> None:
    said = agentd("inspect", "99", "--json")
    assert (said.code, said.err) == (1, "")
    assert json.loads(said.out) == {
        "ok": False,
        "code": "unknown_job",
        "error": "no job 99; agentd ps --all lists them",
    }


def test_a_fault_of_ours_is_one_line_unless_asked_for_more(agentd: Shell) -> None:
    agentd.state.parent.mkdir(parents=True, exist_ok=True)
    agentd.state.write_text("no folder")
    said = agentd("ps")
    assert said.code == 1 and said.err.count("\n") == 1 and said.err.startswith("agentd: cannot keep state in ")
    agentd.state.unlink()


def test_a_reader_that_leaves_is_no_fault(agentd: Shell) -> None:
    for _ in range(3):
        agentd.job("true")
    script = f"{sys.executable} -m agentd events --json | head -1"
    done = subprocess.run(["bash", "-c", f"{script}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    event, code = done.stdout.splitlines()
    assert json.loads(event)["seq"] == 1
    assert code in ("0", "141") and done.stderr == ""


def test_a_full_output_is_told(agentd: Shell) -> None:
    agentd.job("true")
    with open("/dev/full", "wb", buffering=0) as full:
        done = subprocess.run([*clishell.AGENTD, "ps", "-a"], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        75,
        b"agentd: cannot write the output: No space left on device; free some space, or write elsewhere\n",
    )


# --- delegate -------------------------------------------------------------------------------------------------


def test_delegate_prints_the_id_alone_and_talks_on_stderr(agentd: Shell, repo: str) -> None:
    said = agentd("delegate", "say it", "--", "sh", "-c", 'echo "$@"', "sh", "--json", "-q", "--", cwd=repo)
    assert (said.code, said.out) == (0, "1\n")
    base = gitrepo.run(repo, "rev-parse", "HEAD")
    assert said.err == f"agentd: job 1 starts from {base[:10]} (main)\n"
    assert agentd("wait", "1").code == 0
    assert agentd.ok("logs", "1") == "--json -q --\n"
    assert agentd("delegate", "-q", "--", "true", cwd=repo) == (0, "2\n", "")


def test_delegate_says_what_of_a_dirty_tree_the_job_has_not(agentd: Shell, repo: str) -> None:
    Path(repo, "src", "f1.txt").write_text("changed\n")
    Path(repo, "new\x1b[31m").write_text("new\n")
    job = agentd.json("delegate", "--json", "look", "--", "git", "status", "--short", cwd=repo)
    assert job["id"] == 1 and job["agent"] == "command" and job["branch"] == "agentd/1/look"
    agentd("wait", "1")
    assert agentd.ok("logs", "1") == ""
    excluded = json.loads((agentd.state / "jobs" / "1" / "excluded.json").read_text())
    assert (excluded["modified"], excluded["untracked"]) == (1, 1)
    agentd.ok("delegate", "-q", "--with-changes", "--name", "taken", "--", "cat", "src/f1.txt", cwd=repo)
    assert agentd("wait", "taken").code == 0
    assert agentd.ok("logs", "taken") == "changed\n"


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("../../x", '"../../x": RULE'),
        ("-rf", '"-rf": RULE; did you mean --name=rf?'),
        ("a\x1b[31mb", '"a\\x1b[31mb": RULE'),
        ("Ünïcode", '"Ünïcode": RULE (U+00DC)'),
        ("a\u202eb", '"a\\u202eb": RULE (U+202E)'),
    ],
)
def test_bad_names(agentd: Shell, repo: str, name: str, rest: str) -> None:
    rule = "only a-z 0-9 and -, 1-40 characters, must start with a letter"
    told = f"agentd: job name {rest.replace('RULE', rule)}\n"
    assert agentd("delegate", "--name", name, cwd=repo) == (2, "", told)
    assert agentd("delegate", "--name", name, "--", "true", cwd=repo) == (2, "", told)
    assert agentd.json("ps", "-a", "--json") == []


def test_bad_bases_and_places(agentd: Shell, repo: str, tmp_path: Path) -> None:
    told = (
        f'agentd: base "nosuch" is not a commit in {repo} (git: unknown revision); name a branch, a tag or a commit\n'
    )
    assert agentd("delegate", "--base", "nosuch", "--", "true", cwd=repo) == (1, "", told)
    for base in (f"--output={tmp_path}/x", "-x"):
        said = agentd("delegate", "--base", base, "--", "true", cwd=repo)
        assert said == (2, "", 'agentd: base must not start with "-"; name a branch, a tag or a commit\n')
    assert not (tmp_path / "x").exists()
    said = agentd("delegate", "--", "true")
    assert said.code == 1 and "is not in a git repository; use agentd run" in said.err
    empty = tmp_path / "empty"
    empty.mkdir()
    gitrepo.run(empty, "init", "-q")
    said = agentd("delegate", "--", "true", cwd=empty)
    assert (said.code, said.err) == (1, f"agentd: no commit yet in {empty}; make a first commit\n")
    assert gitrepo.run(repo, "branch", "--list", "agentd/*") == ""


def test_a_task_is_one_word_and_some_agents_are_not_built(agentd: Shell, repo: str) -> None:
    said = agentd("delegate", "--agent", "codex", "fix the build", cwd=repo)
    assert said.code == 2 and said.err.startswith('agentd: agent "codex" is not built yet; give a command after --')
    said = agentd("delegate", "fix", "the", "build", cwd=repo)
    assert said.code == 2 and "a command stands after --" in said.err


def test_a_taken_name_names_its_holder(agentd: Shell) -> None:
    agentd.job("sleep", "100", flags=["--name", "mine"])
    said = agentd("run", "-d", "--name", "mine", "true")
    assert said.code == 1 and said.err.startswith('agentd: the name "mine" is taken by job 1 (')


# --- run ------------------------------------------------------------------------------------------------------


def test_run_is_as_if_the_shell_had_run_it(agentd: Shell) -> None:
    assert agentd("run", "sh", "-c", "pwd; echo err >&2; exit 3") == (3, f"{agentd.cwd}\n", "err\n")
    assert agentd("run", "-w", "/", "pwd") == (0, "/\n", "")
    assert agentd("run", "-e", "COLOUR=red", "sh", "-c", "echo $COLOUR").out == "red\n"
    assert agentd("run", "sh", "-c", "kill -9 $$").code == 137
    assert agentd("run", "nosuch-program") == (
        127,
        "",
        "agentd: job 5 (nosuch-program) was not started: cannot run nosuch-program: No such file or directory\n",
    )
    assert agentd("run", "/etc/passwd").code == 126


def test_words_that_are_no_utf8_arrive_as_they_are(agentd: Shell) -> None:
    assert agentd("run", "printf", b"%s", b"a\xffb\xc3\xa9").out == "a\xffb\xc3\xa9"
    assert agentd.ok("ps", "-a").splitlines()[1].endswith("printf %s 'a\\udcffbÃ©'")
    assert agentd.json("ps", "-a", "--json")[0]["argv"][2] == "a\udcffbé"


def test_options_end_at_the_commands_first_word(agentd: Shell) -> None:
    id = agentd.job("echo", "-d", "--json", "--", "-j8")
    assert agentd("wait", id).code == 0
    assert agentd.ok("logs", id) == "-d --json -- -j8\n"


def test_a_time_limit_is_told_apart(agentd: Shell) -> None:
    said = agentd("run", "--timeout", "0.1", "sleep", "100")
    assert said == (124, "", "agentd: job 1 (sleep) met its time limit (timeout)\n")


# --- ps, jobs, inspect ----------------------------------------------------------------------------------------


def test_ps_shows_what_is_not_done_and_all_shows_the_rest(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "exit 3")
    id = agentd.job("sleep", "100", flags=["--name", "napper"])
    assert agentd("wait", "--for", "running", id).code == 0
    header, line = agentd.ok("ps").splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "TIME", "EXIT", "TASK"]
    assert re.fullmatch(r"2 +napper +running +\d+s +- +sleep 100", line)
    rows = agentd.ok("ps", "--all").splitlines()[1:]
    assert re.fullmatch(r"1 +sh +failed +\d+s +3 +(just now|\d+ (s|min) ago) +sh -c 'exit 3'", rows[0])
    assert agentd.ok("ps", "-aq") == "1\n2\n" and agentd.ok("ps", "-ql") == "2\n" and agentd.ok("ps", "-q", "-n0") == ""
    (job,) = agentd.json("ps", "--json")
    assert job["id"] == 2 and job["state"] == "running" and "wait_code" in job
    assert agentd.json("ps", "--json", "--mine", AGENTD_OWNER="somebody else") == []


def test_jobs_are_shown_as_a_shell_does(agentd: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_OWNER", "me")
    first, second = agentd.job("sleep", "100"), agentd.job("sleep", "200")
    assert agentd("wait", "--for", "running", first, second).code == 0
    agentd.ok("kill", "-STOP", first)
    assert agentd("wait", "--for", "stopped", "%1").code == 0
    pids = {str(job["id"]): job["pid"] for job in agentd.json("jobs", "--json")}
    assert agentd.ok("jobs") == (
        "[1]+  Stopped                 sleep 100 &\n[2]-  Running                 sleep 200 &\n"
    )
    assert agentd.ok("jobs", "-l", "-r") == f"[2]- {pids[second]} Running                 sleep 200 &\n"
    assert agentd.ok("jobs", "-p", "-s") == f"{pids[first]}\n"
    agentd.ok("kill", "-s", "CONT", "%+")
    assert agentd("wait", "--for", "running", first).code == 0
    assert agentd.ok("jobs", AGENTD_OWNER="another") == ""


def test_inspect_shows_everything(agentd: Shell, repo: str) -> None:
    agentd.ok("delegate", "-q", "make it", "--", "sh", "-c", "echo x > made; printf '\\033[31m'", cwd=repo)
    agentd("wait", "1")
    whole = agentd.json("inspect", "--json", "make-it")
    assert {"job", "spec", "attempts", "worktree", "events"} <= set(whole)
    sheet = agentd.ok("inspect", "1")
    assert re.search(r"^state: +succeeded, exit 0$", sheet, re.M) and "job.completed" in sheet
    assert "\x1b" not in sheet


# --- wait -----------------------------------------------------------------------------------------------------


def test_wait_passes_codes_on(agentd: Shell) -> None:
    good, bad, hit = agentd.job("true"), agentd.job("sh", "-c", "exit 4"), agentd.job("sh", "-c", "kill $$")
    assert agentd("wait", good).code == 0
    assert agentd("wait", bad) == (4, "", "")
    assert agentd("wait", hit).code == 143
    assert agentd("wait", bad, hit, good).code == 0
    assert agentd("wait", "--fail-any", good, bad, hit).code == 4
    assert agentd("wait", "--fail-any", "--print", good, bad, hit).out == f"{bad}\n"
    assert [job["wait_code"] for job in json.loads(agentd("wait", "--json", good, bad).out)] == [0, 4]
    assert agentd("wait", "99") == (127, "", "agentd: no job 99; agentd ps --all lists them\n")
    assert agentd("wait", "--all").code == 0
    assert agentd("wait", "--any") == (
        127,
        "",
        "agentd: there is no job to wait for; agentd ps --all lists those that have ended\n",
    )


def test_wait_for_any_and_with_a_time_limit(agentd: Shell) -> None:
    slow = agentd.job("sleep", "100")
    said = agentd("wait", "--timeout", "0.1s", slow)
    assert (said.code, said.err) == (124, "agentd: the wait timed out after 0.1s: job 1 (sleep) is running\n")
    said = agentd("wait", "--timeout", "0.1s", "--json", slow)
    assert said.code == 124 and json.loads(said.out)["code"] == "wait_timed_out"
    quick = agentd.job("sh", "-c", "exit 6")
    assert agentd("wait", "-n", "--print", slow, quick) == (6, f"{quick}\n", "")
    assert agentd("wait", "--for", "nonsense", slow).code == 2
    assert agentd("wait", "--for", "stopped", quick).code == 1


def test_ctrl_c_leaves_wait_and_harms_nobody(agentd: Shell) -> None:
    id = agentd.job("sleep", "100")
    waiting = agentd.start("wait", id)
    waiting.until_connected()
    waiting.interrupt()
    assert waiting.finish() == (130, "", "")
    assert agentd.json("ps", "--json")[0]["id"] == int(id)


# --- kill -----------------------------------------------------------------------------------------------------


def test_kill_is_done_when_the_whole_tree_is_gone(agentd: Shell) -> None:
    script = "trap '' INT TERM; (setsid sh -c 'trap \"\" INT TERM; echo $$; exec sleep 1000' &) ; wait; sleep 1000"
    job = agentd.start("run", "sh", "-c", script)
    job.until(b"\n")
    escaped = int(job.seen)
    assert agentd("kill", "--grace", "0.3", "1") == (0, "", "")
    assert not Path(f"/proc/{escaped}").exists() or "Z" in Path(f"/proc/{escaped}/stat").read_text().split(")")[1]
    assert job.finish().code == 137
    assert agentd("kill", "1") == (1, "", "agentd: job 1 has already ended; what came of it: agentd result 1\n")
    assert agentd("kill", "--ignore-missing", "1", "99").code == 0
    assert agentd("kill", "99") == (1, "", "agentd: no job 99; agentd ps --all lists them\n")


def test_kill_9_and_several_at_once(agentd: Shell) -> None:
    first, second = agentd.job("sh", "-c", "trap '' INT TERM; sleep 1000"), agentd.job("sleep", "1000")
    agentd("wait", "--for", "running", first, second)
    views = agentd.json("kill", "-9", "--json", first, second)
    assert [(job["state"], job["outcome"], job["signal"]) for job in views] == [("done", "killed", 9)] * 2


def test_a_signal_that_ends_nothing_is_delivered(agentd: Shell) -> None:
    job = agentd.start("run", "sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done")
    job.until(b"ready\n")
    assert agentd("kill", "-USR1", "1").code == 0
    assert job.finish() == (5, "ready\ncaught\n", "")
    told = 'agentd: there is no signal "NONSENSE"; agentd kill -l lists them\n'
    assert agentd("kill", "-s", "NONSENSE", "1") == (2, "", told)


def test_signals_are_listed_without_a_daemon(agentd: Shell) -> None:
    assert {"INT", "TERM", "KILL"} <= set(agentd.ok("kill", "-l").split())
    assert agentd.ok("kill", "-l", "9", "137", "TERM") == "KILL\nKILL\n15\n"
    assert agentd("daemon", "status").code == 3


# --- send -----------------------------------------------------------------------------------------------------


def test_send_text_lines_bytes_and_the_end(agentd: Shell) -> None:
    id = agentd.job("cat", flags=["-i"])
    agentd.ok("send", id, "hello")
    agentd.ok("send", "-n", id, "wo")
    agentd.ok("send", id, input=b"r\xffld\n")
    assert agentd.json("send", "--json", "--eof", id, "bye") == {"queued": 4, "eof": True}
    assert agentd("wait", id).code == 0
    assert agentd.ok("logs", id) == "hello\nwor\xffld\nbye\n"
    assert agentd("send", id, "late").code == 1
    other = agentd.job("sleep", "100")
    told = (
        f"agentd: job {other} takes no input: it was not started with -i; start one that does: agentd run -d -i CMD\n"
    )
    assert agentd("send", other, "x") == (1, "", told)


# --- events ---------------------------------------------------------------------------------------------------


def test_events_are_printed_and_acknowledged(agentd: Shell) -> None:
    assert agentd.ok("events", "--as", "reader") == ""
    agentd("run", "sh", "-c", "exit 3")
    agentd("wait", "--all")
    events = [json.loads(line) for line in agentd.ok("events", "--json").splitlines()]
    assert [event["type"] for event in events][:2] == ["job.created", "job.queued"]
    assert set(events[0]) == {"seq", "at", "type", "job", "attempt", "data"}
    (done,) = [event for event in events if event["type"] == "job.completed"]
    assert re.search(
        rf"^ *{done['seq']}  \S+  job 1     job\.completed .*outcome=failed exit_code=3", agentd.ok("events"), re.M
    )
    unread = [json.loads(line)["seq"] for line in agentd.ok("events", "--as", "reader", "--json").splitlines()]
    assert unread == [event["seq"] for event in events]
    assert agentd.ok("events", "--as", "reader", "--ack", str(done["seq"])) == ""
    rest = agentd.ok("events", "--as", "reader", "-q").split()
    assert rest == [str(event["seq"]) for event in events if event["seq"] > done["seq"]]
    assert agentd.ok("events", "--since", str(events[-1]["seq"])) == ""
    assert agentd.ok("events", "--mine", AGENTD_OWNER="nobody") == ""
    assert agentd("events", "--as", "reader", "--ack", "99999").code == 1


def test_events_are_followed_until_ctrl_c(agentd: Shell) -> None:
    agentd.ok("daemon", "start", "-q")
    follower = agentd.start("events", "-f", "--since", "0")
    agentd.job("true")
    follower.until(b"job.completed")
    follower.interrupt()
    assert follower.finish().code == 130


def test_ps_is_drawn_anew_when_something_happens(agentd: Shell) -> None:
    agentd.ok("daemon", "start", "-q")
    watcher = agentd.start("ps", "--watch", "-a")
    watcher.until(b"TASK\n")
    agentd.job("sh", "-c", "exit 3")
    watcher.until(b"failed")
    watcher.interrupt()
    assert watcher.finish().code == 130


# --- restart, rm, undo ----------------------------------------------------------------------------------------


def test_restart_is_a_new_attempt(agentd: Shell) -> None:
    agentd("run", "sh", "-c", "echo attempt $AGENTD_ATTEMPT; exit 2")
    assert agentd("restart", "1") == (0, "1\n", "agentd: job 1 (sh): attempt 2\n")
    assert agentd("wait", "1").code == 2
    assert agentd.ok("logs", "1") == "attempt 2\n"
    assert agentd.ok("logs", "1", "--attempt", "1") == "attempt 1\n"
    assert agentd("logs", "1", "--attempt", "9") == (1, "", "agentd: job 1 has no attempt 9: there is 1, 2\n")
    id = agentd.job("sleep", "100")
    assert agentd("restart", id).code == 1


def test_rm_and_undo(agentd: Shell, repo: str) -> None:
    agentd.ok("delegate", "-q", "keep", "--", "sh", "-c", "echo precious > made", cwd=repo)
    agentd("wait", "1")
    tree = Path(agentd.json("inspect", "--json", "1")["job"]["worktree"])
    assert agentd.ok("rm", "keep") == "1\n"
    assert not tree.exists() and agentd.ok("ps", "-aq") == ""
    assert [job["id"] for job in agentd.json("undo", "--json")] == [1]
    assert agentd.ok("undo").splitlines()[1].startswith("1   keep")
    assert agentd.ok("logs", "1") == ""
    assert agentd.ok("undo", "1") == "1\n"
    assert (tree / "made").read_text() == "precious\n"
    running = agentd.job("sleep", "100")
    said = agentd("rm", running, "1", "99")
    assert said.code == 1 and said.out == "1\n" and said.err.count("\n") == 2
    assert agentd.json("rm", "-f", "--json", running)[0]["outcome"] == "killed"
    assert agentd("undo", "99").code == 1


# --- the daemon -----------------------------------------------------------------------------------------------


def test_the_daemon_starts_stops_and_tells(agentd: Shell) -> None:
    assert agentd("daemon", "status") == (3, "not running\n", "")
    down = agentd("daemon", "status", "--json")
    assert (down.code, json.loads(down.out)) == (3, {"running": False})
    assert agentd("daemon", "stop") == (0, "", "agentd: no daemon is running\n")
    assert agentd("daemon", "start").code == 0
    status = agentd.json("daemon", "status", "--json")
    assert {"pid", "version", "started_at", "state_dir", "socket", "jobs"} <= set(status)
    assert f"pid {status['pid']}" in agentd.ok("daemon", "status")
    id = agentd.job("sleep", "100")
    agentd("wait", "--for", "running", id)
    assert agentd("daemon", "stop") == (0, "", "agentd: stopped; 1 job goes on\n")
    assert agentd("daemon", "status").code == 3
    assert agentd.json("ps", "--json")[0]["state"] == "running"


# --- the names of jobs ----------------------------------------------------------------------------------------


def test_unknown_jobs_are_told_with_the_nearest(agentd: Shell) -> None:
    agentd.ok("run", "--name", "build-it", "true")
    assert agentd("logs", "build-if") == (1, "", 'agentd: no job "build-if"; did you mean build-it?\n')
    told = 'agentd: no job "7;rm -rf ~"; agentd ps --all lists them\n'
    assert agentd("logs", "7;rm -rf ~") == (1, "", told)
    assert agentd("logs", "\x1b[2J").err == 'agentd: no job "\\x1b[2J"; agentd ps --all lists them\n'
    assert agentd("logs", "99") == (1, "", "agentd: no job 99; agentd ps --all lists them\n")
    assert agentd("wait", "bui").code == 0
    assert agentd("rm", "bui").code == 1


def test_a_terminal_that_closes_harms_no_job(agentd: Shell) -> None:
    job = agentd.start("run", "sh", "-c", "echo up; sleep 1000")
    job.until(b"up\n")
    job.process.send_signal(signal.SIGHUP)
    assert job.finish().code == -signal.SIGHUP
    assert agentd.json("ps", "--json")[0]["state"] == "running"


def test_the_hot_path_stays_light(agentd: Shell, repo: str) -> None:
    """delegate imports neither rich, nor msgspec, nor another verb."""
    script = (
        "import sys; sys.argv = ['agentd', 'delegate', '-q', '--', 'true']\n"
        "from agentd.cli import main\nmain()\n"
        "bad = {'rich', 'msgspec', 'asyncio', 'agentd.cli.run', 'agentd.cli.ps', 'agentd.follow'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    agentd.ok("daemon", "start", "-q")
    done = subprocess.run([sys.executable, "-c", script], cwd=repo, capture_output=True, text=True, env=os.environ)
    assert (done.stdout, done.stderr) == ("1\n[]\n", "")
