"""The built-in agent from end to end: real daemon, zygotes, keepers and runners, and a script in place of the model."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
from clishell import Shell

from agentd import process
from agentd.client import Client, Job
from agentd.scripted import Server

KEY = "sk-test-0123456789-not-to-be-found"
HAIKU, SONNET = "claude-haiku-5-5", "claude-sonnet-5-5"
Record = dict[str, Any]


def call(tool: str, **input: Any) -> Record:
    return {"tool": tool, "input": input}


def bash(command: str) -> Record:
    return call("bash", command=command)


def write(path: str, content: str) -> Record:
    return call("write", path=path, content=content)


class Scene:
    """A daemon with its client, and the server that its agents ask."""

    def __init__(self, shell: Shell, folder: Path) -> None:
        self.shell = shell
        self.client = Client(str(shell.state), owner="me")
        self.repo = gitrepo.make_repo(folder / "repo")
        self.record = folder / "requests.ndjson"
        self.servers: list[Server] = []

    def serve(self, script: Any) -> None:
        server = Server(script, record=self.record, bodies=True)
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["ANTHROPIC_BASE_URL"] = server.url

    def configure(self, text: str) -> None:
        """Before the daemon is started, by the first who asks it."""
        file = Path(os.environ["HOME"], ".config/agentd/agentd.toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def delegate(self, task: str, **options: Any) -> int:
        options = {"agent": "builtin", "in_place": True, "cwd": str(self.shell.cwd), "model": HAIKU, **options}
        return int(self.client.delegate([], task=task, **options)["id"])

    def wait(self, id: int, until: str = "done", timeout: float = 120) -> Job:
        answer = self.client.wait([id], until=until, timeout=timeout)
        assert not answer["timed_out"], answer
        return dict(answer["jobs"][0])

    def requests(self) -> list[Record]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def records(self, id: int) -> list[Record]:
        """Of all attempts."""
        paths = sorted(self.shell.state.glob(f"jobs/{id}/*/transcript.ndjson"), key=lambda path: int(path.parent.name))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def events(self, type: str) -> list[Record]:
        return [event for event in self.client.events(since=0, follow=False) if event["type"] == type]

    # --- processes ------------------------------------------------------------------------------------------

    def ours(self) -> list[int]:
        """Daemon, zygotes, keepers and runners."""
        return [int(line.split()[0]) for line in clishell.ours(self.shell.state)]

    def daemon(self) -> int:
        return int(self.client.ask("daemon.status")["pid"])

    def attempt(self, id: int) -> Path:
        return max(self.shell.state.glob(f"jobs/{id}/[0-9]*"), key=lambda path: int(path.name))

    def runner(self, id: int) -> int | None:
        """The one that runs now: its process is not a fork that still waits to be let go."""
        path = self.attempt(id)
        if not (path / "transcript.ndjson").exists() or (path / "exit.json").exists() or (path / "end.json").exists():
            return None
        return int(self.shell.record(str(id), f"../{path.name}/agent.json")["agent"]["pid"])

    def keeper(self, id: int) -> int | None:
        title = f"agentd-keeper {id}.{self.attempt(id).name}"
        pids = [int(line.split()[0]) for line in clishell.ours(self.shell.state) if title in line]
        return next((pid for pid in pids if not faultlab.parent_title(str(pid)).startswith("agentd-keeper")), None)

    def victims(self, id: int) -> dict[str, Callable[[], int | None]]:
        return {"runner": lambda: self.runner(id), "keeper": lambda: self.keeper(id), "daemon": self.daemon}

    def kill(self, *looks: Callable[[], int | None]) -> list[bool]:
        """kill -9 of all of them at the same moment, as soon as all are there to be killed. Which of them it hit: one
        of two keepers that begin at once goes away by itself."""
        hit: list[bool] = []

        def are_killed() -> bool:
            pidfds: list[int] = []
            try:
                pids = [look() for look in looks]
                pidfds += [os.pidfd_open(pid) for pid in pids if pid is not None]
                if len(pidfds) == len(looks):
                    hit[:] = [process.send(pidfd, signal.SIGKILL) for pidfd in pidfds]
            except OSError:  # one has just gone
                return False
            finally:
                for pidfd in pidfds:
                    os.close(pidfd)
            return any(hit)

        def state() -> str:
            return f"nothing to kill: {self.client.jobs(all=True)}, {clishell.ours(self.shell.state)}"

        faultlab.until(are_killed, timeout=60, what=state)
        return hit


def scene_of(folder: Path, patch: Any) -> Iterator[Scene]:
    """For a fixture: see clishell.serve."""
    patch.setenv("ANTHROPIC_API_KEY", KEY)
    patch.setenv("ANTHROPIC_BASE_URL", "")
    for shell in clishell.serve(folder, patch):
        scene = Scene(shell, folder)
        yield scene
        scene.client.close()
    for server in scene.servers:
        server.shutdown()
        server.server_close()
