"""Through the client: no work is removed with a worktree, wherever it lies, whoever still writes; and nothing a job
plants stops the daemon."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import pytest
from faultlab import Scene
from gitrepo import make_repo, run, write

from agentd.core.errors import Refused
from agentd.daemon.perform import GIT_THREADS


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path) as scene:
        yield scene


def result(scene: Scene, id: int) -> dict[str, Any]:
    """What the job's last attempt left, once that is settled."""

    def told() -> dict[str, Any] | None:
        found: dict[str, Any] | None = scene.client.job(id)["job"]["result"]
        return found

    scene.wait(id)
    faultlab.until(lambda: told() is not None, 60.0)
    return told() or {}


def worktree_of(scene: Scene, id: int) -> str:
    return str(scene.client.job(id)["job"]["worktree"])


def test_what_lies_in_a_submodule_is_kept_and_comes_back(scene: Scene, tmp_path: Path) -> None:
    library, top = make_repo(tmp_path / "library"), make_repo(tmp_path / "repo")
    run(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", library, "sub")
    run(top, "commit", "-q", "-m", "with a submodule")
    id = scene.delegate("echo precious > sub/result.txt", in_place=False, cwd=top)
    got, folder = result(scene, id), worktree_of(scene, id)
    assert got["kept"] == "the worktree is kept: sub/result.txt is new or changed"
    assert got["left_out"] == ["sub"]
    scene.client.remove(id)
    assert not os.path.exists(folder)
    scene.client.undo(id)
    assert Path(folder, "sub", "result.txt").read_text() == "precious\n"


def test_pipes_hold_up_nobody(scene: Scene, tmp_path: Path) -> None:
    top = make_repo(tmp_path / "repo")
    plant = "mkdir node_modules; mkfifo node_modules/p; mkfifo $HOOK 2> /dev/null; exit 0"
    script = f"HOOK={top}/.git/hooks/pre-commit\n{plant}"
    ids = [scene.delegate(script, in_place=False, cwd=top) for _ in range(GIT_THREADS + 1)]
    for id in ids:
        assert result(scene, id)["kept"] == "the worktree is kept: node_modules/p is new or changed"
    for id in ids:
        scene.client.remove(id)
    id = scene.delegate("echo x > new", in_place=False, cwd=top)
    assert result(scene, id)["diffstat"]["files"] == 1


SPARSE = {
    "cone": [["sparse-checkout", "set", "src"]],
    "own config": [
        ["config", "extensions.worktreeConfig", "true"],
        ["config", "--worktree", "core.sparseCheckout", "false"],
    ],
}


@pytest.mark.parametrize("how", SPARSE)
def test_a_configuration_that_git_copies_is_nobodys_change(scene: Scene, tmp_path: Path, how: str) -> None:
    top = make_repo(tmp_path / "repo")
    for words in SPARSE[how]:
        run(top, *words)
    id = scene.delegate("echo new > n", in_place=False, cwd=top)
    got = result(scene, id)
    assert "error" not in got and got["diffstat"]["paths"] == [["n", 1, 0]]
    scene.client.restart(id)
    assert "error" not in result(scene, id)
    scene.client.remove(id)


@pytest.mark.parametrize("where", ["--local", "--worktree"])
@pytest.mark.parametrize("key", ["filter.evil.clean", "core.fsmonitor"])
def test_a_command_that_a_job_plants_is_refused(scene: Scene, tmp_path: Path, where: str, key: str) -> None:
    top = make_repo(tmp_path / "repo")
    run(top, "config", "extensions.worktreeConfig", "true")
    run(top, "config", "--worktree", "core.sparseCheckout", "false")
    evil = f"touch {tmp_path}/ran"
    id = scene.delegate(
        f"git config {where} {key} '{evil}'; echo '* filter=evil' > .gitattributes", in_place=False, cwd=top
    )
    got = result(scene, id)
    assert f"was changed while job {id} ran: {key}={evil}; git is not run there" in got["error"]
    with pytest.raises(Refused, match="was changed while job"):
        scene.client.remove(id)
    assert not (tmp_path / "ran").exists()
    run(worktree_of(scene, id), "config", where, "--unset", key)
    scene.client.remove(id)


def test_a_helper_that_was_let_go_keeps_its_worktree(scene: Scene, tmp_path: Path) -> None:
    top = make_repo(tmp_path / "repo")
    helper = "(while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo work > result.txt) & exit 0"
    id = scene.delegate(helper, in_place=False, cwd=top, leave=["sh*", "/bin/sh*", "sleep*"])
    try:
        got, folder = result(scene, id), worktree_of(scene, id)
        assert got["kept"].startswith("the worktree is kept: ") and got["kept"].endswith(" works in it")
        assert os.path.isdir(folder) and not os.path.exists(folder + ".gone")
    finally:
        write(scene.proof / "go", "")
    faultlab.until(lambda: os.path.exists(f"{folder}/result.txt"))
    faultlab.until(lambda: not scene.agents())
    assert Path(folder, "result.txt").read_text() == "work\n"


def test_a_helper_that_works_elsewhere_keeps_it_too(scene: Scene, tmp_path: Path) -> None:
    """It can come back by the path it knows."""
    top = make_repo(tmp_path / "repo")
    helper = "here=$PWD; (cd /; while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo work > $here/result.txt) & exit 0"
    id = scene.delegate(helper, in_place=False, cwd=top, leave=["sh*", "/bin/sh*", "sleep*"])
    try:
        assert result(scene, id)["kept"].endswith(" works in it")
    finally:
        write(scene.proof / "go", "")
    faultlab.until(lambda: not scene.agents())
    assert Path(worktree_of(scene, id), "result.txt").read_text() == "work\n"
