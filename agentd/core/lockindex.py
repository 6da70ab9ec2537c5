"""What is kept under names, found by overlap: the table asks for what meets a name, and most of it cannot.

Two patterns can meet only if the fixed part of one (its segments before the first wildcard) begins that of the
other. So paths are kept in a tree of fixed parts: what meets a name stands on the way down to it, or, if it has
wildcards, below. Files, real paths and folders with all below them, are kept so too; names of other kinds meet only
when equal.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from agentd.core.claims import Name
from agentd.core.patterns import ends, fixed_part, is_literal, overlap

TREES = ("path", "file")
K = TypeVar("K")
V = TypeVar("V")


class _Node:
    __slots__ = ("below", "literal", "wild")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.literal: Name | None = None
        self.wild: dict[Name, None] = {}


class ByName(Generic[K, V]):
    """For each name, values by key, in the order in which they were put."""

    def __init__(self) -> None:
        self._at: dict[Name, dict[K, V]] = {}
        self._trees: dict[tuple[str, str], _Node] = {}
        self._remembered: dict[Name, list[Name]] = {}

    def put(self, name: Name, key: K, value: V) -> None:
        values = self._at.get(name)
        if values is None:
            values = self._at[name] = {}
            if name.kind in TREES:
                self._plant(name)
        values[key] = value

    def remove(self, name: Name, key: K) -> None:
        values = self._at[name]
        del values[key]
        if not values:
            del self._at[name]
            if name.kind in TREES:
                self._uproot(name)

    def at(self, name: Name) -> dict[K, V]:
        return self._at.get(name) or {}

    def meeting(self, name: Name) -> Iterator[tuple[Name, dict[K, V]]]:
        if name.kind not in TREES:
            if name in self._at:
                yield name, self._at[name]
            return
        for other in self._met_by(name):
            yield other, self._at[other]

    def _met_by(self, name: Name) -> list[Name]:
        """Remembered until a name comes or goes: one question to the table asks it several times."""
        met = self._remembered.get(name)
        if met is None:
            head, tail = ends(name.text)
            met = self._remembered[name] = [
                other
                for other, (begins, stops) in ((other, ends(other.text)) for other in self._candidates(name))
                if head.startswith(begins) or begins.startswith(head)
                if tail.endswith(stops) or stops.endswith(tail)
                if overlap(name.text, other.text)
            ]
        return met

    def _candidates(self, name: Name) -> list[Name]:
        node = self._trees.get((name.kind, name.scope))
        if node is None:
            return []
        found = list(node.wild)
        for segment in fixed_part(name.text):
            node = node.below.get(segment)
            if node is None:
                return found
            found.extend(node.wild)
        if is_literal(name.text):
            return found if node.literal is None else [*found, node.literal]
        if node.literal is not None:
            found.append(node.literal)
        todo = list(node.below.values())
        while todo:
            node = todo.pop()
            found.extend(node.wild)
            if node.literal is not None:
                found.append(node.literal)
            todo.extend(node.below.values())
        return found

    def _plant(self, name: Name) -> None:
        self._remembered.clear()
        node = self._trees.setdefault((name.kind, name.scope), _Node())
        for segment in fixed_part(name.text):
            node = node.below.setdefault(segment, _Node())
        if is_literal(name.text):
            node.literal = name
        else:
            node.wild[name] = None

    def _uproot(self, name: Name) -> None:
        self._remembered.clear()
        way = [self._trees[name.kind, name.scope]]
        segments = fixed_part(name.text)
        for segment in segments:
            way.append(way[-1].below[segment])
        if is_literal(name.text):
            way[-1].literal = None
        else:
            del way[-1].wild[name]
        for segment, node, above in zip(reversed(segments), reversed(way), reversed(way[:-1]), strict=False):
            if node.below or node.wild or node.literal is not None:
                return
            del above.below[segment]
