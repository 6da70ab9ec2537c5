"""``agentd fg``, ``bg``, ``stop``, ``cont``: as a shell has them."""

from typing import Annotated, Any

import typer

from agentd.cli import options, render
from agentd.cli.foreground import Foreground
from agentd.cli.several import Answers, ask_each, conclude
from agentd.client import Client
from agentd.core.errors import Refused, Usage

CURRENT = "%+"
Jobs = Annotated[list[str] | None, typer.Argument(metavar="JOB…", help="Ids, names, %n, %+, %-.")]


def fg(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Its id, its name, or %n, %-; else %+.")] = CURRENT,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Bring a job to the foreground, and let it go on if it is stopped.

    Exits as the job did. Ctrl-Z stops it (148), Ctrl-B lets it run on, and both give the prompt back.
    """
    options.refuse_json("fg", json)
    with Client() as client:
        found = client.job(job)["job"]
        if found["state"] == "done":
            raise Refused(
                f"job {found['id']} has already ended; what it wrote: agentd logs {found['id']}", "already_ended"
            )
        if found["tty"]:
            options.terminal_size(True, is_here=True)
        options.tell(render.command_of(found))
        return Foreground(client, quiet).take_up(found)


def bg(
    jobs: Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Let stopped jobs go on in the background; without JOB the current one."""
    with Client() as client:
        answers = ask_each(jobs or [CURRENT], lambda ref: resumed(client, ref))
    if not quiet and not json:
        for one in answers.values():
            if isinstance(one, dict):
                print(f"[{one['number']}]+ {render.command_of(one)} &")
    return conclude(answers, json)


def resumed(client: Client, ref: str) -> render.View:
    answer = client.ask("jobs.cont", jobs=[ref], owner=client.owner)
    job: render.View = answer["jobs"][0]
    if not answer["changed"]:
        raise Refused(f"job {job['id']} is not stopped: it is {job['state']}", "wrong_state")
    return job


def stop(
    jobs: Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Stop jobs with all their processes, until cont, bg or fg. Time limits wait meanwhile."""
    return suspend("jobs.stop", "stop", "stopped", jobs, json, quiet)


def cont(
    jobs: Jobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Let stopped jobs go on."""
    return suspend("jobs.cont", "cont", "running", jobs, json, quiet)


def suspend(method: str, verb: str, state: str, jobs: list[str] | None, json: bool, quiet: bool) -> int:
    if not jobs:
        raise Usage(f"{verb} what? Name a job, such as: agentd {verb} 7; agentd ps lists them", "usage")
    unchanged: list[int] = []

    def ask(ref: str) -> dict[str, Any]:
        answer = client.ask(method, jobs=[ref], owner=client.owner)
        one: dict[str, Any] = answer["jobs"][0]
        if not answer["changed"]:
            unchanged.append(one["id"])
        return one

    with Client() as client:
        answers: Answers = ask_each(jobs, ask)
    if not quiet and not json:
        for id in unchanged:
            options.say(f"job {id} is {state} already")
    return conclude(answers, json)
