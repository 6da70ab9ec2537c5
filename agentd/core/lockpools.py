"""Counted resources: ``res:gpu`` is any one slot of a pool, ``res:gpu:2`` that slot. And what may be asked for."""

from collections import Counter
from collections.abc import Iterable

from agentd.core.claims import EXCLUSIVE, Mode, Name, Want
from agentd.core.errors import Usage


class Pools(dict[str, int]):
    """How many slots each has."""

    def has(self, name: Name) -> bool:
        return name.kind == "res" and name.text in self

    def slots(self, name: Name) -> list[Name]:
        """Of a pool; none of what is no pool."""
        count = self[name.text] if self.has(name) else 0
        return [Name("res", "", f"{name.text}:{n}") for n in range(1, count + 1)]

    def pool_of(self, name: Name) -> Name | None:
        """Of which pool ``name`` is a slot."""
        pool, _, number = name.text.partition(":")
        whole = Name("res", "", pool)
        return whole if name.kind == "res" and number and self.has(whole) else None

    def family(self, name: Name) -> list[Name]:
        """The names of pool and slots with which it meets, itself first."""
        pool = self.pool_of(name)
        return [name, *self.slots(name)] if pool is None else [name, pool]

    def normal(self, wants: Iterable[Want]) -> tuple[Want, ...]:
        """One want a name, in the order of names; any slot of a pool as often as it was asked for. Usage if these
        cannot be had."""
        modes: dict[Name, Mode] = {}
        slots: list[Want] = []
        for want in wants:
            self._refuse_bad_slot(want)
            if self.has(want.name):
                slots.append(want)
            else:
                modes[want.name] = both(modes.get(want.name, want.mode), want.mode)
        for name, count in Counter(want.name for want in slots).items():
            named = sum(self.pool_of(other) == name for other in modes)
            if count + named > self[name.text]:
                raise Usage(f"{name}: {count + named} asked for, and there are {self[name.text]}", "bad_name")
        wanted = tuple(sorted([*slots, *(Want(name, mode) for name, mode in modes.items())]))
        if not wanted:
            raise Usage("nothing was asked for; name a path, such as src/a.py, or a resource, res:NAME", "empty")
        return wanted

    def can_give(self, wants: Iterable[Want]) -> bool:
        """At all, when nobody has any of it."""
        try:
            self.normal(wants)
        except Usage:
            return False
        return True

    def _refuse_bad_slot(self, want: Want) -> None:
        if want.name.kind != "res":
            return
        pool, _, number = want.name.text.partition(":")
        if number and want.name not in self.slots(Name("res", "", pool)):
            slots = f"there are {pool}:1 to {pool}:{self[pool]}" if pool in self else f"{pool} is no pool"
            raise Usage(f"{want.name}: {slots}", "bad_name")
        if pool in self and want.mode != EXCLUSIVE:
            raise Usage(f"{want.name}: a slot of a pool is exclusive; ask without --shared and --append", "bad_mode")


def both(one: Mode, other: Mode) -> Mode:
    """What a holder has who has two modes on one name."""
    return one if one == other else EXCLUSIVE
