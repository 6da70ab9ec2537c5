"""A shell that lasts: the folder, variables, functions and options of one command are there for the next.

Each command is a bash of its own. Its state is carried on in memory: bash writes it down as it exits, and the next one
reads it. So an idle agent costs no process, and neither ``exit``, a crash nor a time limit loses the shell. What a
foreground command leaves running, and one that meets its time limit, goes on in the background, to be read later.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from .program import Program
from .results import Result, ToolError

# The command is read before the state, since the state can hold `set -e`, and the options come last in it for the same
# reason. Variables that bash computes would be frozen if they were written down.
SCRIPT = """\
shopt -s expand_aliases
IFS= read -r -d '' AGENTD_COMMAND <&{command}
exec {command}<&-
source /dev/fd/{state} 2>/dev/null
exec {state}<&-
{trap}
eval "$AGENTD_COMMAND"
"""
TRAP = """\
trap 'AGENTD_STATUS=$?
{{
unset RANDOM SRANDOM SECONDS LINENO EPOCHSECONDS EPOCHREALTIME BASHPID HISTCMD SHLVL AGENTD_COMMAND _
declare -p; declare -f; alias -p; shopt -p; printf "cd -- %q\\n" "$PWD"; set +o
}} >&{saved} 2>/dev/null
exit $AGENTD_STATUS' EXIT
"""
HIDDEN = ("ANTHROPIC_",)
SETTINGS = {"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}
CUT = "write it to a file, or use grep, head or tail, to see more"
MAX_STATE = 4 << 20


def environment_for_tools(environment: dict[str, str], key_name: str) -> dict[str, str]:
    """Without the model's key, under whatever name it came."""
    kept = {k: v for k, v in environment.items() if k != key_name and not k.startswith(HIDDEN)}
    return kept | SETTINGS


class Shell:
    def __init__(self, folder: str, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.state = b""
        self.running: dict[str, Program] = {}
        self.count = 0

    async def run(self, command: str, timeout: float, in_background: bool) -> Result:
        with memory(command.encode("utf-8", "replace")) as given, memory(self.state) as state, memory(b"") as saved:
            trap = "" if in_background else TRAP.format(saved=saved)
            script = SCRIPT.format(command=given, state=state, trap=trap)
            argv = ["bash", "--noprofile", "--norc", "-c", script]
            try:
                program = Program(argv, self.environment, self.folder, keeps_running=True)
            except FileNotFoundError:
                raise ToolError("cannot run a command: there is no bash on this machine, or no worktree") from None
            if in_background:
                return Result(f"It runs in the background as {self._keep(program)}.")
            try:
                async with asyncio.timeout(timeout):
                    await program.exited.wait()
            except TimeoutError:
                return self._moved(program, timeout)
            except asyncio.CancelledError:
                uncancel()
                await program.kill()
                return Result(f"{program.taken(CUT)}\n[agentd: interrupted; the command was ended]", True)
            self.state = os.pread(saved, MAX_STATE, 0) or self.state
        return self._told(program)

    async def more(self, id: str, timeout: float, kill: bool) -> Result:
        """Go on reading a command in the background: until it is over, has written something, or time is up."""
        program = self.running.get(id)
        if program is None:
            known = ", ".join(self.running) or "none"
            raise ToolError(f"there is no background command {id} (running: {known})")
        if kill:
            await program.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await program.news()
        text = program.taken(CUT)
        if not program.is_over():
            return Result(f"{text}\n[agentd: {id} is still running]")
        del self.running[id]
        return Result(f"{text}\n[agentd: {id} has ended, {ending(program)}]")

    async def close(self) -> None:
        await asyncio.gather(*(program.kill() for program in self.running.values()))

    def _moved(self, program: Program, timeout: float) -> Result:
        text = program.taken(CUT)
        id = self._keep(program)
        return Result(
            f"{text}\n[agentd: still running after {timeout:g} s; it goes on in the background as {id}. The shell is as"
            " it was before this command.]"
        )

    def _told(self, program: Program) -> Result:
        text = program.taken(CUT)
        parts = [text.rstrip("\n")] if text.strip() else []
        if program.code:
            parts.append(f"[agentd: {ending(program)}]")
        if not program.is_over():
            parts.append(f"[agentd: something it started goes on in the background as {self._keep(program)}]")
        return Result("\n".join(parts) or "(no output)", bool(program.code))

    def _keep(self, program: Program) -> str:
        self.count += 1
        self.running[f"b{self.count}"] = program
        return f"b{self.count}"


def uncancel() -> None:
    """The cancellation ends here: what the command wrote until then is worth telling."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def ending(program: Program) -> str:
    code = program.code or 0
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def memory(data: bytes) -> Iterator[int]:
    """A file in memory: commands and the shell's state are in no argv, no environment and on no disk."""
    fd = os.memfd_create("agentd", 0)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
