"""``agentd top``: what each job uses just now. Drawn when something happens, and each time it has looked again."""

import os
import select
import shutil
import signal
import time
from typing import Annotated

import typer

from agentd.cli import offline, options, render, top_sheet
from agentd.cli.meter import Meter, Use
from agentd.cli.paint import paint
from agentd.cli.screen import Screen
from agentd.client import Client, ConnectionLost
from agentd.core.errors import AgentdError, NotNow, Usage

FIRST_S = 0.5
"""From the first look to the second, which are needed for a rate."""
OFTEN_S = 0.1
"""News may be many: it is drawn no more often than this."""
HELP = "q quit   c cpu   m memory   l log   $ cost   i id   k end a job"
SORTED_BY = {"c": "cpu", "m": "memory", "l": "log", "$": "cost", "i": "id"}


def top(
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Once, and end.")] = False,
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="Between two looks; 2s.")] = "2s",
    sort: Annotated[str, typer.Option("--sort", metavar="WHAT", help="cpu, memory, log, cost or id.")] = "cpu",
    mine: Annotated[bool, typer.Option("--mine", help="Only your own jobs.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Show what jobs use: CPU, memory, processes, output a second and cost of each one's process tree.

    Live on a terminal; elsewhere, and with --json, once. It works while no daemon runs, as far as files tell.
    """
    if sort not in top_sheet.SORTS:
        hint = options.nearest(sort, top_sheet.SORTS, f"there is: {', '.join(top_sheet.SORTS)}")
        raise Usage(f'--sort: there is no order "{render.one_line(sort, 80)}"; {hint}', "no_such_order")
    seconds = options.seconds("--interval", interval) or 0.0
    if seconds < OFTEN_S:
        raise Usage(f"--interval: at least {OFTEN_S:g}s, as looking costs time too; leave it out for 2s", "bad_time")
    top = Top(sort, mine, options.has_color(no_color))
    if quiet:
        top.ask()
        print("".join(f"{job['id']}\n" for job in top.jobs), end="")
        return 0
    if json or no_stream or not options.is_screen():
        return once(top, json)
    with Screen() as screen:
        return top.live(screen, seconds)


def once(top: "Top", json: bool) -> int:
    top.ask()
    top.look()
    time.sleep(FIRST_S)  # a rate needs two looks
    top.look()
    if json:
        options.print_json([as_object(job, top.uses.get(job["id"], top_sheet.NONE)) for job in top.jobs])
    else:
        print("\n".join(top.lines(options.width())))
    return 0


def as_object(job: render.View, use: Use) -> render.View:
    named = {name: job[name] for name in ("id", "name", "state", "parent", "owner", "task", "argv")}
    used = {"cpu": use.cpu, "memory": use.memory, "processes": use.processes, "log_per_second": use.log}
    return named | used | {"cost": top_sheet.cost(job)}


class Top:
    def __init__(self, sort: str, mine: bool, is_colored: bool) -> None:
        self.sort, self.mine, self.is_colored = sort, mine, is_colored
        self.client = Client(start=False)
        self.bell: Client | None = None
        """A connection that becomes readable when something happens."""
        self.is_online = False
        self.jobs: list[render.View] = []
        self.uses: dict[int, Use] = {}
        self.meter = Meter()
        self.note = ""
        self.typed: str | None = None
        """What was typed so far of the job to be ended."""

    def ask(self) -> None:
        """Which jobs there are, of the daemon, or of the files if there is none."""
        try:
            self.jobs = self.client.jobs(mine=self.mine)
            self.is_online = True
        except NotNow:
            self.client.close()
            self.jobs = offline.jobs(self.client.state_dir)
            if self.mine:
                self.jobs = [job for job in self.jobs if job["owner"] == self.client.owner]
            self.is_online = False

    def look(self) -> None:
        """What those use that run."""
        home = f"{self.client.state_dir}/jobs"
        self.uses = self.meter.look({job["id"]: f"{home}/{job['id']}/{job['attempt']}" for job in self.jobs})

    def lines(self, width: int | None) -> list[str]:
        return top_sheet.sheet(self.jobs, self.uses, time.time(), self.sort, width, self.is_colored, self.is_online)

    # --- live -----------------------------------------------------------------------------------------------

    def live(self, screen: Screen, seconds: float) -> int:
        self.ask()
        self.look()
        due, drawn = time.monotonic() + FIRST_S, 0.0
        is_stale = True
        while True:
            now = time.monotonic()
            if now >= due:
                self.ask()
                self.look()
                due, is_stale = now + seconds, True
            if is_stale and now >= drawn + OFTEN_S:
                self.draw(screen)
                drawn, is_stale = now, False
            ready = self.wait(screen, min(due, drawn + OFTEN_S) - now if is_stale else due - now)
            if screen.signals in ready and (code := self.on_signals(screen)) is not None:
                return code
            if (
                screen.keys is not None
                and screen.keys in ready
                and self.is_over(os.read(screen.keys, 64).decode(errors="replace"))
            ):
                return 0
            if self.bell is not None and self.bell.fileno() in ready:
                self.hear()
            is_stale = is_stale or bool(ready)

    def wait(self, screen: Screen, seconds: float) -> list[int]:
        """The one timer there is, and all that may happen before it."""
        if self.bell is None and self.is_online:
            self.bell = new_bell()
        fds = [screen.signals, screen.keys, self.bell.fileno() if self.bell else None]
        return select.select([fd for fd in fds if fd is not None], [], [], max(0.0, seconds))[0]

    def hear(self) -> None:
        assert self.bell is not None
        if not self.bell.rang():
            self.bell.close()
            self.bell = None
        self.ask()

    def on_signals(self, screen: Screen) -> int | None:
        """The exit code, if one ends it."""
        for number in os.read(screen.signals, 64):
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                return 128 + number
            if number == signal.SIGTSTP:
                screen.stop()
        return None

    def draw(self, screen: Screen) -> None:
        width, height = shutil.get_terminal_size()
        lines = self.lines(width)[: height - 2]
        foot = f"end which job? Its id, then Enter: {self.typed}" if self.typed is not None else self.note or HELP
        lines += [""] * (height - 1 - len(lines)) + [
            paint(render.cut(render.one_line(foot), width - 1), "dim" if self.is_colored else "")
        ]
        screen.draw(lines, height)

    def is_over(self, keys: str) -> bool:
        for key in keys:
            if self.typed is not None:
                self.type(key)
            elif key in ("q", "\x04"):
                return True
            elif key == "k":
                self.typed, self.note = "", ""
            elif key in SORTED_BY:
                self.sort, self.note = SORTED_BY[key], f"sorted by {SORTED_BY[key]}"
            else:
                self.note = ""
        return False

    def type(self, key: str) -> None:
        assert self.typed is not None
        if key.isascii() and key.isdigit() and len(self.typed) < 15:
            self.typed += key
        elif key in ("\x7f", "\b"):
            self.typed = self.typed[:-1]
        elif key in ("\n", "\r") and self.typed:
            id, self.typed = int(self.typed), None
            self.end(id)
        else:
            self.typed = None

    def end(self, id: int) -> None:
        try:
            self.client.kill([id])
            self.note = f"job {id} is being ended"
        except AgentdError as error:
            self.client.close()
            self.note = error.message


def new_bell() -> Client | None:
    bell = Client(start=False)
    try:
        bell.subscribe()
    except (AgentdError, ConnectionLost):
        bell.close()
        return None
    return bell
