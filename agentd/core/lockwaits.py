"""Who waits for whom, and who would wait for ever.

A holder gets free if all its requests can be granted once others that get free have let go of everything. Slots of a
pool make it more than a search for circles: who waits for one of three is not stuck while one of the three is not.
"""

from collections.abc import Callable
from typing import NamedTuple

from agentd.core.claims import Edge


class Wait(NamedTuple):
    """A want of a request that waits until ``need`` of the edges' blockers have let go."""

    ticket: int
    need: int
    edges: tuple[Edge, ...]


def stuck_with(start: str, waits_of: Callable[[str], list[Wait]]) -> dict[str, list[Wait]]:
    """Of ``start`` and all it waits for, those that would never get free, with what keeps them."""
    waits: dict[str, list[Wait]] = {}
    todo = [start]
    while todo:
        id = todo.pop()
        if id not in waits:
            waits[id] = waits_of(id)
            todo.extend(edge.blocker.id for wait in waits[id] for edge in wait.edges)
    last_first = list(reversed(waits))
    free: set[str] = set()
    is_news = True
    while is_news:
        news = [id for id in last_first if id not in free and not _kept_by(waits[id], free)]
        free.update(news)
        is_news = bool(news)
    return {id: _kept_by(waits[id], free) for id in waits if id not in free}


def _kept_by(waits: list[Wait], free: set[str]) -> list[Wait]:
    return [wait for wait in waits if sum(edge.blocker.id in free for edge in wait.edges) < wait.need]


def who_reach(id: str, stuck: dict[str, list[Wait]]) -> set[str]:
    """Those among the stuck that wait for ``id``, at the end."""
    waiters: dict[str, list[str]] = {}
    for waits in stuck.values():
        for edge in (edge for wait in waits for edge in wait.edges):
            waiters.setdefault(edge.blocker.id, []).append(edge.waiter.id)
    found: set[str] = set()
    todo = [id]
    while todo:
        new = [one for one in waiters.get(todo.pop(), ()) if one not in found]
        found.update(new)
        todo += new
    return found


def circle(stuck: dict[str, list[Wait]]) -> list[tuple[int, Edge]]:
    """A circle among the stuck that begins with the newest request there is one for, and a shortest of it: each edge
    with the ticket of who waits. There always is one."""
    tickets = sorted({wait.ticket for waits in stuck.values() for wait in waits}, reverse=True)
    return next(way for ticket in tickets if (way := _way_around(ticket, stuck)))


def _way_around(ticket: int, stuck: dict[str, list[Wait]]) -> list[tuple[int, Edge]]:
    came: dict[str, tuple[int, Edge]] = {}
    todo = [wait for waits in stuck.values() for wait in waits if wait.ticket == ticket]
    start = todo[0].edges[0].waiter.id
    for wait in todo:
        for edge in wait.edges:
            to = edge.blocker.id
            if to in stuck and to not in came:
                came[to] = (wait.ticket, edge)
                todo += stuck[to] if to != start else []
    way: list[tuple[int, Edge]] = []
    id = start
    while start in came and (not way or id != start):
        way.append(came[id])
        id = came[id][1].waiter.id
    return way[::-1]
