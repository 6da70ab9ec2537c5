"""settle: one git process, and refusals a person can act on (BAD_INPUTS 5-8)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gitrepo import make_repo, run, write

from agentd.core.errors import Refused, Usage
from agentd.git.repository import Repo, Settled, settle


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


def test_from_a_folder_inside(top: str) -> None:
    head = run(top, "rev-parse", "HEAD")
    repo = Repo(common=f"{top}/.git", top=top, git_dir=f"{top}/.git")
    assert settle(f"{top}/src", None) == Settled(repo, head, "src", "refs/heads/main")
    assert settle(top, "main") == Settled(repo, head, "", "refs/heads/main")


def test_detached_head_has_no_ref(top: str) -> None:
    run(top, "checkout", "-q", "--detach")
    assert settle(top, None).ref is None


def test_a_tag_is_peeled_to_its_commit(top: str) -> None:
    run(top, "tag", "-a", "v1", "-m", "one")
    assert settle(top, "v1").base == run(top, "rev-parse", "HEAD")


def test_inside_another_worktree_its_own_head_counts(top: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    run(top, "worktree", "add", "-q", "-b", "side", other)
    run(other, "commit", "-q", "--allow-empty", "-m", "ahead")
    settled = settle(other, None)
    assert settled.base == run(other, "rev-parse", "HEAD") != run(top, "rev-parse", "HEAD")
    assert settled.ref == "refs/heads/side"
    assert settled.repo == Repo(f"{top}/.git", other, f"{top}/.git/worktrees/other")


def test_inside_a_submodule_it_is_the_submodule(top: str, tmp_path: Path) -> None:
    inner = make_repo(tmp_path / "inner")
    run(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", inner, "sub")
    assert settle(f"{top}/sub", None).repo == Repo(f"{top}/.git/modules/sub", f"{top}/sub", f"{top}/.git/modules/sub")


def test_a_bare_repository_has_no_top(top: str, tmp_path: Path) -> None:
    bare = str(tmp_path / "b.git")
    run(top, "clone", "-q", "--bare", top, bare)
    settled = settle(bare, None)
    assert settled.repo == Repo(bare, None, bare)
    assert settled.base == run(top, "rev-parse", "HEAD")


def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    top = make_repo(tmp_path / "a b 'ü\u202e")
    assert settle(f"{top}/src", None).repo.top == top


def test_unknown_base(top: str) -> None:
    with pytest.raises(Refused) as refusal:
        settle(top, "nosuch")
    assert (
        str(refusal.value)
        == f'base "nosuch" is not a commit in {top} (git: unknown revision); name a branch, a tag or a commit'
    )
    for base in ("a..b", "HEAD..HEAD", "src/f0.txt", "HEAD:src", "^main", "main^{tree}", "@{-1}"):
        with pytest.raises(Refused):
            settle(top, base)


@pytest.mark.parametrize("base", ["--output=/tmp/x", "-x", "", "a\0b"])
def test_base_that_is_an_option(top: str, base: str) -> None:
    with pytest.raises(Usage) as refusal:
        settle(top, base)
    assert refusal.value.exit == 2
    if base.startswith("-"):
        assert str(refusal.value) == 'base must not start with "-"; name a branch, a tag or a commit'


def test_outside_a_repository(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not in a git repository; use agentd run") as refusal:
        settle(str(tmp_path), None)
    assert refusal.value.code == "no_repository"


def test_no_commit_yet(tmp_path: Path) -> None:
    run(tmp_path, "init", "-q", "e")
    with pytest.raises(Refused) as refusal:
        settle(str(tmp_path / "e"), None)
    assert str(refusal.value) == f"no commit yet in {tmp_path}/e; make a first commit"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        settle(str(tmp_path / "gone"), None)


def test_one_git_process(top: str, tmp_path: Path) -> None:
    """Counted by a git in PATH that writes a line and then is the real one."""
    real, calls = shutil.which("git"), tmp_path / "calls"
    write(tmp_path / "bin" / "git", f'#!/bin/sh\necho "$@" >> {calls}\nexec {real} "$@"\n')
    os.chmod(tmp_path / "bin" / "git", 0o755)
    code = f"from agentd.git.repository import settle; settle({top!r}, None)"
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=Path(__file__).parent.parent, check=True)
    assert len(calls.read_text().splitlines()) == 1
