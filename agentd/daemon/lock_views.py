"""What is told of locks: views and notices. Pure, but for the time of day."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from agentd.core import lock_texts as texts
from agentd.core.claims import (
    MODES,
    Broken,
    Busy,
    Claim,
    Contested,
    Deadlock,
    Granted,
    Holder,
    LockFact,
    Name,
    Noted,
    Pended,
    Queued,
    Released,
    Resumed,
    Touched,
    Want,
    Withdrawn,
)
from agentd.core.job import Done, InPlace, Job, Kept, Worktree
from agentd.core.machine import Notice


def is_blocking(claim: Claim) -> bool:
    return not claim.is_automatic and not claim.is_contested


def is_barrier(claim: Claim) -> bool:
    return is_blocking(claim) and claim.name.kind in ("path", "file")


def notices(fact: LockFact, about: Callable[[Holder], tuple[int, int, str]]) -> Iterator[Notice]:
    """What is told of a fact. ``about``: job, attempt and owner of a holder."""
    match fact:
        case Granted(holder=holder, claims=claims, ticket=ticket):
            data: dict[str, object] = {"ticket": ticket or None, "claims": [claim_view(one) for one in claims]}
            yield Notice("lock.granted", data, about(holder))
        case Queued(request=request, blockers=blockers):
            data = {"ticket": request.ticket, **asked_view(request.wants)}
            data["for"] = [texts.holder_text(one.holder) for one in blockers[:10]]
            yield Notice("lock.queued", data, about(request.holder))
        case Deadlock(holder=holder, wants=wants):
            yield Notice("lock.deadlock", {**asked_view(wants), "said": texts.deadlock(fact)}, about(holder))
        case Noted(claim=claim):
            yield Notice("lock.noted", claim_view(claim), about(claim.holder))
        case Contested(claim=claim, others=others):
            data = {**claim_view(claim), "others": [texts.holder_text(one.holder) for one in others]}
            yield Notice("lock.contested", data, about(claim.holder))
        case Released(claims=claims, why=why):
            yield Notice("lock.released", {"why": why, **names_view(claims)}, about(claims[0].holder))
        case Pended(claims=claims):
            yield Notice("lock.pending", names_view(claims), about(claims[0].holder))
        case Resumed(claims=claims):
            yield Notice("lock.resumed", names_view(claims), about(claims[0].holder))
        case Broken(claim=claim, token=token, by=by, reason=reason):
            data = {**claim_view(claim), "by": by, "why": reason, "new_token": token}
            yield Notice("lock.broken", data, about(claim.holder))
        case Withdrawn(request=request, why=why):
            kind = "lock.expired" if why == "expired" else "lock.withdrawn"
            data = {"ticket": request.ticket, "why": why, **asked_view(request.wants)}
            yield Notice(kind, data, about(request.holder))
        case Touched() | Busy():
            return


def has_work(job: Job) -> bool:
    """May something of it still land in a branch?"""
    if isinstance(job.place, InPlace) or not isinstance(job.shelf, Kept):
        return False
    if not isinstance(job.state, Done) or not job.state.is_settled:
        return True
    assert isinstance(job.place, Worktree)
    stat = (job.result or {}).get("diffstat")
    return not job.place.is_gone and not (isinstance(stat, dict) and not stat.get("files"))


def claim_view(claim: Claim) -> dict[str, object]:
    return {
        "name": str(claim.name),
        "repo": claim.name.scope,
        "mode": MODES[claim.mode],
        "token": claim.token,
        "state": "contested" if claim.is_contested else claim.state,
        "reason": claim.reason,
    }


def names_view(claims: Iterable[Any]) -> dict[str, object]:
    names = [one.name for one in claims]
    return {"names": [str(name) for name in names], "repo": scope_of(names)}


def asked_view(wants: Iterable[Want]) -> dict[str, object]:
    asked = list(wants)
    return {
        "names": [str(want.name) for want in asked],
        "modes": [MODES[want.mode] for want in asked],
        "repo": scope_of([want.name for want in asked]),
    }


def day_time(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))


def is_person(holder: Holder) -> bool:
    return holder.kind != "job"


def scope_of(names: list[Name]) -> str:
    return next((name.scope for name in names if name.scope), "")
