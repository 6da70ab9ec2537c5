"""Repositories inside a worktree, of which git tells little: what is in them is work, and comes back from the trash."""

import os
import subprocess
from pathlib import Path

import pytest
from gitrepo import WORDS, assert_nothing_left, everything_below, make, make_repo, plan_for, run

from agentd.git import worktree
from agentd.git.snapshot import repositories_inside, snapshot_job
from agentd.git.worktree import Plan, tree_of

NEEDED = "-c protocol.file.allow=always"


@pytest.fixture
def library(tmp_path: Path) -> str:
    return make_repo(tmp_path / "library")


@pytest.fixture
def plan(tmp_path: Path, library: str) -> Plan:
    """A repository whose submodule ``sub`` ignores ``node_modules`` in itself."""
    top = make_repo(tmp_path / "r")
    run(top, *NEEDED.split(), "submodule", "add", "-q", library, "sub")
    run(top, "commit", "-q", "-m", "with a submodule")
    return plan_for(top, tmp_path)


def sh(cwd: str, script: str, **environment: str) -> None:
    subprocess.run(["sh", "-ec", script], cwd=cwd, check=True, capture_output=True, env={**os.environ, **environment})


CLONE = 'git clone -q "$LIBRARY" sub'
COMMIT = "git checkout -qb work && echo n > n && git add . && git commit -qm w && git checkout -q main"
WORK = {
    "a file in its empty folder": "echo precious > sub/result.txt",
    "a folder with a file": "mkdir sub/deep; echo precious > sub/deep/result.txt",
    "a pipe": "mkfifo sub/p",
    "the submodule, cloned": CLONE,
    "a commit on another branch": f"{CLONE} && cd sub && {COMMIT}",
    "a file ignored inside": f"{CLONE} && mkdir sub/node_modules && echo x > sub/node_modules/out.bin",
    "a stash": f"{CLONE} && cd sub && echo x > src/f0.txt && git stash -q",
    "the submodule, updated": f"git {NEEDED} submodule update -q --init",
    "a file in the place of the folder": "rmdir sub; echo x > sub",
    "a link in the place of the folder": "rmdir sub; ln -s src sub",
    "its folder is gone": "rmdir sub",
    "a repository around tracked files": "cd src && git init -q && git add . && git commit -qm w",
    "a bare repository in an ignored folder": "git init -q --bare node_modules/inner",
    "a repository in a cache": "git init -q node_modules/.cache/pages",
}


@pytest.mark.parametrize("deed", WORK)
def test_it_is_kept_and_comes_back_whole(deed: str, plan: Plan, library: str, tmp_path: Path) -> None:
    admin = make(plan)
    sh(plan.path, WORK[deed], LIBRARY=library)
    if deed == "a pipe":
        assert worktree.remove_unchanged(plan, admin, {}) == "sub/p is new or changed"
        return
    before = everything_below(plan.path)
    assert not worktree.is_unchanged(plan, admin, {})
    assert worktree.remove_unchanged(plan, admin, {}) is not None
    snapshot_job(plan, admin, WORDS)
    assert everything_below(plan.path) == before
    worktree.restore(worktree.to_trash(plan, admin, str(tmp_path / "trash"), {}).entry)
    assert everything_below(plan.path) == before
    if "commit on another" in deed:
        assert run(f"{plan.path}/sub", "log", "--format=%s", "work").splitlines()[0] == "w"


def test_an_untouched_submodule_is_no_work(plan: Plan) -> None:
    admin = make(plan)
    os.mkdir(f"{plan.path}/sub/empty")
    assert worktree.remove_unchanged(plan, admin, {}) is None
    assert_nothing_left(plan)


def test_the_snapshot_says_which_it_leaves_out(plan: Plan, library: str) -> None:
    admin = make(plan)
    assert repositories_inside(tree_of(plan, admin)) == []
    sh(plan.path, f"{CLONE}; git init -q other; echo new > new.txt", LIBRARY=library)
    assert repositories_inside(tree_of(plan, admin)) == ["other", "sub"]
    made = snapshot_job(plan, admin, WORDS)
    assert made is not None
    assert run(plan.repo.common, "diff-tree", "-r", "--name-only", plan.base, made) == "new.txt"


def test_a_filter_that_a_job_plants_in_a_submodule_does_not_run(plan: Plan, library: str, tmp_path: Path) -> None:
    """git looks into a submodule by running itself there, with that repository's configuration."""
    admin = make(plan)
    evil = f"git config filter.evil.clean 'touch {tmp_path}/ran; cat'; echo '* filter=evil' > .gitattributes"
    sh(plan.path, f"{CLONE}; cd sub; {evil}; echo longer than before > src/f0.txt", LIBRARY=library)
    (tmp_path / "ran").unlink(missing_ok=True)
    assert not worktree.is_unchanged(plan, admin, {})
    snapshot_job(plan, admin, WORDS)
    worktree.restore(worktree.to_trash(plan, admin, str(tmp_path / "trash"), {}).entry)
    assert not (tmp_path / "ran").exists()
    run(plan.path, "status")
    assert (tmp_path / "ran").exists(), "the attack is none"
