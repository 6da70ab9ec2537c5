"""The one runner: a scrubbed environment, limits, and the attacks G1-G6 of SECURITY 4."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gitrepo import WORDS, make, make_repo, plan_for, run, write

from agentd.core.errors import Refused
from agentd.git import run as runner
from agentd.git import worktree
from agentd.git.fingerprint import command_keys, dangerous_config
from agentd.git.run import GitFailed, git
from agentd.git.snapshot import dirt, snapshot_job
from agentd.git.worktree import Plan


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


def script(path: Path, text: str) -> str:
    write(path, f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return str(path)


def test_nothing_of_the_caller_gets_through(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF", "LD_PRELOAD", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "/nowhere")
    seen = git(["-c", "alias.seen=!env", "seen"], cwd=top)
    assert "nowhere" not in seen and "LC_ALL=C" in seen and f"HOME={os.environ['HOME']}" in seen


def test_a_failure_says_what_was_run_and_what_git_said(top: str) -> None:
    with pytest.raises(GitFailed) as failure:
        git(["rev-parse", "--verify", "nosuch"], cwd=top)
    assert str(failure.value) == "git rev-parse --verify nosuch ended with 128: fatal: Needed a single revision"
    assert git(["rev-parse", "-q", "--verify", "nosuch"], cwd=top, ok=(0, 1)) == ""


def test_a_time_limit_ends_the_whole_group(top: str, tmp_path: Path) -> None:
    """The grandchild holds a pipe: its end is read when the grandchild is dead."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    slow = f"alias.slow=!exec sh -c 'sleep 600 > {tmp_path}/pipe & wait'"
    with pytest.raises(GitFailed, match=r"no end after 0.5 s; killed"):
        git(["-c", slow, "slow"], cwd=top, timeout=0.5)
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_output_has_a_cap(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OUTPUT_CAP", 100_000)
    with pytest.raises(GitFailed, match="bytes of output; killed"):
        git(["-c", "alias.flood=!yes", "flood"], cwd=top)


def test_long_input_and_output_do_not_block_each_other(top: str) -> None:
    names = "".join(f"HEAD:no/such/file/{n}\n" for n in range(100_000))
    assert git(["cat-file", "--batch-check"], cwd=top, input=names).count("missing") == 100_000


def test_paths_that_are_not_utf8(top: str) -> None:
    odd = os.fsdecode(b"caf\xe9\n.txt")
    write(f"{top}/{odd}", "x")
    assert runner.zsplit(git(["ls-files", "-o", "-z"], cwd=top)) == [odd]


def test_a_git_in_the_worktree_is_not_found(top: str, tmp_path: Path) -> None:
    script(Path(top, "git"), f"touch {tmp_path}/ran")
    code = "from agentd.git.run import git; git(['version'])"
    env = {**os.environ, "PATH": f".:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=top, env=env, check=True)
    assert not (tmp_path / "ran").exists()


def test_a_git_that_outlives_us_keeps_the_mutex(top: str, tmp_path: Path) -> None:
    """The descriptor of the lock goes with git; after our release nobody is kept out."""
    repo = plan_for(top, tmp_path).repo
    with runner.mutex(repo) as lock:
        listed = git(["-c", f"alias.held=!ls -l /proc/self/fd/{lock}", "held"], cwd=top, holding=lock)
        assert "agentd.mutex" in listed
    with runner.mutex(repo):
        pass
    assert stat.S_ISREG(os.stat(f"{top}/.git/agentd.mutex").st_mode)


# What a job can do to its own admin directory, its tree and the shared configuration


def g1(plan: Plan, admin: str, evil: str) -> None:
    run(plan.path, "init", "-q", ".evil")
    os.rename(f"{plan.path}/.evil/.git", f"{plan.path}/.evil/g")
    run(plan.path, "config", "--file", ".evil/g/config", "core.fsmonitor", evil)
    write(f"{plan.path}/.git", "gitdir: ./.evil/g\n")


def g2(plan: Plan, admin: str, evil: str) -> None:
    run(plan.path, "config", "core.fsmonitor", evil)


def g3(plan: Plan, admin: str, evil: str) -> None:
    for name in ("post-checkout", "post-index-change", "reference-transaction", "post-commit"):
        os.symlink(evil, f"{plan.repo.common}/hooks/{name}")


def g5(plan: Plan, admin: str, evil: str) -> None:
    run(plan.path, "config", "extensions.worktreeConfig", "true")
    run(plan.path, "config", "--worktree", "core.fsmonitor", evil)


def g6(plan: Plan, admin: str, evil: str) -> None:
    run(os.path.dirname(plan.path), "init", "-q", "other")
    other = f"{os.path.dirname(plan.path)}/other"
    run(other, "config", "core.fsmonitor", evil)
    write(f"{plan.repo.common}/worktrees/{admin}/commondir", f"{other}/.git\n")


@pytest.mark.parametrize("attack", [g1, g2, g3, g5, g6])
def test_no_command_of_a_job_runs(attack: Callable[[Plan, str, str], None], top: str, tmp_path: Path) -> None:
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "work")
    attack(plan, admin, script(tmp_path / "evil", f"touch {tmp_path}/ran"))
    (tmp_path / "ran").unlink(missing_ok=True)
    assert not worktree.is_unchanged(plan, admin, {})
    dirt(plan.repo)
    make(plan_for(top, tmp_path, job=8))
    if attack is g6:  # git reads refs through the rewritten file: nothing it says can be believed
        with pytest.raises(Refused, match="was rewritten"):
            snapshot_job(plan, admin, WORDS)
    else:
        assert snapshot_job(plan, admin, WORDS) is not None
    if attack in (g1, g6):
        with pytest.raises(Refused, match="look at it by hand"):
            worktree.to_trash(plan, admin, str(tmp_path / "trash"), {})
    else:
        worktree.restore(worktree.to_trash(plan, admin, str(tmp_path / "trash"), {}).entry)
    worktree.rollback(plan)
    assert not (tmp_path / "ran").exists()


def test_a_filter_runs_and_is_found_beforehand(top: str, tmp_path: Path) -> None:
    """G4 cannot be switched off: the caller compares, and stops."""
    plan = plan_for(top, tmp_path)
    make(plan)
    before = command_keys(plan.repo.common)
    evil = script(tmp_path / "evil", f"touch {tmp_path}/ran; cat")
    run(plan.path, "config", "filter.evil.clean", evil)
    write(f"{plan.path}/.gitattributes", "* filter=evil\n")
    assert dangerous_config(before, command_keys(plan.repo.common)) == ["filter.evil.clean"]
    assert not (tmp_path / "ran").exists()
