"""Worktrees: made in two phases, filled, taken back whole from any crash; never anything of others."""

import ctypes
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gitrepo import assert_nothing_left, make, make_repo, plan_for, run, write

from agentd.core.errors import NotNow, Refused
from agentd.git import worktree
from agentd.git.worktree import Plan

ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


@pytest.fixture
def plan(top: str, tmp_path: Path) -> Plan:
    return plan_for(top, tmp_path)


def test_plan_round_trips_through_json(plan: Plan) -> None:
    assert worktree.plan_from(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan


def test_two_phases_make_a_locked_tree_on_its_own_branch(top: str, plan: Plan) -> None:
    config = Path(top, ".git", "config").read_bytes()
    admin = worktree.add(plan)
    assert os.listdir(plan.path) == [".git"]
    worktree.checkout(plan, admin)
    assert run(plan.path, "status", "--porcelain") == ""
    assert run(plan.path, "symbolic-ref", "HEAD") == "refs/heads/agentd/7/fix-login"
    assert run(plan.path, "rev-parse", "HEAD") == plan.base
    assert Path(top, ".git", "worktrees", admin, "locked").read_text() == "agentd job 7\n"
    assert Path(top, ".git", "config").read_bytes() == config


def test_the_admin_id_is_read_not_guessed(top: str, plan: Plan, tmp_path: Path) -> None:
    run(top, "worktree", "add", "-q", "--detach", str(tmp_path / "elsewhere" / "7-fix-login"))
    assert worktree.add(plan) == "7-fix-login1"


def test_a_bare_repository_works(top: str, tmp_path: Path) -> None:
    run(top, "clone", "-q", "--bare", top, str(tmp_path / "b.git"))
    plan = plan_for(str(tmp_path / "b.git"), tmp_path)
    make(plan)
    assert run(plan.path, "status", "--porcelain") == ""


def test_hooks_of_the_repository_do_not_run(top: str, plan: Plan, tmp_path: Path) -> None:
    write(f"{top}/.git/hooks/post-checkout", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    os.chmod(f"{top}/.git/hooks/post-checkout", 0o755)
    make(plan)
    assert not (tmp_path / "ran").exists()


# Refusals


def test_a_branch_named_agentd_is_in_the_way(top: str, plan: Plan) -> None:
    run(top, "branch", "agentd")
    with pytest.raises(Refused, match='cannot create agentd/7/fix-login because branch "agentd" exists'):
        worktree.preflight(plan)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_repository(top: str, plan: Plan) -> None:
    os.chmod(f"{top}/.git", 0o500)
    try:
        for deed in (worktree.preflight, worktree.add):
            with pytest.raises(Refused, match=r"cannot write .*/worktrees \(permission denied\)"):
                deed(plan)
    finally:
        os.chmod(f"{top}/.git", 0o700)


def test_a_symlink_in_the_place_of_the_worktree(plan: Plan, tmp_path: Path) -> None:
    os.makedirs(os.path.dirname(plan.path))
    (tmp_path / "victim").mkdir()
    os.symlink(tmp_path / "victim", plan.path)
    with pytest.raises(Refused, match=r"refusing: .*7-fix-login is a symlink"):
        worktree.preflight(plan)
    with pytest.raises(Refused):
        worktree.add(plan)
    worktree.rollback(plan)
    assert os.listdir(tmp_path / "victim") == [] and os.path.islink(plan.path)


def test_a_symlinked_parent(plan: Plan, tmp_path: Path) -> None:
    parent = os.path.dirname(plan.path)
    os.makedirs(os.path.dirname(parent))
    os.symlink(tmp_path, parent)
    with pytest.raises(Refused, match="is a symlink"):
        worktree.preflight(plan)


def test_what_was_there_before_survives_add_and_rollback(top: str, plan: Plan) -> None:
    write(f"{plan.path}/precious", "x")
    for deed in (worktree.preflight, worktree.add):
        with pytest.raises(Refused, match="it exists"):
            deed(plan)
    worktree.rollback(plan)
    assert Path(plan.path, "precious").read_text() == "x"


def test_an_existing_branch_is_not_taken_over(top: str, plan: Plan) -> None:
    run(top, "branch", plan.branch)
    with pytest.raises(Refused, match="it exists"):
        worktree.add(plan)
    assert run(top, "rev-parse", plan.branch) == plan.base
    assert not os.path.lexists(plan.path)


# Rollback and recovery


def test_rollback_takes_everything_back_twice(plan: Plan) -> None:
    make(plan)
    worktree.rollback(plan)
    worktree.rollback(plan)
    assert_nothing_left(plan)


def test_rollback_keeps_a_branch_with_commits(plan: Plan) -> None:
    make(plan)
    run(plan.path, "commit", "-q", "--allow-empty", "-m", "work")
    tip = run(plan.path, "rev-parse", "HEAD")
    worktree.rollback(plan)
    assert run(plan.repo.common, "rev-parse", plan.branch) == tip


def test_rollback_leaves_other_worktrees_alone(top: str, plan: Plan, tmp_path: Path) -> None:
    other = str(tmp_path / "elsewhere" / "7-fix-login")
    run(top, "worktree", "add", "-q", "--detach", other)
    shutil.rmtree(other)  # as on a disk that is not mounted now
    make(plan)
    worktree.rollback(plan)
    assert os.listdir(f"{top}/.git/worktrees") == ["7-fix-login"]
    assert f"{other} " in run(top, "worktree", "list")


def test_recover_keeps_a_complete_tree(plan: Plan) -> None:
    admin = make(plan)
    assert worktree.recover(plan) == admin
    assert run(plan.path, "status", "--porcelain") == ""


def test_recover_takes_an_unfinished_tree_back(plan: Plan) -> None:
    worktree.add(plan)
    assert worktree.recover(plan) is None
    assert_nothing_left(plan)


@pytest.mark.parametrize(
    "left",
    [
        ["branch"],
        ["admin/locked"],
        ["admin"],
        ["admin/locked", "dir"],
        ["admin/locked", "admin/gitdir", "dir"],
        ["admin/HEAD=", "admin/commondir=", "admin/gitdir", "dir"],
        ["admin/HEAD=", "admin/commondir=../..", "admin/gitdir"],
        ["refs/heads/agentd/7/fix-login.lock"],
        ["branch", "admin/locked", "admin/gitdir", "admin/HEAD.lock=x", "dir/.git"],
    ],
    ids=str,
)
def test_each_known_left_over_is_healed(plan: Plan, left: list[str]) -> None:
    """The patterns of MECHANISMS 11, made by hand."""
    common = Path(plan.repo.common)
    admin = common / "worktrees" / "7-fix-login"
    for item in left:
        name, _, body = item.partition("=")
        if name == "branch":
            run(common, "branch", plan.branch, plan.base)
        elif name == "admin":
            admin.mkdir(parents=True)
        elif name == "dir":
            os.makedirs(plan.path)
        elif name == "dir/.git":
            write(f"{plan.path}/.git", f"gitdir: {admin}\n")
        elif name == "admin/locked":
            write(admin / "locked", plan.lock_reason)
        elif name == "admin/gitdir":
            write(admin / "gitdir", f"{plan.path}/.git\n")
        elif name.startswith("admin/"):
            write(common / "worktrees" / "7-fix-login" / name.removeprefix("admin/"), body)
        else:
            write(common / name, body)
    assert worktree.recover(plan) is None
    assert_nothing_left(plan)
    make(plan)


CRASH = """
import os, signal, sys, json
from agentd.git import worktree
plan = worktree.plan_from(json.loads(sys.argv[1]))

def below(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        for child in f.read().split():
            yield from below(child)
            yield int(child)

def die(*_):
    for pid in (list(below(os.getpid())) if sys.argv[3] == "all" else []):
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    os.kill(os.getpid(), signal.SIGKILL)

signal.signal(signal.SIGALRM, die)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
worktree.checkout(plan, worktree.add(plan))
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def crash(plan: Plan, after: float, whom: str) -> int:
    argv = [sys.executable, "-c", CRASH, json.dumps(dataclasses.asdict(plan)), str(after), whom]
    env = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True).returncode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds its children in /proc")
@pytest.mark.parametrize("whom", ["all", "daemon"])
def test_killed_at_any_moment_then_recover_then_again(tmp_path: Path, whom: str) -> None:
    """ "all": git dies too. "daemon": git lives on, orphaned, while the next daemon recovers."""
    top = make_repo(tmp_path / "r", files=300)
    outcomes = []
    for moment in range(1, 41):
        plan = plan_for(top, tmp_path, job=moment)
        outcomes.append(crash(plan, moment / 1000, whom))
        admin = worktree.recover(plan)
        if admin is None:
            assert_nothing_left(plan)
            make(plan)
        assert run(plan.path, "status", "--porcelain") == ""
        assert run(plan.path, "rev-parse", "HEAD") == plan.base
        worktree.rollback(plan)
        assert_nothing_left(plan)
    assert outcomes.count(-signal.SIGKILL) > 3, "the moments missed the work altogether"


def can_trace() -> bool:
    strace = shutil.which("strace")
    return bool(strace) and subprocess.run([str(strace), "-qq", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is not here, or may not trace")
@pytest.mark.parametrize("call", ["mkdir", "rename", "unlink", "write"])
def test_git_killed_at_its_nth_system_call(top: str, tmp_path: Path, call: str) -> None:
    """git alone dies; add takes everything back by itself, or the process died and recover does."""
    for nth in range(1, 9):
        plan = plan_for(top, tmp_path, job=nth)
        code = (
            "import json, sys; from agentd.git import worktree\n"
            "plan = worktree.plan_from(json.loads(sys.argv[1]))\n"
            "worktree.checkout(plan, worktree.add(plan))"
        )
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        argv = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]
        argv += [sys.executable, "-B", "-c", code, json.dumps(dataclasses.asdict(plan))]
        subprocess.run(argv, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True)
        if worktree.recover(plan) is None:
            assert_nothing_left(plan)
            make(plan)
        worktree.rollback(plan)
        assert_nothing_left(plan)


def test_sixteen_at_once_three_times(tmp_path: Path) -> None:
    top = make_repo(tmp_path / "r", files=100)
    for round in range(3):
        plans = [plan_for(top, tmp_path, job=round * 16 + n) for n in range(1, 17)]
        with ThreadPoolExecutor(16) as pool:
            admins = list(pool.map(make, plans))
        assert admins == [os.path.basename(plan.path) for plan in plans]
        assert [run(plan.path, "status", "--porcelain") for plan in plans] == [""] * 16
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(worktree.rollback, plans))
        for plan in plans:
            assert_nothing_left(plan)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(str(place).encode(), 2) == 0


def test_a_full_disk_is_not_now_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    top = make_repo(tmp_path / "r")
    write(f"{top}/big", "x" * 4_000_000)
    run(top, "add", "big")
    run(top, "commit", "-q", "-m", "big")
    plan = plan_for(top, small_disk)
    with pytest.raises(NotNow, match="hardly any space left"):
        worktree.preflight(plan)
    admin = worktree.add(plan)
    with pytest.raises(NotNow, match="the disk is full") as refusal:
        worktree.checkout(plan, admin)
    assert refusal.value.code == "disk_full"
    worktree.rollback(plan)
    assert_nothing_left(plan)


def test_a_disk_full_at_once(tmp_path: Path, small_disk: Path) -> None:
    """The repository itself is on it: the branch, or its reflog, cannot be written."""
    top = make_repo(small_disk / "r")
    plan = plan_for(top, tmp_path)
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(NotNow, match="the disk is full"):
        make(plan)
    worktree.rollback(plan)
    os.unlink(small_disk / "filler")
    assert_nothing_left(plan)


# Ignored files


def test_fill_copies_what_is_matched_and_ignored(top: str, plan: Plan) -> None:
    write(f"{top}/.worktreeinclude", ".env\n*.db\nuntracked.txt\nsrc/f0.txt\n")
    write(f"{top}/.env", "KEY=1\n")
    write(f"{top}/deep/er/x.db", "data")
    write(f"{top}/untracked.txt", "not ignored")
    os.chmod(f"{top}/deep/er/x.db", 0o400)
    filled = worktree.fill(plan, make(plan), top)
    assert filled.copied == (".env", "deep/er/x.db")
    assert sorted(filled.manifest) == [".env", "deep/er/x.db"]
    assert os.stat(f"{plan.path}/.env").st_mode & 0o777 == 0o600
    assert os.stat(f"{plan.path}/deep/er/x.db").st_mode & 0o777 == 0o400
    assert Path(plan.path, ".env").read_text() == "KEY=1\n"
    assert not os.path.lexists(f"{plan.path}/untracked.txt")


def test_fill_overwrites_nothing_and_follows_no_link(top: str, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "a.db", "outside")
    os.symlink(tmp_path / "outside", f"{top}/linked.db")
    write(f"{top}/.worktreeinclude", ".env\n*.db\n")
    write(f"{top}/.env", "mine")
    admin = make(plan)
    write(f"{plan.path}/.env", "already here")
    filled = worktree.fill(plan, admin, top)
    assert filled.copied == ("linked.db",)
    assert Path(plan.path, ".env").read_text() == "already here"
    assert os.readlink(f"{plan.path}/linked.db") == str(tmp_path / "outside")


def test_fill_does_not_write_through_a_link_in_the_worktree(top: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", f"{top}/conf")
    run(top, "add", "conf")
    run(top, "commit", "-q", "-m", "conf is a link")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    os.unlink(f"{top}/conf")
    write(f"{top}/conf/a.db", "secret")
    write(f"{top}/.worktreeinclude", "*.db\n")
    with pytest.raises(Refused, match="is a symlink there"):
        worktree.fill(plan, admin, top)
    assert os.listdir(tmp_path / "outside") == []


def test_fill_links_on_request_and_names_what_is_missing(top: str, plan: Plan) -> None:
    write(f"{top}/.gitignore", "node_modules\n.venv/\ntarget/\n")
    run(top, "commit", "-qam", "ignore more")
    write(f"{top}/node_modules/m/index.js", "1")
    write(f"{top}/.venv/bin/python", "1")
    write(f"{top}/.venv/pyvenv.cfg", "home = x")
    write(f"{top}/target/out", "1")
    write(f"{top}/kept.txt", "1")
    write(f"{top}/.worktreelink", "node_modules\n.venv\nkept.txt\n")
    with open(f"{top}/.git/info/exclude", "a") as exclude:
        exclude.write("kept.txt\n")
    plan = dataclasses.replace(plan, base=run(top, "rev-parse", "HEAD"))
    admin = make(plan)
    filled = worktree.fill(plan, admin, top)
    # What is ignored as a folder only is a folder, of links: git would take a link for new work.
    assert set(filled.linked) == {"node_modules", ".venv/bin", ".venv/pyvenv.cfg", "kept.txt"}
    assert os.readlink(f"{plan.path}/.venv/bin") == f"{top}/.venv/bin"
    assert Path(f"{plan.path}/.venv/pyvenv.cfg").read_text() == "home = x"
    assert os.readlink(f"{plan.path}/node_modules") == f"{top}/node_modules"
    assert filled.notes == ()
    assert filled.missing == ("target",)
    assert run(plan.path, "status", "--porcelain") == ""
    assert worktree.is_unchanged(plan, admin, filled.manifest)


def test_fill_has_a_limit(top: str, plan: Plan) -> None:
    write(f"{top}/.worktreeinclude", "*.db\n")
    write(f"{top}/a.db", "x" * 1001)
    admin = make(plan)
    with pytest.raises(Refused, match=r"the limit is 1,000; largest: a.db \(1,001 bytes\)"):
        worktree.fill(plan, admin, top, max_bytes=1000)
    assert not os.path.lexists(f"{plan.path}/a.db")
