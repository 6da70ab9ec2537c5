"""The zygote by itself, at the other end of its socket."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import faultlab

from agentd import jobdir

JOBS = 400


def attempt(state: Path, number: int) -> str:
    path = f"{state}/jobs/{number}/1"
    os.makedirs(path)
    spec: dict[str, Any] = {"job": number, "attempt": 1, "nonce": f"n{number}", "argv": ["true"], "cwd": "/"}
    spec |= {"env": {"PATH": os.environ["PATH"]}, "state_dir": str(state), "limits": {}}
    jobdir.write(path, "spec.json", spec)
    return path


def test_a_daemon_that_is_behind_gets_every_answer_with_the_right_descriptors(tmp_path: Path) -> None:
    """It reads nothing while hundreds of jobs are launched and end, and then everything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [sys.executable, "-m", "agentd.zygote", str(theirs.fileno()), str(tmp_path), "command"]
            zygote = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        paths = {number: attempt(tmp_path, number) for number in range(1, JOBS + 1)}
        for number, path in paths.items():
            ours.sendall(json.dumps({"op": "launch", "id": number, "fds": [], "path": path}).encode())
        for path in paths.values():
            faultlab.until(lambda path=path: jobdir.read(path, "end.json") is not None, timeout=60.0)
        answered = set()
        ours.settimeout(30)
        while len(answered) < JOBS:
            data, fds, _, _ = socket.recv_fds(ours, 65536, 8)
            message = json.loads(data)
            if "id" in message:
                names = [os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)") for fd in fds]
                assert names == [f"{paths[message['id']]}/{stream}.fifo" for stream in message["fds"]]
                answered.add(message["id"])
            for fd in fds:
                os.close(fd)
        assert zygote.poll() is None
    assert zygote.wait(30) == 0
