"""What a job is. Each state carries what is true in it, and nothing else.

All values are frozen; :func:`agentd.core.machine.step` returns a new job. Times are seconds since the epoch.
"""

import msgspec

from agentd.core.claims import Want
from agentd.core.errors import EXIT_FAULT, EXIT_NO, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_TIMED_OUT
from agentd.core.fact import Fact

ENOENT, ENOTDIR = 2, 20
SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "TERM": 15}

SUCCEEDED = "succeeded"
FAILED = "failed"
KILLED = "killed"
TIMED_OUT = "timed_out"
UNSTARTED = "unstarted"
LOST = "lost"
REBOOTED = "rebooted"
LIMITED = "limited"

PROCESSES_KEPT = 200
"""Of those that were ended or left: an event must stay small, whatever a job forked."""


class Process(Fact, frozen=True):
    """A process that was ended, or left, with a job's tree."""

    pid: int
    command: str


class Ended(Fact, frozen=True):
    """How an attempt ended: what exit.json and end.json say, and what that means."""

    outcome: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    order: str | None = None
    """The first signal of the ladder that ended it, if one did."""
    swept: tuple[Process, ...] = ()
    left: tuple[Process, ...] = ()
    log_out: int = 0
    log_err: int = 0
    log_whole: bool = True
    """False: all that could hold its output died before it did, so the end of it may be missing."""


# --- states -------------------------------------------------------------------------------------------------


class Queued(Fact, frozen=True, tag="queued"):
    since: float


class Waiting(Fact, frozen=True, tag="waiting"):
    """It cannot go on until somebody gives what it needs."""

    since: float
    needs: tuple[str, ...]


class Preparing(Fact, frozen=True, tag="preparing"):
    since: float
    phase: str = "worktree"


class Starting(Fact, frozen=True, tag="starting"):
    since: float


class Running(Fact, frozen=True, tag="running"):
    started: float
    pid: int


class Stopped(Fact, frozen=True, tag="stopped"):
    started: float
    pid: int
    since: float


class Stopping(Fact, frozen=True, tag="stopping"):
    """It is being ended, or its leader has ended and its tree has not. ``started`` and ``pid`` are None if
    it is not known to have been executed yet."""

    since: float
    started: float | None
    pid: int | None
    why: str
    rungs: tuple[tuple[str, float], ...] = ()
    """The ladder ordered by ``kill``, so that the order can be given again; empty if nobody ordered it."""


class Done(Fact, frozen=True, tag="done"):
    ended: float
    started: float | None
    pid: int | None
    how: Ended
    is_settled: bool = False
    """The work after the completion is done: snapshot taken, unchanged worktree removed."""
    again_at: float | None = None
    """Another attempt follows by itself then."""


class Question(Fact, frozen=True):
    id: str
    text: str
    options: tuple[str, ...] = ()
    since: float = 0.0


class Parked(Fact, frozen=True):
    """Its model cannot be asked until then."""

    why: str
    until: float


class Progress(Fact, frozen=True):
    """What the transcript of an agent that is driven by a model says. Sums are of all attempts; the rest is of the
    last one."""

    offset: int = 0
    """Bytes of the attempt's transcript that have been read."""
    turns: int = 0
    turns_before: int = 0
    """How many of them were earlier attempts'."""
    tokens: int = 0
    cost: float | None = None
    """Dollars; None if the model's rates are unknown."""
    doing: str = ""
    plan: str = ""
    """Its last note."""
    question: Question | None = None
    is_held: bool = False
    """Interrupted: it goes on when it is sent a message."""
    held_since: float = 0.0
    parked: Parked | None = None
    words: str | None = None
    """Its closing words."""

    def again(self) -> "Progress":
        """As the next attempt begins."""
        return Progress(turns=self.turns, turns_before=self.turns, tokens=self.tokens, cost=self.cost)


State = Queued | Waiting | Preparing | Starting | Running | Stopped | Stopping | Done
STATES: tuple[str, ...] = (
    "queued",
    "preparing",
    "starting",
    "running",
    "stopped",
    "waiting",
    "stopping",
    "done",
)


# --- where it works -----------------------------------------------------------------------------------------


class InPlace(Fact, frozen=True, tag="in-place"):
    cwd: str


class Worktree(Fact, frozen=True, tag="worktree"):
    """A git worktree of its own. ``plan`` is :class:`agentd.git.worktree.Plan` as a dict."""

    cwd: str
    repo: str
    path: str
    branch: str
    base: str
    plan: dict[str, object]
    admin: str | None = None
    """The worktree's admin id, once it stands."""
    is_gone: bool = False
    """It was removed because it ended equal to its base."""


Place = InPlace | Worktree


# --- what became of its work --------------------------------------------------------------------------------


class Merged(Fact, frozen=True):
    """Where its work was brought last: the branch ``into`` moved from ``old`` to ``new``, or was there already.

    ``at`` is when that began, so that a move which is told twice, after a crash, is seen to be the same."""

    at: float
    attempt: int
    work: str
    into: str
    old: str
    new: str


# --- on which shelf it lies ---------------------------------------------------------------------------------


class Kept(Fact, frozen=True, tag="kept"):
    """Listed, its files in their place."""


class Removing(Fact, frozen=True, tag="removing"):
    since: float


class Trashed(Fact, frozen=True, tag="trashed"):
    since: float
    entry: dict[str, object]


Shelf = Kept | Removing | Trashed


class Job(Fact, frozen=True):
    id: int
    name: str
    agent: str
    task: str
    argv: tuple[str, ...]
    owner: str
    number: int
    """Its ``%n`` among its owner's jobs."""
    created: float
    place: Place
    state: State
    parent: int | None = None
    depth: int = 1
    attempt: int = 1
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values travel in memory only."""
    has_input: bool = False
    claims: tuple[Want, ...] = ()
    """Locks that it holds before it starts."""
    has_terminal: bool = False
    restart: str = "no"
    tries: int = 0
    """Attempts in a row that came to nothing."""
    notify: str = ""
    """A command that is run when an attempt has ended."""
    key: str = ""
    """The asker's own mark of the request: asked again after a lost answer, it is the same job."""
    result: dict[str, object] | None = None
    progress: Progress | None = None
    """Of an agent with a transcript."""
    merged: Merged | None = None
    shelf: Shelf = Kept()

    @property
    def is_done(self) -> bool:
        return isinstance(self.state, Done)

    @property
    def is_over(self) -> bool:
        """Done, and no attempt follows by itself."""
        return isinstance(self.state, Done) and self.state.again_at is None

    @property
    def is_active(self) -> bool:
        """Counts against the limit of running jobs."""
        return not isinstance(self.state, Queued | Waiting | Done)

    @property
    def pid(self) -> int | None:
        return getattr(self.state, "pid", None)

    @property
    def started(self) -> float | None:
        return getattr(self.state, "started", None)


def state_name(state: State) -> str:
    return str(type(state).__struct_config__.tag)


PARKED = "parked"


def shown_state(job: Job) -> str:
    """The state that people are shown: an agent that runs may wait for an answer, or for its model."""
    name, progress = state_name(job.state), job.progress
    if not isinstance(job.state, Running) or progress is None:
        return name
    if progress.question is not None or progress.is_held:
        return "waiting"
    return PARKED if progress.parked is not None else name


def outcome(exit: dict[str, object], end: dict[str, object]) -> Ended:
    """What the two records of an attempt's end mean. Unknown is never success."""
    order = end.get("order")
    common = {
        "swept": _processes(end.get("swept")),
        "left": _processes(end.get("left")),
        "log_out": _log(end, "out"),
        "log_err": _log(end, "err"),
        "log_whole": bool(end.get("log_whole", True)),
    }
    if isinstance(order, dict) and order.get("rungs"):
        common["order"] = order["rungs"][0][0]
    code, signal, why = exit.get("code"), exit.get("signal"), exit.get("reason")
    assert code is None or isinstance(code, int)
    assert signal is None or isinstance(signal, int)
    if why == "unstarted" and end.get("reason") == "killed":
        return _ended(KILLED, None, None, "killed before it started", common)
    if why == "unstarted":
        errno = exit.get("errno")
        if exit.get("folder"):
            shell_code = EXIT_FAULT
        else:
            shell_code = EXIT_NOT_FOUND if errno in (ENOENT, ENOTDIR) else EXIT_NOT_EXECUTABLE
        return _ended(UNSTARTED, shell_code, None, str(exit.get("error")), common)
    if why == "rebooted":
        return _ended(REBOOTED, None, None, "the machine was restarted while it ran", common)
    if code is None and signal is None:
        return _ended(LOST, None, None, str(why or "unknown"), common)
    ordered = end.get("reason")
    if ordered == "killed":
        return _ended(KILLED, code, signal, "killed", common)
    if ordered == "timed_out":
        limit = order.get("limit") if isinstance(order, dict) else None
        return _ended(TIMED_OUT, code, signal, str(limit or "timeout"), common)
    if ordered == "limited":
        limit = order.get("limit") if isinstance(order, dict) else None
        return _ended(LIMITED, code, signal, str(limit or "budget"), common)
    if exit.get("oom"):
        return _ended(FAILED, code, signal, "out of memory", common)
    return _ended(SUCCEEDED if code == 0 and signal is None else FAILED, code, signal, None, common)


def _ended(name: str, code: int | None, signal: int | None, reason: str | None, common: dict[str, object]) -> Ended:
    return msgspec.convert(
        {"outcome": name, "exit_code": code, "signal": signal, "reason": reason, "kind": "Ended"} | common,
        Ended,
    )


def _processes(value: object) -> tuple[Process, ...]:
    items = value if isinstance(value, list) else []
    return tuple(Process(int(item["pid"]), str(item["command"])) for item in items[:PROCESSES_KEPT])


def _log(end: dict[str, object], stream: str) -> int:
    log = end.get("log")
    return int(log.get(stream, 0)) if isinstance(log, dict) else 0


def wait_code(how: Ended) -> int:
    """The exit code of ``wait`` and ``run`` for an attempt that ended this way."""
    if how.outcome == SUCCEEDED:
        return 0
    if how.outcome == FAILED:
        return how.exit_code or (128 + how.signal if how.signal else EXIT_NO)
    if how.outcome == KILLED:
        if how.signal:
            return 128 + how.signal
        return how.exit_code or 128 + SIGNALS.get(how.order or "KILL", 9)
    if how.outcome in (TIMED_OUT, LIMITED):
        return EXIT_TIMED_OUT
    if how.outcome == UNSTARTED:
        return how.exit_code if how.exit_code is not None else EXIT_FAULT
    return EXIT_FAULT
