"""What a write means to what somebody else claims, by path.

``warn``: both are told, nobody is stopped. ``share``: the same, silently unless the changes conflict; for files that
everybody adds to. ``wait``: one writer at a time; who can be asked before a write waits. ``pause``: and who cannot be
asked is stopped after the write that was seen, until the path is free.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, get_args

from agentd.core import patterns

Policy = Literal["warn", "share", "wait", "pause"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
ONE_WRITER: tuple[Policy, ...] = ("wait", "pause")
"""Whoever writes there first holds it against all others, as if it had been claimed."""

SINGLE = (
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "Cargo.lock",
    "poetry.lock",
    "uv.lock",
    "go.sum",
    "*.ipynb",
)
DEFAULTS: dict[str, Policy] = {
    **{f"**/{name}": "wait" for name in SINGLE},
    "**/migrations/**": "wait",
    "**/__init__.py": "share",
    "**/CHANGELOG*": "share",
}


def policy_of(path: str, configured: Mapping[str, Policy], fold: bool = False) -> Policy:
    """Of a path from the top of its repository, in its normal spelling; of the patterns that fit the last one counts,
    and what is configured goes before the defaults. ``fold``: the volume ignores case."""
    for pattern, policy in (*reversed([*configured.items()]), *DEFAULTS.items()):
        if patterns.matches(_normal(pattern, fold), path):
            return policy
    return "warn"


@lru_cache(maxsize=1024)
def _normal(pattern: str, fold: bool) -> str:
    return patterns.normal(pattern, fold=fold)
