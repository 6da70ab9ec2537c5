"""The built-in agent's runner as real processes, forked from a warmed one, against a scripted model on loopback.

Run as a program, this file is the warmed process: a request a line on stdin (``run`` or ``wait``), an answer a line.
"""

import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentd import jobdir, process
from agentd.runners import transcript
from agentd.scripted import Server

KEY = "sk-test-0123456789-not-to-be-found"
PATIENCE = 30.0
Record = dict[str, Any]
Turn = dict[str, Any]
T = TypeVar("T")


def until(look: Callable[[], T], patience: float = PATIENCE) -> T:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)
    return found


class Forks:
    """A process that has the SDK imported and warmed, and forks runners, as the zygote does."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lock = threading.Lock()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


class Run:
    """One attempt."""

    def __init__(self, lab: "Lab", path: Path, spec: Record, environment: dict[str, str]) -> None:
        self.lab = lab
        self.path = path
        self.spec = spec
        self.sent = len(self.inputs())
        jobdir.write(str(path), "spec.json", spec)
        self.code: int | None = None
        self.pid: int = lab.forks.ask(run=str(path), environment=environment)

    def records(self, kind: str | None = None) -> list[Record]:
        found = transcript.read(f"{self.path}/transcript.ndjson")
        return [record for record in found if kind in (None, record["type"])]

    def until(self, kind: str, count: int = 1) -> Record:
        return until(lambda: self.records(kind)[count - 1 : count])[0]

    def wait(self) -> int:
        """Its exit code, as a shell would say it."""
        code: int = self.lab.forks.ask(wait=self.pid)
        return code

    def kill(self, number: int = 9) -> None:
        os.kill(self.pid, number)
        self.wait()

    def end(self) -> Record:
        return self.records()[-1]

    def stderr(self) -> str:
        return (self.path / "stderr").read_text()

    def inputs(self) -> list[str]:
        file = self.path / "input.ndjson"
        return file.read_text().splitlines() if file.exists() else []

    def put(self, kind: str, text: str = "", question: str | None = None) -> None:
        """As the daemon does: append first."""
        self.sent += 1
        line = {"n": self.sent, "kind": kind, "text": text, "question": question, "at": time.time()}
        with open(self.path / "input.ndjson", "a") as file:
            file.write(json.dumps(line) + "\n")

    def send(self, kind: str, text: str = "", question: str | None = None) -> None:
        """Append, then nudge."""
        self.put(kind, text, question)
        with jobdir.connect(f"{self.path}/runner.sock") as link:
            link.sendall(b"look\n")

    def results(self) -> list[str]:
        return [record["content"] for record in self.records("result")]

    def resumed(self, **changes: Any) -> "Run":
        return self.lab.start(self.spec["task"], resume=f"{self.path}/transcript.ndjson", **changes)


class Lab:
    def __init__(self, tmp_path: Path, forks: Forks) -> None:
        self.tmp_path = tmp_path
        self.forks = forks
        self.worktree = tmp_path / "worktree"
        self.worktree.mkdir()
        subprocess.run(["git", "init", "-q", "-b", "main"], cwd=self.worktree, check=True)
        self.attempts = 0
        self.servers: list[Server] = []
        self.runs: list[Run] = []

    def serve(self, script: Any, port: int = 0) -> Server:
        """The script as a model server, which writes each request down."""
        record = self.tmp_path / f"requests-{len(self.servers)}"
        server = Server(script, port, record=record, bodies=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        self.servers.append(server)
        return server

    def requests(self) -> list[Record]:
        lines = (self.tmp_path / f"requests-{len(self.servers) - 1}").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def start(self, task: str = "do it", *, profile: Record | None = None, **spec: Any) -> Run:
        path = self.tmp_path / "attempts" / str(self.attempts)
        path.mkdir(parents=True)
        self.attempts += 1
        endpoint = self.servers[-1].url if self.servers else None
        spec = {
            "task": task,
            "worktree": str(self.worktree),
            "limits_asked": False,
            "kept": False,
            "profile": {"model": "script-1", "endpoint": endpoint, **(profile or {})},
            **spec,
        }
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "ANTHROPIC_API_KEY": KEY}
        run = Run(self, path, spec, environment | spec.pop("environment", {}))
        self.runs.append(run)
        return run

    def play(self, script: Any, task: str = "do it", **spec: Any) -> Run:
        """A script from its beginning to its end."""
        self.serve(script)
        run = self.start(task, **spec)
        run.code = run.wait()
        return run

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


class Keeper:
    """A keeper at an attempt's keeper.sock, as far as a runner speaks to it: it answers by a function."""

    def __init__(self, path: Path, answer: Callable[[int], Record]) -> None:
        self.answer = answer
        self.turns: list[int] = []
        self.news: list[str] = []
        self.listener = jobdir.listen(f"{path}/keeper.sock")
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            with link, link.makefile("rw") as lines:
                for line in lines:
                    said = json.loads(line)
                    if "news" in said:
                        self.news.append(said["news"])
                        continue
                    self.turns.append(said["turn"])
                    lines.write(json.dumps(self.answer(said["turn"])) + "\n")
                    lines.flush()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextmanager
def keeper(path: Path, answer: Callable[[int], Record]) -> Iterator[Keeper]:
    one = Keeper(path, answer)
    try:
        yield one
    finally:
        one.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def prefix_is_kept(requests: list[Record]) -> bool:
    """Whether each request begins with the one before it, byte for byte, where it matters to the cache."""
    bodies = [request["body"] for request in requests]
    for one, two in itertools.pairwise(bodies):
        if any(json.dumps(one[part]) != json.dumps(two[part]) for part in ("tools", "system", "model")):
            return False
        first, second = (json.dumps(body["messages"])[:-1] for body in (one, two))
        if not second.startswith(first):
            return False
    return True


# --- scripts -------------------------------------------------------------------------------------------------

DONE: Turn = {"say": "Done."}


def call(tool: str, **input: Any) -> dict[str, Any]:
    return {"tool": tool, "input": input}


def bash(command: str, **input: Any) -> Turn:
    return {"calls": [call("bash", command=command, **input)]}


def texts(message: Record) -> list[str]:
    return [block["text"] for block in message["content"] if block["type"] == "text"]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or process.is_zombie(pid)


class Door:
    """A FIFO at which a command says that it runs, and waits to be let go."""

    def __init__(self, lab: Lab) -> None:
        self.path = lab.tmp_path / "door"
        os.mkfifo(self.path)
        self.command = f"echo up > {self.path}; cat {self.path}; echo went on"

    def until_reached(self) -> None:
        self.path.read_text()

    def open(self) -> None:
        self.path.write_text("opened\n")


def order(run: Run, *kinds: str) -> list[str]:
    return [record["type"] for record in run.records() if record["type"] in kinds]


# --- the warmed process -------------------------------------------------------------------------------------


def serve_forks() -> None:
    from agentd.runners import builtin

    before = os.listdir("/proc/self/fd")
    builtin.warm()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1 and os.listdir("/proc/self/fd") == before
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            code = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            answer = 128 - code if code < 0 else code
        else:
            answer = os.fork()
            if not answer:
                become_runner(request["run"], request["environment"])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def become_runner(path: str, environment: dict[str, str]) -> None:
    code = 125
    try:
        from agentd.runners import builtin

        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            fd = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.environ.clear()
        os.environ.update(environment)
        spec = json.loads(Path(path, "spec.json").read_text())
        os.chdir(spec["worktree"])
        if "inherited" in spec:
            os.set_inheritable(os.open(spec["inherited"], os.O_RDWR | os.O_CREAT, 0o600), True)
        code = builtin.main(path, spec)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve_forks()
