"""Who delegated what: jobs in the order of a tree, and what stands before each name to draw it. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from agentd.cli.render import View

DRAWN = ("├─ ", "└─ ", "│  ", "   ")
PLAIN = ("|- ", "`- ", "|  ", "   ")

Node = tuple[str, View]


def with_parents(jobs: Iterable[View], everything: Mapping[int, View]) -> list[View]:
    """And whoever delegated them, ended or not."""
    found: dict[int, View] = {}
    for job in jobs:
        one: View | None = job
        while one is not None and one["id"] not in found:
            found[one["id"]] = one
            one = everything.get(one["parent"])
    return [found[id] for id in sorted(found)]


def tree(jobs: Sequence[View], glyphs: tuple[str, str, str, str] = DRAWN) -> list[Node]:
    """Parents first, and under each what it delegated, the oldest first."""
    ids = {job["id"] for job in jobs}
    below: dict[int | None, list[View]] = {}
    for job in sorted(jobs, key=lambda job: int(job["id"])):
        # A parent has the smaller id: what says otherwise is drawn as delegated by nobody.
        parent = job["parent"] if job["parent"] in ids and job["parent"] < job["id"] else None
        below.setdefault(parent, []).append(job)
    return [node for root in below.get(None, []) for node in grown(root, below, glyphs)]


def grown(
    job: View,
    below: Mapping[int | None, Sequence[View]],
    glyphs: tuple[str, str, str, str],
    branch: str = "",
    stem: str = "",
) -> Iterator[Node]:
    yield branch, job
    children = below.get(job["id"], ())
    between, last, passing, free = glyphs
    for number, child in enumerate(children, 1):
        is_last = number == len(children)
        further = stem + (free if is_last else passing)
        yield from grown(child, below, glyphs, stem + (last if is_last else between), further)
