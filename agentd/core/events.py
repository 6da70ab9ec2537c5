"""Facts, in the past tense. Each carries its own time: the core has no clock."""

from agentd.core.fact import Fact
from agentd.core.job import Ended, Merged, Progress


class Admitted(Fact, frozen=True):
    """A slot is free for it."""

    at: float


class SecretsLost(Fact, frozen=True):
    """The values it needs died with the processes that held them."""

    at: float
    names: tuple[str, ...]


class SecretsGiven(Fact, frozen=True):
    at: float


class PhaseBegun(Fact, frozen=True):
    """One visible step of making its worktree."""

    at: float
    phase: str


class WorktreeMade(Fact, frozen=True):
    at: float
    admin: str
    copied: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Why something that was asked for is not in it."""


class StartFailed(Fact, frozen=True):
    """No worktree could be made, or no keeper be given the files it needs."""

    at: float
    error: str


class AgentStarted(Fact, frozen=True):
    at: float
    pid: int


class AgentStopped(Fact, frozen=True):
    at: float


class AgentContinued(Fact, frozen=True):
    at: float


class LimitReached(Fact, frozen=True):
    """The keeper is ending it: ``limit`` names the time limit."""

    at: float
    limit: str


class Told(Fact, frozen=True):
    """What a piece of its transcript tells: the type, and data that can be stored."""

    type: str
    data: dict[str, object]


class TranscriptRead(Fact, frozen=True):
    """The transcript of ``attempt`` has been read on from ``start``, to ``progress.offset``."""

    at: float
    attempt: int
    start: int
    progress: Progress
    told: tuple[Told, ...] = ()


class LeaderExited(Fact, frozen=True):
    """Its tree has not ended yet."""

    at: float


class AttemptEnded(Fact, frozen=True):
    at: float
    started: float | None
    pid: int | None
    how: Ended


class KillAsked(Fact, frozen=True):
    at: float
    by: str
    rungs: tuple[tuple[str, float], ...]


class RestartAsked(Fact, frozen=True):
    at: float
    by: str
    needs: tuple[str, ...] = ()


class ResultSettled(Fact, frozen=True):
    """Snapshot taken, diffstat known, an unchanged worktree removed."""

    at: float
    result: dict[str, object]
    is_gone: bool


class WorkMerged(Fact, frozen=True):
    """Its work is in a branch."""

    at: float
    merged: Merged


class RemoveAsked(Fact, frozen=True):
    at: float
    by: str


class RemovedToTrash(Fact, frozen=True):
    at: float
    entry: dict[str, object]


class RestoreAsked(Fact, frozen=True):
    """``admin``: the admin id of the worktree that was put back, which may be a new one."""

    at: float
    by: str
    admin: str | None = None


class RemoveFailed(Fact, frozen=True):
    at: float
    error: str


Event = (
    Admitted
    | SecretsLost
    | SecretsGiven
    | PhaseBegun
    | WorktreeMade
    | StartFailed
    | AgentStarted
    | AgentStopped
    | AgentContinued
    | LimitReached
    | TranscriptRead
    | LeaderExited
    | AttemptEnded
    | KillAsked
    | RestartAsked
    | ResultSettled
    | WorkMerged
    | RemoveAsked
    | RemovedToTrash
    | RemoveFailed
    | RestoreAsked
)
