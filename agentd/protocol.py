"""The wire: JSON-RPC 2.0, one object a line, strict UTF-8, over a Unix socket. agentd-protocol(7) is its manual.

Requests and their parameters are typed and validated here, once, at the boundary. A method's parameters are a
struct; :data:`METHODS` lists them all, and which of them a job's own narrow socket takes.
"""

import json
import math
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import msgspec

from agentd.core.errors import AgentdError
from agentd.core.text import encode

VERSION = 1
MAX_MESSAGE = 1 << 20
MAX_DEPTH = 32
MAX_IN_FLIGHT = 64
MAX_CONNECTIONS = 256
MAX_BACKLOG = 8 << 20
FIRST_BYTE_S = 5.0

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
REFUSED = -32000

Ref = int | str
"""A job: its id, its name, or ``%n``, ``%+``, ``%-``, ``%text``, ``%?text``."""


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parameters of a method."""


class Hello(Params, frozen=True):
    version: str
    protocol: int


class LockWant(Params, frozen=True):
    """``name``: a path below the folder that is asked from, a pattern of such, ``res:NAME``, ``file:PATH``."""

    name: str
    mode: Literal["exclusive", "shared", "append"] = "exclusive"


class Delegate(Params, frozen=True):
    """``cwd``: absolute. ``environment``: the caller's, whole. ``limits``: rlimits by name, ``[soft, hard]``.

    Times in seconds, sizes in bytes, null or 0 for none.
    """

    cwd: str
    environment: dict[str, str]
    task: str = ""
    argv: tuple[str, ...] = ()
    agent: str = "command"
    name: str | None = None
    in_place: bool = False
    base: str | None = None
    with_changes: bool = False
    owner: str = ""
    umask: int = 0o022
    limits: dict[str, tuple[int, int]] = {}
    timeout: float | None = None
    idle_timeout: float | None = None
    memory: int | None = None
    processes: int | None = None
    log_max: int | None = None
    leave: tuple[str, ...] = ()
    input: bool = False
    tty: tuple[int, int] | None = None
    """Rows and columns: it gets a terminal of its own, of this size."""
    profile: str = ""
    """Of the built-in agent; empty: the default one. ``model`` and the limits go before the profile's."""
    model: str = ""
    max_turns: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    notify: str = ""
    """A command, for sh, that is run when it has ended."""
    restart: str = "no"
    """``on-failure``: attempts follow, with pauses that grow, as long as they come to something."""
    key: str = ""
    """A random mark of this request: repeated with the same one, it makes no second job."""
    claims: tuple[LockWant, ...] = ()
    """What it holds before it starts; it is queued until it can."""
    secrets: tuple[str, ...] = ()
    """Names of further variables whose values are never written."""


class ListJobs(Params, frozen=True):
    all: bool = False
    owner: str | None = None
    """Only this owner's jobs."""


class GetJob(Params, frozen=True):
    job: Ref
    owner: str = ""


class Resolve(Params, frozen=True):
    """The ids of several jobs. ``exact``: no prefixes of names."""

    jobs: tuple[Ref, ...]
    owner: str = ""
    exact: bool = False


class Wait(Params, frozen=True):
    """``until``: a state, or ``done``. With ``any`` the first one suffices."""

    jobs: tuple[Ref, ...] = ()
    owner: str = ""
    any: bool = False
    all: bool = False
    until: str = "done"
    timeout: float | None = None


class Kill(Params, frozen=True):
    """``signal`` without SIG. ``grace``: seconds from the first signal to KILL."""

    jobs: tuple[Ref, ...]
    owner: str = ""
    signal: str | None = None
    grace: float | None = None


class Suspend(Params, frozen=True):
    """Stop jobs with all their processes, or let them go on."""

    jobs: tuple[Ref, ...]
    owner: str = ""


class Send(Params, frozen=True):
    """``data``: base64 when ``binary``, else text."""

    job: Ref
    owner: str = ""
    data: str = ""
    binary: bool = False
    eof: bool = False


class Answer(Params, frozen=True):
    """To what an agent asks; ``question``: its id, if the answer is for that one only."""

    job: Ref
    text: str
    question: str = ""
    owner: str = ""


class Interrupt(Params, frozen=True):
    """Break off what an agent does now; without a ``text`` it then waits for one."""

    job: Ref
    text: str = ""
    owner: str = ""


class Restart(Params, frozen=True):
    """``resume``: an agent goes on where it was, with its conversation."""

    job: Ref
    owner: str = ""
    resume: bool = False
    environment: dict[str, str] = {}
    """The caller's, from which secrets the job needs are taken."""


class Merge(Params, frozen=True):
    """``cwd``: absolute, from where it is asked; ``into``: a branch, else the one checked out there. ``force``: also
    what has not succeeded."""

    job: Ref
    cwd: str
    owner: str = ""
    into: str | None = None
    force: bool = False
    umask: int = 0o022
    """Of the files that come into the caller's tree."""


class Diff(Params, frozen=True):
    """``form``: patch, stat or names. A long text comes in pieces: ask again from ``next``, with the same ``work``."""

    job: Ref
    owner: str = ""
    form: Literal["patch", "stat", "names"] = "patch"
    binary: bool = False
    work: str | None = None
    offset: int = 0


class Result(Params, frozen=True):
    job: Ref
    owner: str = ""


class Remove(Params, frozen=True):
    job: Ref
    owner: str = ""


class Undo(Params, frozen=True):
    """``job`` null: list the trash."""

    job: int | None = None
    owner: str = ""


class Subscribe(Params, frozen=True):
    """``name``: a durable reader; without it, events after ``since``. ``mine``: only this owner's jobs."""

    name: str | None = None
    since: int | None = None
    mine: str = ""
    follow: bool = True


class Ack(Params, frozen=True):
    name: str
    seq: int


class ForgetReader(Params, frozen=True):
    name: str


class Leader(Params, frozen=True):
    """A process, as :func:`agentd.process.identity` has it."""

    boot: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    start: int
    inode: int


class AcquireLock(Params, frozen=True):
    """All ``wants`` or none. ``wait``: seconds; null for no limit, 0 not at all. ``claim``: the mark of a command's
    claim file, which it keeps locked; without it the claim is the job's, or the session's."""

    wants: tuple[LockWant, ...]
    cwd: str
    owner: str = ""
    reason: str = ""
    wait: float | None = 60.0
    broad: bool = False
    """A claim of more than half of the files is meant."""
    claim: str = ""
    ticket: int | None = None
    """Of an earlier answer: the place in the queue. Without ``wants``, what was asked with it."""
    session: Leader | None = None
    """The process that leads the caller's session: boot, pid, start, inode."""


class CheckLock(Params, frozen=True):
    """May the asker write these? Nothing is asked for and nothing changes. ``paths``: below ``cwd``, no patterns."""

    paths: tuple[str, ...]
    cwd: str
    owner: str = ""


class ReleaseLock(Params, frozen=True):
    """One's own claims, and places in the queue; ``all``: every one."""

    names: tuple[str, ...] = ()
    cwd: str = "/"
    owner: str = ""
    claim: str = ""
    all: bool = False


class ListLocks(Params, frozen=True):
    """``cwd`` set: only those of the repository there, and of no repository."""

    cwd: str | None = None


class ExplainLock(Params, frozen=True):
    name: str
    cwd: str
    owner: str = ""


class LockHistory(Params, frozen=True):
    """The newest ``limit`` events about locks that meet ``name``; null: about those of the repository at ``cwd`` and of
    no repository; ``all``: of all."""

    cwd: str
    name: str | None = None
    all: bool = False
    limit: int = 100


class BreakLock(Params, frozen=True):
    """Take away what others hold. ``kill``: end the jobs that hold it, too."""

    name: str
    cwd: str
    reason: str
    owner: str = ""
    kill: bool = False


class StopDaemon(Params, frozen=True):
    """``handover``: to a newer daemon, which those who wait may reach at once. Without it they are told
    ``stopping``, so that none of them starts a daemon that somebody has just stopped."""

    kill_jobs: bool = False
    handover: bool = False


class Nothing(Params, frozen=True):
    pass


class Method(NamedTuple):
    params: type[Params]
    is_narrow: bool
    """A job may call it through its own socket."""


METHODS: dict[str, Method] = {
    "hello": Method(Hello, True),
    "jobs.delegate": Method(Delegate, True),
    "jobs.list": Method(ListJobs, True),
    "jobs.get": Method(GetJob, True),
    "jobs.resolve": Method(Resolve, True),
    "jobs.wait": Method(Wait, True),
    "jobs.kill": Method(Kill, False),
    "jobs.stop": Method(Suspend, False),
    "jobs.cont": Method(Suspend, False),
    "jobs.send": Method(Send, True),
    "jobs.answer": Method(Answer, True),
    "jobs.interrupt": Method(Interrupt, True),
    "jobs.restart": Method(Restart, False),
    "jobs.result": Method(Result, True),
    "jobs.diff": Method(Diff, True),
    "jobs.merge": Method(Merge, False),
    "jobs.remove": Method(Remove, False),
    "jobs.undo": Method(Undo, False),
    "profiles.list": Method(Nothing, True),
    "lock.acquire": Method(AcquireLock, True),
    "lock.check": Method(CheckLock, True),
    "lock.release": Method(ReleaseLock, True),
    "lock.list": Method(ListLocks, True),
    "lock.explain": Method(ExplainLock, True),
    "lock.graph": Method(Nothing, True),
    "lock.history": Method(LockHistory, True),
    "lock.break": Method(BreakLock, False),
    "events.subscribe": Method(Subscribe, False),
    "events.ack": Method(Ack, False),
    "events.forget": Method(ForgetReader, False),
    "daemon.status": Method(Nothing, False),
    "daemon.doctor": Method(Nothing, False),
    "daemon.stop": Method(StopDaemon, False),
}


class Request(NamedTuple):
    id: int | str | None
    """None: a notification, which gets no answer."""
    method: str
    params: Params


class Malformed(Exception):
    """A line that is no request; ``id`` is what an answer can still name."""

    def __init__(self, code: int, message: str, id: int | str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.id = id


def decode(line: bytes) -> Request:
    """One request, or Malformed with what is wrong with it."""
    value = _parse(line)
    if not isinstance(value, dict):
        raise Malformed(INVALID_REQUEST, "a message must be one JSON object (batches are not taken)")
    id = value.get("id")
    if isinstance(id, bool) or not (id is None or isinstance(id, int | str)):
        raise Malformed(INVALID_REQUEST, "id must be a number, a string, or missing")
    if (isinstance(id, int) and abs(id) > 1 << 53) or (isinstance(id, str) and len(id) > 200):
        raise Malformed(INVALID_REQUEST, "id is out of bounds (2^53, or 200 characters)")
    if value.get("jsonrpc") != "2.0":
        raise Malformed(INVALID_REQUEST, 'jsonrpc must be "2.0"', id)
    name = value.get("method")
    if not isinstance(name, str):
        raise Malformed(INVALID_REQUEST, "method must be a string", id)
    method = METHODS.get(name)
    if method is None:
        raise Malformed(METHOD_NOT_FOUND, f"no method {name[:80]!r}; there are: {', '.join(METHODS)}", id)
    try:
        params = msgspec.convert(value.get("params", {}), method.params)
    except (msgspec.ValidationError, ValueError) as error:
        raise Malformed(INVALID_PARAMS, f"{name}: {error}", id) from None
    return Request(id, name, params)


def _parse(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(PARSE_ERROR, f"not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_int=_int, parse_float=_float, parse_constant=_no_constant
        )
    except RecursionError:
        raise Malformed(PARSE_ERROR, f"nested deeper than {MAX_DEPTH}") from None
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(PARSE_ERROR, f"not JSON: {error}") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise Malformed(PARSE_ERROR, f"nested deeper than {MAX_DEPTH}")
    return value


def _int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise Malformed(PARSE_ERROR, "a number is out of bounds (2^63)")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed(PARSE_ERROR, "a number is out of bounds (1.8e308)")
    return value


def _no_constant(text: str) -> NoReturn:
    raise Malformed(PARSE_ERROR, f"not JSON: {text}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed(PARSE_ERROR, "duplicate key in an object")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return depth - 1


def answer(id: int | str | None, result: Any) -> bytes:
    return encode({"jsonrpc": "2.0", "id": id, "result": result}) + b"\n"


def refusal(id: int | str | None, error: AgentdError) -> bytes:
    data = {"code": error.code, "exit": error.exit}
    body = {"code": REFUSED, "message": error.message, "data": data}
    return encode({"jsonrpc": "2.0", "id": id, "error": body}) + b"\n"


def malformed(error: Malformed) -> bytes:
    body = {"code": error.code, "message": str(error), "data": {"code": "malformed", "exit": 2}}
    return encode({"jsonrpc": "2.0", "id": error.id, "error": body}) + b"\n"


def notification(method: str, params: Any) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"
