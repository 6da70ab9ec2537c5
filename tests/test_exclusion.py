"""rm, undo and restart of one job, all asked for at once: each finds the job as the one before left it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import pytest
from faultlab import Scene
from gitrepo import make_repo

from agentd import jobdir
from agentd.git.run import locked


class Line:
    """One connection, many requests under way. They are begun in the order in which they are sent."""

    def __init__(self, scene: Scene) -> None:
        scene.daemon()  # there is one, and it has said where
        self.link = jobdir.connect((jobdir.read(scene.state, "daemon.json") or {})["socket"])
        self.link.settimeout(60)
        self.answers = self.link.makefile("rb")
        self.got: dict[int, dict[str, Any]] = {}
        self.count = 0

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self.link.close()

    def ask(self, method: str, **params: Any) -> int:
        self.count += 1
        request = {"jsonrpc": "2.0", "id": self.count, "method": method, "params": params}
        self.link.sendall(json.dumps(request).encode() + b"\n")
        return self.count

    def answer(self, id: int) -> dict[str, Any]:
        while id not in self.got:
            message = json.loads(self.answers.readline())
            self.got[message["id"]] = message
        return self.got[id]

    def all_begun(self) -> None:
        self.answer(self.ask("daemon.status"))

    def outcomes(self, *ids: int) -> list[str]:
        return ["yes" if "result" in self.answer(id) else self.answer(id)["error"]["data"]["code"] for id in ids]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path) as scene:
        yield scene


def ended_with_work(scene: Scene, tmp_path: Path) -> tuple[int, Path, str]:
    top = make_repo(tmp_path / "repo")
    id = scene.delegate("echo work > result.txt; echo $AGENTD_NONCE > nonce", in_place=False, cwd=top)
    scene.wait(id)
    faultlab.until(lambda: scene.client.job(id)["job"]["result"] is not None)
    return id, Path(scene.client.job(id)["job"]["worktree"]), f"{top}/.git/agentd.mutex"


def test_undo_twice_then_rm(scene: Scene, tmp_path: Path) -> None:
    """All three wait for the repository; the second undo must not delete what rm puts into the trash after it."""
    id, worktree, mutex = ended_with_work(scene, tmp_path)
    scene.client.remove(id)
    with Line(scene) as line:
        with locked(mutex):
            asked = [line.ask(f"jobs.{verb}", job=id) for verb in ("undo", "undo", "remove", "restart")]
            line.all_begun()
        assert line.outcomes(*asked) == ["yes", "not_removed", "yes", "removed"]
    assert not worktree.exists()
    scene.client.undo(id)
    assert (worktree / "result.txt").read_text() == "work\n"
    assert scene.record(id, "end")


def test_rm_then_undo_then_restart(scene: Scene, tmp_path: Path) -> None:
    id, worktree, mutex = ended_with_work(scene, tmp_path)
    with Line(scene) as line:
        with locked(mutex):
            asked = [line.ask(f"jobs.{verb}", job=id) for verb in ("remove", "undo", "restart", "remove")]
            line.all_begun()
        assert line.outcomes(*asked) == ["yes", "yes", "yes", "not_done"]
    scene.wait(id)
    assert (worktree / "result.txt").read_text() == "work\n"


def test_restart_many_times_at_once(scene: Scene, tmp_path: Path) -> None:
    """One is accepted. The others do not write over the spec of the attempt that it began."""
    id, worktree, _ = ended_with_work(scene, tmp_path)
    with Line(scene) as line:
        asked = [line.ask("jobs.restart", job=id) for _ in range(5)]
        assert sorted(line.outcomes(*asked)) == ["not_done"] * 4 + ["yes"]
    scene.wait(id)
    (attempt,) = (one for one in scene.client.job(id)["attempts"] if one["attempt"] == 2)
    spec = jobdir.read(attempt["path"], "spec.json") or {}
    assert (worktree / "nonce").read_text().strip() == spec["nonce"]


def test_a_refused_restart_writes_nothing(scene: Scene, tmp_path: Path) -> None:
    id, _, _ = ended_with_work(scene, tmp_path)
    scene.client.remove(id)
    with Line(scene) as line:
        assert line.outcomes(line.ask("jobs.restart", job=id)) == ["removed"]
    folders = [path for path in Path(scene.state).rglob("spec.json") if path.parent.name == "2"]
    assert folders == []
