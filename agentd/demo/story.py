"""What is shown, in order. Each chapter types commands, and holds what comes of them to what must be true."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agentd import process
from agentd.demo import shop
from agentd.demo.stage import PATIENCE_S, Stage, mark

READER = "main-agent"
"""Who is told what becomes of the task."""


@dataclass
class Story:
    """``agent``: the options of delegate that say which model, and its limits."""

    stage: Stage
    agent: tuple[str, ...]

    def tell(self) -> dict[str, Any]:
        """What was measured."""
        self.repository()
        times = self.hand_over()
        self.main_agent()
        self.commands()
        self.daemon_killed()
        self.how_they_end()
        self.completion()
        self.bring_home()
        spent = self.spent()
        self.clean_up()
        return {**times, "spent": spent}

    # --- the chapters ---------------------------------------------------------------------------------------

    def repository(self) -> None:
        here = self.stage
        here.chapter("A repository whose build is broken")
        shop.make(here.shop, here.gate, here.environment)
        here.typed_well("git", "log", "--oneline")
        here.expect("exit code of the build", 1, here.typed("sh", "build.sh"))

    def hand_over(self) -> dict[str, Any]:
        here = self.stage
        here.chapter("An agent gets the task, and you the prompt")
        here.typed_well("agentd", "daemon", "start")
        here.note("a filter holds its checkout back until the prompt is there, as in a large repository:")
        here.note("if delegate waited for the worktree, this would hang")
        asked = time.time()
        here.typed_well("agentd", "delegate", "--name", "fix", *self.agent, shop.FIX)
        prompt = time.time()
        with here.ask() as client:
            here.expect("is its worktree made", "no", "yes" if self.events("fix", "worktree.made") else "no")
            here.gate.touch()
            client.wait(["fix"], until="running", timeout=PATIENCE_S)
        made = [datetime.fromisoformat(event["at"]).timestamp() for event in self.events("fix", "worktree.made")]
        here.expect("is it made now", "yes", "yes" if made else "no")
        here.note(f"asked                {clock(asked)}")
        here.note(f"prompt back          {clock(prompt)}   {milliseconds(asked, prompt)} ms later")
        here.note(f"event worktree.made  {clock(made[0])}   {milliseconds(prompt, made[0])} ms after that")
        here.expect("which came first", "the prompt", "the prompt" if prompt < made[0] else "the worktree")
        return {"prompt_ms": milliseconds(asked, prompt), "worktree_after_ms": milliseconds(prompt, made[0])}

    def main_agent(self) -> None:
        here = self.stage
        here.chapter("Your main agent subscribes to what becomes of it, and answers something else")
        types = ("--type", "job.completed", "--type", "job.result")
        here.typed_behind("agentd", "events", "-f", "--as", READER, "--since", "0", "--job", "fix", *types)
        here.typed_well("agentd", "delegate", "--in-place", "--quiet", "--name", "main", *self.agent, shop.QUESTION)
        here.typed_well("agentd", "logs", "-f", "main")
        here.expect("exit code of agentd wait main", 0, here.typed("agentd", "wait", "main"))

    def commands(self) -> None:
        here = self.stage
        here.chapter("Commands are jobs, too: as many at once as you like")
        delegate = ("agentd", "delegate", "--quiet", "--name")
        here.typed_well(*delegate, "lint", "--", "python3", "-m", "compileall", "-q", "src", "tests")
        here.typed_well(*delegate, "deploy", "--", "sh", "-c", 'echo "deploy: no credentials"; exit 3')
        here.typed_well(*delegate, "server", "--", "python3", "-m", "http.server", "--bind", "127.0.0.1", "0")
        here.typed_well("agentd", "wait", "server", "--for", "running")
        here.typed_well("agentd", "ps", "--all")

    def daemon_killed(self) -> None:
        here = self.stage
        here.chapter("kill -9 of the daemon, with jobs running")
        with here.ask() as client:
            daemon = client.ask("daemon.status")["pid"]
            server = client.job("server")["job"]["pid"]
        here.show(f"$ kill -9 {daemon}")
        os.kill(daemon, signal.SIGKILL)
        here.typed_well("agentd", "ps")
        with here.ask() as client:
            is_new = client.ask("daemon.status")["pid"] != daemon
            job = client.job("server")["job"]
        here.expect("is there a new daemon", "yes", "yes" if is_new else "no")
        here.expect("the server", f"running, pid {server}", f"{job['state']}, pid {job['pid']}")

    def how_they_end(self) -> None:
        here = self.stage
        here.chapter("How they end")
        here.expect("exit code of agentd wait lint", 0, here.typed("agentd", "wait", "lint"))
        here.expect("exit code of agentd wait deploy", 3, here.typed("agentd", "wait", "deploy"))
        here.typed_well("agentd", "logs", "deploy")
        here.typed_well("agentd", "kill", "server")
        here.expect("exit code of agentd wait server", 130, here.typed("agentd", "wait", "server"))

    def completion(self) -> None:
        here = self.stage
        here.chapter("The agent is done, and your main agent is told")
        code = here.typed("agentd", "wait", "fix")
        is_told = here.is_told("job.completed") and here.is_told("job.result")
        here.typed("agentd", "logs", "fix")
        here.expect("exit code of agentd wait fix", 0, code)
        here.expect("was your main agent told", "yes", "yes" if is_told else "no")
        ends = self.events("fix", "job.completed")
        here.expect("its completions", "succeeded", ", ".join(event["data"]["outcome"] for event in ends))
        here.typed_well("agentd", "events", "--as", READER, "--ack", str(ends[0]["seq"]))
        here.typed_well("agentd", "result", "fix")
        is_changed = here.output("agentd", "diff", "--name-only", "fix") != ""
        here.expect("did it change anything", "yes", "yes" if is_changed else "no")
        here.typed_well("agentd", "diff", "fix")

    def bring_home(self) -> None:
        here = self.stage
        here.chapter("Bring it home")
        here.expect("your own tree", "clean", here.output("git", "status", "--porcelain") or "clean")
        before = here.output("git", "rev-parse", "HEAD")
        here.typed_well("agentd", "merge", "fix")
        here.typed_well("git", "log", "--oneline")
        new = here.output("git", "rev-list", "--count", f"{before}..main")
        here.expect("has main moved", "yes", "yes" if int(new or 0) > 0 else "no")
        here.expect("exit code of the build", 0, here.typed("sh", "build.sh"))
        bill = ("python3", "shop.pyz", "100", "25")
        here.typed_well(*bill)
        here.expect("100, less 25 %", "75.00", here.output(*bill))

    def clean_up(self) -> None:
        here = self.stage
        here.chapter("Clean up")
        here.typed_well("agentd", "rm", "--quiet", "--done")
        here.end_what_is_behind()
        here.typed_well("agentd", "daemon", "stop", "--kill-jobs")
        here.expect("worktrees but your own", 0, len(here.output("git", "worktree", "list").splitlines()) - 1)
        here.expect("processes left", "none", self.processes_left())

    # --- facts ----------------------------------------------------------------------------------------------

    def events(self, job: str, kind: str) -> list[dict[str, Any]]:
        with self.stage.ask() as client:
            id = client.job(job)["job"]["id"]
            there = client.events(since=0, follow=False)
            return [event for event in there if event["job"] == id and event["type"] == kind]

    def spent(self) -> dict[str, Any]:
        with self.stage.ask() as client:
            agents = [job["progress"] for job in client.jobs(all=True) if job["progress"]]
        costs = [one["cost"] for one in agents]
        total = {name: sum(one[name] for one in agents) for name in ("turns", "tokens")}
        return {**total, "cost": None if None in costs else sum(costs)}

    def processes_left(self) -> str:
        """After what has been ended had time to go."""
        ours, deadline = mark(self.stage.place), time.monotonic() + PATIENCE_S
        for pid in process.having(ours):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                process.has_exited(pidfd, max(0, round((deadline - time.monotonic()) * 1000)))
                os.close(pidfd)
        return ", ".join(str(process.describe(pid)["command"]) for pid in process.having(ours)) or "none"


def clock(at: float) -> str:
    """As in agentd events."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(since: float, until: float) -> int:
    return round((until - since) * 1000)
