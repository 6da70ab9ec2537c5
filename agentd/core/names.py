"""Names of jobs: what is a good one, one for a job that was given none, and which job a word means."""

import re
from collections.abc import Callable, Iterable

from agentd.core.errors import Refused, Usage
from agentd.core.job import Job, Kept, Stopped
from agentd.core.jobs import Jobs

MAX_NAME = 40
GOOD_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
RULE = "only a-z 0-9 and -, 1-40 characters, must start with a letter"
Ref = int | str


def check_name(name: str) -> None:
    """Usage, with the offending character, if ``name`` is no job name."""
    if GOOD_NAME.fullmatch(name):
        return
    odd = next((c for c in name if not re.fullmatch(r"[a-z0-9-]", c)), None)
    which = f" (U+{ord(odd):04X})" if odd is not None and not odd.isascii() else ""
    hint = f"; did you mean --name={name[1:]}?" if re.fullmatch(r"-[a-z][a-z0-9-]*", name) else ""
    raise Usage(f'job name "{escaped(name)}": {RULE}{which}{hint}', "bad_name")


def escaped(text: str, limit: int = 200) -> str:
    """Text from outside as it may stand in a sentence: one line, nothing that drives a terminal."""
    shown = "".join(c if c.isprintable() else _code(c) for c in text[:limit])
    return shown + ("…" if len(text) > limit else "")


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def name_for(text: str, is_taken: Callable[[str], bool]) -> str:
    """A free name made of a task or a command."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    stem = re.sub(r"^[^a-z]+", "", words)[:28].strip("-") or "job"
    if not is_taken(stem):
        return stem
    low, high = 1, 2  # found by halves, as ten thousand jobs of one name are a fact of life
    while is_taken(f"{stem}-{high}"):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(f"{stem}-{middle}") else (low, middle)
    return f"{stem}-{high}"


def find(ref: Ref, jobs: Jobs, owner: str, exact: bool = False) -> Job:
    """The one job that ``ref`` means for ``owner``; Refused, with the nearest names, if there is none."""
    text = str(ref)
    if text.isascii() and text.isdigit() and len(text) < 16:
        job = jobs.get(int(text))
        if job is None:
            raise Refused(f"no job {int(text)}; agentd ps --all lists them", "unknown_job")
        return job
    listed = [job for job in jobs.values() if isinstance(job.shelf, Kept)]
    if text.startswith("%"):
        return _find_of_owner(text, [job for job in listed if job.owner == owner])
    named = jobs.named(text)
    if named is not None:
        return named
    near = [job for job in listed if text and job.name.startswith(text)]
    if len(near) == 1 and not exact:
        return near[0]
    if near:
        names = ", ".join(f"{job.name} ({job.id})" for job in near[:5])
        if exact:
            raise Refused(f'no job "{escaped(text)}": give its whole name or its id; there is {names}', "unknown_job")
        raise Refused(f'"{escaped(text)}" could be {names}; say which', "ambiguous_job")
    raise Refused(f'no job "{escaped(text)}"{_nearest(text, listed)}', "unknown_job")


def _find_of_owner(text: str, jobs: list[Job]) -> Job:
    if text in ("%", "%%", "%+", "%-"):
        ranked = sorted(jobs, key=recency, reverse=True)
        place = 1 if text == "%-" else 0
        if len(ranked) <= place:
            which = "previous" if place else "current"
            raise Refused(f"no {which} job of yours; agentd ps --all shows everybody's", "unknown_job")
        return ranked[place]
    word = text[1:]
    if word.isascii() and word.isdigit() and len(word) < 16:
        found = [job for job in jobs if job.number == int(word)]
        if not found:
            raise Refused(f"no job {text} of yours; agentd jobs --all lists them", "unknown_job")
        return max(found, key=lambda job: job.id)
    if word.startswith("?"):
        found = [job for job in jobs if word[1:] in _command(job)]
    else:
        found = [job for job in jobs if _command(job).startswith(word)]
    live = [job for job in found if not job.is_done] or found
    if len(live) == 1:
        return live[0]
    if not live:
        raise Refused(f'no job of yours matches "{escaped(text)}"; agentd jobs --all lists them', "unknown_job")
    names = ", ".join(f"{job.name} ({job.id})" for job in live[:5])
    raise Refused(f'"{escaped(text)}" could be {names}; say which', "ambiguous_job")


def recency(job: Job) -> tuple[int, float, int]:
    """The current job is the last stopped, else the last started of those that live, else the last that ended."""
    if isinstance(job.state, Stopped):
        return (2, job.state.since, job.id)
    return (0 if job.is_done else 1, job.started or job.created, job.id)


def _command(job: Job) -> str:
    return " ".join(job.argv) or job.task


def _nearest(text: str, jobs: list[Job]) -> str:
    import difflib

    close = difflib.get_close_matches(text, [job.name for job in jobs], n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else "; agentd ps --all lists them"


def next_number(jobs: Iterable[Job], owner: str) -> int:
    """The ``%n`` of an owner's new job: one more than the highest in use, as a shell counts."""
    return max((job.number for job in jobs if job.owner == owner and not job.is_done), default=0) + 1
