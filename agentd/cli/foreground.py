"""A job in the foreground, as if the shell had run it: its output, its exit code, and the keys that a shell knows.

Ctrl-C is for the job; Ctrl-Z stops it and Ctrl-B leaves it running, and both give the prompt back. Where the job has a
terminal of its own all keys but the last two are its own. Without one they are signals of our terminal, which stays as
it is: Ctrl-B takes the place of Ctrl-\\, so nothing that is typed ahead for the next prompt is lost.
"""

import base64
import contextlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

from agentd import attach, follow, noticeboard
from agentd.cli import options, render
from agentd.client import Client, ConnectionLost
from agentd.core.errors import EXIT_FAULT, AgentdError

ESCALATE_WITHIN_S = 2.0
CHUNK = 1 << 18
STOPPED_CODE = 148
CTRL_B, CTRL_Z = b"\x02", b"\x1a"
STOP, BACKGROUND = "stop", "background"
KEYS = {CTRL_Z: STOP, CTRL_B: BACKGROUND}


def say_waiting(job: render.View, quiet: bool) -> None:
    if not quiet and (sentence := render.lock_sentence(job)):
        options.say(sentence)


class LetGo(Exception):
    """A key was pressed that gives the prompt back; ``args``: which."""


class Foreground:
    def __init__(self, client: Client, quiet: bool) -> None:
        self.client = client
        self.quiet = quiet
        self.job: render.View = {}
        self.id = 0
        self.path = ""
        self.interrupted_at = float("-inf")
        self.let_go = ""
        self.is_following = False
        self.is_read = {1: True, 2: True}

    # --- begin ----------------------------------------------------------------------------------------------

    def run(self, command: list[str], place: str, asked: dict[str, Any]) -> int:
        # A key that is pressed between the job's birth and our knowing its id is kept until then. (Blocking the
        # signal instead would be inherited by a daemon that is started here.)
        signal.signal(signal.SIGINT, lambda *_: self.interrupt())
        with self.control_keys():
            self.take(self.client.delegate(command, cwd=place, in_place=True, **asked))
            say_waiting(self.job, self.quiet)
            if self.interrupted_at > 0:
                self.interrupted_at = float("-inf")
                self.interrupt()
            if asked["input"]:
                threading.Thread(target=self.forward_input, daemon=True).start()
            return self.follow(from_now=False)

    def run_with_terminal(self, command: list[str], place: str, asked: dict[str, Any]) -> int:
        self.take(self.client.delegate(command, cwd=place, in_place=True, **asked))
        say_waiting(self.job, self.quiet)
        try:
            return self.attach()
        except KeyboardInterrupt:  # it had no terminal yet: it had not started
            self.client.kill([self.id])
            raise

    def take_up(self, job: render.View) -> int:
        """A job that is there already, stopped or running."""
        self.take(job)
        if job["tty"]:
            return self.attach()
        signal.signal(signal.SIGINT, lambda *_: self.interrupt())
        with self.control_keys():
            return self.follow(from_now=True)

    def take(self, job: render.View) -> None:
        self.path = follow.live_attempt_path(self.client.state_dir, job["id"], job["attempt"])
        self.job, self.id = job, job["id"]

    # --- with a terminal of its own -------------------------------------------------------------------------

    def attach(self) -> int:
        with attach.Attachment(self.path, KEYS, True, steal=True, is_unfiltered=False) as attachment:
            self.go_on()
            how = attachment.run()
        if how == attach.GONE:
            return 128 + signal.SIGHUP
        return self.code() if how == attach.ENDED else self.leave(how)

    # --- without --------------------------------------------------------------------------------------------

    def follow(self, from_now: bool) -> int:
        try:
            with follow.Reader(self.path) as reader:
                if from_now:
                    reader.skip_to_tail(0)
                    self.go_on()
                self.is_following = True
                if self.let_go:
                    raise LetGo
                for piece in follow.follow(reader):
                    self.write(1 if piece.stream == "out" else 2, piece.data)
                self.is_following = False
                dropped = reader.dropped
        except LetGo:
            options.tell("")  # behind the ^Z
            return self.leave(self.let_go)
        if dropped and not self.quiet:
            options.say(f"{dropped} bytes of output were dropped before they could be shown (--log-max)")
        return self.code()

    @contextlib.contextmanager
    def control_keys(self) -> Iterator[None]:
        """If we are in the foreground of a terminal."""
        if not is_in_foreground():
            yield
            return
        before = termios.tcgetattr(0)
        mode = termios.tcgetattr(0)
        mode[6][termios.VQUIT] = CTRL_B
        handlers: dict[int, Any] = {signal.SIGTSTP: STOP, signal.SIGQUIT: BACKGROUND}
        for number, what in handlers.items():
            handlers[number] = signal.signal(number, lambda *_, what=what: self.on_key(what))
        try:
            termios.tcsetattr(0, termios.TCSANOW, mode)
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            with contextlib.suppress(OSError, termios.error):  # the terminal has gone
                termios.tcsetattr(0, termios.TCSANOW, before)

    def on_key(self, what: str) -> None:
        self.let_go = what
        if self.is_following:
            self.is_following = False  # once
            raise LetGo

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
            with self.another_client() as client:
                client.kill([self.id], "KILL" if is_again else None)
        except (AgentdError, ConnectionLost) as error:
            if getattr(error, "code", "") != "already_ended":
                options.say(f"cannot kill job {self.id}: {render.one_line(str(error))}")

    def another_client(self) -> Client:
        return Client(self.client.state_dir if not self.client.narrow else None, owner=self.client.owner)

    def forward_input(self) -> None:
        try:
            with self.another_client() as client:
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

    # --- end ------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        if self.job["state"] == "stopped":
            self.client.ask("jobs.cont", jobs=[self.id], owner=self.client.owner)

    def leave(self, how: str) -> int:
        """Give the prompt back, with the line that a shell has for it."""
        if how == STOP:
            if attach.stop(self.path):
                options.tell(render.bash_line({**self.job, "state": "stopped"}, "+"))
                return STOPPED_CODE
            if follow.has_ended(self.path):
                return self.code()
            options.say(f"cannot stop job {self.id} just now: it goes on in the background")
        options.tell(f"[{self.job['number']}]+ {render.command_of(self.job)} &")
        if not self.quiet:
            options.say(f"job {self.id} goes on in the background; agentd fg {self.id} brings it back")
        return 0

    def code(self) -> int:
        try:
            job = self.client.wait([self.id])["jobs"][0]
        except AgentdError:
            code = follow.code_of(self.path)  # no daemon can be had: the files say it too
            return EXIT_FAULT if code is None else code
        if not self.quiet and not (job["outcome"] == "killed" and self.interrupted_at > 0):
            for sentence in filter(None, (render.outcome_sentence(job), render.swept_sentence(job))):
                options.say(sentence)
        noticeboard.note_seen(self.client.state_dir, self.client.owner, self.id, job["attempt"])
        return int(job["wait_code"])


def is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def write_all(fd: int, data: bytes) -> None:
    sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
