"""Nothing is lost: what counts as no work, and the way to the trash and back."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from gitrepo import assert_nothing_left, everything_below, make, make_repo, plan_for, run, write

from agentd.core.errors import Refused
from agentd.git import worktree
from agentd.git.worktree import Plan

ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


@pytest.fixture
def plan(top: str, tmp_path: Path) -> Plan:
    return plan_for(top, tmp_path)


@pytest.fixture
def trash(tmp_path: Path) -> str:
    return str(tmp_path / "trash")


# Is there any work in it?


def sh(cwd: str, script: str) -> None:
    subprocess.run(["sh", "-ec", script], cwd=cwd, check=True, capture_output=True)


COMMIT = "git commit -q --allow-empty -m work"
NO_WORK = {
    "as it was made": ":",
    "touched, same bytes": "touch -d 2001-01-01 src/f0.txt",
    "a byte code cache": "mkdir src/__pycache__; echo x > src/__pycache__/x.pyc",
    "node_modules/.cache": "mkdir -p node_modules/.cache; echo x > node_modules/.cache/x",
    "an empty folder": "mkdir empty",
    "the copied file is gone": "rm .env",
}
WORK = {
    "a changed file": "echo other > src/f0.txt",
    "a deleted file": "rm src/f0.txt",
    "a changed mode": "chmod 755 src/f0.txt",
    "an untracked file": "echo new > new.txt",
    "a staged file": "echo new > new.txt; git add new.txt",
    "staged, then deleted": "echo new > new.txt; git add new.txt; rm new.txt",
    "a new ignored file": "echo data > data.db",
    "a new ignored file, deep": "mkdir -p node_modules/m; echo x > node_modules/m/x",
    "a changed copied file": "echo KEY=2 > .env",
    "a commit": COMMIT,
    "a commit taken back": f"{COMMIT}; git reset -q --hard HEAD~1",
    "a detached commit": f"git checkout -q --detach; {COMMIT}",
    "a commit on another branch": f"git checkout -q -b other; {COMMIT}",
    "a ref of its own": "git update-ref refs/worktree/x HEAD",
    "a merge in progress": "git rev-parse HEAD > $(git rev-parse --git-path MERGE_HEAD)",
    "a rebase in progress": "mkdir $(git rev-parse --git-path rebase-merge)",
    "a repository inside": "git init -q inner",
    "an ignored repository inside": "git init -q node_modules/inner",
    "hidden by assume-unchanged": "git update-index --assume-unchanged src/f0.txt; echo other > src/f0.txt",
    "hidden by skip-worktree": "git update-index --skip-worktree src/f0.txt; echo other > src/f0.txt",
    "hidden by configuration": "git config status.showUntrackedFiles no; echo new > new.txt",
    "hidden by info/exclude": "echo '*.txt' > $(git rev-parse --git-path info/exclude); echo new > new.txt",
    "its .git is another": "echo 'gitdir: ./.evil' > .git",
    "its .git is gone": "rm .git",
    "the folder is gone": 'mv "$PWD" "$PWD.moved"',
}


def filled(plan: Plan, top: str) -> tuple[str, dict[str, str]]:
    write(f"{top}/.worktreeinclude", ".env\n")
    write(f"{top}/.env", "KEY=1\n")
    admin = make(plan)
    return admin, worktree.fill(plan, admin, top).manifest


@pytest.mark.parametrize("deed", NO_WORK)
def test_no_work(deed: str, plan: Plan, top: str) -> None:
    admin, manifest = filled(plan, top)
    sh(plan.path, NO_WORK[deed])
    assert worktree.is_unchanged(plan, admin, manifest)
    assert worktree.remove_unchanged(plan, admin, manifest) is None
    assert_nothing_left(plan)
    assert not os.path.lexists(plan.path + ".gone")


@pytest.mark.parametrize("deed", WORK)
def test_work(deed: str, plan: Plan, top: str) -> None:
    admin, manifest = filled(plan, top)
    sh(plan.path, WORK[deed])
    before = everything_below(plan.path)
    assert not worktree.is_unchanged(plan, admin, manifest)
    assert worktree.remove_unchanged(plan, admin, manifest) is not None
    assert everything_below(plan.path) == before
    assert run(top, "for-each-ref", f"refs/heads/{plan.branch}") != ""


def test_who_works_in_it_keeps_it(plan: Plan, top: str) -> None:
    admin = make(plan)
    before = everything_below(plan.path)
    with subprocess.Popen(["cat"], cwd=f"{plan.path}/src", stdin=subprocess.PIPE) as cat:
        assert worktree.remove_unchanged(plan, admin, {}) == f"cat ({cat.pid}) works in it"
        assert everything_below(plan.path) == before
        cat.communicate()
    with open(f"{plan.path}/src/f0.txt", "r+b"):
        assert str(worktree.remove_unchanged(plan, admin, {})).endswith(f"({os.getpid()}) works in it")
        assert everything_below(plan.path) == before
    assert worktree.remove_unchanged(plan, admin, {}, [os.getpid()]) is not None
    assert run(plan.path, "status", "--porcelain") == ""
    assert worktree.remove_unchanged(plan, admin, {}) is None
    assert_nothing_left(plan)


@pytest.mark.parametrize("deed", ["echo late > new.txt", "echo late > src/f0.txt"])
def test_what_came_before_it_was_put_aside_brings_it_back(plan: Plan, deed: str) -> None:
    """Written between the first look and the rename."""
    admin = make(plan)
    os.rename(plan.path, plan.path + ".gone")
    sh(plan.path + ".gone", deed)
    assert worktree.remove_unchanged(plan, admin, {}) is not None
    assert run(plan.path, "status", "--porcelain") != ""
    assert not os.path.lexists(plan.path + ".gone")


@pytest.mark.parametrize("step", ["renamed", "entry dropped", "branch deleted", "half of the entry dropped"])
def test_removal_finishes_what_a_crash_cut_off(plan: Plan, step: str) -> None:
    admin = make(plan)
    os.rename(plan.path, plan.path + ".gone")
    if step != "renamed":
        os.unlink(f"{plan.repo.common}/worktrees/{admin}/gitdir")
    if step == "half of the entry dropped":
        os.unlink(f"{plan.repo.common}/worktrees/{admin}/locked")
    elif step != "renamed":
        worktree.remove_unchanged(dataclasses.replace(plan, branch="agentd/7/other"), admin, {})
    if step == "branch deleted":
        run(plan.repo.common, "update-ref", "-d", f"refs/heads/{plan.branch}")
    assert worktree.remove_unchanged(plan, admin, {}) is None
    assert_nothing_left(plan)
    assert not os.path.lexists(plan.path + ".gone")
    assert worktree.remove_unchanged(plan, admin, {}) is None


# The trash


def a_days_work(plan: Plan) -> None:
    w = plan.path
    write(f"{w}/committed.txt", "committed")
    run(w, "add", "committed.txt")
    run(w, "commit", "-q", "-m", "one")
    write(f"{w}/staged.txt", "as staged")
    run(w, "add", "staged.txt")
    write(f"{w}/staged.txt", "changed after it was staged")
    write(f"{w}/src/f1.txt", "modified")
    write(f"{w}/untracked.txt", "untracked")
    write(f"{w}/.env", "SECRET=1")
    write(f"{w}/node_modules/m/x.js", "x")
    os.chmod(f"{w}/.env", 0o600)
    os.symlink("nowhere", f"{w}/dangling")
    run(w, "init", "-q", "inner")
    write(f"{w}/inner/file", "inside another repository")
    run(w, "update-ref", "refs/worktree/mine", run(w, "rev-parse", "HEAD"))


def state_of(plan: Plan) -> list[object]:
    w = plan.path
    status = run(w, "status", "--porcelain", "--ignored", "-uall")
    logs = Path(run(w, "rev-parse", "--git-path", "logs/HEAD")).read_text()
    refs = run(w, "for-each-ref", "refs/worktree", f"refs/heads/{plan.branch}")
    return [everything_below(w), status, logs, refs, run(w, "ls-files", "-s"), run(w, "symbolic-ref", "HEAD")]


def test_there_and_back_again(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    a_days_work(plan)
    before = state_of(plan)
    trashed = worktree.to_trash(plan, admin, trash, {})
    entry = json.loads(json.dumps(trashed.entry))
    assert not os.path.lexists(plan.path)
    assert run(top, "worktree", "list").count("\n") == 0
    assert run(top, "rev-parse", plan.branch) == entry["branch"]
    assert everything_below(f"{trash}/7-fix-login/tree") == before[0]
    run(top, "gc", "-q", "--prune=now")
    assert worktree.restore(entry) == admin
    assert state_of(plan) == before
    assert not os.path.lexists(f"{trash}/7-fix-login")
    assert run(top, "for-each-ref", "refs/agentd/keep") == ""
    run(top, "fsck", "--strict")


def test_the_kept_commit_holds_all_that_is_not_ignored(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    a_days_work(plan)
    keep = worktree.to_trash(plan, admin, trash, {}).entry["keep"]
    assert run(top, "rev-parse", "refs/agentd/keep/7") == keep
    assert run(top, "show", f"{keep}:untracked.txt") == "untracked"
    assert run(top, "show", f"{keep}:staged.txt") == "changed after it was staged"
    assert run(top, "show", f"{keep}^2:staged.txt") == "as staged"
    assert ".env" not in run(top, "ls-tree", "-r", "--name-only", keep)


def test_commits_only_the_reflog_knows_survive(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    run(plan.path, "checkout", "-q", "--detach")
    write(f"{plan.path}/lonely.txt", "lonely")
    run(plan.path, "add", "-A")
    run(plan.path, "commit", "-q", "-m", "lonely")
    lonely = run(plan.path, "rev-parse", "HEAD")
    run(plan.path, "checkout", "-q", plan.branch)
    entry = worktree.to_trash(plan, admin, trash, {}).entry
    run(top, "reflog", "expire", "--expire=now", "--all")
    run(top, "gc", "-q", "--prune=now")
    assert run(top, "show", f"{lonely}:lonely.txt") == "lonely"
    worktree.restore(entry)
    assert run(plan.path, "rev-parse", "HEAD@{1}") == lonely


def test_a_conflict_is_kept_as_it_stands(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "ours")
    run(plan.path, "commit", "-qam", "ours")
    write(f"{top}/src/f0.txt", "theirs")
    run(top, "commit", "-qam", "theirs")
    with pytest.raises(AssertionError):
        run(plan.path, "merge", "main")
    before = state_of(plan)
    worktree.restore(worktree.to_trash(plan, admin, trash, {}).entry)
    assert state_of(plan) == before
    assert run(plan.path, "rev-parse", "MERGE_HEAD") == run(top, "rev-parse", "main")


def test_an_empty_branch_goes_and_comes_back(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    entry = worktree.to_trash(plan, admin, trash, {}).entry
    assert run(top, "for-each-ref", "refs/heads/agentd") == ""
    worktree.restore(entry)
    assert run(plan.path, "status", "--porcelain") == ""
    assert worktree.is_unchanged(plan, admin, {})


def test_restore_refuses_an_occupied_path(plan: Plan, trash: str) -> None:
    admin = make(plan)
    a_days_work(plan)
    entry = worktree.to_trash(plan, admin, trash, {}).entry
    write(f"{plan.path}/squatter", "x")
    with pytest.raises(Refused, match="is occupied; move it away"):
        worktree.restore(entry)
    assert os.listdir(plan.path) == ["squatter"]


def test_restore_takes_another_admin_id_if_its_own_is_taken(top: str, plan: Plan, trash: str, tmp_path: Path) -> None:
    admin = make(plan)
    a_days_work(plan)
    before = state_of(plan)
    entry = worktree.to_trash(plan, admin, trash, {}).entry
    run(top, "worktree", "add", "-q", "--detach", str(tmp_path / "elsewhere" / admin))
    assert worktree.restore(entry) == admin + "1"
    assert state_of(plan) == before
    assert run(top, "worktree", "list").count("\n") == 2


def test_restore_says_when_the_repository_is_gone(top: str, plan: Plan, trash: str) -> None:
    entry = worktree.to_trash(plan, make(plan), trash, {}).entry
    os.rename(top, top + ".moved")
    with pytest.raises(Refused, match=r"is gone; its files are in .*/trash/7-fix-login/tree"):
        worktree.restore(entry)


def test_a_foreign_git_file_is_refused(plan: Plan, trash: str) -> None:
    admin = make(plan)
    write(f"{plan.path}/.git", "gitdir: ./.evil\n")
    with pytest.raises(Refused, match="does not name the admin directory"):
        worktree.to_trash(plan, admin, trash, {})
    assert os.path.isdir(plan.path)


def test_a_trash_on_another_disk_is_refused(plan: Plan, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    admin = make(plan)
    with tempfile.TemporaryDirectory(dir=elsewhere) as trash:
        with pytest.raises(Refused, match="is on another file system; put both on one") as refusal:
            worktree.to_trash(plan, admin, trash, {})
        assert os.listdir(trash) == []
    assert refusal.value.code == "other_disk"
    assert worktree.is_unchanged(plan, admin, {})


def test_forget_deletes_the_folder_and_our_refs(top: str, plan: Plan, trash: str) -> None:
    admin = make(plan)
    a_days_work(plan)
    os.chmod(f"{plan.path}/node_modules/m", 0o500)  # as module caches are
    entry = worktree.to_trash(plan, admin, trash, {}).entry
    worktree.forget(entry)
    worktree.forget(entry)
    assert os.listdir(trash) == []
    assert run(top, "for-each-ref", "refs/agentd") == ""
    assert run(top, "rev-parse", plan.branch) == entry["branch"]


CRASH = """
import os, signal, sys, json
from agentd.git import worktree
plan, entry = worktree.plan_from(json.loads(sys.argv[1])), json.loads(sys.argv[2])
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4]))
worktree.restore(entry) if entry else worktree.to_trash(plan, "7-fix-login", sys.argv[3], {})
"""


@pytest.mark.parametrize("way", ["there", "back"])
def test_killed_on_the_way_then_the_same_call_again(top: str, plan: Plan, trash: str, way: str) -> None:
    admin = make(plan)
    a_days_work(plan)
    before = state_of(plan)
    killed = 0
    for moment in range(1, 25):
        entry = worktree.to_trash(plan, admin, trash, {}).entry if way == "back" else None
        argv = [sys.executable, "-c", CRASH, json.dumps(dataclasses.asdict(plan)), json.dumps(entry), trash]
        env = {**os.environ, "PYTHONPATH": ROOT}
        wait = str(moment / (1000 if way == "back" else 250))
        done = subprocess.run([*argv, wait], env=env, capture_output=True)
        killed += done.returncode == -signal.SIGKILL
        run(top, "worktree", "list")
        if way == "there":
            entry = worktree.to_trash(plan, admin, trash, {}).entry
        assert entry is not None
        assert worktree.restore(entry) == admin
        assert state_of(plan) == before
        assert not os.path.lexists(f"{trash}/7-fix-login")
        assert not [name for name in os.listdir(f"{top}/.git") if name.startswith("agentd.restore")]
    assert killed > 1
