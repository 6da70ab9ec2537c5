"""``agentd inbox``: all that waits for a person, whoever delegated it and however deep."""

import time
from typing import Any

from agentd.cli import options, render
from agentd.client import Client


def inbox(
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """List all that waits for you: questions, interrupted agents, missing secrets; with what to type next."""
    with Client() as client:
        found = [entry(job) for job in client.jobs() if job["state"] == "waiting"]
    if json:
        return options.print_json(found)
    if quiet:
        for one in found:
            print(one["job"])
        return
    now, width = time.time(), options.width()
    for one in found:
        print("\n".join(lines(one, now, width)))
    if not found:
        options.say("nothing waits for you")


def entry(job: render.View) -> dict[str, Any]:
    """``why``: ``question``, ``interrupted`` or ``secrets``."""
    id, progress = job["id"], job["progress"] or {}
    question = progress.get("question")
    if question:
        why, next = "question", f"agentd answer {id} {'N' if question['options'] else 'TEXT'}"
    elif progress and not (job["waiting"] or "").startswith("needs "):
        why, next = "interrupted", f"agentd send {id} TEXT"
    else:
        why, next = "secrets", f"agentd restart {id}"
    return {
        "job": id,
        "name": job["name"],
        "parent": job["parent"],
        "owner": job["owner"],
        "since": job["waiting_since"],
        "why": why,
        "text": question["text"] if question else job["waiting"],
        "options": question["options"] if question else [],
        "next": next,
    }


def lines(one: dict[str, Any], now: float, width: int | None) -> list[str]:
    words = {"question": "asks", "interrupted": "is interrupted", "secrets": "needs secrets"}[one["why"]]
    since = render.moment(one["since"])
    told = f"job {one['job']} ({one['name']}) {words}" + (f", for {render.span(now - since)}" if since else "")
    return [told, *render.question_lines(one, "  ", width), f"  {one['next']}"]
