"""A place of its own for the demonstration: folders, environment, daemon; commands as one would type them, with what
they really say. Nothing of it is left, whatever ends it but a kill -9.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from agentd import process
from agentd.client import Client
from agentd.core.errors import Fault, Refused

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOT_PASSED_ON = ("GIT_", "AGENTD_", "XDG_")
AGENTD = [sys.executable, "-P", "-m", "agentd"]
IDENTITY = "[user]\n\tname = Demo\n\temail = demo@example.invalid\n[init]\n\tdefaultBranch = main\n"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
LONGEST_TOLD = 120
PATIENCE_S = 60.0

Variables = Mapping[str, str | None]
"""None: that one is not there."""


class Stage:
    """``out``: the descriptor that everything is shown on."""

    def __init__(self, place: Path, out: int, variables: Variables) -> None:
        self.place = place
        self.shop = place / "shop"
        self.gate = place / "open"
        self.out = out
        self.environment = environment(place, variables)
        self.is_bold = os.isatty(out) and not self.environment.get("NO_COLOR")
        self.behind: Behind | None = None
        self.checks = 0

    def ask(self) -> Client:
        """For facts. It starts no daemon, since that would be one with the caller's environment."""
        return Client(str(self.place / "state"), start=False, owner="demo")

    # --- what is shown --------------------------------------------------------------------------------------

    def write(self, line: str) -> None:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        while data:
            data = data[os.write(self.out, data) :]

    def show(self, line: str) -> None:
        self.write(f"{BOLD}{line}{PLAIN}" if self.is_bold else line)

    def chapter(self, title: str) -> None:
        self.write("")
        self.show(f"== {title}")

    def note(self, text: str) -> None:
        self.write(f"   {text}")

    def expect(self, what: str, wanted: object, got: object) -> None:
        """What is not as it should be ends the demonstration."""
        if got != wanted:
            raise wrong(f"{what}: {got}; it should be {wanted}")
        self.checks += 1
        self.note(f"ok: {what}: {got}")

    # --- what is typed --------------------------------------------------------------------------------------

    def typed(self, *words: str) -> int:
        """Show a command, and run it, both streams in one; its exit code."""
        self.show(f"$ {shlex.join(words)}")
        code = subprocess.call(
            program(words),
            cwd=self.shop,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.out,
        )
        if code in (-signal.SIGPIPE, 128 + signal.SIGPIPE):
            raise BrokenPipeError  # as if we had written it ourselves
        return code

    def typed_well(self, *words: str) -> None:
        if code := self.typed(*words):
            raise wrong(f"exit code of {' '.join(words[:2])}: {code}; it should be 0")

    def typed_behind(self, *words: str) -> None:
        """Type a command that goes on in the background, and wait until it says something."""
        self.show(f"$ {shlex.join(words)} &")
        self.behind = Behind(self, words)
        self.is_told("")

    def is_told(self, text: str) -> bool:
        """Wait until the command in the background says it; whether it did."""
        return self.behind is not None and self.behind.until(text)

    def end_what_is_behind(self) -> None:
        if self.behind is not None:
            self.behind.end()

    def output(self, *words: str) -> str:
        """For facts: of a command that is not shown."""
        done = subprocess.run(
            program(words), cwd=self.shop, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        return done.stdout.decode(errors="replace").strip()


class Behind:
    """A command in the background. What it says is shown as it comes, with a bar."""

    def __init__(self, stage: Stage, words: Sequence[str]) -> None:
        self.stage = stage
        self.lines: list[str] = []
        self.is_over = False
        self.news = threading.Condition()
        self.child = subprocess.Popen(
            program(words),
            cwd=stage.shop,
            env=stage.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout:
            for line in self.child.stdout:
                with contextlib.suppress(OSError):
                    self.stage.note(f"| {line.strip()}"[:LONGEST_TOLD])
                with self.news:
                    self.lines.append(line)
                    self.news.notify_all()
        with self.news:
            self.is_over = True
            self.news.notify_all()

    def until(self, text: str) -> bool:
        def is_said() -> bool:
            return any(text in line for line in self.lines)

        with self.news:
            self.news.wait_for(lambda: self.is_over or is_said(), PATIENCE_S)
            return is_said()

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        self.thread.join()


def program(words: Sequence[str]) -> list[str]:
    return [*AGENTD, *words[1:]] if words[0] == "agentd" else [*words]


def wrong(what: str) -> Refused:
    return Refused(f"the demonstration went wrong: {what}", "demo_failed")


# --- before and after ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def stage(out: int, variables: Variables, keeps_shop: bool) -> Iterator[Stage]:
    """At its end its processes end and its folder goes. ``variables``: beside those of the caller."""
    end_on_signals()
    place = Path(tempfile.mkdtemp(prefix="agentd-demo-")).resolve()
    try:
        here = Stage(place, out, variables)
        for folder in ("home", "shop"):
            (place / folder).mkdir()
        (place / "home" / ".gitconfig").write_text(IDENTITY)
        try:
            yield here
        finally:
            here.end_what_is_behind()
    finally:
        ignore_signals()
        take_down(place, keeps_shop)


def end_on_signals() -> None:
    def end(number: int, frame: FrameType | None) -> None:
        ignore_signals()  # one is enough: a second must not disturb the cleaning up
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else it is under nohup
            signal.signal(number, end)


def ignore_signals() -> None:
    """The programs that clean up inherit it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def environment(place: Path, variables: Variables) -> dict[str, str]:
    """The caller's, with nothing of its git, agentd and folders."""
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(NOT_PASSED_ON) or name == "AGENTD_WITHOUT"
    }
    own = {
        "HOME": str(place / "home"),
        "AGENTD_STATE_DIR": str(place / "state"),
        "AGENTD_OWNER": "demo",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}",  # there is a python3
        "PAGER": "cat",
    }
    merged = {**passed_on, **own, **variables}
    return {name: value for name, value in merged.items() if value is not None}


def mark(place: Path) -> str:
    """What every process of a demonstration has in its environment, jobs too."""
    return f"HOME={place}/home"


def take_down(place: Path, keeps_shop: bool) -> None:
    stop = program(("agentd", "daemon", "stop", "--kill-jobs"))
    subprocess.run(stop, env=environment(place, {}), cwd="/", stdin=subprocess.DEVNULL, capture_output=True)
    process.end_all_with(mark(place), PATIENCE_S)
    gone = [entry for entry in place.iterdir() if entry.name != "shop"] if keeps_shop else [place]
    for entry in gone:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
        if entry.exists():
            raise Fault(f"cannot remove {entry}, which the demonstration made; remove it", "demo_left")
