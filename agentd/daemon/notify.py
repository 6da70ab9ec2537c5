"""A command of the user's when a job has ended: ``delegate --notify``, ``[notify]`` in agentd.toml.

It is run once for each completion. Who starts it makes ``notified`` in the attempt's folder first, which only one can;
so a daemon that died before it came to it is made up for by the next, and one that died after it is not repeated.
Nobody waits for it.
"""

import asyncio
import collections
import contextlib
import os
import signal
import subprocess
from typing import Any

from agentd import forms, jobdir, paths
from agentd.core.job import Done, Job, Kept
from agentd.core.jobs import Jobs
from agentd.core.text import decode
from agentd.store import Entry

AT_ONCE = 8
PATIENCE_S = 60.0
ONCE = 'set -C; { : >"$1"; } 2>/dev/null || exit 0; exec sh -c "$2"'
Facts = dict[str, Any]


class Notifier:
    def __init__(self, state_dir: str, jobs: Jobs) -> None:
        self.state_dir = state_dir
        self.jobs = jobs
        self.loop = asyncio.get_running_loop()
        self.waiting: collections.deque[tuple[Job, int, Facts]] = collections.deque()
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def publish(self, entries: list[Entry]) -> None:
        for entry in entries:
            job = self.jobs.get(entry.job)
            if entry.type == "job.completed" and job is not None and job.notify:
                self.waiting.append((job, entry.attempt, decode(entry.data)))
        self.start()

    def recover(self) -> None:
        """Those that the last daemon did not come to."""
        for job in self.jobs.values():
            if not job.notify or not isinstance(job.state, Done) or not isinstance(job.shelf, Kept):
                continue
            if not os.path.exists(f"{paths.attempt_dir(self.state_dir, job.id, job.attempt)}/notified"):
                how = job.state.how
                facts = {"outcome": how.outcome, "exit_code": how.exit_code, "signal": how.signal}
                self.waiting.append((job, job.attempt, facts))
        self.start()

    def start(self) -> None:
        while self.waiting and len(self.running) < AT_ONCE:
            with contextlib.suppress(OSError):
                self.tell(*self.waiting.popleft())

    def tell(self, job: Job, attempt: int, facts: Facts) -> None:
        path = paths.attempt_dir(self.state_dir, job.id, attempt)
        spec = jobdir.read(path, "spec.json") or {}
        state = forms.state_word("done", facts["outcome"], facts["exit_code"], facts["signal"])
        told = {"AGENTD_JOB": str(job.id), "AGENTD_NAME": job.name, "AGENTD_OUTCOME": str(facts["outcome"])}
        theirs = {name: value for name, value in spec.get("env", {}).items() if not name.startswith("AGENTD_")}
        child = subprocess.Popen(
            ["/bin/sh", "-c", ONCE, "sh", f"{path}/notified", job.notify],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=theirs | told | {"AGENTD_TEXT": f"{job.name}: {state}"},
            start_new_session=True,
        )
        pidfd = os.pidfd_open(child.pid)
        self.running[pidfd] = child
        timer = self.loop.call_later(PATIENCE_S, self.give_up, child)
        self.loop.add_reader(pidfd, self.reap, pidfd, timer)

    def give_up(self, child: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def reap(self, pidfd: int, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self.loop.remove_reader(pidfd)
        os.close(pidfd)
        self.running.pop(pidfd).wait()
        self.start()

    def close(self) -> None:
        """What runs goes on; what waits is the next daemon's."""
        self.waiting.clear()
        for pidfd, child in self.running.items():
            self.loop.remove_reader(pidfd)
            os.close(pidfd)
            child.returncode = 0
        self.running.clear()
