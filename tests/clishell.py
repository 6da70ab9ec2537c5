"""The command line as its users have it: ``python -m agentd`` in a process of its own, with a daemon of its own."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faultlab

AGENTD = [sys.executable, "-m", "agentd"]
PATIENCE_S = 30.0


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    def __init__(self, state: Path, cwd: Path) -> None:
        self.state = state
        self.cwd = cwd
        self.running: list[Running] = []

    def __call__(self, *words: str | bytes, input: bytes = b"", cwd: str | Path | None = None, **env: str) -> Said:
        done = subprocess.run(
            [*AGENTD, *words],
            input=input,
            capture_output=True,
            cwd=cwd or self.cwd,
            env={**os.environ, **env},
            timeout=PATIENCE_S,
        )
        return Said(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode(errors="replace"))

    def ok(self, *words: str | bytes, **more: Any) -> str:
        said = self(*words, **more)
        assert said.code == 0, said
        return said.out

    def json(self, *words: str | bytes, **more: Any) -> Any:
        return json.loads(self.ok(*words, **more))

    def start(self, *words: str, stdin: int = subprocess.DEVNULL, group: int | None = None) -> "Running":
        """``group`` 0: in a process group of its own, which the kernel stops also where that of the tests is an
        orphan."""
        self.running.append(Running(words, self.cwd, stdin, group))
        return self.running[-1]

    def job(self, *command: str, flags: Sequence[str] = ()) -> str:
        """A job in the background; its id."""
        return self.ok("run", "-d", *flags, *command).strip()

    def path(self, id: str, attempt: int = 1) -> Path:
        return self.state / "jobs" / id / str(attempt)

    def record(self, id: str, name: str) -> dict[str, Any]:
        return dict(json.loads((self.path(id) / name).read_bytes().rstrip(b" \n\0")))


class Running:
    """A verb that goes on: its output is waited for, never guessed at."""

    def __init__(self, words: Sequence[str], cwd: Path, stdin: int, group: int | None = None) -> None:
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([*AGENTD, *words], **pipes, cwd=cwd, process_group=group)
        self.seen = b""

    def until(self, text: bytes, after: int = 0) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while text not in self.seen[after:]:
            assert select.select([fd], [], [], PATIENCE_S)[0], f"no {text!r} in {self.seen!r}"
            data = os.read(fd, 1 << 16)
            assert data, f"ended without {text!r}: {self.seen!r} {self.finish()}"
            self.seen += data

    def until_connected(self) -> None:
        """Until it talks to a daemon or a keeper."""

        def has_socket() -> bool:
            folder = f"/proc/{self.process.pid}/fd"
            return any(os.readlink(f"{folder}/{fd}").startswith("socket:") for fd in os.listdir(folder))

        def looks() -> bool:
            try:
                return has_socket()
            except FileNotFoundError:
                return False

        faultlab.until(looks)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> Said:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Said(self.process.returncode, (self.seen + out).decode("latin-1"), err.decode(errors="replace"))

    def give_up(self) -> None:
        """Whatever a failed test left."""
        with self.process:
            self.process.kill()


def serve(tmp_path: Path, monkeypatch: Any) -> Iterator[Shell]:
    """For a fixture: at the end the daemon is stopped with its jobs, and nothing of it is left."""
    state = Path(os.environ["AGENTD_STATE_DIR"])
    monkeypatch.setenv("AGENTD_LAB", str(state))
    work = tmp_path / "work"
    work.mkdir()
    shell = Shell(state, work)
    yield shell
    for verb in shell.running:
        verb.give_up()
    shell.ok("daemon", "stop", "--kill-jobs")
    assert shell("daemon", "status").code == 3
    faultlab.until(lambda: not ours(state), what=lambda: f"left behind: {ours(state)}")


def ours(state: Path) -> list[str]:
    """Processes of this daemon: itself, its zygotes and keepers."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            marks = {f"AGENTD_LAB={state}".encode(), f"AGENTD_STATE_DIR={state}".encode()}
            if marks & {*Path(f"/proc/{name}/environ").read_bytes().split(b"\0")}:
                title = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                if title.startswith("agentd-"):
                    found.append(f"{name} {title}")
        except OSError:
            continue
    return found
