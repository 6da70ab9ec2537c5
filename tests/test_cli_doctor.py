"""What is weaker or wrong here, and a new store."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
import pytest
from clishell import Shell


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


def checks(agentd: Shell, **env: str) -> dict[str, dict[str, Any]]:
    return {check["check"]: check for check in json.loads(agentd("doctor", "--json", **env).out)["checks"]}


def test_it_works_with_the_daemon_down_and_starts_none(agentd: Shell) -> None:
    found = checks(agentd)
    assert {
        "cgroup v2",
        "exit status by pidfd",
        "pidfs",
        "splice",
        "terminals",
        "file system",
        "disk",
        "git",
        "daemon",
    } <= set(found)
    assert found["daemon"]["what"] == "not running; the next verb starts it"
    assert agentd("daemon", "status").code == 3
    told = [line.partition(":")[0] for line in agentd.ok("doctor").splitlines()]
    assert [line.partition(":")[0] for line in agentd.ok("daemon", "doctor").splitlines()] == told


def test_what_is_switched_off_is_weaker_and_has_a_remedy(agentd: Shell) -> None:
    found = checks(agentd, AGENTD_WITHOUT="cgroup,pidfd-exit,pidfd-getfd,splice")
    for name in ("cgroup v2", "--memory", "--processes", "exit status by pidfd", "splice", "terminals"):
        assert found[name]["level"] == "weaker" and found[name]["remedy"], found[name]
    assert "does not bind root" in found["--processes"]["what"] or os.getuid() != 0
    assert agentd("doctor", AGENTD_WITHOUT="cgroup").code == 0


def test_without_git_delegate_cannot_work(agentd: Shell, tmp_path: Path) -> None:
    said = agentd("doctor", "-q", PATH=str(tmp_path))
    assert said.code == 1 and "wrong   git: there is no git in PATH" in said.out


def test_an_attempt_that_nobody_keeps_is_found(agentd: Shell) -> None:
    id = agentd.job("sleep", "1000")
    agentd("wait", "--for", "running", id)
    status = agentd.json("daemon", "status", "--json")
    leader = agentd.record(id, "agent.json")["agent"]["pid"]
    keeper = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (status["pid"], status["zygote"], keeper):
        os.kill(pid, signal.SIGKILL)
    faultlab.until(lambda: checks(agentd)["left-overs"]["level"] == "wrong")
    assert checks(agentd)["left-overs"]["what"] == f"job {id}, attempt 1: nobody keeps it, its processes live"
    agentd.ok("daemon", "start")
    faultlab.until(lambda: checks(agentd)["left-overs"]["level"] == "ok")


def test_a_lock_that_git_left_in_an_ended_jobs_worktree_is_found(agentd: Shell, tmp_path: Path) -> None:
    repo = gitrepo.make_repo(tmp_path / "repo")
    agentd.ok("delegate", "-q", "work", "--", "sh", "-c", "echo > made", cwd=repo)
    agentd("wait", "1")
    agentd.ok("inspect", "1")
    assert checks(agentd)["git locks"]["level"] == "ok"
    (admin,) = Path(repo, ".git", "worktrees").iterdir()
    (admin / "index.lock").touch()
    found = checks(agentd)["git locks"]
    assert found["level"] == "wrong" and found["remedy"] == f"if no git runs there: rm '{admin}/index.lock'"
    (admin / "index.lock").unlink()


def test_rebuild_makes_a_new_store_while_jobs_run(agentd: Shell) -> None:
    agentd("run", "--name", "early", "sh", "-c", "exit 3")
    id = agentd.job("sleep", "1000")
    agentd("wait", "--for", "running", id)
    pid = agentd.json("ps", "--json")[0]["pid"]
    assert agentd.json("daemon", "status", "--json")["epoch"] == 0
    said = agentd("doctor", "--rebuild")
    assert (said.code, said.out) == (0, "1\n")
    assert said.err == f"agentd: epoch 1 begins; the old store is {agentd.state}/agentd.db.old-1\n"
    assert agentd.json("daemon", "status", "--json")["epoch"] == 1
    agentd("wait", "--for", "running", id)
    jobs = agentd.json("ps", "-a", "--json")
    assert [(job["name"], job["state"], job["exit_code"]) for job in jobs] == [
        ("early", "done", 3),
        ("sleep", "running", None),
    ]
    assert jobs[1]["pid"] == pid
    assert agentd.json("doctor", "--rebuild", "--json")["epoch"] == 2
