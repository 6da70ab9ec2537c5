"""What somebody is told who writes, or is about to write, what others claim: who has it, and what to do instead."""

import shlex
from collections.abc import Iterable

from agentd.core import patterns
from agentd.core.claims import MODES, Claim, Holder
from agentd.core.names import escaped

NO_FAULT = "This is coordination, not a fault."
PATHS_SHOWN = 10


def who(holder: Holder) -> str:
    if holder.kind == "job":
        return f'job {holder.key} "{escaped(holder.label)}"'
    if holder.kind == "command":
        return f"{escaped(holder.label or 'a command', 80)} (pid {holder.pid})"
    return escaped(holder.key, 80)


def locked(path: str, claim: Claim, waiting: int, before: int, since: str, now: float) -> str:
    """``path``: as the asker wrote it, for commands that are typed there; ``waiting``: others, of whom so many are
    ``before`` the asker; ``since``: the time of day."""
    shown, typed = escaped(path), shlex.quote(patterns.typed(path))
    mode = MODES[claim.mode]
    queue = f"; {waiting} waiting" if waiting else ""
    place = ordinal(before + 1)
    lines = [
        f"[agentd:locked] {shown} is claimed by {who(claim.holder)} ({escaped(str(claim.name))}, {mode}) since {since},"
        f" {span(now - claim.since)}{queue}." + (f' It says: "{escaped(claim.reason, 200)}".' if claim.reason else ""),
        f"{NO_FAULT} Do not write the file through the shell or another tool: the merge would send it back.",
    ]
    if claim.state == "pending":
        lines.append(f"Job {claim.holder.key} has ended, and its work is not merged yet: a person merges or drops it.")
    lines += [
        f"Do one of:  agentd lock {typed} --wait 60s    (wait; you would be {place})",
        f"            agentd lock {typed} --wait 1s     (keeps your place 10 min; work on another file meanwhile)",
    ]
    return "\n".join(lines)


def overlap(other: Holder, paths: Iterable[str], verdict: str, conflicts: Iterable[str]) -> str:
    """For an agent that works on one of two sides."""
    listed = names(paths)
    if verdict == "conflicting":
        said = (
            f"The two changes conflict as they are now, in {names(conflicts)}: the second to be merged will be sent"
            " back. If yours can do without these lines, take them out; otherwise go on, and say so at the end."
        )
    elif verdict == "clean":
        said = "As they are now the two changes merge cleanly. Go on; keep your change to what you need."
    else:
        said = "Whether the two changes merge could not be found out."
    return f"[agentd:overlap] {who(other)} changes files that you change: {listed}.\n{NO_FAULT} {said}"


def names(paths: Iterable[str]) -> str:
    listed = list(paths)
    more = f" and {len(listed) - PATHS_SHOWN} more" if len(listed) > PATHS_SHOWN else ""
    return ", ".join(map(escaped, listed[:PATHS_SHOWN])) + more


def ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
