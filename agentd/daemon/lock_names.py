"""What a word means as the name of a lock for somebody who types it in a folder."""

import os
import re
from typing import NamedTuple

import msgspec

from agentd.core import locknames, patterns
from agentd.core.claims import Name
from agentd.core.errors import Usage
from agentd.core.names import escaped
from agentd.git.repository import Place

SIGNS = re.compile(r"[*?\[\]{}!\\]")
PREFIXES = ("path:", "res:", "file:", "integrate:")


class Where(NamedTuple):
    cwd: str
    place: Place | None
    """None: in no git repository."""
    is_isolated: bool
    """A job's own worktree: nobody else has its files, so only the right to land a change is shared."""


def names(text: str, where: Where) -> list[Name]:
    """A bare word is a path, from the current folder on; a folder that is there means all below it. In a repository
    that is the right to land changes to it; in a tree that others work in too, the file itself as well. Usage, with its
    reason, if it is none."""
    if not text.startswith(PREFIXES) and is_folder(text, where.cwd):
        text += "/"
    return as_spelt(text, where)


def every_meaning(text: str, where: Where) -> list[Name]:
    """Also what it meant when the folder was not there yet, or still was."""
    if text.startswith(PREFIXES) or patterns.WILD.search(text):
        return names(text, where)
    return list(dict.fromkeys([*names(text, where), *as_spelt(text, where), *as_spelt(f"{text.rstrip('/')}/", where)]))


def is_folder(text: str, cwd: str) -> bool:
    """Or a link to one: what is below it has one name."""
    return bool(text.strip()) and "\0" not in text and not text.endswith("/") and os.path.isdir(os.path.join(cwd, text))


def as_spelt(text: str, where: Where) -> list[Name]:
    place = where.place
    if text.startswith("file:"):
        return [_file(text.removeprefix("file:"), where.cwd)]
    if text.startswith("res:"):
        return [locknames.name_of(text)]
    if text.startswith(PREFIXES):
        if place is None:
            raise Usage(f"{escaped(text)}: {escaped(where.cwd)} is in no git repository", "outside_repo")
        if text.startswith("path:"):
            return [_path(text.removeprefix("path:"), "", place)]
        return [locknames.name_of(text, place.common, place.top, place.folds_case)]
    if place is None:
        return [_file(text, where.cwd)]
    path = _path(text, place.prefix, place)
    if where.is_isolated or not patterns.is_literal(path.text):
        return [path]
    return [path, _file(text, where.cwd)]


def written(path: str, where: Where) -> list[Name]:
    """As :func:`names`, of a file that is written: whatever characters it has, it is no pattern."""
    place = where.place
    if place is None:
        return [_file(path, where.cwd)]
    from_top = os.path.join(place.prefix, path)
    name = locknames.path_name(from_top, place.common, place.top, place.folds_case)
    return [name] if where.is_isolated else [name, _file(path, where.cwd)]


def _path(text: str, prefix: str, place: Place) -> Name:
    """``prefix``: the folder from which it is meant. What is there, or has no sign of a pattern, is meant as it is
    spelt, and by the one way to it that leads through no symlink."""
    if not text.strip() or "\0" in text:
        return locknames.name_of(f"path:{text}")
    spelt = os.path.normpath(os.path.join(place.top, prefix, text))
    if not os.path.lexists(spelt) and SIGNS.search(text):
        if not text.startswith("/"):
            joined = os.path.relpath(spelt, place.top)
            text = joined + ("/" if text.endswith("/") else "") if not joined.startswith("../") else text
        return locknames.name_of(f"path:{text}", place.common, place.top, place.folds_case)
    real = os.path.realpath(spelt)
    is_inside = real.startswith(place.top + "/") or real == place.top
    path = real if is_inside else spelt if spelt.startswith(place.top + "/") else text
    name = locknames.path_name(path, place.common, place.top, place.folds_case)
    is_all_below = text.endswith(("/", "/.")) or text == "."
    return msgspec.structs.replace(name, text=f"{name.text}/**") if is_all_below else name


def _file(text: str, cwd: str) -> Name:
    """A folder with a ``/`` at its end is all that is below it."""
    if not text or "\0" in text:
        return locknames.name_of(f"file:{text}")
    real = os.path.realpath(os.path.join(cwd, text))
    if text.endswith(("/", "/.")) or text == ".":
        return locknames.name_of(f"file:{real}/**" if real != "/" else "file:/")
    return locknames.name_of(f"file:{real}")


def is_about(told: str, scope: str, name: Name) -> bool:
    """Is what an event tells of, such as ``path:src/a.py``, something that ``name`` meets?"""
    kind, _, text = told.partition(":")
    if kind != name.kind or (kind in ("path", "integrate") and scope != name.scope):
        return False
    return patterns.overlap(text, name.text) if kind in ("path", "file") else text == name.text
