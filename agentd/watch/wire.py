"""What daemon and watcher say to each other: one JSON object a line. A path is relative to its worktree, and spelled
as the file system has it: a byte that is no UTF-8 is a lone surrogate (:mod:`agentd.core.text`)."""

import msgspec

from agentd.core import text

LINE_BYTES = 16 << 20
PATHS_IN_A_FACT = 500


class Order(msgspec.Struct, frozen=True, tag_field="order", tag=str.lower):
    key: str


class Watch(Order, frozen=True):
    """``admin`` is its folder's name among the repository's worktrees: its own ``.git`` file is not believed.

    ``commands`` and ``own_commands`` are those that git's configuration named when it was known to be harmless
    (:func:`agentd.git.fingerprint.command_keys`): if others come, git is not run there.
    """

    root: str
    common: str
    admin: str
    base: str
    commands: dict[str, str] | None = None
    own_commands: dict[str, str] | None = None


class Unwatch(Order, frozen=True):
    """Tell what is known, and let go of it: after ``gone`` nothing of ours is in there."""


class Rescan(Order, frozen=True):
    """Look at everything again, and say ``ready``."""


class Fact(msgspec.Struct, frozen=True, tag_field="fact", tag=str.lower, omit_defaults=True):
    key: str


class Wrote(Fact, frozen=True):
    """``removed``: those of the paths that are not there now."""

    paths: tuple[str, ...]
    at: float
    removed: tuple[str, ...] = ()


class Mode(Fact, frozen=True):
    """``how``: ``inotify``; ``polling`` (git is asked every few seconds); ``off`` (git cannot be asked just now)."""

    how: str
    why: str = ""


class Ready(Fact, frozen=True):
    """All that differed from the base has been told: after the first scan, and after each that was ordered."""


class Gone(Fact, frozen=True):
    """It is not watched any more: as ordered, or because it is not there."""


AnyOrder = Watch | Unwatch | Rescan
AnyFact = Wrote | Mode | Ready | Gone


def line(message: AnyOrder | AnyFact) -> bytes:
    return text.encode(message) + b"\n"


def order(data: bytes) -> AnyOrder:
    found: AnyOrder = text.decode(data, AnyOrder)
    return found


def fact(data: bytes) -> AnyFact:
    found: AnyFact = text.decode(data, AnyFact)
    return found
