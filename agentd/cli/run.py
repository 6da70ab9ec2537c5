"""``agentd run [-d] CMD…``: a command where one stands. In the foreground it looks as if the shell had run it."""

import os
import signal
import sys
import threading
import time
from typing import Annotated, Any

import typer

from agentd import follow
from agentd.cli import options, render
from agentd.client import Client, ConnectionLost
from agentd.core.errors import EXIT_FAULT, AgentdError, Usage

ESCALATE_WITHIN_S = 2.0
CHUNK = 1 << 18


def run(
    command: Annotated[list[str] | None, typer.Argument(metavar="CMD…", help="The command and its words.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="In the background: print the id.")] = False,
    workdir: Annotated[str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Run it there.")] = None,
    name: options.Name = None,
    env: options.Env = None,
    timeout: options.Timeout = None,
    idle_timeout: options.IdleTimeout = None,
    owner: options.Owner = None,
    leave: options.Leave = None,
    input: Annotated[bool, typer.Option("-i", "--input", help="Pass standard input on to it.")] = False,
    memory: options.Memory = None,
    processes: options.Processes = None,
    log_max: options.LogMax = None,
    claim: options.Claim = None,
    res: options.Res = None,
    restart: options.Restart = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Run a command in place; options end at its first word.

    In the foreground: its output, its exit code; Ctrl-C interrupts it, twice within 2 seconds kills it. If the
    terminal is closed it goes on.
    """
    if not command:
        raise Usage("run what? Give a command, such as: agentd run make test", "no_command")
    if json and not detach:
        raise Usage("--json goes with -d only: in the foreground stdout is the command's own; add -d", "usage")
    asked = options.limits(name, env, timeout, idle_timeout, leave, memory, processes, log_max, restart)
    asked["claims"] = options.claims(claim, res)
    if workdir == "":
        raise Usage("--workdir: an empty name is no folder; leave it out for this one", "bad_cwd")
    with Client(owner=options.owner_name(owner)) as client:
        place = workdir if workdir and os.path.isabs(workdir) else os.path.normpath(f"{options.here()}/{workdir or ''}")
        if not detach:
            return Foreground(client, quiet).run(command, place, input, asked)
        job = client.delegate(command, cwd=place, in_place=True, input=input, **asked)
    if json:
        options.print_json(job)
    else:
        print(job["id"], flush=True)
    return 0


class Foreground:
    def __init__(self, client: Client, quiet: bool) -> None:
        self.client = client
        self.quiet = quiet
        self.id = 0
        self.path = ""
        self.interrupted_at = float("-inf")
        self.is_read = {1: True, 2: True}

    def run(self, command: list[str], place: str, input: bool, asked: dict[str, Any]) -> int:
        # An interrupt that falls between the job's birth and our knowing its id is kept until then. (Blocking the
        # signal instead would be inherited by a daemon that is started here.)
        signal.signal(signal.SIGINT, lambda *_: self.interrupt())
        job = self.client.delegate(command, cwd=place, in_place=True, input=input, **asked)
        self.path = follow.live_attempt_path(self.client.state_dir, job["id"], job["attempt"])
        self.id = job["id"]
        if self.interrupted_at > 0:
            self.interrupted_at = float("-inf")
            self.interrupt()
        if input:
            threading.Thread(target=self.forward_input, daemon=True).start()
        with follow.Reader(self.path) as reader:
            for piece in follow.follow(reader):
                self.write(1 if piece.stream == "out" else 2, piece.data)
            dropped = reader.dropped
        if dropped and not self.quiet:
            options.say(f"{dropped} bytes of output were dropped before they could be shown (--log-max)")
        return self.code()

    def write(self, fd: int, data: bytes) -> None:
        if not self.is_read[fd]:
            return
        try:
            write_all(fd, data)
        except BrokenPipeError:
            # As without us: who writes to a pipe that nobody reads is told by SIGPIPE.
            self.is_read[fd] = False
            follow.pass_on(self.path, signal.SIGPIPE)

    def interrupt(self) -> None:
        """Ctrl-C: the job is interrupted; the second time within two seconds, or before it runs, it is killed."""
        now = time.monotonic()
        is_again = now - self.interrupted_at < ESCALATE_WITHIN_S
        self.interrupted_at = now
        if not self.id:
            if is_again:
                raise KeyboardInterrupt
            return
        if not is_again and follow.pass_on(self.path, signal.SIGINT):
            return
        try:
            with Client(self.client.state_dir if not self.client.narrow else None, owner=self.client.owner) as client:
                client.kill([self.id], "KILL" if is_again else None)
        except (AgentdError, ConnectionLost) as error:
            if getattr(error, "code", "") != "already_ended":
                options.say(f"cannot kill job {self.id}: {render.one_line(str(error))}")

    def forward_input(self) -> None:
        import base64

        try:
            with Client(self.client.state_dir if not self.client.narrow else None, owner=self.client.owner) as client:
                while True:
                    data = os.read(0, CHUNK)
                    text = base64.b64encode(data).decode()
                    client.ask("jobs.send", job=self.id, data=text, binary=True, eof=not data)
                    if not data:
                        return
        except AgentdError as error:
            if error.code not in ("already_ended", "input_closed"):
                options.say(f"cannot pass input to job {self.id}: {render.one_line(error.message)}")
        except OSError:
            return  # no standard input

    def code(self) -> int:
        try:
            job = self.client.wait([self.id])["jobs"][0]
        except AgentdError:
            code = follow.code_of(self.path)  # no daemon can be had: the files say it too
            return EXIT_FAULT if code is None else code
        if not self.quiet and not (job["outcome"] == "killed" and self.interrupted_at > 0):
            for sentence in filter(None, (render.outcome_sentence(job), render.swept_sentence(job))):
                options.say(sentence)
        return int(job["wait_code"])


def write_all(fd: int, data: bytes) -> None:
    sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
