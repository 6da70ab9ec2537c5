"""kill -9 of the daemon and of its git at every step of a merge: before or after, never between; asked again, it ends.

strace counts the calls of each thread of the daemon and of each git it starts, and kills whichever makes its n-th.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import faultlab
import gitrepo
import pytest
from faultlab import Scene, until
from tracing import Strace, needs_trace

from agentd import jobdir
from agentd.client import Client
from agentd.core.errors import AgentdError

pytestmark = [pytest.mark.slow, needs_trace]

STEP = 1 if faultlab.is_long else 5
CALLS = ("rename", "unlink", "mkdir", "write", "fsync", "sendto", "execve", "exit_group", "openat")
MINE = "?? loose.txt"


class Home:
    """A repository with changes of the user's, and a job in it that brings something new each time."""

    def __init__(self, scene: Scene, top: str, branch: str) -> None:
        self.scene, self.top, self.branch = scene, top, branch
        self.turn = 0

    def new_work(self) -> int:
        self.turn += 1
        script = (
            f"seq {self.turn}000 >src/f0.txt; mkdir -p new/{self.turn}; echo x >new/{self.turn}/file; ready() {{ :; }}"
        )
        id = self.scene.delegate(script, in_place=False, cwd=self.top, base=self.branch)
        assert self.scene.wait(id)[0]["outcome"] == "succeeded"
        self.scene.client.result(id)  # waits for what follows the end
        return id

    def tip(self) -> str:
        return gitrepo.run(self.top, "rev-parse", self.branch)

    def merge(self, id: int) -> dict[str, Any]:
        """The client asks the next daemon by itself; where git was killed, a person asks again."""
        for _ in range(3):
            try:
                return self.scene.client.ask("jobs.merge", job=id, owner="lab", cwd=self.top, into=self.branch)
            except AgentdError as error:
                assert error.exit in (75, 125), error
        raise AssertionError("it does not end")

    def check(self, id: int, where: str) -> None:
        assert gitrepo.run(self.top, "show", f"{self.branch}:new/{self.turn}/file") == "x", where
        assert gitrepo.run(self.top, "status", "--porcelain") == MINE, where
        assert gitrepo.run(self.top, "diff", "--stat", f"{self.branch}", f"agentd/{id}/{self.name(id)}") == "", where
        told = [event for event in self.scene.events("job.merged") if event["job"] == id]
        assert [event["data"]["to"] for event in told] == [self.tip()], where

    def name(self, id: int) -> str:
        return str(self.scene.client.job(id)["job"]["name"])


@pytest.mark.timeout(3600 if faultlab.is_long else 600)
@pytest.mark.parametrize("branch", ["main", "release"])
def test_killed_at_every_call(tmp_path: Path, branch: str) -> None:
    """``main`` is checked out in the user's tree, ``release`` is in none."""
    top = gitrepo.make_repo(tmp_path / "repo")
    gitrepo.run(top, "branch", "release")
    gitrepo.write(f"{top}/loose.txt", "mine\n")
    with Scene(tmp_path) as scene:
        home = Home(scene, top, branch)
        id = home.new_work()
        with Strace(scene.daemon(), tmp_path, CALLS) as dry:
            home.merge(id)
        home.check(id, "dry")
        points = [(call, k) for call, count in sorted(dry.counts().items()) for k in range(1, count + 1)]
        assert len(points) > 20
        daemons = set()
        for call, k in points[::STEP]:
            id = home.new_work()
            daemons.add(scene.daemon())
            with Strace(scene.daemon(), tmp_path, CALLS, f"{call}:signal=KILL:when={k}"):
                try:
                    scene.client.ask("jobs.merge", job=id, owner="lab", cwd=top, into=branch)
                except AgentdError as error:
                    assert error.exit in (75, 125), error
            assert gitrepo.run(top, "rev-parse", f"{branch}^{{commit}}")
            home.merge(id)
            home.check(id, f"{call} {k}")
        assert len(daemons) > 1, "no daemon was killed"


@pytest.mark.timeout(300)
def test_what_had_landed_is_told_by_the_next_daemon(tmp_path: Path) -> None:
    """As a daemon leaves it that dies when the branch has moved: nobody has to ask again."""
    top = gitrepo.make_repo(tmp_path / "repo")
    with Scene(tmp_path) as scene:
        home = Home(scene, top, "main")
        id, before = home.new_work(), home.tip()
        work = str(scene.client.result(id)["snapshot"])
        os.kill(scene.daemon(), signal.SIGKILL)
        record = {"attempt": 1, "work": work, "ref": "refs/heads/main", "old": before, "new": work, "at": 1.0}
        jobdir.write(f"{scene.state}/jobs/{id}", "merge.json", record)
        gitrepo.run(top, "merge", "-q", "--ff-only", work)
        until(lambda: len(scene.events("job.merged")) == 1)
        (told,) = scene.events("job.merged")
        assert told["data"] == {"what": work, "into": "main", "from": before, "to": work}
        until(lambda: not os.path.exists(f"{scene.state}/jobs/{id}/merge.json"))
        assert home.merge(id)["is_new"] is False and len(scene.events("job.merged")) == 1


@pytest.mark.timeout(300)
def test_two_clients_at_once(tmp_path: Path) -> None:
    top = gitrepo.make_repo(tmp_path / "repo")
    gitrepo.write(f"{top}/loose.txt", "mine\n")
    with Scene(tmp_path) as scene:
        home = Home(scene, top, "main")
        ids = [home.new_work() for _ in range(2)]
        answers: list[Any] = []

        def ask(id: int) -> None:
            with Client(scene.state, owner="lab") as client:
                answers.append(client.ask("jobs.merge", job=id, owner="lab", cwd=top, into="main"))

        threads = [threading.Thread(target=ask, args=(id,)) for id in (ids[0], ids[0])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer["is_new"] for answer in answers) == [False, True]
        assert len(scene.events("job.merged")) == 1
        until(lambda: gitrepo.run(top, "status", "--porcelain") == MINE)
