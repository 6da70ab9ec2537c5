"""git killed while it moves the user's tree forward: the same call again ends it, and loses nothing."""

import os
import subprocess
from pathlib import Path

import faultlab
import pytest
from gitrepo import make, make_repo, plan_for, run, write
from test_git_merge import OWN, bring, commit, status
from tracing import can_trace

from agentd.git import merge
from agentd.git.mend import clear_locks, mend
from agentd.git.run import Tree

STEP = 3 if faultlab.is_long else 9
CALLS = ("unlink", "mkdir", "symlink", "rename", "write", "openat")
needs_strace = pytest.mark.skipif(can_trace() is not None, reason="no strace")


class Killed(Exception):
    """We died with the git that we had started."""


def work_on(tree: str, turn: int) -> None:
    """Something of every kind: changed, deleted, added, a folder, a link, a mode."""
    write(f"{tree}/src/f0.txt", f"turn {turn}\n" * 2000)
    Path(tree, "new", "deep", f"{turn - 1}.txt").unlink(missing_ok=True)
    write(f"{tree}/new/deep/{turn}.txt", "added\n")
    (Path(tree, "src", "f1.txt").unlink if turn % 2 else lambda: write(f"{tree}/src/f1.txt", "back\n"))()
    Path(tree, "link").unlink(missing_ok=True)
    os.symlink(f"to-{turn}", f"{tree}/link")
    os.chmod(f"{tree}/src/f2.txt", 0o755 if turn % 2 else 0o644)


@needs_strace
@pytest.mark.timeout(900 if faultlab.is_long else 200)
@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_git_killed_at_every_call(tmp_path: Path, call: str) -> None:
    top = make_repo(tmp_path / "r")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    commit(top, "mine.txt", "mine\n")
    write(f"{top}/mine.txt", "changed\n")
    write(f"{top}/loose.txt", "loose\n")
    before, has_lived, turn = status(top), False, 0
    while not has_lived:
        nth = 1 + turn * (STEP if call == "openat" else 1)
        turn += 1
        work_on(plan.path, turn)
        told: list[tuple[str, str]] = []

        def die(old: str, new: str, nth: int = nth, told: list[tuple[str, str]] = told) -> None:
            told.append((old, new))
            inject = f"inject={call}:signal=KILL:when={nth}"
            git = ["git", "-C", top, "merge", "-q", "--ff-only", "--no-overwrite-ignore", new]
            died = subprocess.run(["strace", "-qq", "-o", "/dev/null", "-e", inject, *git], capture_output=True)
            if died.returncode == 0:
                return
            raise Killed

        try:
            bring(plan, admin, begin=die)
            has_lived = True
        except Killed:
            assert run(top, "rev-parse", "main") in told[0]
            assert bring(plan, admin, begun=told[0]) is not None
        assert status(top) == before, f"{call} {nth}"
        assert Path(top, "src/f0.txt").read_text() == f"turn {turn}\n" * 2000
        assert run(top, "rev-parse", f"main:new/deep/{turn}.txt") and os.readlink(f"{top}/link") == f"to-{turn}"
    assert turn > 1, "nothing was killed"


@pytest.fixture
def halfway(tmp_path: Path) -> tuple[Tree, str, str]:
    """A tree that has not moved yet, and where it is to go: a file to change, one to add, one to delete."""
    top = make_repo(tmp_path / "r")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "one\ntwo\nthree\n")
    write(f"{plan.path}/added.txt", "added\n")
    os.unlink(f"{plan.path}/src/f1.txt")
    work = merge.work(plan, admin, OWN)
    assert work is not None
    return Tree(plan.repo.common, plan.repo.git_dir, top), plan.base, work


def test_a_file_that_was_cut_short_is_taken_back(halfway: tuple[Tree, str, str]) -> None:
    tree = halfway[0]
    write(f"{tree.path}/src/f0.txt", "one\ntw")
    write(f"{tree.path}/added.txt", "")
    os.unlink(f"{tree.path}/src/f1.txt")
    write(f"{tree.git_dir}/index.lock", "half an index")
    clear_locks(tree, "refs/heads/main")
    mend(*halfway)
    assert status(tree.path) == ""


def test_what_the_user_wrote_since_is_left_alone(halfway: tuple[Tree, str, str]) -> None:
    tree = halfway[0]
    write(f"{tree.path}/src/f0.txt", "by me\n")
    write(f"{tree.path}/added.txt", "by me\n")
    before = status(tree.path)
    mend(*halfway)
    assert status(tree.path) == before == "M src/f0.txt\n?? added.txt"
    assert Path(tree.path, "added.txt").read_text() == "by me\n"


def test_nothing_is_done_through_a_link(halfway: tuple[Tree, str, str], tmp_path: Path) -> None:
    tree = halfway[0]
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside / "f0.txt", "one\n")
    os.rename(f"{tree.path}/src", f"{tree.path}/aside")
    os.symlink(outside, f"{tree.path}/src")
    mend(*halfway)
    assert [p.name for p in outside.iterdir()] == ["f0.txt"] and (outside / "f0.txt").read_text() == "one\n"


def test_a_lock_that_somebody_holds_is_in_use(halfway: tuple[Tree, str, str]) -> None:
    tree = halfway[0]
    os.unlink(f"{tree.path}/src/f1.txt")
    with open(f"{tree.git_dir}/index.lock", "w"):
        clear_locks(tree, "refs/heads/main")
        mend(*halfway)
        assert os.path.exists(f"{tree.git_dir}/index.lock") and status(tree.path) == "D src/f1.txt"


def test_a_record_of_a_commit_that_never_reached_the_disk(halfway: tuple[Tree, str, str], tmp_path: Path) -> None:
    plan = plan_for(halfway[0].path, tmp_path, job=8)
    admin = make(plan)
    write(f"{plan.path}/new.txt", "x\n")
    landed = bring(plan, admin, begun=(plan.base, "1" * 40))
    assert landed is not None and landed.is_new
