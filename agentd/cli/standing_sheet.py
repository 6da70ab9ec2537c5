"""``agentd`` alone as lines of text: where one stands, and the three next things one can do. Pure."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from agentd.cli import render
from agentd.cli.paint import of_jobs, paint
from agentd.cli.render import View

SHOWN = 10
RECENT_S = 86400
NEXT = 3


class Place(NamedTuple):
    """Where one is. ``top``: of the repository, or None."""

    cwd: str
    top: str | None
    owner: str


def sheet(
    jobs: Sequence[View], place: Place, is_online: bool, now: float, width: int | None = None, is_colored: bool = False
) -> list[str]:
    """``jobs``: all that are known, ended ones too."""
    strong = "strong" if is_colored else ""
    here = [job for job in jobs if is_here(job, place)]
    shown = worth_showing(here, now)
    offline = "No daemon is running; the next verb starts it. This is what the files tell."
    lines = [] if is_online else render.wrapped(offline, width)
    where = f"the repository {render.one_line(place.top)}" if place.top else render.one_line(place.cwd)
    if shown:
        head = f"{counted(shown)}, of this shell or of {where}:"
        lines += [paint(line, strong) for line in render.wrapped(head, width)]
        lines += render.job_table(shown[-SHOWN:], now, width, of_jobs(shown[-SHOWN:]) if is_colored else None)
        if len(shown) > SHOWN:
            lines.append(f"and {render.count(len(shown) - SHOWN, 'older one')}: agentd ps --all")
    else:
        lines += render.wrapped(f"No jobs of this shell, nor of {where}.", width)
    others = sum(job["state"] != "done" for job in jobs) - sum(job["state"] != "done" for job in here)
    if others:
        lines.append(f"{render.count(others, 'job goes', 'jobs go')} on elsewhere: agentd ps")
    waiting = [job for job in jobs if job["state"] == "waiting"]
    if waiting:
        lines += ["", paint("Waiting for you:", strong), *(waiting_line(job, now, width) for job in waiting[:SHOWN])]
    steps = next_steps(shown, waiting, place, now)
    size = max(render.columns_of(command) for command, _ in steps)
    rows = [f"  {render.padded(command, size)}  {why}" for command, why in steps]
    return [*lines, "", paint("Next:", strong), *(row if width is None else render.cut(row, width) for row in rows)]


def is_here(job: View, place: Place) -> bool:
    if job["owner"] == place.owner:
        return True
    if place.top is None:
        return bool(job["cwd"] == place.cwd)
    return job["repo"] == place.top or within(str(job["cwd"]), place.top)


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def worth_showing(jobs: Sequence[View], now: float) -> list[View]:
    """Those that go on, and those that ended within a day."""
    return [job for job in jobs if job["state"] != "done" or now - (render.moment(job["ended_at"]) or 0.0) < RECENT_S]


def counted(jobs: Sequence[View]) -> str:
    """``3 jobs: 2 running, 1 failed``"""
    words: dict[str, int] = {}
    for job in jobs:
        word = str(job["outcome"] if job["state"] == "done" else job["state"]).replace("_", " ")
        words[word] = words.get(word, 0) + 1
    return f"{render.count(len(jobs), 'job')}: {', '.join(f'{number} {word}' for word, number in words.items())}"


def waiting_line(job: View, now: float, width: int | None) -> str:
    since = render.moment(job["waiting_since"])
    told = f", for {render.span(now - since)}" if since else ""
    line = f"  job {job['id']} ({job['name']}){told}: {render.activity(job) or render.one_line(job['waiting'] or '')}"
    return line if width is None else render.cut(line, width)


# --- what to do next ----------------------------------------------------------------------------------------


def next_steps(jobs: Sequence[View], waiting: Sequence[View], place: Place, now: float) -> list[tuple[str, str]]:
    """Three commands with why: what is waited for comes first."""
    from agentd.cli.inbox import entry

    newest = sorted(jobs, key=lambda job: -job["id"])
    done = [job for job in newest if job["state"] == "done"]
    home = [job for job in done if job["outcome"] == "succeeded" and render.changes_word(job) != "-"]
    bad = [job for job in done if job["outcome"] != "succeeded"]
    busy = [job for job in newest if job["state"] in ("running", "stopping", "parked")]
    steps = [(str(entry(job)["next"]), f"{named(job)} waits for you") for job in waiting]
    steps += [(f"agentd merge {job['id']}", f"bring home {render.changes_word(job)} of {named(job)}") for job in home]
    steps += [(f"agentd logs {job['id']}", f"see why {named(job)} {ending(job)}") for job in bad]
    steps += [(f"agentd logs -f {job['id']}", f"watch {named(job)}") for job in busy]
    in_repository = place.top is not None
    steps += [
        ('agentd delegate "TASK"', "hand a task to an agent, in a worktree of its own")
        if in_repository
        else ("agentd demo", "see it work, on a repository that is thrown away"),
        ("agentd run -d CMD…", "run a command in the background, here"),
        ("agentd --help", "all verbs"),
    ]
    return distinct(steps)[:NEXT]


def named(job: View) -> str:
    return f"job {job['id']} ({job['name']})"


def ending(job: View) -> str:
    words = {"failed": "failed", "lost": "was lost", "rebooted": "was lost", "limited": "met a limit"}
    words |= {"timed_out": "timed out", "unstarted": "was not started"}
    outcome = str(job["outcome"])
    return words.get(outcome, f"was {outcome}")


def distinct(steps: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """One of a kind first, so that three running jobs do not crowd out the rest."""
    kinds: dict[str, tuple[str, str]] = {}
    for command, why in steps:
        kinds.setdefault(" ".join(word for word in command.split() if not word.isdigit()), (command, why))
    return list(kinds.values())
