"""agentd.toml, typed. A key that does not exist is an error, not a surprise."""

import os
import re
import tomllib
from typing import Annotated, Any

import msgspec

from agentd import files
from agentd.core import patterns
from agentd.core.errors import Usage
from agentd.core.lock_policy import POLICIES, Policy
from agentd.core.names import escaped

DEFAULT_MODEL = "claude-sonnet-5-5"
MAX_BYTES = 1 << 20

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


Count = Annotated[int, msgspec.Meta(ge=0)]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Limits(Table, frozen=True):
    running: Annotated[int, msgspec.Meta(ge=1)] = 64
    queued: Count = 10_000


class Secrets(Table, frozen=True):
    """Names of variables, beyond those that look like secrets, whose values are never written."""

    names: tuple[str, ...] = ()


class Log(Table, frozen=True):
    max: str = "1G"


class Worktrees(Table, frozen=True):
    setup: str = ""
    branch_prefix: str = "agentd"
    max_snapshot: str = "50M"


class Trash(Table, frozen=True):
    days: Count = 14


class Events(Table, frozen=True):
    days: Count = 30


class Notify(Table, frozen=True):
    """A command, for sh, that is run when a job has ended."""

    command: str = ""


class Locks(Table, frozen=True):
    """``pools``: how many of a counted resource there are. ``policy``: what a write to what somebody else claims means,
    by pattern: warn, share, wait or pause; the last pattern that fits counts. ``commit_guard``: a job's git asks before
    it commits."""

    pools: dict[str, Annotated[int, msgspec.Meta(ge=1)]] = {}
    policy: dict[str, Policy] = {}
    commit_guard: bool = True


class Profile(Table, frozen=True):
    """How the built-in agent is run: which model, where, and what it may spend."""

    model: str = ""
    endpoint: str = ""
    effort: str = ""
    thinking: str = ""
    system: str = ""
    tools: tuple[str, ...] = ()
    key_env: str = "ANTHROPIC_API_KEY"
    key_file: str = ""
    answer_tokens: Count = 32_000
    context: Count = 160_000
    max_turns: Count = 0
    max_tokens: Count = 0
    max_cost: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Rates(Table, frozen=True):
    """Dollars per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write: float


class Agent(Table, frozen=True):
    profile: str = "default"
    environment: tuple[str, ...] = ()


class Config(Table, frozen=True):
    limits: Limits = Limits()
    secrets: Secrets = Secrets()
    log: Log = Log()
    worktree: Worktrees = Worktrees()
    trash: Trash = Trash()
    events: Events = Events()
    notify: Notify = Notify()
    locks: Locks = Locks()
    agent: Agent = Agent()
    profiles: dict[str, Profile] = {}
    prices: dict[str, Rates] = {}

    def all_profiles(self) -> dict[str, Profile]:
        """``default`` is always there."""
        return {"default": Profile(model=DEFAULT_MODEL)} | self.profiles


def load(path: str) -> Config:
    """The settings in ``path``; the defaults if there is no such file. Usage, with the key, if one is wrong."""
    if path == os.devnull:
        return Config()
    try:
        text = files.read_file(path, MAX_BYTES).decode()
        values = tomllib.loads(text)
    except FileNotFoundError:
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"cannot read {path}: {error}", "bad_config") from None
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}", "bad_config") from None
    return convert(values, path, text)


def convert(values: dict[str, Any], path: str, text: str = "") -> Config:
    check_policies(values, path, text)
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        where = line_of(str(error), text)
        raise Usage(f"cannot use {path}{where}: {in_our_words(str(error))}", "bad_config") from None
    for key, size in (("log.max", config.log.max), ("worktree.max_snapshot", config.worktree.max_snapshot)):
        try:
            parse_size(size)
        except ValueError as error:
            where = line_of(f" - at `$.{key}`", text)
            raise Usage(f"cannot use {path}{where}: {key}: {error}", "bad_config") from None
    return config


def check_policies(values: dict[str, Any], path: str, text: str) -> None:
    """Before the types are looked at: a wrong word is told with its pattern."""
    locks = values.get("locks")
    policies = locks.get("policy") if isinstance(locks, dict) else None
    for pattern, policy in (policies if isinstance(policies, dict) else {}).items():
        why = None if policy in POLICIES else f'"{escaped(pattern)}" must be one of {", ".join(POLICIES)}'
        try:
            patterns.normal(pattern)
        except Usage as error:
            why = error.message
        if why is not None:
            keys = (line.partition("=")[0].strip() for line in text.splitlines())
            line = next((n for n, key in enumerate(keys, 1) if key.strip("'\"") == pattern), None)
            raise Usage(f"cannot use {path}{f', line {line}' if line else ''}: locks.policy: {why}", "bad_config")


def line_of(said: str, text: str) -> str:
    """Where in the file that stands which msgspec complains of, as ``, line 3``; empty if it is not to be found."""
    place = re.findall(r"[\w-]+", said.partition(" - at `$.")[2])
    unknown = re.match(r"Object contains unknown field `(.*?)`", said)
    table, key = [*place[:2], *([unknown[1]] if unknown else []), "", ""][:2]
    within = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[\s*\"?([\w-]+)", line):
            within = head[1]
            if within == table and not key:
                return f", line {number}"
        named = re.match(r"\s*\"?([\w-]+)\"?\s*[.=]", line)
        if named and (within, named[1]) in ((table, key), ("", table)):
            return f", line {number}"
    return ""


KINDS = {
    "object": "a table",
    "int": "a whole number",
    "str": "a text in quotes",
    "array": "a list",
    "bool": "true or false",
}


def in_our_words(said: str) -> str:
    """What msgspec says of a wrong value, as ``limits.running must be a whole number, not a text in quotes``."""
    what, _, place = said.partition(" - at `$.")
    place = place.rstrip("`")
    if unknown := re.match(r"Object contains unknown field `(.*)`", what):
        tables = {field.name: field.type for field in msgspec.structs.fields(Config)}
        known = tables if not place else (field.name for field in msgspec.structs.fields(tables[place]))
        where = f"[{place}] has" if place else "there is"
        return f'{where} no {"key" if place else "table"} "{unknown[1]}"; there is {", ".join(known)}'
    if expected := re.match(r"Expected `(\w+)`(?: >= (\d+)|, got `(\w+)`)", what):
        least = f" of at least {expected[2]}" if expected[2] else f", not {KINDS.get(expected[3], expected[3])}"
        return f"{place} must be {KINDS.get(expected[1], expected[1])}{least}"
    return said


def repository_setup(top: str | None) -> str:
    """The set-up command that a repository's own agentd.toml names; empty if it names none."""
    path = os.path.join(top, "agentd.toml") if top else ""
    return load(path).worktree.setup if path and os.path.isfile(path) else ""


class TooMuch(ValueError):
    """Well written, but more than can be meant."""


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``5m``, ``1h30m``, ``0.5``; ValueError otherwise."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 32:
        raise ValueError(f'"{text}" is not a time such as 90s, 5m or 1h30m')
    if any(unit == "" for _, unit in parts) and len(parts) > 1:
        raise ValueError(f'"{text}" is not a time such as 90s, 5m or 1h30m')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > 10 * 366 * 86400:
        raise TooMuch(f'"{text}" is more than ten years')
    return seconds


def parse_size(text: str) -> int:
    """Bytes of ``64M``, ``1G``, ``65536``; 0 means no limit; ValueError otherwise."""
    match = re.fullmatch(r"([0-9]{1,15})([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f'"{text}" is not a size such as 64M or 1G')
    found = int(match[1]) * _SIZES[match[2]]
    if found > 1 << 60:
        raise TooMuch(f'"{text}" is more than 1 EiB')
    return found
