"""result, diff and merge as their users have them: what is printed, what is refused, what stays as it is."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
import pytest
from clishell import Shell

HOSTILE = "a\x1b[31m\x1b]0;title\x07\u202eb"


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


@pytest.fixture
def repo(agentd: Shell, tmp_path: Path) -> str:
    """The verbs are called from its top."""
    agentd.cwd = Path(gitrepo.make_repo(tmp_path / "repo"))
    return str(agentd.cwd)


def work(agentd: Shell, script: str, *flags: str, code: int = 0) -> str:
    """A job that did something, ended and settled; its id."""
    id = agentd.ok("delegate", "-q", *flags, "mend it", "--", "sh", "-c", script).strip()
    assert agentd("wait", "-q", id).code == code
    agentd.ok("result", id)  # waits for what follows the end
    return id


def merged(agentd: Shell) -> list[dict[str, Any]]:
    lines = agentd.ok("events", "--json", "--since", "0").splitlines()
    return [event["data"] for event in map(json.loads, lines) if event["type"] == "job.merged"]


def head(repo: str, ref: str = "main") -> str:
    return gitrepo.run(repo, "rev-parse", ref)


def contents(folder: str | Path) -> dict[str, tuple[bool, bytes]]:
    """Of each file whether it can be executed, and its bytes."""
    found = gitrepo.everything_below(folder)
    return {name: (bool(mode & 0o100), body) for name, (mode, body) in found.items() if not name.startswith(".git/")}


def on_a_terminal(*words: str, cwd: str, **env: str) -> str:
    """What the verb writes to its terminal."""
    pid, ours = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update(env)
        os.execv(sys.executable, [*clishell.AGENTD, *words])
    said = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # nobody holds the other end any more
            break
        if not data:
            break
        said += data
    os.close(ours)
    os.waitpid(pid, 0)
    return said.decode(errors="replace").replace("\r\n", "\n")


# --- merge ----------------------------------------------------------------------------------------------------


def test_the_whole_way(agentd: Shell, repo: str) -> None:
    base = head(repo)
    id = work(agentd, "echo more >>src/f0.txt; echo new >new.txt")
    assert agentd.ok("ps", "-a").splitlines()[1].split()[2] == "succeeded"
    said = agentd("merge", id)
    tip = head(repo)
    assert said == (
        0,
        f"{tip}\n",
        f"agentd: job 1 (mend-it) is in main, from {base[:10]} to {tip[:10]}: 2 files, +2 -0\n",
    )
    assert gitrepo.run(repo, "status", "--porcelain") == "" and Path(repo, "new.txt").read_text() == "new\n"
    assert merged(agentd) == [{"what": tip, "into": "main", "from": base, "to": tip}]
    assert "succeeded (merged)" in agentd.ok("ps", "-a")
    for verb in ("inspect", "result"):
        assert f"merged:        into main, from {base[:10]} to {tip[:10]}, 20" in agentd.ok(verb, id)
    again = agentd("merge", id)
    assert again == (0, f"{tip}\n", "agentd: the work of job 1 (mend-it) is in main already\n")
    assert len(merged(agentd)) == 1 and head(repo) == tip


def test_work_after_a_restart_is_merged_again(agentd: Shell, repo: str) -> None:
    id = work(agentd, 'echo "$AGENTD_ATTEMPT" >>log.txt')
    first = agentd.ok("merge", "-q", id).strip()
    agentd.ok("restart", id)
    assert agentd("wait", "-q", id).code == 0
    assert "(merged)" not in agentd.ok("ps", "-a")
    second = agentd.ok("merge", "-q", id).strip()
    assert Path(repo, "log.txt").read_text() == "1\n2\n"
    assert gitrepo.run(repo, "rev-parse", f"{second}^") == first
    assert [event["to"] for event in merged(agentd)] == [first, second]


def test_what_was_taken_back_is_merged_again_and_told(agentd: Shell, repo: str) -> None:
    id = work(agentd, "echo new >new.txt")
    agentd.ok("merge", "-q", id)
    gitrepo.run(repo, "reset", "-q", "--keep", merged(agentd)[0]["from"])
    assert not Path(repo, "new.txt").exists()
    agentd.ok("merge", "-q", id)
    first, second = merged(agentd)
    assert first == second and Path(repo, "new.txt").exists()


def test_as_json(agentd: Shell, repo: str) -> None:
    base = head(repo)
    id = work(agentd, "echo new >new.txt")
    answer = agentd.json("merge", "--json", id)
    assert answer["is_new"] is True and answer["job"]["merged"] == answer["merged"]
    assert {key: answer["merged"][key] for key in ("into", "from", "to", "work", "attempt")} == {
        "into": "main",
        "from": base,
        "to": head(repo),
        "work": head(repo),
        "attempt": 1,
    }
    said = agentd("merge", "--json", "--into", "nosuch", id)
    assert (said.code, said.err, json.loads(said.out)["code"]) == (1, "", "unknown_branch")


def test_no_changes_are_no_fault(agentd: Shell, repo: str) -> None:
    id = work(agentd, "true")
    assert agentd("merge", id) == (0, "", "agentd: job 1 (mend-it): no changes\n")
    assert agentd.json("merge", "--json", id)["merged"] is None and merged(agentd) == []


def test_what_is_not_ready_is_refused(agentd: Shell, repo: str, tmp_path: Path) -> None:
    before = head(repo)
    running = agentd.ok("delegate", "-q", "--", "sh", "-c", "echo x >x; exec sleep 1000").strip()
    agentd.ok("wait", "-q", "--for", "running", running)
    told = f"agentd: job {running} is still running; wait for it, or end it with: agentd kill {running}\n"
    assert agentd("merge", running) == (1, "", told)
    agentd.ok("kill", running)
    said = agentd("merge", running)
    assert said.code == 1 and f"to merge it all the same: agentd merge --force {running}\n" in said.err
    failed = work(agentd, "echo y >y; exit 3", code=3)
    said = agentd("merge", failed)
    assert (said.code, said.out) == (1, "") and "has not succeeded (failed)" in said.err
    assert head(repo) == before
    assert agentd.ok("merge", "-q", "--force", failed).strip() == head(repo) != before
    in_place = agentd.job("true")
    agentd("wait", "-q", in_place)
    said = agentd("merge", in_place)
    assert said.code == 1 and said.err.endswith("its changes are there already; look with: git diff\n")
    done = work(agentd, "echo z >z")
    agentd.ok("rm", done)
    said = agentd("merge", done)
    assert (said.code, said.err) == (
        1,
        f"agentd: job {done} is in the trash; put it back with: agentd undo {done}\n",
    )
    agentd.ok("undo", done)
    assert agentd("merge", "-q", done).code == 0
    assert agentd("merge", "99").err == "agentd: no job 99; agentd ps --all lists them\n"


def test_conflict_and_dirt_are_one_line_and_change_nothing(agentd: Shell, repo: str) -> None:
    id = work(agentd, "echo job >src/f0.txt; printf evil >'src/e\x1b[31mvil'")
    Path(repo, "src", "f0.txt").write_text("mine\n")
    said = agentd("merge", id)
    assert said.code == 1 and said.err.count("\n") == 1
    assert f"your tree {repo} has changes in src/f0.txt; commit or stash them" in said.err
    Path(repo, "src", "e\x1b[31mvil").write_text("mine\n")
    gitrepo.run(repo, "add", "-A")
    gitrepo.run(repo, "commit", "-qm", "mine")
    before = contents(repo)
    said = agentd("merge", id)
    assert said.code == 1 and said.err.count("\n") == 1
    assert "conflict in src/e\\x1b[31mvil, src/f0.txt; nothing was changed" in said.err
    assert contents(repo) == before and merged(agentd) == []


def test_files_come_home_with_the_callers_umask(agentd: Shell, repo: str) -> None:
    id = work(agentd, "echo new >new.txt; mkdir d; echo x >d/run; chmod +x d/run")
    command = f"umask 027; exec {sys.executable} -m agentd merge -q {id}"
    subprocess.run(["/bin/sh", "-c", command], cwd=repo, check=True, stdout=subprocess.DEVNULL)
    modes = {name: os.stat(f"{repo}/{name}").st_mode & 0o777 for name in ("new.txt", "d", "d/run")}
    assert modes == {"new.txt": 0o640, "d": 0o750, "d/run": 0o750}


def test_a_name_must_be_whole(agentd: Shell, repo: str) -> None:
    work(agentd, "echo new >new.txt", "--name", "fix-login")
    assert agentd("merge", "fix").code == 1
    assert agentd("merge", "-q", "fix-login").code == 0


def test_a_job_cannot_merge_but_look(agentd: Shell, repo: str) -> None:
    child = "agentd delegate -q --name child -- sh -c 'echo new >new.txt' && agentd wait -q child"
    script = f'agentd() {{ {sys.executable} -m agentd "$@"; }}; {child}; agentd diff child; agentd merge child'
    id = agentd.ok("delegate", "-q", "--name", "outer", "--", "sh", "-c", script).strip()
    assert agentd("wait", "-q", id).code == 1
    log = agentd.ok("logs", id)
    assert "+new\n" in log and "agentd: agentd merge is not allowed inside a job; " in log
    assert merged(agentd) == []


def test_a_config_that_the_job_changed_stops_git_there(agentd: Shell, repo: str) -> None:
    id = work(agentd, "echo new >new.txt; git config filter.evil.clean 'touch /tmp/evil'")
    for verb in ("merge", "diff"):
        said = agentd(verb, id)
        assert said.code == 1 and "filter.evil.clean=touch /tmp/evil" in said.err
    assert head(repo) == gitrepo.run(repo, "rev-list", "--max-parents=0", "main")


# --- diff -----------------------------------------------------------------------------------------------------


def test_diff_of_a_running_job(agentd: Shell, repo: str) -> None:
    script = "echo more >>src/f0.txt; echo new >new.txt; git add -A; git commit -qm one; echo loose >loose.txt"
    id = agentd.ok("delegate", "-q", "--", "sh", "-c", f"{script}; echo there; exec sleep 1000").strip()
    faultlab.until(lambda: agentd("logs", id).out == "there\n")
    assert agentd.ok("diff", "--name-only", id).splitlines() == ["loose.txt", "new.txt", "src/f0.txt"]
    assert agentd.ok("diff", "--stat", id).splitlines()[-1] == " 3 files changed, 3 insertions(+)"
    assert "+loose\n" in agentd.ok("diff", id)
    # nothing of the job's was written by the look
    assert gitrepo.run(agentd.json("inspect", "--json", id)["job"]["worktree"], "status", "--short") == "?? loose.txt"


def test_in_a_pipe_it_can_be_applied(agentd: Shell, repo: str, tmp_path: Path) -> None:
    script = (
        "printf 'a\\000b' >blob.bin; git mv src/f0.txt 'src/tab\there'; chmod +x src/f1.txt;"
        " printf 'caf\\351\\r\\n' >latin.txt; rm src/f2.txt"
    )
    id = work(agentd, script)
    done = subprocess.run([*clishell.AGENTD, "diff", id], capture_output=True, cwd=repo)
    clone = tmp_path / "clone"
    gitrepo.run(tmp_path, "clone", "-q", repo, str(clone))
    subprocess.run(["git", "apply"], input=done.stdout, cwd=clone, check=True)
    tree = agentd.json("inspect", "--json", id)["job"]["worktree"]
    assert contents(clone) == contents(tree)


def test_a_large_diff_comes_whole(agentd: Shell, repo: str) -> None:
    id = work(agentd, f"{sys.executable} -c 'print(\"\\u00e9\\n\" * 700000)' >big.txt")
    assert agentd.ok("diff", id).count("+\u00c3\u00a9\n") == 700_000


def test_a_hostile_file_does_not_drive_the_terminal(agentd: Shell, repo: str) -> None:
    id = work(agentd, f"printf '%s\\r\\n' '{HOSTILE}' >'{HOSTILE}'; printf 'x\\n-- \\n' >dashes")
    for words in (["diff", id], ["diff", "--stat", id], ["diff", "--name-only", id], ["result", id]):
        for pager in ("cat", "tr a-z a-z"):
            said = on_a_terminal(*words, cwd=repo, GIT_PAGER=pager)
            plain = [
                said := said.replace(code, "") for code in ("\x1b[m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[36m")
            ]
            assert not set(plain[-1]) & set("\x1b\x07\r\u202e"), words
    colored = on_a_terminal("diff", id, cwd=repo, GIT_PAGER="cat")
    assert "\x1b[32m+a\\x1b[31m\\x1b]0;title\\x07\\u202eb\\x0d\x1b[m\n" in colored
    assert "\x1b[36m@@ -0,0 +1 @@\x1b[m" in colored and "\x1b[32m+-- \x1b[m" in colored
    assert "\x1b" not in on_a_terminal("diff", "--no-color", id, cwd=repo, GIT_PAGER="cat")
    assert "\x1b" not in on_a_terminal("diff", id, cwd=repo, GIT_PAGER="cat", NO_COLOR="1")


def test_a_pager_that_is_not_there_or_has_seen_enough(agentd: Shell, repo: str) -> None:
    id = work(agentd, "seq 200000 >numbers")
    assert "+200000" in on_a_terminal("diff", id, cwd=repo, GIT_PAGER="no-such-pager-here")
    said = on_a_terminal("diff", id, cwd=repo, GIT_PAGER="head -n 3")
    assert len(said.splitlines()) == 3 and "Traceback" not in said


def test_diff_of_what_is_gone(agentd: Shell, repo: str) -> None:
    unchanged = work(agentd, "true")
    assert agentd("diff", unchanged) == (0, "", "")
    id = work(agentd, "echo new >new.txt")
    agentd.ok("rm", id)
    assert agentd.ok("diff", "--name-only", id) == "new.txt\n"


# --- result ---------------------------------------------------------------------------------------------------


def test_result_tells_what_agentd_saw(agentd: Shell, repo: str) -> None:
    script = "echo 1 >one; git add -A; git commit -qm 'one \x1b[31m'; echo 2 >two; sleep 1000 & exit 3"
    id = work(agentd, script, code=3)
    found = agentd.json("result", "--json", id)
    assert (found["outcome"], found["exit_code"], found["changed"], found["words"]) == ("failed", 3, True, None)
    assert [process["command"] for process in found["swept"]] == ["sleep 1000"]
    assert found["commits"]["count"] == 2
    assert [(one["author"], one["subject"]) for one in found["commits"]["first"]] == [
        ("Test", "mend it"),
        ("Test", "one \x1b[31m"),
    ]
    assert found["diffstat"]["paths"] == [["one", 1, 0], ["two", 1, 0]]
    assert gitrepo.run(repo, "rev-parse", f"refs/agentd/work/{id}") == found["snapshot"]
    assert 0 < found["duration"] < 600
    lines = agentd.ok("result", id).splitlines()
    assert lines[:3] == ["job:           1  mend-it", "state:         failed", "exit:          3"]
    assert "changes:       2 files, +2 -0" in lines and "  two  +1 -0" in lines
    assert any(line.endswith("one \\x1b[31m (Test)") for line in lines)


def test_results_are_bounded(agentd: Shell, repo: str) -> None:
    script = (
        "for n in $(seq 300); do echo $n >f$n; done;"
        " for n in $(seq 120); do git commit -q --allow-empty -m $n; done;"
        " for n in $(seq 260); do sleep 1000 & done"
    )
    id = work(agentd, script)
    found = agentd.json("result", "--json", id)
    assert (found["diffstat"]["files"], len(found["diffstat"]["paths"])) == (300, 100)
    assert (found["commits"]["count"], len(found["commits"]["first"])) == (121, 100)
    text = agentd.ok("result", id)
    assert (
        "  … and 200 more" in text.encode("latin-1").decode() and "  … and 21 more" in text.encode("latin-1").decode()
    )
    for line in agentd.ok("events", "--json", "--since", "0").splitlines():
        assert len(line) < 64_000


def test_result_of_a_job_that_runs(agentd: Shell, repo: str) -> None:
    id = agentd.job("sleep", "1000")
    agentd.ok("wait", "-q", "--for", "running", id)
    found = agentd.json("result", "--json", id)
    assert (found["state"], found["outcome"], found["is_settled"], found["duration"]) == ("running", None, False, None)
