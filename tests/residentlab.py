"""The resident process of a test's state folder: brought up, found, and asked which way a call went."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import clishell
import faultlab
from clishell import Said, Shell

from agentd import paths, process

HERE = {"AGENTD_WITHOUT": "resident"}
THERE = {"AGENTD_WITHOUT": "in-process"}


def bring_up(agentd: Shell) -> int:
    """The first verb starts the daemon, and the resident process beside it; its pid."""
    agentd.ok("ps", "-q", AGENTD_WITHOUT="")
    faultlab.until(lambda: pid_of(agentd.state) > 0, what=lambda: "no resident process")
    assert is_taken(agentd, "ps")
    return pid_of(agentd.state)


def pid_of(state: Path) -> int:
    """0: there is none."""
    lock = state / paths.RESIDENT_LOCK
    if not process.byte_held(str(lock), 0):
        return 0
    return int(lock.read_text().strip() or "0")


def is_taken(agentd: Shell, *words: str, **env: str) -> bool:
    """Does the process that is called do without the command line's imports?"""
    said = agentd(*words, PYTHONPROFILEIMPORTTIME="1", AGENTD_WITHOUT="", **env)
    assert "agentd.door" in said.err, said
    return " typer" not in said.err


def both_ways(agentd: Shell, *words: str, **env: str) -> Said:
    here, there = (agentd(*words, **(env | way)) for way in (HERE, THERE))
    assert (words, here) == (words, there)
    return there


def scripted_both_ways(agentd: Shell, script: str, shell: str = "bash") -> str:
    """What a shell script that calls ``agentd`` prints, the same on both ways."""
    prelude = f'agentd() {{ "{sys.executable}" -m agentd "$@"; }}; '
    found = [
        subprocess.run(
            [shell, "-c", prelude + script],
            cwd=agentd.cwd,
            env=os.environ | way,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=clishell.PATIENCE_S,
        ).stdout.decode("latin-1")
        for way in (HERE, THERE)
    ]
    assert found[0] == found[1], (script, found)
    return found[1]


def forks(verb: str, state: Path) -> list[int]:
    """The processes that carry out a verb for somebody."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        title = str(process.describe(pid)["command"])
        if title.rstrip("\0 ") == f"agentd {verb}" and f"AGENTD_STATE_DIR={state}".encode() in environment_of(pid):
            found.append(pid)
    return found


def environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def fork_of(verb: str, state: Path) -> int:
    faultlab.until(lambda: len(forks(verb, state)) == 1, what=lambda: f"{forks(verb, state)} carry out {verb}")
    return forks(verb, state)[0]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    process.has_exited(pidfd, 10_000)
    os.close(pidfd)
