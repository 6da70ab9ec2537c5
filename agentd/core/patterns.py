"""Path patterns: what is a good one, which paths it matches, and whether two can match one path.

``*`` is any run of characters inside one segment, ``?`` one character, a segment ``**`` any number of segments, none
included; a trailing ``/`` is the folder and all below it. Nothing else is special, so that overlap is exact.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from agentd.core.errors import Usage
from agentd.core.names import escaped

MOST_WITH_WILDCARDS = 256
"""Overlap of two patterns takes the product of their lengths."""
MOST = 4096
DEEP = "**"
WILD = re.compile(r"[*?]")


# --- what is a good one -----------------------------------------------------------------------------------------


def normal(text: str, root: str = "", fold: bool = False) -> str:
    """The one spelling of a pattern that somebody typed; Usage if it is none.

    ``root``: the folder (a real path) of which an absolute path is a part; ``fold``: the volume ignores case."""
    segments = _segments(text, root)
    shown = escaped(text)
    if re.search(r"[\[\]{}]|\\[*?]", "/".join(segments)) or segments[0].startswith("!"):
        raise Usage(
            f'"{shown}": of patterns there are only *, ? and **; write ? for a character such as [ or !', "bad_glob"
        )
    if any(DEEP in segment and segment != DEEP for segment in segments):
        raise Usage(f'"{shown}": ** stands alone between two /, as in src/**/*.py', "bad_glob")
    if segments != [DEEP] and text.endswith(("/", "/.")):
        segments.append(DEEP)
    pattern = _folded("/".join(_without_repeats(segments)), fold)
    if WILD.search(pattern) and len(pattern) > MOST_WITH_WILDCARDS:
        raise Usage(f'"{escaped(text, 40)}": a pattern has at most {MOST_WITH_WILDCARDS} characters', "too_long")
    return pattern


def literal(path: str, root: str = "", fold: bool = False) -> str:
    """The spelling of a path that exists or was written, whatever characters are in it."""
    return _folded("/".join(_segments(path, root)), fold)


def typed(path: str) -> str:
    """A pattern that fits this path and hardly another, for one with characters that patterns cannot have."""
    return re.sub(r"[\[\]{}]|\\(?=[*?])|^!", "?", path)


def _segments(text: str, root: str) -> list[str]:
    shown = escaped(text)
    if not text.strip():
        raise Usage("the name of a lock is empty; name a path, such as src/a.py, or a resource, res:NAME", "empty")
    if "\0" in text:
        raise Usage(f'"{shown}": a path has no NUL character', "bad_character")
    if len(text) > MOST:
        raise Usage(f'"{escaped(text, 40)}": a path has at most {MOST} characters', "too_long")
    inside = _below(unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", root), shown)
    segments = [segment for segment in inside.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise Usage(f'"{shown}" may lead outside the repository; name it from the root, without ..', "outside_repo")
    if not segments:
        raise Usage(f'"{shown}" is the whole repository; name a path in it, or ** for all files', "is_root")
    return segments


def _below(text: str, root: str, shown: str) -> str:
    if not text.startswith("/"):
        return text
    root = root.rstrip("/")
    if root and text.rstrip("/") == root:
        return ""
    if root and text.startswith(root + "/"):
        return text[len(root) :]
    if not text.strip("/."):
        raise Usage(f'"{shown}" is the root of the system; name a path in the repository', "is_root")
    raise Usage(
        f'"{shown}" is outside the repository; for a file that git does not isolate, say file:{shown}', "outside_repo"
    )


def _without_repeats(segments: list[str]) -> list[str]:
    return [s for n, s in enumerate(segments) if not (n and s == segments[n - 1] == DEEP)]


def _folded(text: str, fold: bool) -> str:
    return unicodedata.normalize("NFC", text.casefold()) if fold else text


# --- what it matches --------------------------------------------------------------------------------------------


def is_literal(pattern: str) -> bool:
    return not WILD.search(pattern)


@lru_cache(maxsize=16384)
def fixed_part(pattern: str) -> tuple[str, ...]:
    """Its segments up to the first one with a wildcard."""
    segments = pattern.split("/")
    end = next((n for n, segment in enumerate(segments) if WILD.search(segment)), len(segments))
    return tuple(segments[:end])


@lru_cache(maxsize=16384)
def ends(pattern: str) -> tuple[str, str]:
    """How the last segment of each path that it matches begins and ends, as far as that is fixed."""
    last = pattern.rsplit("/", 1)[-1]
    pieces = WILD.split(last)
    return pieces[0], pieces[-1]


def matches(pattern: str, path: str) -> bool:
    """Both in their normal spelling."""
    if is_literal(pattern):
        return pattern == path
    return _walk(_matchers(pattern), path.split("/"))


def covered(pattern: str, paths: Iterable[str], fold: bool = False) -> int:
    """How many of the paths, as git lists them, it matches."""
    return sum(matches(pattern, _folded(unicodedata.normalize("NFC", path), fold)) for path in paths)


def refuse_broad(pattern: str, count: int, total: int) -> None:
    """Usage if it covers more than half of the files that git tracks, ``count`` of ``total``."""
    if is_literal(pattern) or count * 2 <= total:
        return
    files = f"all {total:,} files" if count == total else f"{count:,} of {total:,} files"
    raise Usage(f"{escaped(pattern)} claims {files}; add --broad if meant", "broad")


Matcher = Callable[[str], object] | None
"""Of one segment; None for ``**``."""


@lru_cache(maxsize=4096)
def _matchers(pattern: str) -> tuple[Matcher, ...]:
    return tuple(None if segment == DEEP else _segment_matcher(segment) for segment in pattern.split("/"))


@lru_cache(maxsize=16384)
def _segment_matcher(segment: str) -> Matcher:
    head, *rest = [re.escape(piece).replace(r"\?", ".") for piece in re.split(r"\*+", segment)]
    if not rest:
        return re.compile(head, re.DOTALL).fullmatch
    # Atomic groups: the first place where a piece fits is the best one, so nothing is tried twice.
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1])
    return re.compile(f"{head}{middle}.*{rest[-1]}", re.DOTALL).fullmatch


def _walk(matchers: Sequence[Matcher], segments: Sequence[str]) -> bool:
    """Segments against matchers; after a mismatch the last ``**`` takes one segment more."""
    m = s = 0
    deep, taken = -1, 0
    while s < len(segments):
        if m < len(matchers) and (matcher := matchers[m]) is None:
            deep, taken = m, s
            m += 1
        elif m < len(matchers) and matcher is not None and matcher(segments[s]):
            m, s = m + 1, s + 1
        elif deep >= 0:
            taken += 1
            m, s = deep + 1, taken
        else:
            return False
    return all(matcher is None for matcher in matchers[m:])


# --- whether two meet -------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def overlap(one: str, other: str) -> bool:
    """Is there a path that both match?"""
    if is_literal(one):
        return matches(other, one)
    if is_literal(other):
        return matches(one, other)
    return _meet(one.split("/"), other.split("/"), DEEP, _segments_meet)


@lru_cache(maxsize=65536)
def _segments_meet(one: str, other: str) -> bool:
    if is_literal(one) and is_literal(other):
        return one == other
    return _meet(one, other, "*", _characters_meet)


def _characters_meet(one: str, other: str) -> bool:
    return one == other or "?" in (one, other)


def _meet(one: Sequence[str], other: Sequence[str], wild: str, same: Callable[[str, str], bool]) -> bool:
    """Do two sequences have a common instance, where ``wild`` stands for any run? Row ``i`` answers it for the
    first ``i`` of one and each beginning of the other; one row is kept."""
    above: list[bool] = [True]
    for item in other:
        above.append(above[-1] and item == wild)
    for mine in one:
        row = [above[0] and mine == wild]
        for n, theirs in enumerate(other):
            if mine == wild or theirs == wild:
                row.append(row[n] or above[n + 1])
            else:
                row.append(above[n] and same(mine, theirs))
        above = row
    return above[-1]
