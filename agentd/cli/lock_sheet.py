"""Locks as people read them: pure."""

from collections.abc import Iterator
from typing import Any

from agentd.cli import render

COLUMNS = ("NAME", "MODE", "HOLDER", "STATE", "SINCE", "QUEUE", "TOKEN", "ENFORCED", "REASON")


def table(answer: dict[str, Any], width: int | None) -> Iterator[str]:
    """The claims, and under them who waits."""
    rows = [row(claim) for claim in answer["claims"]]
    if rows:
        yield from render.table(COLUMNS, rows, width)
    elif not answer["waiting"]:
        yield "no locks"
    for one in answer["waiting"]:
        wants = ", ".join(f"{want['name']} ({want['mode']})" for want in one["wants"])
        holders = ", ".join(one["for"]) or "its turn"
        who = one["holder"]["said"]
        yield render.one_line(f"waiting: {who} for {wants}, held by {holders} (ticket {one['ticket']})")


def row(claim: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        render.one_line(text)
        for text in (
            claim["name"],
            claim["mode"],
            claim["holder"]["said"],
            claim["state"],
            render.span(claim["seconds"]),
            str(len(claim["queue"])),
            str(claim["token"] or "-"),
            ",".join(claim["enforced"]) or "advisory",
            claim["reason"] or ("first write" if claim["automatic"] else ""),
        )
    )


def explained(answer: dict[str, Any]) -> Iterator[str]:
    name = render.one_line(answer["name"])
    if not answer["claims"]:
        yield f"{name} is free"
    for claim in answer["claims"]:
        how = "wrote to" if claim["automatic"] else "holds"
        reason = f": {claim['reason']}" if claim["reason"] else ""
        since = render.span(claim["seconds"])
        yield render.one_line(
            f"{claim['holder']['said']} {how} {claim['name']} ({claim['mode']}, {claim['state']}) since {since}{reason}"
        )
        yield f"  enforced by: {', '.join(claim['enforced']) or 'nothing, it is a hint'}"
        if claim["state"] == "pending" and claim["holder"]["job"]:
            id = claim["holder"]["job"]
            yield f"  it ends when the job's work is merged or dropped: agentd merge {id}, or: agentd rm {id}"
    for one in answer["waiting"]:
        yield render.one_line(f"{one['holder']['said']} waits for it, ticket {one['ticket']}, since {one['since']}")


def told(event: dict[str, Any]) -> str:
    data = event["data"]
    names = data.get("names") or [one["name"] for one in data.get("claims", ())] or [data.get("name", "")]
    who = f"job {event['job']}" if event["job"] else (event.get("owner") or "a person")
    more = data.get("why") or data.get("said") or data.get("reason") or ""
    what = event["type"].removeprefix("lock.")
    return render.one_line(f"{event['at']}  {what:<10} {who}: {', '.join(names)}{' - ' if more else ''}{more}")
