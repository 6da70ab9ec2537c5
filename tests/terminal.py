"""A person's shell in a terminal: what is typed, and what stands there when the next prompt has come."""

import os
import pty
import re
import select
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

PROMPT = "ready> "
PATIENCE_S = 60.0
PLAIN = {
    # as a dumb terminal: no line editor that redraws what is typed
    "bash": ["bash", "--norc", "--noprofile", "--noediting", "-i"],
    "zsh": ["zsh", "-f", "-i", "+Z", "-o", "no_prompt_sp", "-o", "no_prompt_cr", "-o", "prompt_subst"],
}
EDITED = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i", "-o", "no_prompt_sp", "-o", "no_prompt_cr", "-o", "no_beep"],
}
EVAL = {shell: f'eval "$(agentd shell {shell})"' for shell in ("bash", "zsh")} | {"fish": "agentd shell fish | source"}


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


class Terminal:
    def __init__(self, shell: str, argv: list[str] | None = None, **variables: str) -> None:
        need(shell)
        self.seen = ""
        self.shell = shell
        environment = {**os.environ, "TERM": "dumb", "PS1": PROMPT, "PROMPT": PROMPT, "HISTFILE": "", **variables}
        for name in ("INPUTRC", "PROMPT_COMMAND", "ENV", "BASH_ENV", "ZDOTDIR"):
            environment.pop(name, None)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            with suppress(BaseException):
                os.execvpe((argv or PLAIN[shell])[0], argv or PLAIN[shell], environment | variables)
            os._exit(127)
        self.until(PROMPT)

    def until(self, text: str) -> str:
        """What came up to and with it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.fd], [], [], left)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 1 << 16).decode(errors="replace")
        head, found, self.seen = self.seen.partition(text)
        return plain(head + found)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def __call__(self, line: str) -> list[str]:
        """The lines it prints, up to the next prompt, without the one that was typed."""
        self.type(f"{line}\n")
        said = self.until(PROMPT).removesuffix(PROMPT)
        lines = [shown.rstrip() for shown in re.split(r"\r*\n", said)]
        return [shown for shown in lines[1:] if shown]

    def integrate(self) -> "Terminal":
        assert self(EVAL[self.shell]) == []
        return self

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.fd)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


Open = Callable[..., Terminal]


def plain(text: str) -> str:
    """Without what positions and colours."""
    return re.sub(r"\x1b(?:\[[0-?]*[@-~]|\].*?(?:\x07|\x1b\\)|[()]B|[=>78])|[⏎\x0f]", "", text)
