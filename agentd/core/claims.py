"""The words of the lock table: names, holders, claims, requests, and the facts it tells.

All values are frozen and can be stored. A time is seconds of whatever clock the caller keeps, always the same one.

A *claim* is one granted (name, mode) of a holder, with a token. A *request* is a set of wants, granted all or
nothing. A claim is known by its holder's identity and its name, a request by its ticket.
"""

from typing import Any, Literal

import msgspec

from agentd.core.fact import Fact

Kind = Literal["path", "res", "file", "integrate"]
Mode = Literal["X", "S", "A"]
EXCLUSIVE: Mode = "X"
SHARED: Mode = "S"
APPEND: Mode = "A"
MODES = {"X": "exclusive", "S": "shared", "A": "append"}

State = Literal["active", "pending"]
ACTIVE: State = "active"
PENDING: State = "pending"
"""Its job has ended and the work is neither merged nor dropped. It blocks as an active one does."""


class Name(msgspec.Struct, frozen=True, order=True):
    """What is locked. ``scope``: the repository's fingerprint for path and integrate, empty for res and file."""

    kind: Kind
    scope: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}"


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who holds or asks. Only kind and key say who it is; the rest is for showing.

    ``job``: key is the job's id. ``command``: ``agentd lock … -- CMD``, key is the wrapper's own. ``session``: a
    person's lock without a command, key is the owner."""

    kind: Literal["job", "command", "session"]
    key: str
    label: str = ""
    attempt: int | None = None
    pid: int | None = None

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("a holder without a key: two of them would be one")

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.key}"


class Want(msgspec.Struct, frozen=True, order=True):
    """``res:gpu`` with a pool of that name wants any one slot of it; said twice, two."""

    name: Name
    mode: Mode = EXCLUSIVE


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Name
    mode: Mode
    holder: Holder
    token: int
    """From one rising sequence, never used twice; 0: contested, somebody else's claim was there first."""
    since: float
    state: State = ACTIVE
    reason: str = ""
    is_automatic: bool = False
    """Made by a write that was seen. It blocks nobody; all others do."""

    @property
    def key(self) -> tuple[str, Name]:
        return self.holder.id, self.name

    @property
    def is_contested(self) -> bool:
        return self.token == 0


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A set of wants that waits in the queue."""

    ticket: int
    holder: Holder
    wants: tuple[Want, ...]
    since: float
    asked: float
    """When it was last asked for: its ticket is good for :data:`agentd.core.locks.TICKET_S` from then on."""
    reason: str = ""
    passes: tuple[int, ...] = ()
    """Tickets before it which it need not wait for, since they wait for its holder."""


class Blocker(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands before a want: a claim, or the want of a request that came earlier (``ticket``)."""

    want: Want
    holder: Holder
    name: Name
    mode: Mode
    since: float
    state: State | Literal["waiting"]
    token: int = 0
    ticket: int = 0
    reason: str = ""


class Edge(msgspec.Struct, frozen=True, omit_defaults=True):
    """``waiter`` asks for ``want`` and waits for ``blocker``, which holds ``held``; or, ``ticket`` given, which asked
    for ``held`` earlier."""

    waiter: Holder
    want: Want
    blocker: Holder
    held: Name
    ticket: int = 0


# --- facts ----------------------------------------------------------------------------------------------------


class Granted(Fact, frozen=True):
    """All wants of the request are held: ``claims``, in the order of the wants."""

    at: float
    holder: Holder
    claims: tuple[Claim, ...]
    ticket: int = 0
    """The request that leaves the queue with it; 0 if it was granted when asked."""
    is_new: bool = True
    """False: all of it was held before, with these tokens."""
    beside: tuple[Claim, ...] = ()
    """Automatic claims of others on the same names: they have written there."""


class Queued(Fact, frozen=True):
    at: float
    request: Request
    position: int
    """1: nobody before it in the queue, it waits for holders alone."""
    blockers: tuple[Blocker, ...]
    """Holders first. Of the requests before it, the first :data:`agentd.core.lockbook.BLOCKERS_SHOWN`."""


class Busy(Fact, frozen=True):
    """It would have to wait, and was not to. Changes nothing."""

    at: float
    wants: tuple[Want, ...]
    position: int
    blockers: tuple[Blocker, ...]


class Deadlock(Fact, frozen=True):
    """Refused: ``cycle`` begins and ends with its holder. Everything that was held is held."""

    at: float
    holder: Holder
    wants: tuple[Want, ...]
    cycle: tuple[Edge, ...]
    ticket: int = 0
    """The request that leaves the queue with it; 0 if it was refused when asked."""


class Noted(Fact, frozen=True):
    """A write that was seen made an automatic claim."""

    at: float
    claim: Claim


class Contested(Fact, frozen=True):
    """A write that was seen met the claims of others."""

    at: float
    claim: Claim
    others: tuple[Claim, ...]


class Released(Fact, frozen=True):
    at: float
    claims: tuple[Claim, ...]
    why: Literal["unlocked", "ended", "landed", "dropped"]


class Pended(Fact, frozen=True):
    """The job is over, its path claims stay until its work is merged or dropped."""

    at: float
    claims: tuple[Claim, ...]


class Resumed(Fact, frozen=True):
    """The job goes on, and so its pending claims are active."""

    at: float
    claims: tuple[Claim, ...]


class Broken(Fact, frozen=True):
    """``claim`` was taken away by somebody who may; ``token`` is the number of this deed."""

    at: float
    claim: Claim
    token: int
    by: str
    reason: str


class Withdrawn(Fact, frozen=True):
    at: float
    request: Request
    why: Literal["given_up", "expired", "ended", "impossible"]
    """``impossible``: its pool has become too small."""


class Touched(Fact, frozen=True):
    """The request is asked for still, or may now pass others; its place is the same."""

    at: float
    request: Request


Answer = Granted | Queued | Busy | Deadlock
LockFact = Answer | Noted | Contested | Released | Pended | Resumed | Broken | Withdrawn | Touched
ClaimKey = tuple[str, Name]


class Changes(msgspec.Struct):
    """What facts change in what is stored: the new value of each, None if it is gone."""

    claims: dict[ClaimKey, Claim | None] = {}
    requests: dict[int, Request | None] = {}


def changes(facts: tuple[LockFact, ...]) -> Changes:
    """To be stored in one transaction, with the table's last token and last ticket."""
    found = Changes()
    for fact in facts:
        match fact:
            case Granted(claims=claims, ticket=ticket):
                found.claims.update((claim.key, claim) for claim in claims)
                if ticket:
                    found.requests[ticket] = None
            case Pended(claims=claims) | Resumed(claims=claims):
                found.claims.update((claim.key, claim) for claim in claims)
            case Noted(claim=claim) | Contested(claim=claim):
                found.claims[claim.key] = claim
            case Released(claims=claims):
                found.claims.update((claim.key, None) for claim in claims)
            case Broken(claim=claim):
                found.claims[claim.key] = None
            case Queued(request=request) | Touched(request=request):
                found.requests[request.ticket] = request
            case Withdrawn(request=request):
                found.requests[request.ticket] = None
            case Deadlock(ticket=ticket) if ticket:
                found.requests[ticket] = None
    return found


def as_json(fact: LockFact) -> Any:
    """For ``--json`` and events: plain values, the fact's name under ``kind``."""
    return msgspec.to_builtins(fact)
