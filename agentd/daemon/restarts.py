"""The next attempt of a job: asked for by a person, or due by its own policy."""

import asyncio
import time

from agentd import jobdir
from agentd.core import events as on
from agentd.core import machine
from agentd.core.errors import AgentdError
from agentd.core.job import Done, Job
from agentd.daemon import specs
from agentd.daemon.engine import Engine
from agentd.daemon.perform import Performer


async def restart(
    engine: Engine, performer: Performer, job: Job, by: str, environment: dict[str, str], resume: bool
) -> Job:
    """``environment``: where secrets that nobody holds any more are taken from."""
    held = await performer.recall_secrets(job)
    given = {name: value for name, value in (held | environment).items() if name in job.secrets}
    missing = tuple(name for name in job.secrets if name not in given)
    event = on.RestartAsked(time.time(), by, missing)
    begun: list[Job] = []

    async def write_down(after: Job) -> None:
        spec = specs.next_spec(performer, job, after, resume)
        begun.append(after)
        await specs.save(performer, after, spec)

    try:
        async with performer.keeping(machine.step(job, event).job, {} if missing else given):
            done = await engine.apply(job.id, event, must=False, beforehand=write_down)
        performer.let_go(performer.attempt_dir(job))
        return done
    except AgentdError:
        for after in begun:  # else a rebuild would take it for an attempt that waits to be started
            jobdir.remove_quietly(f"{performer.attempt_dir(after)}/spec.json")
        raise


def restart_when_due(engine: Engine, performer: Performer, job: Job) -> None:
    """Begin to wait. After a crash it is begun again: the moment stands in the job."""
    if isinstance(job.state, Done) and job.state.again_at is not None:
        engine.spawn(_restart_at(engine, performer, job.id, job.attempt, job.state.again_at))


async def _restart_at(engine: Engine, performer: Performer, id: int, attempt: int, at: float) -> None:
    while (wait := at - time.time()) > 0:
        await asyncio.sleep(min(wait, 60.0))  # the clock may be set meanwhile
    async with engine.verbs.of(id):
        job = engine.jobs[id]
        if job.attempt != attempt or not isinstance(job.state, Done) or job.state.again_at is None:
            return
        try:
            await restart(engine, performer, job, "policy", {}, resume=True)
        except AgentdError as error:
            await engine.note(id, "job.restart_failed", {"error": error.message})
