"""Orders, in the imperative. Each can safely be carried out twice: after a crash it will be."""

from agentd.core.fact import Fact


class PrepareWorktree(Fact, frozen=True):
    """Make the worktree, or complete or roll back a half-made one and make it."""


class LaunchAttempt(Fact, frozen=True):
    """Have the current attempt kept: launched, or looked after if it was. A second keeper finds the first one's
    lock and goes."""


class EndAttempt(Fact, frozen=True):
    """Write the kill order and tell the keeper."""

    rungs: tuple[tuple[str, float], ...]


class AbandonWorktree(Fact, frozen=True):
    """Take back what was made of a worktree that no attempt will use."""


class SettleResult(Fact, frozen=True):
    """Snapshot the work, count it, remove a worktree that ended equal to its base."""


class StartAgain(Fact, frozen=True):
    """Restart the job when it is due."""


class MoveToTrash(Fact, frozen=True):
    """Put the job's folder and worktree into the trash."""


class Reschedule(Fact, frozen=True):
    """A slot may have become free, or a job ready for one."""


Effect = (
    PrepareWorktree
    | LaunchAttempt
    | EndAttempt
    | AbandonWorktree
    | SettleResult
    | StartAgain
    | MoveToTrash
    | Reschedule
)
