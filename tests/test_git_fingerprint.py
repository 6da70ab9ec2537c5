"""What a job did to the rest of the repository is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gitrepo import make, make_repo, plan_for, run, write

from agentd.git.fingerprint import changes, command_keys, config_values, dangerous_config, fingerprint


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


def stash(top: str) -> None:
    write(f"{top}/src/f0.txt", "stashed")
    run(top, "stash")


DEEDS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "nothing": (lambda t: None, []),
    "own branch": (lambda t: run(t, "branch", "agentd/7/x"), []),
    "refs of ours": (lambda t: run(t, "update-ref", "refs/agentd/work/7", "HEAD"), []),
    "stash": (stash, ["stash changed"]),
    "config": (lambda t: run(t, "config", "core.hooksPath", "/x"), ["config changed: core.hookspath"]),
    "new branch": (lambda t: run(t, "branch", "side"), ["branch side appeared"]),
    "tag": (lambda t: run(t, "tag", "v1"), ["tag v1 appeared"]),
    "hook": (lambda t: write(f"{t}/.git/hooks/pre-commit", "x"), ["hook pre-commit appeared"]),
    "checkout": (lambda t: run(t, "checkout", "-q", "-b", "side"), ["branch side appeared", "HEAD"]),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_each_deed_is_told_and_nothing_else(top: str, deed: str) -> None:
    act, expected = DEEDS[deed]
    before = fingerprint(f"{top}/.git")
    act(top)
    told = changes(before, fingerprint(f"{top}/.git"), "agentd/7/x")
    expected = ["the main tree's HEAD moved from main to side" if e == "HEAD" else e for e in expected]
    assert sorted(told) == sorted(expected)


def test_a_moved_and_a_deleted_branch(top: str) -> None:
    run(top, "branch", "side")
    old = run(top, "rev-parse", "HEAD")
    before = fingerprint(f"{top}/.git")
    run(top, "commit", "-q", "--allow-empty", "-m", "two")
    run(top, "branch", "-D", "side")
    new = run(top, "rev-parse", "HEAD")
    assert changes(before, fingerprint(f"{top}/.git"), "x") == [
        f"branch main moved from {old[:12]} to {new[:12]}",
        f"branch side was deleted (it was {old[:12]})",
    ]


def test_many_refs_are_one_hash(top: str) -> None:
    head = run(top, "rev-parse", "HEAD")
    packed = "# pack-refs with: peeled fully-peeled sorted \n"
    packed += "".join(f"{head} refs/tags/t{n:05}\n" for n in range(2500))
    write(f"{top}/.git/packed-refs", packed)
    before = fingerprint(f"{top}/.git")
    assert len(before) < 50
    run(top, "tag", "one-more")
    assert changes(before, fingerprint(f"{top}/.git"), "x") == [
        "some branch, tag or remote ref changed",
    ]


@pytest.mark.parametrize(
    ("key", "dangerous"),
    [
        ("filter.evil.clean", True),
        ("core.fsmonitor", True),
        ("diff.x.textconv", True),
        ("merge.x.driver", True),
        ("alias.st", True),
        ("credential.helper", True),
        ("include.path", True),
        ("extensions.worktreeConfig", True),
        ("user.name", False),
        ("branch.main.remote", False),
    ],
)
def test_keys_that_name_commands(top: str, key: str, dangerous: bool) -> None:
    common = f"{top}/.git"
    before = command_keys(common)
    value = "true" if key.startswith("extensions") else "value of it"
    run(top, "config", key, value)
    found = dangerous_config(before, command_keys(common))
    section, _, name = key.rpartition(".")
    assert found == ([f"{section}.{name.lower()}"] if dangerous else [])
    assert config_values(common, key) == [value]
    run(top, "config", "--unset", key)
    assert dangerous_config(command_keys(common), before) == []


def test_a_worktrees_own_config_and_an_included_file_count(top: str, tmp_path: Path) -> None:
    common = f"{top}/.git"
    admin = make(plan_for(top, tmp_path))
    write(tmp_path / "more", "")
    run(top, "config", "include.path", str(tmp_path / "more"))
    before, own = command_keys(common), command_keys(common, admin)
    write(tmp_path / "more", '[filter "a"]\n\tclean = x\n')
    write(f"{common}/worktrees/{admin}/config.worktree", '[filter "b"]\n\tclean = y\n')
    assert dangerous_config(before, command_keys(common)) == ["filter.a.clean"]
    assert dangerous_config(own, command_keys(common, admin)) == ["filter.b.clean"]
    assert config_values(common, "filter.b.clean", admin) == ["y"]


def test_a_config_git_cannot_read_is_dangerous(top: str) -> None:
    common = f"{top}/.git"
    before = command_keys(common)
    write(f"{common}/config.worktree", "[broken\n")
    assert dangerous_config(before, command_keys(common)) == ["core.unreadable"]
