"""What a word means as a lock's name: ``path:src/**`` or bare, ``res:NAME``, ``file:/PATH``, ``integrate:BRANCH``."""

import re

from agentd.core.claims import Name
from agentd.core.errors import Usage
from agentd.core.names import escaped
from agentd.core.patterns import MOST, literal, normal

GOOD_RES = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(:[1-9][0-9]{0,3})?")
BARE = re.compile(r"(path|res|file|integrate):(.*)", re.DOTALL)


def name_of(text: str, scope: str = "", root: str = "", fold: bool = False) -> Name:
    """Usage, with its reason, if it is none.

    ``scope``: the repository's fingerprint; ``root``: the real path of the folder below which an absolute path is
    meant; ``fold``: the volume of the repository ignores case. ``file:`` takes a real path."""
    prefixed = BARE.fullmatch(text)
    kind, rest = prefixed.groups() if prefixed else ("path", text)
    if kind == "res":
        return Name("res", "", _resource(rest))
    if kind == "file":
        return Name("file", "", _file(rest))
    if kind == "integrate":
        return Name("integrate", scope, _branch(rest))
    return Name("path", scope, normal(rest, root, fold))


def path_name(path: str, scope: str, root: str = "", fold: bool = False) -> Name:
    """Of a path that exists or was written: no character of it is special when it is spelt, and Usage only if it is
    outside."""
    return Name("path", scope, literal(path, root, fold))


def _resource(text: str) -> str:
    if not text:
        raise Usage("the name of a resource is empty; say res:NAME, such as res:port-3000", "empty")
    if not GOOD_RES.fullmatch(text):
        rule = "only a-z 0-9 . _ and -, 1-64 characters, must start with a letter or digit"
        raise Usage(f"res:{escaped(text)}: {rule}; a slot of a pool is res:POOL:NUMBER", "bad_name")
    return text


def _file(text: str) -> str:
    if not text:
        raise Usage("the path of a file lock is empty; say file:PATH", "empty")
    if "\0" in text:
        raise Usage(f"file:{escaped(text)}: a path has no NUL character", "bad_character")
    if not text.startswith("/") or len(text) > MOST or {"..", "."} & {*text.split("/")}:
        raise Usage(f"file:{escaped(text)}: must be a whole path, from / on, without . and ..", "bad_name")
    path = "/" + "/".join(segment for segment in text.split("/") if segment)
    if path == "/":
        raise Usage("file:/ is the root of the system; name a file or a folder", "is_root")
    return path


def _branch(text: str) -> str:
    if not text:
        raise Usage("the name of a branch is empty; say integrate:BRANCH", "empty")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise Usage(f"integrate:{escaped(text)}: a branch has no spaces and no control characters", "bad_character")
    return text
