"""Locks as people read them: pure."""

from collections.abc import Iterator
from typing import Any

from agentd.cli import render

COLUMNS = ("NAME", "MODE", "HOLDER", "STATE", "SINCE", "QUEUE", "TOKEN", "ENFORCED", "REASON")


def table(answer: dict[str, Any], width: int | None, me: str = "") -> Iterator[str]:
    """The claims, and under them who waits. Where the table is too wide, each claim has lines of its own."""
    lines = render.table(COLUMNS, [row(claim, me) for claim in answer["claims"]], width)
    if not answer["claims"]:
        yield from () if answer["waiting"] else ("no locks",)
    elif width is None or max(map(render.columns_of, lines)) <= width:
        yield from lines
    else:
        for claim in answer["claims"]:
            yield from stacked(claim, me)
    for one in answer["waiting"]:
        wants = ", ".join(f"{want['name']} ({want['mode']})" for want in one["wants"])
        others = f"behind {', '.join(one['for'])}" if one["for"] else "next"
        who = whose(one["holder"], me)
        yield render.one_line(f"waiting: {who} for {wants}, {others} (ticket {one['ticket']})")


def whose(holder: dict[str, Any], me: str) -> str:
    return "you" if holder["kind"] == "session" and holder["owner"] == me else str(holder["said"])


def row(claim: dict[str, Any], me: str) -> tuple[str, ...]:
    return tuple(
        render.one_line(text)
        for text in (
            claim["name"],
            claim["mode"],
            whose(claim["holder"], me),
            claim["state"],
            render.span(claim["seconds"]),
            str(len(claim["queue"])),
            str(claim["token"] or "-"),
            ",".join(claim["enforced"]) or "advisory",
            why_held(claim),
        )
    )


def why_held(claim: dict[str, Any]) -> str:
    return claim["reason"] or ("first write" if claim["automatic"] else "")


def stacked(claim: dict[str, Any], me: str) -> Iterator[str]:
    reason = f": {why_held(claim)}" if why_held(claim) else ""
    yield render.one_line(claim["name"])
    yield "  " + render.one_line(f"{whose(claim['holder'], me)}{reason}")
    facts = [claim["mode"], claim["state"], render.span(claim["seconds"]), enforced_words(claim)]
    yield "  " + ", ".join(facts) + (f", {len(claim['queue'])} waiting" if claim["queue"] else "")


def enforced_words(claim: dict[str, Any]) -> str:
    return f"enforced by {' and '.join(claim['enforced']) or 'nothing, it is a hint'}"


def explained(answer: dict[str, Any], me: str = "") -> Iterator[str]:
    name = render.one_line(answer["name"])
    if not answer["claims"]:
        yield f"{name} is not held yet" if answer["waiting"] else f"{name} is free"
    for claim in answer["claims"]:
        who = whose(claim["holder"], me)
        how = "wrote to" if claim["automatic"] else "hold" if who == "you" else "holds"
        reason = f": {claim['reason']}" if claim["reason"] else ""
        since = render.span(claim["seconds"])
        yield render.one_line(f"{who} {how} {claim['name']} ({claim['mode']}, {claim['state']}) since {since}{reason}")
        yield f"  {enforced_words(claim)}"
        if claim["state"] == "pending" and claim["holder"]["job"]:
            id = claim["holder"]["job"]
            yield f"  it ends when the job's work is merged or dropped: agentd merge {id}, or: agentd rm {id}"
    for one in answer["waiting"]:
        who = "you wait" if whose(one["holder"], me) == "you" else f"{one['holder']['said']} waits"
        yield render.one_line(f"{who} for it since {render.span(one['seconds'])}, ticket {one['ticket']}")


def told(event: dict[str, Any]) -> str:
    data = event["data"]
    names = data.get("names") or [one["name"] for one in data.get("claims", ())] or [data.get("name", "")]
    who = f"job {event['job']}" if event["job"] else f'the user "{event["owner"]}"' if event["owner"] else "a person"
    more = data.get("why") or data.get("said") or data.get("reason") or ""
    more = f"by {data['by']}: {more}" if data.get("by") else more
    what = event["type"].removeprefix("lock.")
    return render.one_line(f"{event['at']}  {what:<10} {who}: {', '.join(names)}{' - ' if more else ''}{more}")
