"""Agents at work in worktrees of one repository, for the tests of what keeps them from trampling on each other."""

import json
import threading
from pathlib import Path
from typing import Any

import faultlab
import gitrepo
from clishell import Shell

from agentd.client import Client
from agentd.scripted import Server

MODEL = "claude-haiku-5-5"
KEY = "sk-test-0123456789-not-to-be-found"
Event = dict[str, Any]


def bash(command: str) -> dict[str, Any]:
    return {"tool": "bash", "input": {"command": command}}


def write(path: str, content: str) -> dict[str, Any]:
    return {"tool": "write", "input": {"path": path, "content": content}}


class Site:
    """A daemon, its client and one repository. ``go``: a folder of marks by which jobs are told to go on."""

    def __init__(self, shell: Shell, folder: Path, monkeypatch: Any) -> None:
        self.shell = shell
        self.client = Client(str(shell.state), owner="me")
        self.repo = gitrepo.make_repo(folder / "repo")
        self.go = folder / "go"
        self.go.mkdir()
        self.monkeypatch = monkeypatch
        self.server: Server | None = None

    def close(self) -> None:
        self.client.close()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()

    def serve(self, *scripts: dict[str, Any]) -> None:
        """``{"task": ..., "turns": [...]}`` each."""
        self.server = Server({"scripts": list(scripts)})
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.monkeypatch.setenv("ANTHROPIC_BASE_URL", self.server.url)
        self.monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)

    def wait_for(self, mark: str) -> str:
        """A shell command that returns when the test says so."""
        return f"while [ ! -e {self.go}/{mark} ]; do sleep 0.05; done"

    def say(self, mark: str) -> None:
        (self.go / mark).touch()

    def has_said(self, mark: str) -> None:
        faultlab.until((self.go / mark).exists, 60.0, lambda: f"no {mark}; {self.client.jobs(all=True)}")

    def agent(self, task: str, **options: Any) -> int:
        return int(self.client.delegate([], task=task, agent="builtin", model=MODEL, cwd=self.repo, **options)["id"])

    def command(self, script: str, **options: Any) -> int:
        return int(self.client.delegate(["/bin/sh", "-c", script], cwd=self.repo, **options)["id"])

    def tree(self, id: int) -> Path:
        return Path(self.client.job(id)["job"]["worktree"])

    def done(self, id: int) -> dict[str, Any]:
        answer = self.client.wait([id], timeout=120)
        assert not answer["timed_out"], answer
        return dict(answer["jobs"][0])

    def events(self, *types: str) -> list[Event]:
        return [event for event in self.client.events(since=0, follow=False) if event["type"] in types]

    def until(self, type: str, seconds: float = 60.0, **data: Any) -> Event:
        """The first event of a type whose data has these."""
        found: list[Event] = []

        def is_told() -> bool:
            found[:] = [event for event in self.events(type) if event["data"].items() >= data.items()]
            return bool(found)

        faultlab.until(is_told, seconds, lambda: f"no {type} {data}; {self.events(type)}")
        return found[0]

    def results(self, id: int) -> list[str]:
        """What tools answered its model."""
        return [record["content"] for record in self.records(id) if record["type"] == "result"]

    def heard(self, id: int) -> list[str]:
        """What it was told from outside."""
        return [record["text"] for record in self.records(id) if record["type"] == "accepted"]

    def records(self, id: int) -> list[dict[str, Any]]:
        paths = sorted(self.shell.state.glob(f"jobs/{id}/*/transcript.ndjson"))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def claims(self) -> dict[tuple[str, int], dict[str, Any]]:
        """By name and job."""
        listed = self.client.ask("lock.list")["claims"]
        return {(claim["name"], claim["holder"]["job"]): claim for claim in listed}
