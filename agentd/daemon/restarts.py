"""The next attempt of a job: asked for by a person, or due by its own policy."""

import asyncio
import time

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
    after = machine.step(job, event).job
    await specs.save(performer, after, specs.next_spec(performer, job, after, resume))
    if given and not missing:
        performer.secrets[job.id] = given
        await performer.share_secrets(after)
    return await engine.apply(job.id, event, must=False)


def restart_when_due(engine: Engine, performer: Performer, job: Job) -> None:
    """Begin to wait. After a crash it is begun again: the moment stands in the job."""
    if isinstance(job.state, Done) and job.state.again_at is not None:
        engine.spawn(_restart_at(engine, performer, job.id, job.attempt, job.state.again_at))


async def _restart_at(engine: Engine, performer: Performer, id: int, attempt: int, at: float) -> None:
    while (wait := at - time.time()) > 0:
        await asyncio.sleep(min(wait, 60.0))  # the clock may be set meanwhile
    job = engine.jobs[id]
    if job.attempt != attempt or not isinstance(job.state, Done) or job.state.again_at is None:
        return
    try:
        await restart(engine, performer, job, "policy", {}, resume=True)
    except AgentdError as error:
        await engine.note(id, "job.restart_failed", {"error": error.message})
