"""Commits beside the user's own: --with-changes, the end of a job, and what a diff says."""

import os
from pathlib import Path

import pytest
from gitrepo import make, make_repo, plan_for, run, write

from agentd.core.errors import Refused
from agentd.git.repository import Repo, settle
from agentd.git.snapshot import Dirt, Words, diffstat, dirt, snapshot_calling_tree, snapshot_job
from agentd.git.worktree import Plan

WORDS = Words("mend it\n\nAgentd-Job: 7\n", "fix", "job-7@agentd.invalid", 1_700_000_000.0)


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


@pytest.fixture
def repo(top: str) -> Repo:
    return settle(top, None).repo


@pytest.fixture
def plan(top: str, tmp_path: Path) -> Plan:
    return plan_for(top, tmp_path)


def test_with_changes_leaves_index_and_tree_as_they_are(top: str, repo: Repo) -> None:
    write(f"{top}/staged.txt", "staged")
    run(top, "add", "staged.txt")
    write(f"{top}/src/f0.txt", "modified")
    write(f"{top}/new dir/ü.txt", "untracked")
    write(f"{top}/.env", "ignored")
    os.unlink(f"{top}/src/f1.txt")
    index = Path(top, ".git", "index").read_bytes()
    made = snapshot_calling_tree(repo, 7)
    assert made is not None
    assert Path(top, ".git", "index").read_bytes() == index
    assert run(top, "rev-parse", "refs/agentd/snap/7") == made
    assert run(top, "rev-parse", f"{made}^") == run(top, "rev-parse", "HEAD")
    listed = run(top, "-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", made).splitlines()
    assert listed == [".gitignore", "new dir/ü.txt", "src/f0.txt", "src/f2.txt", "staged.txt"]
    assert run(top, "branch", "--list") == "* main"
    run(top, "gc", "-q", "--prune=now")
    assert run(top, "show", f"{made}:src/f0.txt") == "modified"


def test_a_clean_tree_needs_no_snapshot(top: str, repo: Repo) -> None:
    write(f"{top}/.env", "ignored")
    assert snapshot_calling_tree(repo, 7) is None
    assert run(top, "for-each-ref", "refs/agentd") == ""


def test_what_the_user_hid_stays_hidden(top: str, repo: Repo) -> None:
    run(top, "update-index", "--skip-worktree", "src/f0.txt")
    write(f"{top}/src/f0.txt", "local only")
    assert snapshot_calling_tree(repo, 7) is None


def test_conflicts_are_refused(top: str, repo: Repo) -> None:
    run(top, "checkout", "-q", "-b", "side")
    write(f"{top}/src/f0.txt", "side")
    run(top, "commit", "-qam", "side")
    run(top, "checkout", "-q", "main")
    write(f"{top}/src/f0.txt", "main")
    run(top, "commit", "-qam", "main")
    with pytest.raises(AssertionError):
        run(top, "merge", "side")
    with pytest.raises(Refused, match="conflicts") as refusal:
        snapshot_calling_tree(repo, 7)
    assert refusal.value.code == "unmerged"


@pytest.mark.parametrize("commits", [0, 1])
def test_a_repository_inside_is_refused(top: str, repo: Repo, commits: int) -> None:
    run(top, "init", "-q", "inner")
    write(f"{top}/inner/x", "x")
    for n in range(commits):
        run(f"{top}/inner", "commit", "-q", "--allow-empty", "-m", str(n))
    with pytest.raises(Refused, match="inner/ holds a git repository of its own"):
        snapshot_calling_tree(repo, 7)


def test_too_much_is_refused_with_the_five_largest(top: str, repo: Repo) -> None:
    for n in range(1, 8):
        write(f"{top}/big{n}", "x" * n * 1000)
    objects = run(top, "count-objects")
    with pytest.raises(Refused) as refusal:
        snapshot_calling_tree(repo, 7, max_bytes=20_000)
    assert str(refusal.value) == (
        "cannot take 28,000 untracked bytes along: the limit is 20,000; largest: big7 (7,000 bytes), "
        "big6 (6,000 bytes), big5 (5,000 bytes), big4 (4,000 bytes), big3 (3,000 bytes); "
        "raise worktree.max_snapshot in agentd.toml or drop --with-changes"
    )
    assert run(top, "count-objects") == objects


def test_end_of_a_job_without_work(plan: Plan) -> None:
    assert snapshot_job(plan, make(plan), WORDS) is None


def test_end_of_a_job_with_commits_only(plan: Plan) -> None:
    admin = make(plan)
    run(plan.path, "commit", "-q", "--allow-empty", "-m", "work")
    head = run(plan.path, "rev-parse", "HEAD")
    assert snapshot_job(plan, admin, WORDS) == head == run(plan.path, "rev-parse", "refs/agentd/work/7")


def test_end_of_a_job_with_loose_ends(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/done.txt", "done")
    run(plan.path, "add", "-A")
    run(plan.path, "commit", "-q", "-m", "work")
    write(f"{plan.path}/loose.txt", "one\ntwo\n")
    run(plan.path, "update-index", "--assume-unchanged", "src/f0.txt")
    write(f"{plan.path}/src/f0.txt", "hidden\n")
    write(f"{plan.path}/blob.bin", "\0\1")
    run(plan.path, "init", "-q", "inner")
    write(f"{plan.path}/inner/x", "x")
    index = Path(top, ".git", "worktrees", admin, "index").read_bytes()
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None
    assert Path(top, ".git", "worktrees", admin, "index").read_bytes() == index
    assert run(top, "rev-parse", f"{made}^") == run(top, "rev-parse", plan.branch)
    assert diffstat(plan.repo, plan.base, made) == {
        "files": 4,
        "insertions": 4,
        "deletions": 1,
        "paths": [
            ["blob.bin", None, None],
            ["done.txt", 1, 0],
            ["loose.txt", 2, 0],
            ["src/f0.txt", 1, 1],
        ],
    }


def test_the_same_work_is_the_same_commit(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "x")
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None and snapshot_job(plan, admin, WORDS) == made
    assert run(top, "log", "-1", "--format=%an <%ae> %at %cn %ct %s", made) == (
        "fix <job-7@agentd.invalid> 1700000000 Test 1700000000 mend it"
    )


def test_a_change_within_the_second_of_the_checkout_is_seen(top: str, plan: Plan) -> None:
    """Size, inode and second are those in the index; git looks into such a file only if the index is as old."""
    admin = make(plan)
    path, then = Path(plan.path, "src", "f0.txt"), 1_700_000_000
    os.utime(path, (then, then))
    run(plan.path, "update-index", "--refresh")
    with path.open("r+") as file:
        file.write("LINE")
    for one in (path, Path(top, ".git", "worktrees", admin, "index")):
        os.utime(one, (then, then))
    run(plan.path, "config", "core.trustctime", "false")
    assert snapshot_job(plan, admin, WORDS) is not None


def test_long_paths_stay_within_bounds(plan: Plan) -> None:
    admin = make(plan)
    folder = "/".join(["d" * 200] * 15)
    for n in range(50):
        write(f"{plan.path}/{folder}/{n}", "x")
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None
    told = diffstat(plan.repo, plan.base, made)
    assert told["files"] == 50 and 0 < len(str(told)) < 30_000


def test_a_killed_git_leaves_a_lock_and_the_snapshot_works(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "x")
    write(f"{top}/.git/worktrees/{admin}/index.lock", "")
    assert snapshot_job(plan, admin, WORDS) is not None


@pytest.mark.parametrize("deed", [["checkout", "-q", "--orphan", "new"], ["update-ref", "-d", "HEAD"]])
def test_a_head_without_a_commit(top: str, plan: Plan, deed: list[str]) -> None:
    admin = make(plan)
    run(plan.path, *deed)
    write(f"{plan.path}/new.txt", "x")
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None and run(top, "rev-parse", f"{made}^") == plan.base


def test_an_index_that_is_gone(top: str, plan: Plan) -> None:
    admin = make(plan)
    os.unlink(f"{top}/.git/worktrees/{admin}/index")
    assert snapshot_job(plan, admin, WORDS) is None


def test_diffstat_lists_a_hundred(plan: Plan) -> None:
    admin = make(plan)
    for n in range(250):
        write(f"{plan.path}/n/{n:03}", "x\n")
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None
    told = diffstat(plan.repo, plan.base, made)
    assert (told["files"], told["insertions"]) == (250, 250)
    assert isinstance(told["paths"], list) and len(told["paths"]) == 100


def test_dirt_writes_nothing(top: str, repo: Repo) -> None:
    os.utime(f"{top}/src/f0.txt", (1, 1))  # git status would refresh the index
    write(f"{top}/src/f1.txt", "other")
    write(f"{top}/new dir/a", "a")
    index = Path(top, ".git", "index").read_bytes()
    assert dirt(repo) == Dirt(modified=1, untracked=1, examples=["src/f1.txt", "new dir/"])
    assert Path(top, ".git", "index").read_bytes() == index


def test_dirt_of_a_bare_repository_is_refused() -> None:
    with pytest.raises(Refused, match="bare"):
        dirt(Repo("/x.git", None, "/x.git"))
