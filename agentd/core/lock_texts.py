"""What the lock table's answers say to whoever asked, an agent or a person. Each command in them can be typed as it is.

``at`` is the time of the table's clock; ``clock`` makes a time of day of such a time.
"""

import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise

from agentd.core import patterns
from agentd.core.claims import (
    APPEND,
    MODES,
    PENDING,
    SHARED,
    Blocker,
    Broken,
    Busy,
    Claim,
    Contested,
    Deadlock,
    Granted,
    Holder,
    Name,
    Queued,
    Want,
    Withdrawn,
)
from agentd.core.names import escaped

Clock = Callable[[float], str]
PATHS_SHOWN = 10


# --- words ------------------------------------------------------------------------------------------------------


def holder_text(holder: Holder) -> str:
    label = f' "{escaped(holder.label, 60)}"' if holder.label else ""
    if holder.kind == "job":
        return f"job {escaped(holder.key, 20)}{label}"
    return f"{'the command' if holder.kind == 'command' else 'the user'}{label}"


def name_text(name: Name) -> str:
    return escaped(str(name))


def name_word(name: Name) -> str:
    """The name as a word of a command line, which means it again wherever it is typed."""
    word = f"path:{patterns.typed(name.text)}" if name.kind == "path" else str(name)
    if word.isprintable():
        return shlex.quote(word)
    safe = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _code(c) for c in safe) + "'"


def _code(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 128 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def span(seconds: float) -> str:
    """4m12s; never negative."""
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def held_back(first: Blocker) -> str:
    """What a job that has not started waits for. A claim that is pending falls by a person's deed alone."""
    name, who = name_text(first.name), holder_text(first.holder)
    if first.state == PENDING:
        return f"{name}, until {who} is merged or removed"
    return f"{name}, {'behind' if first.state == 'waiting' else 'held by'} {who}"


# --- texts --------------------------------------------------------------------------------------------------------


def locked(answer: Queued | Busy, at: float, clock: Clock, is_person: bool = False) -> str:
    """It cannot be had now: who has it, and what to do. ``is_person``: the asker may break a claim."""
    first = answer.blockers[0]
    again = f"agentd lock {_words(answer.request.wants if isinstance(answer, Queued) else answer.wants)} --wait"
    lines = [
        f"[agentd:locked] {_who_has_it(first, at, clock)}; {_how_many(answer)}.",
        _no_way_round(first.want.name),
        f"Do one of:  {again} 60s    (wait; you {_place(answer)})",
        f"            {again} 1s     (keeps your place 10 min; work on)",
        f"            agentd locks why {name_word(first.want.name)}",
    ]
    if first.state == PENDING:
        job = escaped(first.holder.key, 20)
        lines[2:2] = [f"Job {job} has ended and its work is neither merged nor removed: you wait for a person."]
        lines += [f"            agentd merge {job}    (frees it, as does: agentd rm {job})"]
    if is_person and first.state != "waiting":
        lines += [f"            agentd locks break {name_word(first.name)} --reason TEXT    (its holder is told)"]
    return "\n".join(lines)


def _words(wants: tuple[Want, ...]) -> str:
    """The names, and the flag that says how they are wanted."""
    names = " ".join(name_word(want.name) for want in wants)
    modes = {want.mode for want in wants}
    return names + (" --shared" if modes == {SHARED} else " --append" if modes == {APPEND} else "")


def _who_has_it(first: Blocker, at: float, clock: Clock) -> str:
    name = escaped(first.want.name.text) if first.want.name.kind == "path" else name_text(first.want.name)
    deed = "was asked for earlier by" if first.state == "waiting" else "is claimed by"
    reason = f' for "{escaped(first.reason, 100)}"' if first.reason else ""
    held = f"{name_text(first.name)}, {MODES[first.mode]}"
    since = f"since {clock(first.since)}, {span(at - first.since)}"
    return f"{name} {deed} {holder_text(first.holder)} ({held}){reason} {since}"


def _how_many(answer: Queued | Busy) -> str:
    holders = {b.holder.id for b in answer.blockers if b.state != "waiting"}
    more = f"{len(holders) - 1} more hold of it; " if len(holders) > 1 else ""
    return f"{more}{answer.position - 1} waiting"


def _place(answer: Queued | Busy) -> str:
    place = ordinal(answer.position)
    return f"are {place}, ticket {answer.request.ticket}" if isinstance(answer, Queued) else f"would be {place}"


def _no_way_round(name: Name) -> str:
    fault = "This is coordination, not a fault."
    if name.kind == "path":
        return f"{fault} Do not write the file through the shell or another tool: the merge gate would send it back."
    return f"{fault} Do not use it all the same: somebody else does."


def granted(fact: Granted, landed: tuple[str, str, str] | None = None) -> str:
    """``landed``: somebody's work on it that the asker's branch has not: who, which commit, in which branch."""
    claims = ", ".join(f"{name_text(claim.name)} (token {claim.token})" for claim in fact.claims)
    text = f"[agentd:granted] {claims}."
    if fact.beside:
        who = ", ".join(dict.fromkeys(holder_text(claim.holder) for claim in fact.beside))
        text += f" {_upper(who)} wrote there and does not block you; the changes are compared at merge."
    if landed is None:
        return text
    who, commit, branch = (escaped(part) for part in landed)
    return (
        f"{text} {_upper(who)} changed it since you began (landed {commit}):\n"
        f"run `git merge {shlex.quote(branch)}` before you edit, or your change will be sent back."
    )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def deadlock(fact: Deadlock) -> str:
    """The whole circle, the asker first."""
    parts = [
        f"{holder_text(edge.waiter)} holds {name_text(before.held)} and waits for {name_text(edge.want.name)}"
        for before, edge in pairwise(fact.cycle)
    ]
    asked, mine = fact.cycle[0].want.name, fact.cycle[-1].held
    you = f"you ({holder_text(fact.holder)}) hold {name_text(mine)} and ask {name_text(asked)}"
    return (
        f"[agentd:deadlock] {'; '.join([you, *parts])}. Refused; nothing lost.\n"
        f"Release one: agentd unlock {name_word(mine)}   - or finish and commit without {name_text(asked)}."
    )


def lost(fact: Broken, clock: Clock) -> str:
    claim = fact.claim
    what = f"your claim on {name_text(claim.name)} (token {claim.token})"
    then = "Keep your work; it is checked again at merge."
    if claim.name.kind != "path":
        then = "Stop using it: somebody else may have it now."
    by, reason = escaped(fact.by, 60), escaped(fact.reason)
    return f'[agentd:lost] {what} was broken by {by} at {clock(fact.at)}: "{reason}". {then}'


def contested(fact: Contested) -> str:
    """To the writer. Nobody is stopped."""
    others = ", ".join(f"{holder_text(other.holder)} ({name_text(other.name)})" for other in fact.others)
    return (
        f"[agentd:contested] you wrote {name_text(fact.claim.name)}, which {others} claimed before you. Go on; the"
        f" changes are compared at merge, and what meets a claim that blocks is sent back.\n"
        f"See:  agentd locks why {name_word(fact.claim.name)}"
    )


def overlap(other: Holder, paths: Sequence[str], verdict: str, conflicts: Sequence[str]) -> str:
    """To an agent that works on one of two sides. Nobody is stopped."""
    if verdict == "conflicting":
        said = (
            f"As they are now the two changes conflict, in {_paths(conflicts)}: the second to be merged will be sent"
            " back. If yours can do without these lines, take them out; else go on, and say so at the end."
        )
    elif verdict == "clean":
        said = "As they are now the two changes merge cleanly. Go on, and change no more than you need."
    else:
        said = "Whether the two changes merge could not be found out."
    return (
        f"[agentd:overlap] {holder_text(other)} changes files that you change: {_paths(paths)}.\n"
        f"This is coordination, not a fault. {said}"
    )


def _paths(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - PATHS_SHOWN} more" if len(paths) > PATHS_SHOWN else ""
    return ", ".join(map(escaped, paths[:PATHS_SHOWN])) + more


def not_yours(claim: Claim, at: float) -> str:
    """To whoever gives back what is somebody else's."""
    whose = (
        f"{name_text(claim.name)} is held by {holder_text(claim.holder)}, since {span(at - claim.since)}, not by you"
    )
    return f"{whose}; to take it away: agentd locks break {name_word(claim.name)} --reason TEXT"


def not_held(name: Name, met: Sequence[Claim]) -> str:
    """To whoever would break a claim that is not there by this name."""
    if not met:
        return f"{name_text(name)} is not held by anybody; agentd locks lists what is"
    claim = met[0]
    return (
        f"nobody holds {name_text(name)} by that name; {holder_text(claim.holder)} holds {name_text(claim.name)}:"
        f" agentd locks break {name_word(claim.name)} --reason TEXT"
    )


def refused_merge(job: str, found: Sequence[tuple[str, Claim]]) -> str:
    """A change that would land in what others have claimed since."""
    path, claim = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    what = f"{escaped(path)}{more}, which {holder_text(claim.holder)} has claimed ({name_text(claim.name)})"
    then = f"agentd locks why {name_word(claim.name)}"
    if claim.holder.kind == "job":
        then = f"agentd merge {escaped(claim.holder.key, 20)} first, or see: {then}"
    return f"cannot merge job {job}: it changes {what}; {then}"


def withdrawn(fact: Withdrawn) -> str:
    why = {
        "given_up": "was given up",
        "expired": "was not asked for in 10 min, and its place is gone",
        "ended": "ended with its holder",
        "impossible": "asks for more than its pool has now",
    }[fact.why]
    text = f"[agentd:expired] ticket {fact.request.ticket} {why}."
    again = f"agentd lock {_words(fact.request.wants)} --wait 60s"
    return f"{text}\nAsk again:  {again}" if fact.why == "expired" else text


def unavailable(socket: str) -> str:
    where = escaped(socket)
    return (
        f"[agentd:unavailable] the lock service did not answer in 1 s (socket {where})."
        " Policy advisory: go on; overlap is checked at merge."
    )
