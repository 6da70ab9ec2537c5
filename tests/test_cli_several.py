"""Verbs that take several jobs, and the ways to tidy up."""

import json
import re
import shutil
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


NO_JOB = "no job 9999; agentd ps --all lists them"


def test_each_ones_answer_is_told(agentd: Shell) -> None:
    agentd("run", "true")
    said = agentd("rm", "--json", "1", "9999")
    (one, other) = json.loads(said.out)
    assert (said.code, said.err) == (1, "")
    assert (one["id"], one["ok"], one["removed"]) == (1, True, True)
    assert other == {"id": 9999, "ok": False, "code": "unknown_job", "error": NO_JOB}
    assert agentd("undo", "1", "9999") == (1, "1\n", f"agentd: {NO_JOB}\n")
    assert agentd("restart", "9999", "1") == (1, "1\n", f"agentd: job 1 (true): attempt 2\nagentd: {NO_JOB}\n")
    sleeper = agentd.job("sleep", "1000")
    said = agentd("kill", "--json", "9999", sleeper)
    assert said.code == 1 and [one["ok"] for one in json.loads(said.out)] == [False, True]
    assert json.loads(said.out)[1]["outcome"] == "killed"
    assert agentd("kill", "nosuch", "9999") == (
        1,
        "",
        f'agentd: no job "nosuch"; agentd ps --all lists them\nagentd: {NO_JOB}\n',
    )
    assert json.loads(agentd("rm", "--json", "9999").out)["code"] == "unknown_job"


def test_all_that_has_ended_is_removed_and_put_back(agentd: Shell) -> None:
    for owner in ("me", "you", "me"):
        agentd("run", "--owner", owner, "true")
    agentd.job("sleep", "1000", flags=["--owner", "me"])
    assert agentd("rm", "--done", AGENTD_OWNER="me") == (0, "1\n3\n", "")
    assert agentd("rm", "--done", AGENTD_OWNER="me") == (0, "", "")
    assert agentd("rm", "--done", "--all", AGENTD_OWNER="me").out == "2\n"
    assert agentd.ok("ps", "-aq") == "4\n"
    assert agentd("undo", "1", "2", "3").out == "1\n2\n3\n"


def test_the_trash_knows_names_and_days(agentd: Shell) -> None:
    agentd("run", "--name", "ask", "true")
    agentd.ok("rm", "ask")
    head, row = agentd.ok("undo").splitlines()
    assert head.split("  ")[-1] == "TASK" and "REMOVED" in head and "KEPT UNTIL" in head
    (removed, until) = (row.split("  ")[i].strip() for i in (-3, -2)) if row.count("  ") else ("", "")
    assert removed[:4].isdigit() and until > removed
    assert agentd.json("undo", "--json")[0]["removed_at"].endswith("Z")
    assert agentd("undo", "ask") == (0, "1\n", "")
    agentd.ok("rm", "ask")
    agentd("run", "--name", "ask", "true")
    agentd.ok("rm", "ask")
    told = 'agentd: "ask" is 2 jobs in the trash: 1, 2; agentd undo 2 takes the newest\n'
    assert agentd("undo", "ask") == (1, "", told)


# --- worktrees ------------------------------------------------------------------------------------------------


def settle(agentd: Shell, *ids: str) -> None:
    """Until the work that follows the ends of these jobs is done."""
    for id in ids:
        follower = agentd.start("events", "-f", "--since", "0", "--job", id, "--type", "job.result")
        follower.until(b"job.result")


def test_what_there_is_to_take_home(agentd: Shell, repo: str) -> None:
    agentd.ok("delegate", "-q", "--name", "fix", "--", "sh", "-c", "echo x >> src/f1.txt", cwd=repo)
    agentd.ok("delegate", "-q", "--name", "same", "--", "true", cwd=repo)
    settle(agentd, "1", "2")
    head, fix, same = agentd.ok("ps", "-a").splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "TIME", "EXIT", "ENDED", "CHANGES", "TASK"]
    assert re.search(r"(now|ago) +\+1 -0 ", fix) and re.search(r"(now|ago) +- +true$", same)
    place = agentd.ok("path", "fix").removesuffix("\n")
    assert Path(place, "src", "f1.txt").is_file()
    agentd.ok("merge", "-q", "fix", cwd=repo)
    assert "CHANGES" not in agentd.ok("ps", "-a")
    gone = "agentd: job 2 (same) has no worktree any more: it ended equal to its base\n"
    assert agentd("path", "same") == (1, "", gone)
    assert "\nworktree:      removed, it ended equal to its base\n" in agentd.ok("inspect", "same")


def test_a_worktree_deleted_by_hand_is_in_its_snapshot(agentd: Shell, repo: str) -> None:
    agentd.ok("delegate", "-q", "--name", "fix", "--", "sh", "-c", "echo new > made", cwd=repo)
    settle(agentd, "1")
    place = agentd.ok("path", "fix").strip()
    shutil.rmtree(place)
    said = agentd.ok("inspect", "fix")
    assert f"worktree:      {place} is gone\n" in said
    base = gitrepo.run(repo, "rev-parse", "HEAD")
    command = f"git -C {repo} diff {base} refs/agentd/work/1"
    assert command in said and command in agentd("path", "fix").err and agentd("path", "fix").code == 1
    assert "+new" in gitrepo.run(repo, *command.split()[3:])


def test_a_base_is_named_only_by_the_branch_that_stands_there(agentd: Shell, repo: str) -> None:
    head = gitrepo.run(repo, "rev-parse", "HEAD")
    gitrepo.run(repo, "commit", "-q", "--allow-empty", "-m", "second")
    told = f"agentd: job 1 starts from {head[:10]}\n"
    assert agentd("delegate", "--base", "HEAD~1", "--", "true", cwd=repo).err == told
    assert agentd("delegate", "--base", "main", "--", "true", cwd=repo).err.endswith(" (main)\n")
