"""What each method of the protocol does: a request in, a result out, an AgentdError when the answer is no."""

import asyncio
import base64
import binascii
import contextlib
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from agentd import __version__, agents, config, jobdir, paths, protocol
from agentd.core import events as on
from agentd.core import machine, names, schedule
from agentd.core.credentials import is_secret
from agentd.core.errors import AgentdError, NotNow, Refused, Usage
from agentd.core.job import (
    PARKED,
    Done,
    InPlace,
    Job,
    Kept,
    Place,
    Progress,
    Queued,
    Running,
    Starting,
    Stopped,
    Trashed,
    Waiting,
    Worktree,
    shown_state,
    state_name,
)
from agentd.core.ladder import ladder
from agentd.core.machine import Notice
from agentd.core.text import decode
from agentd.daemon import inputs, perform, profiles, restarts, specs
from agentd.daemon.engine import Engine
from agentd.daemon.feed import Feed
from agentd.daemon.lock_methods import LockMethods
from agentd.daemon.locking import Locking
from agentd.daemon.merging import Merging
from agentd.daemon.overlaps import Overlaps
from agentd.daemon.pausing import Pausing
from agentd.daemon.perform import Performer
from agentd.daemon.server import Connection
from agentd.daemon.views import event_view, iso, job_view
from agentd.git import repository, snapshot
from agentd.git.plan import Plan
from agentd.git.run import Repo
from agentd.protocol import Request
from agentd.store import Entry

ENDING_SIGNALS = ("HUP", "INT", "QUIT", "TERM", "KILL", "ABRT")
DIRT_PATIENCE_S = 0.015
SMALL_INDEX = 1 << 20
"""Bytes of git's index: some ten thousand files."""
SETTLE_PATIENCE_S = 60.0
KEEPER_PATIENCE_S = 10.0


class Methods(LockMethods):
    def __init__(
        self,
        state_dir: str,
        settings: config.Config,
        engine: Engine,
        performer: Performer,
        locking: Locking,
        feed: Feed,
        stop: Callable[[], None],
        facts: dict[str, Any],
    ) -> None:
        self.state_dir = state_dir
        self.settings = settings
        self.engine = engine
        self.performer = performer
        self.locking = locking
        self.feed = feed
        self.stop = stop
        self.facts = facts
        self.merging = Merging(state_dir, engine, locking)
        self.pausing = Pausing(engine, locking, performer.attempt_dir)
        self.overlaps = Overlaps(engine, locking, performer, self.tell_agent, self.pausing.pause)
        self.next_id = max(engine.jobs, default=0) + 1
        self.names_in_use: set[str] = set()
        """Names of jobs that are being made."""

    async def handle(self, connection: Connection, request: Request) -> Any:
        method = protocol.METHODS[request.method]
        if connection.job is not None and not method.is_narrow:
            raise Refused(f"{request.method} is not allowed for jobs", "not_for_jobs")
        if request.method.startswith("lock."):
            await self.locking.is_ready.wait()
        answer = getattr(self, "do_" + request.method.replace(".", "_"))
        return await cast(Callable[..., Awaitable[Any]], answer)(connection, request.params)

    # --- seeing ---------------------------------------------------------------------------------------------

    async def do_hello(self, _: Connection, __: protocol.Hello) -> dict[str, Any]:
        return {
            "version": __version__,
            "protocol": protocol.VERSION,
            "pid": os.getpid(),
            "state_dir": self.state_dir,
            "epoch": self.engine.store.epoch,
        }

    async def do_jobs_list(self, connection: Connection, ask: protocol.ListJobs) -> dict[str, Any]:
        pool = self.engine.jobs if ask.all else self.engine.jobs.live
        found = [job for job in self.visible(connection, pool) if is_listed(job, ask)]
        ended = [job for job in self.visible(connection, self.engine.jobs) if job.is_done and is_listed(job, ask)]
        return {"jobs": [self.view(job) for job in sorted(found, key=lambda job: job.id)], "ended": len(ended)}

    def view(self, job: Job) -> dict[str, Any]:
        lock = self.locking.waits_for(job)
        view = job_view(job) | {"overlaps": self.overlaps.view(job)}
        return view if lock is None else view | {"waiting": lock}

    def visible(self, connection: Connection, pool: dict[int, Job]) -> list[Job]:
        """All jobs; through a job's own socket itself and what descends from it."""
        if connection.job is None:
            return list(pool.values())
        return [job for job in pool.values() if self.is_of_family(job, connection.job)]

    def is_of_family(self, job: Job | None, ancestor: int) -> bool:
        while job is not None:
            if job.id == ancestor:
                return True
            job = self.engine.jobs.get(job.parent) if job.parent is not None else None
        return False

    def find(self, connection: Connection, ref: names.Ref, owner: str, exact: bool = False) -> Job:
        job = names.find(ref, self.engine.jobs, self.owner_of(connection, owner), exact)
        if connection.job is not None and not self.is_of_family(job, connection.job):
            raise Refused(f"job {job.id} is none of this job's", "not_for_jobs")
        return job

    def owner_of(self, connection: Connection, owner: str) -> str:
        """A job delegates in its own name."""
        return owner if connection.job is None else f"job:{connection.job}"

    async def do_jobs_resolve(self, connection: Connection, ask: protocol.Resolve) -> dict[str, Any]:
        return {"ids": [self.find(connection, ref, ask.owner, ask.exact).id for ref in ask.jobs]}

    async def do_jobs_get(self, connection: Connection, ask: protocol.GetJob) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner)
        home = f"{self.state_dir}/jobs/{job.id}"
        if isinstance(job.shelf, Trashed):
            home = f"{job.shelf.entry['folder']}/job"
        attempts = []
        for number in range(1, job.attempt + 1):
            path = f"{home}/{number}"
            records = {name: jobdir.read(path, f"{name}.json") for name in perform.RECORDS}
            logs = {stream: jobdir.size(path, stream) for stream in jobdir.STREAMS}
            attempts.append({"attempt": number, "path": path, "log": logs, **records})
        spec = jobdir.read(f"{home}/{job.attempt}", "spec.json") or {}
        spec["env"] = sorted(spec.get("env", {}))
        spec.pop("job_doc", None)
        mine = await asyncio.wrap_future(
            self.engine.store.ask(
                lambda db: db.execute(
                    "SELECT seq, at, type, job, attempt, owner, data FROM events"
                    " WHERE job = ? ORDER BY seq DESC LIMIT 100",
                    (job.id,),
                ).fetchall()
            )
        )
        return {
            "job": self.view(job),
            "spec": spec,
            "attempts": attempts,
            "worktree": jobdir.read(home, "worktree.json"),
            "excluded": jobdir.read(home, "excluded.json"),
            "events": [event_view(Entry(*row)) for row in reversed(mine)],
        }

    # --- delegating -----------------------------------------------------------------------------------------

    async def do_jobs_delegate(self, connection: Connection, ask: protocol.Delegate) -> dict[str, Any]:
        if ask.key:
            known = self.engine.jobs.by_key.get(ask.key)
            if known is not None:
                return {
                    "job": job_view(self.engine.jobs[known]),
                    "excluded": None,
                    "is_tree_known": True,
                    "base_ref": None,
                    "snapshot": None,
                }
        parent = self.engine.jobs.get(connection.job) if connection.job is not None else None
        if ask.name is not None:
            names.check_name(ask.name)
        kind = agents.kind(ask.agent)
        argv = kind.argv(ask.task, ask.argv)
        check_words(argv, ask)
        if ask.restart not in schedule.RESTARTS:
            raise Usage(
                f'there is no restart policy "{names.escaped(ask.restart)}"; there is: no, on-failure', "bad_restart"
            )
        if ask.notify and connection.job is not None:
            raise Refused("a job may not name a command to be run beside it; leave notify out", "not_for_jobs")
        depth = schedule.depth_below(parent)
        jobs = self.engine.jobs
        schedule.refuse_when_full(len(jobs.queued) + len(jobs.waiting), self.settings.limits.queued)
        if self.engine.store.trouble is not None:
            raise NotNow(
                f"cannot delegate: changes cannot be saved now ({self.engine.store.trouble});"
                " free some disk space and try again",
                "disk_full",
            )
        name = self.reserve_name(ask, argv)
        try:
            return await self.delegate(connection, ask, argv, name, parent, depth)
        finally:
            self.names_in_use.discard(name)

    def is_taken(self, name: str) -> bool:
        return name in self.names_in_use or name in self.engine.jobs.by_name

    def reserve_name(self, ask: protocol.Delegate, argv: tuple[str, ...]) -> str:
        if ask.name is None:
            label = ask.task or os.path.basename(argv[0])
            name = names.name_for(label, self.is_taken)
        else:
            name = ask.name
            holder = self.engine.jobs.named(name)
            if holder is not None:
                raise Refused(
                    f'the name "{name}" is taken by job {holder.id} ({state_name(holder.state)});'
                    f" choose another, or: agentd rm {'' if holder.is_done else '-f '}{holder.id}",
                    "name_taken",
                )
            if name in self.names_in_use:
                raise Refused(f'the name "{name}" is being taken by another job; choose another', "name_taken")
        self.names_in_use.add(name)
        return name

    async def delegate(
        self,
        connection: Connection,
        ask: protocol.Delegate,
        argv: tuple[str, ...],
        name: str,
        parent: Job | None,
        depth: int,
    ) -> dict[str, Any]:
        settled, dirt, taken = None, None, None
        if not ask.in_place:
            settled = await self.performer.in_prompt_thread(repository.settle, ask.cwd, ask.base)
            if not ask.with_changes and is_soon_looked_at(settled.repo):
                dirt = asyncio.ensure_future(self.performer.in_prompt_thread(look_for_dirt, settled.repo))
        elif not os.path.isdir(ask.cwd):
            raise Refused(
                f"cannot run in {names.escaped(ask.cwd)}: there is no such folder; make it, or name another",
                "no_folder",
            )
        claims = await self.claims_asked(ask, parent)
        id, self.next_id = self.next_id, self.next_id + 1
        place: Place = InPlace(ask.cwd)
        cwd, command, setup = ask.cwd, argv, ""
        tree = ask.cwd
        if settled is not None:
            base = settled.base
            if ask.with_changes:
                limit = config.parse_size(self.settings.worktree.max_snapshot)
                taken = await self.performer.in_thread(snapshot.snapshot_calling_tree, settled.repo, id, limit)
                base = taken or base
            path = paths.worktree_dir(self.state_dir, settled.repo.common, id, name)
            branch = f"{self.settings.worktree.branch_prefix}/{id}/{name}"
            plan = Plan(settled.repo, id, branch, path, base, f"agentd job {id}")
            top = settled.repo.top or settled.repo.common
            cwd, tree = os.path.join(path, settled.subdir).rstrip("/"), path
            place = Worktree(ask.cwd, top, path, branch, base, plan=msgspec.to_builtins(plan))
            setup = self.settings.worktree.setup or config.repository_setup(settled.repo.top)
        profile = profiles.resolve(self.settings, ask) if ask.agent == "builtin" else None
        if profile is not None and parent is not None and parent.progress is not None:
            ask = await self.with_credential_of(parent, ask, profile)
        if profile is not None:
            profiles.refuse_without_key(profile, ask.environment)
        if setup and profile is None:
            command = with_setup(setup, argv)
        more = () if profile is None else profiles.granted(self.settings, profile)
        environment, hidden = self.split_environment(ask, more)
        owner = self.owner_of(connection, ask.owner)
        job = Job(
            id=id,
            name=name,
            agent=ask.agent,
            task=ask.task,
            argv=argv,
            owner=owner,
            number=names.next_number(self.engine.jobs.live.values(), owner),
            created=time.time(),
            place=place,
            state=Queued(time.time()),
            parent=parent.id if parent else None,
            depth=depth,
            secrets=tuple(sorted(hidden)),
            has_input=ask.input and ask.tty is None,
            has_terminal=ask.tty is not None,
            key=ask.key,
            restart=ask.restart,
            notify=ask.notify or (self.settings.notify.command if connection.job is None else ""),
            claims=claims,
            progress=None if profile is None else Progress(),
        )
        if ask.log_max is None:
            ask = msgspec.structs.replace(ask, log_max=config.parse_size(self.settings.log.max))
        spec = specs.spec(self.performer, job, ask, list(command), cwd, environment)
        if profile is not None:
            spec |= profiles.spec_of(self.settings, profile, ask, self.state_dir, tree, setup)
        await specs.save(self.performer, job, spec)
        is_named = connection.job is None and bool(owner) and not owner.startswith("session:")
        if is_named and owner not in self.feed.subscribers and is_reader_name(owner):
            await self.feed.subscriber(owner)
        created: dict[str, object] = {"name": name, "task": ask.task, "argv": list(argv), "agent": ask.agent}
        self.locking.hold_back(job)
        async with self.performer.keeping(job, hidden):
            await self.engine.add(job, [Notice("job.created", created), Notice("job.queued", {})])
        if claims:
            await self.locking.is_ready.wait()
            await self.locking.claim_for(job)
        view = self.view(self.engine.jobs[id])
        is_tree_known = dirt is not None and await is_done_in_time(dirt)
        return {
            "job": view,
            "excluded": dirt.result() if dirt is not None and is_tree_known else None,
            "is_tree_known": is_tree_known or ask.in_place or ask.with_changes,
            "base_ref": settled.ref if settled is not None else None,
            "snapshot": taken,
        }

    async def with_credential_of(
        self, parent: Job, ask: protocol.Delegate, profile: config.Profile
    ) -> protocol.Delegate:
        """An agent hands on a task: its tools do not see its key and its endpoint, so they come from here."""
        known = (jobdir.read(self.performer.attempt_dir(parent), "spec.json") or {}).get("env", {})
        known |= await self.performer.recall_secrets(parent)
        names = (profile.key_env, agents.builtin.ENDPOINT)
        inherited = {name: known[name] for name in names if name in known and name not in ask.environment}
        return msgspec.structs.replace(ask, environment=ask.environment | inherited)

    def split_environment(self, ask: protocol.Delegate, more: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
        """What may be written down, and what travels in memory only. ``more``: variables that are granted."""
        given = agents.kind(ask.agent).environment(ask.environment, more)
        listed = {*self.settings.secrets.names, *ask.secrets}
        hidden = {n: v for n, v in given.items() if n in listed or is_secret(n)}
        return {name: value for name, value in given.items() if name not in hidden}, hidden

    # --- waiting --------------------------------------------------------------------------------------------

    async def do_jobs_wait(self, connection: Connection, ask: protocol.Wait) -> dict[str, Any]:
        if ask.all:
            ids = [job.id for job in self.visible(connection, self.engine.jobs.live) if not is_own(connection, job)]
        else:
            ids = [self.find(connection, ref, ask.owner).id for ref in ask.jobs]
        states = (*machine.TABLE, PARKED)
        if ask.until not in states:
            raise Usage(
                f'--for: no state "{names.escaped(ask.until)}"; there are {", ".join(states)}',
                "bad_state",
            )
        is_timely = await self.wait_until(lambda: self.has_come(ids, ask), ids, ask.timeout)
        jobs = [self.engine.jobs[id] for id in ids]
        if ask.any and is_timely:
            jobs = [job for job in jobs if has_reached(job, ask.until)][:1]
        return {"timed_out": not is_timely, "jobs": [job_view(job) for job in jobs]}

    def has_come(self, ids: list[int], ask: protocol.Wait) -> bool:
        reached = [has_reached(self.engine.jobs[id], ask.until) for id in ids]
        return (any(reached) or not reached) if ask.any else all(reached)

    async def wait_until(self, is_so: Callable[[], bool], ids: list[int], timeout: float | None) -> bool:
        """Subscribe, then look: False when the time is over first."""
        changed = asyncio.Event()
        for id in ids:
            self.feed.waiters[id].add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not is_so():
                    await changed.wait()
                    changed.clear()
            return True
        except TimeoutError:
            return False
        finally:
            for id in ids:
                self.feed.waiters[id].discard(changed)
                if not self.feed.waiters[id]:
                    del self.feed.waiters[id]

    async def started(self, job: Job) -> None:
        """Wait for the keeper of a job that is just being started."""
        await self.wait_until(
            lambda: not isinstance(self.engine.jobs[job.id].state, Starting), [job.id], KEEPER_PATIENCE_S
        )

    async def settled(self, job: Job) -> None:
        """Wait for the work that follows a completion."""

        def is_settled() -> bool:
            state = self.engine.jobs[job.id].state
            return not isinstance(state, Done) or state.is_settled

        await self.wait_until(is_settled, [job.id], SETTLE_PATIENCE_S)

    # --- acting on a job ------------------------------------------------------------------------------------

    async def do_jobs_kill(self, connection: Connection, ask: protocol.Kill) -> dict[str, Any]:
        jobs = [self.find(connection, ref, ask.owner, exact=True) for ref in ask.jobs]
        name = signal_name(ask.signal) if ask.signal is not None else None
        if ask.grace is not None and not 0 <= ask.grace < 1e9:
            raise Usage("the grace must be 0 seconds or more", "bad_time")
        for job in jobs:
            if name is not None and name not in ENDING_SIGNALS:
                await self.signal(job, name)
            else:
                await self.end(job, "user", ladder(name, ask.grace))
        return {"jobs": [job_view(self.engine.jobs[job.id]) for job in jobs]}

    async def end(self, job: Job, by: str, rungs: tuple[tuple[str, float], ...]) -> None:
        try:
            await self.engine.apply(job.id, on.KillAsked(time.time(), by, rungs), must=False)
        except NotNow:
            # A full disk: the order stands in the attempt's own file, and whoever frees the disk may need just this.
            if job.pid is None:
                raise
            self.performer.end(self.engine.jobs[job.id], rungs)

    async def signal(self, job: Job, name: str) -> None:
        if job.pid is None or job.is_done:
            raise Refused(
                f"cannot signal job {job.id}: it is {state_name(job.state)}; agentd ps lists those that run",
                "not_running",
            )
        await self.order(job, {"signal": name})

    async def order(self, job: Job, order: dict[str, object]) -> None:
        path = self.performer.attempt_dir(job)
        answer = await asyncio.to_thread(jobdir.ask_keeper, path, order, KEEPER_PATIENCE_S)
        if answer is None:
            raise NotNow(f"cannot signal job {job.id} now: its keeper does not answer; try again", "keeper_busy")
        if not answer.get("ok"):
            raise Refused(
                f"cannot signal job {job.id}: it has just ended; what came of it: agentd result {job.id}",
                "already_ended",
            )
        await self.pausing.by_person(job, str(order.get("signal") or ("STOP" if "stop" in order else "CONT")))

    async def do_jobs_stop(self, connection: Connection, ask: protocol.Suspend) -> dict[str, Any]:
        return await self.suspend(connection, ask, {"stop": True}, Running, Stopped)

    async def do_jobs_cont(self, connection: Connection, ask: protocol.Suspend) -> dict[str, Any]:
        return await self.suspend(connection, ask, {"cont": True}, Stopped, Running)

    async def suspend(
        self, connection: Connection, ask: protocol.Suspend, order: dict[str, object], before: type, after: type
    ) -> dict[str, Any]:
        """``changed``: those that were not in that state already."""
        jobs = [self.find(connection, ref, ask.owner) for ref in ask.jobs]
        changed = []
        for job in jobs:
            await self.started(job)
            await self.performer.look(job.id)  # it may have been stopped past us
            state = self.engine.jobs[job.id].state
            if isinstance(state, after):
                await self.pausing.by_person(job, "STOP" if after is Stopped else "CONT")
                continue
            if isinstance(state, Done):
                raise ended_already(job)
            if not isinstance(state, before):
                raise Refused(f"job {job.id} is {state_name(state)}, not {state_word(before)}", "wrong_state")
            await self.order(job, order)
            await self.performer.look(job.id)
            changed.append(job.id)
        return {"jobs": [job_view(self.engine.jobs[job.id]) for job in jobs], "changed": changed}

    async def do_jobs_send(self, connection: Connection, ask: protocol.Send) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner)
        if job.progress is not None:
            return await self.tell_runner(job, "message", ask.data)
        if job.has_terminal:
            raise Refused(f"job {job.id} has a terminal; to type there: agentd attach {job.id}", "has_terminal")
        if not job.has_input:
            raise Refused(
                f"job {job.id} takes no input: it was not started with -i; start one that does: agentd run -d -i CMD",
                "no_input",
            )
        if job.is_done:
            raise ended_already(job)
        path = self.performer.attempt_dir(job)
        if os.path.exists(f"{path}/stdin.eof"):
            raise Refused(
                f"the input of job {job.id} has been closed; what it makes of it: agentd logs -f {job.id}",
                "input_closed",
            )
        try:
            data = base64.b64decode(ask.data, validate=True) if ask.binary else ask.data.encode()
        except (binascii.Error, UnicodeEncodeError):
            raise Usage("data is not base64", "bad_data") from None
        async with self.engine.locks.of(job.id):
            try:
                await asyncio.to_thread(append_input, path, data, ask.eof)
            except OSError as error:
                raise NotNow(
                    f"cannot queue input for job {job.id}: {error.strerror}; free some disk space, and repeat it",
                    "disk_full",
                ) from None
        jobdir.tell_keeper(path, {"input": True})
        return {"queued": len(data), "eof": ask.eof}

    async def do_jobs_answer(self, connection: Connection, ask: protocol.Answer) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner)
        if job.is_done:
            raise ended_already(job)
        question = job.progress.question if job.progress is not None else None
        if question is None or (ask.question and ask.question != question.id):
            raise Refused(
                f"job {job.id} asks nothing just now; to tell it something: agentd send {job.id} TEXT", "no_question"
            )
        return await self.tell_runner(job, "answer", ask.text, question.id)

    async def do_jobs_interrupt(self, connection: Connection, ask: protocol.Interrupt) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner, exact=True)
        if job.progress is None:
            raise Refused(f"job {job.id} is a command; to signal it: agentd kill -s INT {job.id}", "no_runner")
        return await self.tell_runner(job, "interrupt", ask.text)

    async def tell_runner(self, job: Job, kind: str, text: str, question: str | None = None) -> dict[str, Any]:
        """Appended to a file first: it outlives every death. The runner gives receipts in its transcript."""
        if job.is_done:
            raise ended_already(job)
        path = self.performer.attempt_dir(job)
        async with self.engine.locks.of(job.id):
            try:
                number = await asyncio.to_thread(inputs.append, path, kind, text, question)
            except OSError as error:
                raise NotNow(
                    f"cannot queue input for job {job.id}: {error.strerror}; free some disk space, and repeat it",
                    "disk_full",
                ) from None
        await self.engine.note(job.id, "job.input", {"n": number, "state": "queued", "kind": kind})
        inputs.nudge(path)
        return {"n": number, "state": "queued"}

    async def tell_agent(self, job: Job, text: str) -> None:
        """What it should know, and need not: its end, or a full disk, is no reason to fail."""
        with contextlib.suppress(AgentdError):
            await self.tell_runner(job, "notice", text)

    async def do_jobs_restart(self, connection: Connection, ask: protocol.Restart) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner)
        if isinstance(job.state, Waiting):
            return await self.give_secrets(job, ask.environment)
        if ask.resume and job.progress is None:
            raise Refused(
                f"job {job.id} is a command, which has no conversation to go on with;"
                f" to run it again: agentd restart {job.id}",
                "no_runner",
            )
        async with self.engine.verbs.of(job.id):
            await self.settled(job)
            job = self.engine.jobs[job.id]
            resume = ask.resume or job.restart != "no"
            done = await restarts.restart(self.engine, self.performer, job, "user", ask.environment, resume)
        return {"job": job_view(done)}

    async def give_secrets(self, job: Job, environment: dict[str, str]) -> dict[str, Any]:
        missing = [name for name in job.secrets if name not in environment]
        if missing:
            raise Refused(
                f"job {job.id} needs {', '.join(missing)};"
                f" set it in the environment and repeat: agentd restart {job.id}",
                "needs_secret",
            )
        async with self.performer.keeping(job, {name: environment[name] for name in job.secrets}):
            return {"job": job_view(await self.engine.apply(job.id, on.SecretsGiven(time.time())))}

    async def do_jobs_result(self, connection: Connection, ask: protocol.Result) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner)
        await self.settled(job)
        return {"result": await self.merging.result(self.engine.jobs[job.id])}

    async def do_jobs_diff(self, connection: Connection, ask: protocol.Diff) -> dict[str, Any]:
        if ask.offset < 0 or (ask.work is not None and not repository.SHA.fullmatch(ask.work)):
            raise Usage("offset and work must be those of an earlier answer", "bad_offset")
        return await self.merging.diff(self.find(connection, ask.job, ask.owner), ask)

    async def do_jobs_merge(self, connection: Connection, ask: protocol.Merge) -> dict[str, Any]:
        if not os.path.isabs(ask.cwd) or "\0" in ask.cwd:
            raise Usage("cwd must be an absolute path", "bad_cwd")
        check_umask(ask.umask)
        job = self.find(connection, ask.job, ask.owner, exact=True)
        await self.settled(job)
        return await self.merging.merge(job.id, ask)

    async def do_jobs_remove(self, connection: Connection, ask: protocol.Remove) -> dict[str, Any]:
        job = self.find(connection, ask.job, ask.owner, exact=True)
        async with self.engine.verbs.of(job.id):
            await self.settled(job)
            await self.engine.apply(job.id, on.RemoveAsked(time.time(), "user"), must=False)
            await self.wait_until(
                lambda: isinstance(self.engine.jobs[job.id].shelf, Kept | Trashed), [job.id], SETTLE_PATIENCE_S
            )
        job = self.engine.jobs[job.id]
        if isinstance(job.shelf, Kept):
            raise Refused(f"cannot remove job {job.id}: {await self.why_not_removed(job)}", "not_removed")
        return {"job": job_view(job)}

    async def why_not_removed(self, job: Job) -> str:
        row = await asyncio.wrap_future(
            self.engine.store.ask(
                lambda db: db.execute(
                    "SELECT data FROM events WHERE job = ? AND type = 'job.remove_failed' ORDER BY seq DESC LIMIT 1",
                    (job.id,),
                ).fetchone()
            )
        )
        return str(decode(row[0])["error"]) if row else "it takes too long"

    async def do_jobs_undo(self, connection: Connection, ask: protocol.Undo) -> dict[str, Any]:
        shelved = [job for job in self.engine.jobs.values() if isinstance(job.shelf, Trashed)]
        if ask.job is None:
            return {"trash": [job_view(job) for job in shelved], "days": self.settings.trash.days}
        id = self.find(connection, ask.job, ask.owner).id
        async with self.engine.verbs.of(id):
            return {"job": job_view(await self.undo(self.engine.jobs[id]))}

    async def undo(self, job: Job) -> Job:
        machine.step(job, on.RestoreAsked(time.time(), "user"))
        holder = self.engine.jobs.named(job.name)
        if holder is not None:
            raise Refused(
                f'cannot put job {job.id} back: the name "{job.name}" is taken by job {holder.id}; remove that first',
                "name_taken",
            )
        assert isinstance(job.shelf, Trashed)
        admin = await self.performer.restore(job, job.shelf.entry)
        return await self.engine.apply(job.id, on.RestoreAsked(time.time(), "user", admin))

    async def do_profiles_list(self, _: Connection, __: protocol.Nothing) -> dict[str, Any]:
        return {"profiles": profiles.listed(self.settings)}

    # --- events ---------------------------------------------------------------------------------------------

    async def do_events_subscribe(self, connection: Connection, ask: protocol.Subscribe) -> dict[str, Any]:
        if ask.name is not None:
            if not is_reader_name(ask.name):
                raise Usage(
                    f'no reader may be called "{names.escaped(ask.name)}": 1-100 printable characters',
                    "bad_name",
                )
            reader = await self.feed.subscriber(ask.name, since=ask.since)
            cursor = reader.acked
        else:
            cursor = self.feed.newest if ask.since is None else ask.since
        newest = self.feed.newest
        if ask.follow:
            task = asyncio.ensure_future(self.start_feeding(connection, ask.mine, cursor))
            connection.tasks.add(task)
            task.add_done_callback(connection.on_task_done)
            return {"cursor": cursor, "newest": newest}
        while cursor < newest:
            page = await asyncio.wrap_future(self.engine.store.events(cursor, 500, ask.mine))
            for entry in page:
                if entry.seq > newest or not connection.send(protocol.notification("event", event_view(entry))):
                    break
            await connection.drained()
            if not page or page[-1].seq >= newest:
                break
            cursor = page[-1].seq
        return {"cursor": cursor, "newest": newest}

    async def start_feeding(self, connection: Connection, owner: str, cursor: int) -> None:
        await asyncio.sleep(0)  # the answer goes out before the first event
        await connection.subscribe(owner, cursor)

    async def do_events_ack(self, _: Connection, ask: protocol.Ack) -> dict[str, Any]:
        reader = await self.feed.ack(ask.name, ask.seq)
        return {"name": reader.name, "acked": reader.acked}

    async def do_events_forget(self, _: Connection, ask: protocol.ForgetReader) -> dict[str, Any]:
        if ask.name not in self.feed.subscribers:
            others = ", ".join(names.escaped(name) for name in sorted(self.feed.subscribers)) or "none"
            raise Refused(f'there is no reader "{names.escaped(ask.name)}"; there are: {others}', "no_such_reader")
        gone = await self.feed.retire(ask.name)
        return {"name": gone.name, "acked": gone.acked}

    # --- the daemon -----------------------------------------------------------------------------------------

    async def do_daemon_status(self, _: Connection, __: protocol.Nothing) -> dict[str, Any]:
        counts = dict.fromkeys((*machine.TABLE, PARKED), 0)
        for job in self.engine.jobs.values():
            if isinstance(job.shelf, Kept):
                counts[shown_state(job)] += 1
        return {
            **self.facts,
            "version": __version__,
            "pid": os.getpid(),
            "state_dir": self.state_dir,
            "jobs": counts,
            "zygote": self.performer.zygotes[jobdir.PLAIN].pid,
            "epoch": self.engine.store.epoch,
            "newest_seq": self.feed.newest,
            "trouble": self.engine.store.trouble,
            "subscribers": [
                {"name": one.name, "acked": one.acked, "used_at": iso(one.used)}
                for one in self.feed.subscribers.values()
            ],
        }

    async def do_daemon_doctor(self, _: Connection, __: protocol.Nothing) -> dict[str, Any]:
        return {"cgroup": self.performer.cgroup, "trouble": self.engine.store.trouble}

    async def do_daemon_stop(self, connection: Connection, ask: protocol.StopDaemon) -> dict[str, Any]:
        ids = list(self.engine.jobs.live) if ask.kill_jobs else []
        if ask.kill_jobs:
            for id in ids:
                with contextlib.suppress(AgentdError):
                    await self.engine.apply(id, on.KillAsked(time.time(), "daemon stop", ladder(None, None)))
            await self.wait_until(lambda: all(self.engine.jobs[id].is_done for id in ids), ids, 60.0)
        connection.has_asked_to_stop = True
        if not ask.handover:
            connection.server.say_stopping()
        asyncio.get_running_loop().call_soon(self.stop)
        return {"jobs": len(self.engine.jobs.live), "killed": sum(self.engine.jobs[id].is_done for id in ids)}


# --- small things -------------------------------------------------------------------------------------------


def check_words(argv: tuple[str, ...], ask: protocol.Delegate) -> None:
    if not argv[0]:
        raise Usage("the command's first word is empty: name a program", "bad_command")
    if "\0" in ask.task:
        raise Usage("the task holds a NUL character", "bad_task")
    if any("\0" in word for word in argv):
        raise Usage("the command holds a NUL character, which no program can be given", "bad_command")
    if not os.path.isabs(ask.cwd) or "\0" in ask.cwd:
        raise Usage("cwd must be an absolute path", "bad_cwd")
    if any("\0" in text for pair in ask.environment.items() for text in pair):
        raise Usage("the environment holds a NUL character", "bad_environment")
    for name in ask.limits:
        if not name.startswith("RLIMIT_") or not hasattr(resource, name):
            raise Usage(f'limits: there is no limit "{names.escaped(name, 80)}"', "bad_limit")
    check_umask(ask.umask)
    if ask.tty is not None and not all(0 < side < 1 << 16 for side in ask.tty):
        raise Usage("tty: rows and columns must be from 1 to 65535", "bad_size")
    if ask.tty is not None and ask.agent != "command":
        raise Usage(f"a terminal is for a command, and the {ask.agent} agent has no use for one", "bad_agent")
    for text in (ask.owner, ask.key):
        if not is_utf8(text):
            raise Usage("owner and key must be text that UTF-8 can hold", "bad_owner")
    for limit in (ask.timeout, ask.idle_timeout):
        if limit is not None and not 0 < limit < 1e9:
            raise Usage("a time limit must be more than 0 seconds", "bad_time")
    for size in (ask.memory, ask.processes, ask.log_max):
        if size is not None and size < 0:
            raise Usage("a limit must not be negative", "bad_size")


def is_listed(job: Job, ask: protocol.ListJobs) -> bool:
    return isinstance(job.shelf, Kept) and (ask.owner is None or job.owner == ask.owner)


def check_umask(mask: int) -> None:
    if not 0 <= mask <= 0o777:
        raise Usage("umask must be from 0 to 511 (octal 777)", "bad_umask")


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_reader_name(name: str) -> bool:
    return 0 < len(name) <= 100 and name.isprintable()


def has_reached(job: Job, state: str) -> bool:
    return shown_state(job) == state or job.is_over


def ended_already(job: Job) -> Refused:
    return Refused(f"job {job.id} has already ended; what came of it: agentd result {job.id}", "already_ended")


def state_word(state: type) -> str:
    return "stopped" if state is Stopped else "running"


def is_own(connection: Connection, job: Job) -> bool:
    return connection.job == job.id


def signal_name(text: str) -> str:
    """``TERM`` of ``TERM``, ``sigterm`` or ``15``."""
    word = text.upper().removeprefix("SIG")
    try:
        number = signal.Signals(int(word)) if word.isascii() and word.isdigit() else signal.Signals[f"SIG{word}"]
    except (ValueError, KeyError):
        raise Usage(f'there is no signal "{names.escaped(text)}"; agentd kill -l lists them', "bad_signal") from None
    return number.name.removeprefix("SIG")


def with_setup(setup: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """Run the set-up command first, in the attempt itself: its output is in the log, its limits are the job's."""
    script = (
        f"{setup}\n"
        "agentd_status=$?\n"
        'if [ "$agentd_status" -ne 0 ]; then\n'
        '  echo "agentd: the set-up command failed with code $agentd_status" >&2; exit "$agentd_status"\n'
        'fi\nexec "$@"'
    )
    return ("/bin/sh", "-c", script, "agentd-setup", *argv)


def append_input(path: str, data: bytes, eof: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(f"{path}/stdin", flags, 0o600)
    try:
        jobdir.write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    if eof:
        jobdir.write(path, "stdin.eof", {})


def is_soon_looked_at(repo: Repo) -> bool:
    """Of a large tree it is told later, by an event: nobody at a prompt waits for a look at 50,000 files."""
    with contextlib.suppress(OSError):
        return os.stat(f"{repo.git_dir}/index").st_size < SMALL_INDEX
    return True


def look_for_dirt(repo: Repo) -> dict[str, object] | None:
    """What of the user's tree the job will not have; None if nothing, or if it cannot be told."""
    with contextlib.suppress(Exception):
        found = snapshot.dirt(repo)
        if found.modified or found.untracked:
            return {
                "modified": found.modified,
                "untracked": found.untracked,
                "examples": list(found.examples),
            }
    return None


async def is_done_in_time(work: "asyncio.Future[dict[str, object] | None]") -> bool:
    done, _ = await asyncio.wait([work], timeout=DIRT_PATIENCE_S)
    return bool(done)
