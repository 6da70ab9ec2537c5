"""``agentd wait JOB…``: until they have ended, and exit as they did."""

from typing import Annotated, Any

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import EXIT_FAULT, EXIT_NO, EXIT_NOT_FOUND, EXIT_TIMED_OUT, AgentdError, NotNow, Refused, Usage

PASSED = ("queued", "preparing", "starting", "running")


def wait(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB…", help="Ids, names, %n, %+, %-.")] = None,
    any: Annotated[bool, typer.Option("-n", "--any", help="Until the first one has; without JOB: of all.")] = False,
    all: Annotated[bool, typer.Option("-a", "--all", help="For all jobs that have not ended.")] = False,
    mine: Annotated[bool, typer.Option("--mine", help="Without JOB: for your own only.")] = False,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Give up after it: 124.")] = None,
    until: Annotated[str, typer.Option("--for", metavar="STATE", help="Until they are in this state.")] = "done",
    fail_any: Annotated[bool, typer.Option("--fail-any", help="Exit as the first one that failed.")] = False,
    is_printing: Annotated[bool, typer.Option("--print", help="Print the id that the code is of.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Wait for jobs. Exits as the job did; of several, as the last one named.

    Without JOB: for those that have not ended when it begins, of everybody, or with --mine your own.

    124: the time is over; 127: there is no such job; 125: how it ended is not known.
    """
    refs: list[Any] = list(jobs or [])
    if refs and all:
        raise Usage("--all goes without JOB: it waits for all jobs; leave one of them out", "usage")
    if refs and mine:
        raise Usage("--mine goes without JOB: it waits for all of your own jobs; leave one of them out", "usage")
    if not refs and not all and not any and not mine:
        raise Usage("wait for what? Name a job, such as: agentd wait 7, or use --mine, --all or --any", "usage")
    seconds = options.seconds("--timeout", timeout)
    with Client() as client:
        if not refs:
            refs = [job["id"] for job in client.jobs(mine=mine)]
            own = own_job()
            refs = [id for id in refs if id != own]
            if not refs:
                return nothing(any, mine, json)
        answer = ask(client, refs, any, until, seconds)
    found = answer["jobs"]
    if answer["timed_out"]:
        raise AgentdError(still_there(found, until, timeout or ""), "wait_timed_out", EXIT_TIMED_OUT)
    if json:
        options.print_json(found)
    decisive = next((job for job in found if code_of(job, until)), found[-1]) if fail_any else found[-1]
    if is_printing:
        print(decisive["id"], flush=True)
    if not quiet and not json:
        for job in found:
            tell(job, until)
    return code_of(decisive, until)


def ask(client: Client, refs: list[Any], any: bool, until: str, seconds: float | None) -> dict[str, Any]:
    try:
        return client.wait(refs, any=any, until=until, timeout=seconds)
    except Refused as error:
        if error.code != "unknown_job":
            raise
        raise Refused(error.message, error.code, EXIT_NOT_FOUND) from None
    except NotNow as error:
        if error.code != "daemon_stopped":
            raise
        what = "the wait was cut off, for the daemon was stopped: this 75 is not the job's; jobs go on, so wait again"
        raise NotNow(what, error.code) from None


def own_job() -> int | None:
    import os

    word = os.environ.get("AGENTD_JOB", "")
    return int(word) if word.isascii() and word.isdigit() else None


def nothing(any: bool, mine: bool, json: bool) -> int:
    if any:
        raise Refused(
            f"there is no job{' of yours' * mine} to wait for; agentd ps --all lists those that have ended",
            "nothing",
            EXIT_NOT_FOUND,
        )
    if json:
        options.print_json([])
    return 0


def still_there(jobs: list[render.View], until: str, timeout: str) -> str:
    known = {job["id"]: job for job in jobs}.values()
    late = [job for job in known if job["state"] != "done" and job["state"] != until]
    names = ", ".join(f"job {job['id']} ({job['name']}) is {job['state']}" for job in late[:5])
    return f"the wait timed out after {render.one_line(timeout, 20)}: {names}" + (", …" if len(late) > 5 else "")


def has_been(job: render.View, state: str) -> bool:
    """Is it in the state, or must it have been on its way to the end?"""
    return job["state"] == state or (job["state"] == "done" and state in PASSED and job["started_at"] is not None)


def code_of(job: render.View, until: str) -> int:
    if until == "done":
        return EXIT_FAULT if job["wait_code"] is None else int(job["wait_code"])
    return 0 if has_been(job, until) else EXIT_NO


def tell(job: render.View, until: str) -> None:
    if until != "done":
        if not has_been(job, until):
            options.say(f"job {job['id']} ({job['name']}) has ended without being {until}")
        return
    for sentence in (render.outcome_sentence(job), render.swept_sentence(job)):
        if sentence:
            options.say(sentence)
