"""What people are told of locks."""

from collections.abc import Iterable

from agentd.core.claims import Blocker, Busy, Claim, Deadlock, Holder, Queued
from agentd.core.job import Job


def who(holder: Holder) -> str:
    if holder.kind == "job":
        return f"job {holder.key} ({holder.label})"
    if holder.kind == "command":
        return f"{holder.label or 'a command'} (pid {holder.pid})"
    return holder.key


def held(blockers: Iterable[Blocker], now: float) -> str:
    return "; ".join(f"{b.name} held by {who(b.holder)} since {now - b.since:.0f}s ({b.state})" for b in blockers)


def deadlock(refused: Deadlock) -> str:
    circle = "; ".join(
        f"{who(e.waiter)} wants {e.want.name}, held by {who(e.blocker)} ({e.held})" for e in refused.cycle
    )
    return f"deadlock: {circle}"


def busy(refused: Busy, now: float) -> str:
    return f"locked: {held(refused.blockers, now)}"


def timed_out(queued: Queued, now: float) -> str:
    return f"still locked, ticket {queued.request.ticket}: {held(queued.blockers, now)}"


def not_yours(claim: Claim, now: float) -> str:
    return f"{claim.name} is held by {who(claim.holder)} since {now - claim.since:.0f}s, not by you"


def lost(claims: Iterable[Claim], reason: str, now: float) -> str:
    return f"you lost {', '.join(str(claim.name) for claim in claims)}: {reason}"


def contested(job: Job, path: str, claim: Claim, count: int, now: float) -> str:
    return f"cannot merge job {job.id}: {path} is claimed by {who(claim.holder)} ({claim.name}); {count} in all"
