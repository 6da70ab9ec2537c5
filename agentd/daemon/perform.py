"""Carrying out effects: the daemon's hands. Each order may come twice, and must then do no harm.

What is done for one job is done in order (the engine sees to it). Git runs in worker threads; all else is quick.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msgspec.structs import replace

from agentd import agents, jobdir, paths, process, zygote
from agentd.config import Config
from agentd.core import effects as do
from agentd.core import events as on
from agentd.core import recovery
from agentd.core.errors import AgentdError, Refused
from agentd.core.job import (
    Done,
    Job,
    Preparing,
    Progress,
    Removing,
    Running,
    Starting,
    Stopped,
    Stopping,
    Trashed,
    Worktree,
    outcome,
)
from agentd.core.names import escaped
from agentd.daemon import transcripts
from agentd.daemon.engine import Engine
from agentd.daemon.nudges import Nudge
from agentd.daemon.zygotes import ZygoteLost, Zygotes
from agentd.git import fill, fingerprint, snapshot, trash, unchanged, worktree
from agentd.git.plan import Plan, plan_from, tree_of
from agentd.git.run import GitFailed, umask

T = TypeVar("T")
GIT_THREADS = 4
NICENESS = 5
PATHS_TOLD = 50
RECORDS = ("end", "exit", "kill", "agent")
"""Read the last to be written first: who sees a record then sees all that were written before it."""


class Performer:
    def __init__(self, state_dir: str, config: Config) -> None:
        self.state_dir = state_dir
        self.config = config
        self.engine: Engine
        self.zygotes: dict[str, Zygotes]
        self.listen_for: Callable[[Job], None]
        """Open a job's own narrow socket."""
        self.start_again: Callable[[Job], None]
        self.stop_listening_for: Callable[[str], None]
        self.stop_watching: Callable[[Job], Awaitable[None]]
        """Nobody but its own is in the job's worktree when this returns."""
        self.threads = ThreadPoolExecutor(GIT_THREADS, thread_name_prefix="git", initializer=be_nice)
        """Their gits give way to whatever somebody at a prompt waits for."""
        self.prompt_threads = ThreadPoolExecutor(GIT_THREADS, thread_name_prefix="prompt")
        """For the one git call that somebody at a prompt waits for: it queues behind no checkout."""
        self.secrets: dict[int, dict[str, str]] = {}
        """Values of jobs that have not started: in memory only."""
        self.escrow: dict[str, dict[str, int]] = {}
        """Descriptors whose loss would lose something, by attempt: the zygote has copies."""
        self.held: set[str] = set()
        """Attempts for which a zygote holds secrets, also those that a daemon before us gave it."""
        self.cgroup = self._make_cgroup()

    async def perform(self, job: Job, effect: do.Effect) -> None:
        match effect:
            case do.PrepareWorktree():
                await self.prepare(job)
            case do.LaunchAttempt():
                await self.launch(job)
            case do.EndAttempt(rungs):
                self.end(job, rungs)
            case do.AbandonWorktree():
                await self.abandon(job)
            case do.SettleResult():
                await self.settle(job)
            case do.StartAgain():
                self.start_again(job)
            case do.MoveToTrash():
                await self.move_to_trash(job)
            case do.Reschedule():
                self.engine.reschedule()

    async def in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    async def in_prompt_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.prompt_threads, call, *arguments)

    def zygotes_of(self, job: Job) -> Zygotes:
        return self.zygotes[agents.zygote_of(job.agent)]

    @property
    def holder(self) -> Zygotes:
        return self.zygotes[jobdir.PLAIN]

    def attempt_dir(self, job: Job) -> str:
        return paths.attempt_dir(self.state_dir, job.id, job.attempt)

    def _make_cgroup(self) -> str | None:
        home = process.cgroup_home()
        if home is None:
            return None
        path = f"{home}/agentd-{paths.state_mark(self.state_dir)}"
        try:
            os.makedirs(path, exist_ok=True)
        except OSError:
            return None
        return path

    # --- the worktree ---------------------------------------------------------------------------------------

    async def prepare(self, job: Job) -> None:
        """Add, check out, fill; each a visible phase. Half-made things of a crash are completed or taken back."""
        if not isinstance(job.place, Worktree) or not isinstance(job.state, Preparing):
            return
        plan = plan_of(job)
        try:
            made = await self._prepare(job, plan)
        except (AgentdError, GitFailed, OSError) as error:
            with contextlib.suppress(AgentdError, GitFailed, OSError):
                await self.in_thread(worktree.rollback, plan)
            await self.engine.apply(job.id, on.StartFailed(time.time(), sentence_of(error)))
            return
        if made is not None:
            await self.engine.apply(job.id, made)

    async def _prepare(self, job: Job, plan: Plan) -> on.WorktreeMade | None:
        spec = jobdir.read(self.attempt_dir(job), "spec.json") or {}
        folder, has_changes = job_dir(self.state_dir, job), bool(spec.get("with_changes"))
        _, excluded, admin = await all_of(
            self.in_thread(note_repository, folder, plan, 1),
            self.in_thread(note_excluded, folder, plan, has_changes),
            self.in_thread(recover_or_check, plan),
        )
        if excluded:
            await self.engine.note(job.id, "worktree.excludes", excluded)
        ignored = None
        if admin is None:
            admin = await self.in_thread(worktree.add, plan)
            if not await self._begin(job, "checkout"):
                return None
            ignored, _ = await all_of(
                self.in_thread(fill.ignored_folders, plan.repo),
                self.in_thread(checkout, plan, admin, spec.get("umask", 0o077)),
            )
        if not await self._begin(job, "fill"):
            return None
        await self.in_thread(note_own_commands, job_dir(self.state_dir, job), plan, admin)
        filled = await self.in_thread(fill.fill, plan, admin, plan.repo.top, fill.MAX_BYTES, ignored)
        record = {"admin": admin, **dataclasses.asdict(filled)}
        await self.in_thread(jobdir.write, job_dir(self.state_dir, job), "worktree.json", record)
        return on.WorktreeMade(time.time(), admin, filled.copied, shown(filled.linked), filled.missing, filled.notes)

    async def _begin(self, job: Job, phase: str) -> bool:
        """Say which phase begins; False if the job was ended meanwhile."""
        now = await self.engine.apply(job.id, on.PhaseBegun(time.time(), phase))
        return isinstance(now.state, Preparing)

    async def abandon(self, job: Job) -> None:
        if isinstance(job.place, Worktree):
            await self.in_thread(worktree.rollback, plan_of(job))

    # --- the attempt ----------------------------------------------------------------------------------------

    async def launch(self, job: Job) -> None:
        """Have a keeper forked. It finds out by itself whether there is anything left to launch."""
        path = self.attempt_dir(job)
        if os.path.exists(f"{path}/agent.json") or os.path.exists(f"{path}/end.json"):
            return await self.watch(job)
        fds: dict[str, int] = {}
        try:
            spec = self.completed_spec(job, path)
            if not spec:
                await self.engine.apply(job.id, on.StartFailed(time.time(), f"{path}/spec.json is gone"))
                return
            if job.attempt > 1 and isinstance(job.place, Worktree):
                with contextlib.suppress(AgentdError, GitFailed):
                    await self.in_thread(note_repository, job_dir(self.state_dir, job), plan_of(job), job.attempt)
            if not self.has_secrets(job):
                await self.engine.apply(job.id, on.SecretsLost(time.time(), job.secrets))
                return
            if job.id in self.secrets:
                fds["secrets"] = memory_file(self.secrets[job.id])
            elif job.secrets and self.zygotes_of(job) is not self.holder:
                fds |= await self.held_secrets(path)
            jobdir.preallocate(path)
            self.listen_for(job)
            wanted = {"stdin": bool(spec.get("stdin")), "tty": spec.get("tty")}
            answer, got = await self.zygotes_of(job).ask("launch", fds, path=path, **wanted)
        except OSError as error:
            await self.engine.apply(job.id, on.StartFailed(time.time(), sentence_of(error)))
            return
        except ZygoteLost:
            why = f"cannot start the {job.agent} agent: its process ends at once; see {self.state_dir}/daemon.log"
            await self.engine.apply(job.id, on.StartFailed(time.time(), why))
            return
        finally:
            for fd in fds.values():
                os.close(fd)
        self.hold(path, got)
        self.let_go_if_over(job)
        if "error" in answer:
            await self.engine.apply(job.id, on.StartFailed(time.time(), f"cannot start a keeper: {answer['error']}"))

    def completed_spec(self, job: Job, path: str) -> dict[str, Any]:
        """The spec, with what is known only now that the worktree stands: the folder, and what is not in it."""
        spec = jobdir.read(path, "spec.json") or {}
        if not isinstance(job.place, Worktree) or not spec:
            return spec
        before = json.dumps(spec)
        if not os.path.isdir(spec["cwd"]):
            spec["cwd"] = job.place.path  # the calling folder is not in the base
        excluded = jobdir.read(job_dir(self.state_dir, job), "excluded.json")
        if excluded and (excluded["modified"] or excluded["untracked"]):
            spec["env"]["AGENTD_EXCLUDED"] = (
                f"{excluded['modified']} modified and {excluded['untracked']} untracked files of {job.place.repo}"
                f" are not in this worktree: {', '.join(map(escaped, excluded['examples']))}"
            )
        if json.dumps(spec) != before:
            jobdir.write(path, "spec.json", spec)
        return spec

    def has_secrets(self, job: Job) -> bool:
        return not job.secrets or job.id in self.secrets or self.attempt_dir(job) in self.held

    @contextlib.asynccontextmanager
    async def keeping(self, job: Job, values: dict[str, str]) -> AsyncIterator[None]:
        """Hold its secrets, and let them go if what it is asked for within fails."""
        if not values:
            yield
            return
        self.secrets[job.id] = values
        try:
            await self.share_secrets(job)
            yield
        except BaseException:
            self.secrets.pop(job.id, None)
            self.let_go(self.attempt_dir(job))
            raise

    async def share_secrets(self, job: Job) -> None:
        """A zygote holds them too, the one that is always there: a job that has not started outlives the daemon."""
        fd = memory_file(self.secrets[job.id])
        self.held.add(self.attempt_dir(job))
        try:
            await self.holder.ask("hold", {"secrets": fd}, path=self.attempt_dir(job))
        finally:
            os.close(fd)

    async def held_secrets(self, path: str) -> dict[str, int]:
        _, held = await self.holder.ask("escrow", path=path)
        for name in [name for name in held if name != "secrets"]:
            os.close(held.pop(name))
        return held

    async def recall_secrets(self, job: Job) -> dict[str, str]:
        """What is still held for a job that may start again by itself."""
        if job.id in self.secrets or self.attempt_dir(job) not in self.held:
            return self.secrets.get(job.id, {})
        fd = (await self.held_secrets(self.attempt_dir(job))).get("secrets")
        if fd is None:
            return {}
        try:
            return dict(json.loads(os.pread(fd, os.fstat(fd).st_size, 0)))
        finally:
            os.close(fd)

    def forget_secrets(self, job: Job) -> None:
        """It has them, or needs them no more. Of an agent that works we remember them, for what it hands on."""
        if job.restart != "no" and not job.is_over:
            return
        if job.progress is None or job.is_over:
            self.secrets.pop(job.id, None)
        self.let_go(self.attempt_dir(job))

    def still_needs(self, job: Job) -> bool:
        """Would it be lost to the job itself, if its secrets were?"""
        return job.id in self.secrets and (job.started is None or job.restart != "no")

    def let_go(self, path: str) -> None:
        """A zygote that holds secrets does not end."""
        if path in self.held:
            self.held.discard(path)
            self.engine.spawn(self.release_secrets(path))

    async def release_secrets(self, path: str) -> None:
        with contextlib.suppress(ZygoteLost):
            await self.holder.ask("release", path=path, names=["secrets"])

    async def let_go_of_strangers(self) -> None:
        """What a zygote holds for attempts that came to nothing (their daemon died before it had saved them), and for
        jobs that are over."""
        for path in sorted(self.held):
            head, id, attempt = path.rsplit("/", 2)
            job = self.engine.jobs.get(int(id)) if head == f"{self.state_dir}/jobs" else None
            if job is None or job.attempt != int(attempt) or job.is_over:
                self.held.discard(path)
                await self.release_secrets(path)

    async def watch(self, job: Job) -> None:
        """Have an attempt that was launched looked after, by a zygote that may not be its keeper's parent."""
        path = self.attempt_dir(job)
        if not os.path.isdir(path):
            return
        self.listen_for(job)
        held = dict(self.escrow.get(path, {}))
        if self.still_needs(job):
            held["secrets"] = memory_file(self.secrets[job.id])
        await self.zygotes_of(job).ask("watch", held, path=path)
        if "secrets" in held:
            os.close(held["secrets"])
        if jobdir.STREAMS[0] not in self.escrow.get(path, {}):
            _, got = await self.zygotes_of(job).ask("escrow", path=path)
            self.hold(path, got)
        self.hold_leader(path)
        self.let_go_if_over(job)

    def let_go_if_over(self, job: Job) -> None:
        """It may have ended, and been let go of, before we were told of its descriptors."""
        now = self.engine.jobs.live.get(job.id)
        if now is None or now.attempt != job.attempt:
            self.release(self.attempt_dir(job))
            self.stop_listening_for(self.attempt_dir(job))

    def hold(self, path: str, fds: dict[str, int]) -> None:
        mine = self.escrow.setdefault(path, {})
        for name, fd in fds.items():
            if name in mine or name in ("secrets", "stdin_read"):
                os.close(fd)
            else:
                mine[name] = fd

    def hold_leader(self, path: str) -> None:
        """Keep a pidfd of the agent: if keeper and zygote both die, its exit status is read through it."""
        agent = jobdir.read(path, "agent.json")
        mine = self.escrow.get(path)
        if agent is not None and mine is not None:
            zygote.hold_leader(mine, agent["agent"])

    def take_leader(self, job: Job, pidfd: int) -> None:
        """A keeper sent it, before it lets its agent go: of the fork that runs now, whichever we had."""
        mine = self.escrow.setdefault(self.attempt_dir(job), {})
        if "leader" in mine:
            os.close(mine["leader"])
        mine["leader"] = pidfd

    # --- nudges ---------------------------------------------------------------------------------------------

    def on_nudge(self, nudge: Nudge, pidfd: int | None) -> None:
        job = self.engine.jobs.live.get(nudge.job)
        if job is None or job.attempt != nudge.attempt:
            if pidfd is not None:
                os.close(pidfd)
        elif pidfd is not None:
            self.take_leader(job, pidfd)  # it says no more than that
        else:
            self.engine.spawn(self.follow_nudge(job, nudge))

    async def follow_nudge(self, job: Job, nudge: Nudge) -> None:
        path = self.attempt_dir(job)
        if nudge.what in ("log_blocked", "log_unblocked"):
            await self.engine.note(job.id, f"job.{nudge.what}", {})
        elif nudge.what == "unkillable":
            await self.engine.note(job.id, "job.unkillable", {"processes": list(nudge.processes)})
        elif nudge.what == "input_closed":
            self.release(path, "stdin", "stdin_file")
            await self.zygotes_of(job).ask("release", path=path, names=["stdin", "stdin_file"])
        await self.look(job.id)

    def release(self, path: str, *names: str) -> None:
        mine = self.escrow.get(path, {})
        for name in names or list(mine):
            if name in mine:
                os.close(mine.pop(name))
        if not mine:
            self.escrow.pop(path, None)

    def end(self, job: Job, rungs: tuple[tuple[str, float], ...]) -> None:
        """The kill order: in a file first, for whoever keeps the attempt, then to the keeper that listens."""
        path = self.attempt_dir(job)
        if jobdir.read(path, "end.json") is not None:
            return
        ladder = [[name, offset] for name, offset in rungs]
        given = jobdir.read(path, "kill.json")
        order = given
        if order is None or order.get("rungs") != ladder:
            order = {"reason": "killed", "rungs": ladder, "at": process.boottime()}
            try:
                jobdir.write_order(path, order)
            except OSError as error:
                print(f"agentd: job {job.id}: cannot write the order to end it: {error}", file=sys.stderr)
        jobdir.tell_keeper(path, {"order": order})
        if not os.path.isdir(path):
            self.engine.spawn(self.look(job.id))

    # --- looking at an attempt's files ----------------------------------------------------------------------

    async def look(self, id: int) -> None:
        """Bring a job to what its attempt's files say."""
        job = self.engine.jobs.live.get(id)
        if job is None:
            return
        path = self.attempt_dir(job)
        if not os.path.isdir(path) and isinstance(job.state, Starting | Running | Stopped | Stopping):
            return await self.give_up(job, path)
        records = {name: jobdir.read(path, f"{name}.json") for name in RECORDS}
        agent = records["agent"]
        never_ran = agent is not None and jobdir.noexec(path, agent) is not None
        seen = recovery.Seen(**records, noexec=never_ran)
        if seen.agent is not None and agents.zygote_of(job.agent) != jobdir.PLAIN:
            await self.read_transcript(job, path)
        for event in recovery.true_events(job, seen, time.time()):
            await self.engine.apply(id, event)
        if seen.end is not None:
            self.release(path)
            self.stop_listening_for(path)
            self.forget_secrets(self.engine.jobs[id])
        elif seen.agent is not None:
            self.hold_leader(path)
            if not seen.noexec:
                self.forget_secrets(job)

    async def read_transcript(self, job: Job, path: str) -> None:
        rates = (jobdir.read(path, "spec.json") or {}).get("rates")
        while True:
            before = self.engine.jobs[job.id].progress or Progress()
            records, offset = transcripts.read(f"{path}/transcript.ndjson", before.offset)
            if offset == before.offset:
                return
            progress, told = transcripts.after(before, records, rates)
            progress = replace(progress, offset=offset)
            event = on.TranscriptRead(time.time(), job.attempt, before.offset, progress, tuple(told))
            await self.engine.apply(job.id, event)

    async def give_up(self, job: Job, path: str) -> None:
        """Somebody removed the attempt's folder: nobody can keep it any more, and nobody will know how it ended."""
        leader = self.escrow.get(path, {}).get("leader")
        if leader is not None:
            process.send(leader, signal.SIGKILL)
        if self.cgroup:
            await asyncio.to_thread(process.cgroup_end, f"{self.cgroup}/{job.id}-{job.attempt}")
        await asyncio.to_thread(process.end_all_with, f"AGENTD_SOCKET={path}/agent.sock")
        self.release(path)
        self.stop_listening_for(path)
        how = outcome({"reason": f"{path} was removed while it ran"}, {})
        await self.engine.apply(job.id, on.AttemptEnded(time.time(), job.started, job.pid, how))

    # --- after the completion -------------------------------------------------------------------------------

    async def settle(self, job: Job) -> None:
        """Snapshot and diffstat, a worktree that ended equal to its base removed, changes to the repository told."""
        if not isinstance(job.state, Done) or job.state.is_settled:
            return
        await self.stop_watching(job)
        path = self.attempt_dir(job)
        if jobdir.read(path, "end.json") is None:
            # Ended before it was launched: the files must say so too, or a rebuild would start it.
            with contextlib.suppress(OSError):
                rung = job.state.how.order
                order = {"reason": "killed", "rungs": [[rung, 0.0]]} if rung else None
                record = {"format": 1, "at": job.state.ended, "reason": "killed", "order": order}
                jobdir.write(path, "exit.json", unstarted_record(job.state))
                jobdir.write(
                    path,
                    "end.json",
                    record if job.state.how.outcome == "killed" else record | {"reason": None},
                )
        result: dict[str, object] = {"outcome": job.state.how.outcome}
        is_gone = False
        if isinstance(job.place, Worktree) and job.place.admin is not None and not job.place.is_gone:
            try:
                folder, plan = job_dir(self.state_dir, job), plan_of(job)
                found, is_gone = await self.in_thread(settle_worktree, folder, plan, job)
                result |= found
                if "repository_changed" in found:
                    await self.engine.note(job.id, "repository.changed", {"what": found["repository_changed"]})
            except (AgentdError, GitFailed, OSError) as error:
                result["error"] = sentence_of(error)
        await self.engine.apply(job.id, on.ResultSettled(time.time(), result, is_gone))

    # --- the trash ------------------------------------------------------------------------------------------

    async def move_to_trash(self, job: Job) -> None:
        if not isinstance(job.shelf, Removing):
            return
        place = f"{self.state_dir}/trash/{job.id}"
        try:
            entry = await self.in_thread(self._into_trash, job, place)
        except (AgentdError, GitFailed, OSError) as error:
            await self.engine.apply(job.id, on.RemoveFailed(time.time(), sentence_of(error)))
            return
        await self.engine.apply(job.id, on.RemovedToTrash(time.time(), entry))

    def _into_trash(self, job: Job, place: str) -> dict[str, object]:
        os.makedirs(place, exist_ok=True)
        entry: dict[str, object] = {"folder": place, "worktree": None}
        if isinstance(job.place, Worktree) and job.place.admin is not None and not job.place.is_gone:
            refuse_while_used(job.place.path)
            refuse_changed_commands(job_dir(self.state_dir, job), plan_of(job), job.place.admin)
            record = jobdir.read(job_dir(self.state_dir, job), "worktree.json") or {}
            manifest = record.get("manifest") or {}
            if trash.is_deleted(plan_of(job), place):
                trash.let_go(plan_of(job), job.place.admin)
            else:
                entry["worktree"] = trash.to_trash(plan_of(job), job.place.admin, place, manifest).entry
        jobdir.write(place, "entry.json", entry | {"at": time.time()})
        home = job_dir(self.state_dir, job)
        if os.path.isdir(home):
            os.rename(home, f"{place}/job")
        return entry

    async def restore(self, job: Job, entry: dict[str, object]) -> str | None:
        """Put everything back; returns the worktree's admin id, if it has a worktree."""
        return await self.in_thread(self._out_of_trash, job, entry)

    def _out_of_trash(self, job: Job, entry: dict[str, object]) -> str | None:
        if not entry:
            raise Refused(f"job {job.id} was removed too long ago: nothing of it is left", "forgotten")
        moved, admin = entry.get("worktree"), None
        if isinstance(moved, dict) and os.path.isdir(str(entry["folder"])):
            admin = trash.restore(moved)
        home = job_dir(self.state_dir, job)
        if os.path.isdir(f"{entry['folder']}/job"):
            os.rename(f"{entry['folder']}/job", home)
        shutil.rmtree(str(entry["folder"]), ignore_errors=True)
        return admin

    def empty_trash(self, job: Job) -> None:
        """For good: called only when the retention is over."""
        assert isinstance(job.shelf, Trashed)
        moved = job.shelf.entry.get("worktree")
        if isinstance(moved, dict):
            trash.forget(moved)
        shutil.rmtree(str(job.shelf.entry["folder"]), ignore_errors=True)


async def all_of(*work: Awaitable[Any]) -> list[Any]:
    """What comes of each. All have ended when one's exception rises: the first, in their order."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done


def be_nice() -> None:
    """This thread, and the programs that it starts."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))


def shown(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Of what may be thousands: the first, and how many more."""
    return paths if len(paths) <= PATHS_TOLD else (*paths[:PATHS_TOLD], f"and {len(paths) - PATHS_TOLD} more")


# --- in worker threads --------------------------------------------------------------------------------------


def note_excluded(folder: str, plan: Plan, has_changes: bool) -> dict[str, object] | None:
    """Note what of the user's tree the job will not have."""
    excluded = jobdir.read(folder, "excluded.json")
    if excluded is not None or has_changes or plan.repo.top is None:
        return None
    dirt = snapshot.dirt(plan.repo)
    found: dict[str, object] = {
        "modified": dirt.modified,
        "untracked": dirt.untracked,
        "examples": list(dirt.examples),
    }
    jobdir.write(folder, "excluded.json", found)
    return found if dirt.modified or dirt.untracked else None


def recover_or_check(plan: Plan) -> str | None:
    """The worktree that a daemon before us made; else None, and one can be made."""
    admin = worktree.recover(plan)
    if admin is None:
        worktree.preflight(plan)
    return admin


def note_repository(folder: str, plan: Plan, attempt: int) -> None:
    """How it stands before an attempt: what was changed before that is none of the attempt's doing. The commands that
    its configuration names are those from before the job, whoever changed them since."""
    known = jobdir.read(folder, "repository.json")
    if known is not None and known.get("attempt", 1) >= attempt:
        return
    common = plan.repo.common
    before = fingerprint.fingerprint(common)
    commands = fingerprint.commands_in(before) if known is None else known["commands"]
    stands = {"before": before, "commands": commands, "attempt": attempt}
    jobdir.write(folder, "repository.json", (known or {}) | stands)


def note_own_commands(folder: str, plan: Plan, admin: str) -> None:
    """What the configuration of a fresh worktree names: git copies it from the main tree's."""
    known = jobdir.read(folder, "repository.json") or {}
    jobdir.write(folder, "repository.json", known | {"own_commands": fingerprint.command_keys(plan.repo.common, admin)})


def checkout(plan: Plan, admin: str, mask: int) -> None:
    """With the umask of whoever delegated: files are as open as if they had been checked out there."""
    before = umask.set(mask)
    try:
        worktree.checkout(plan, admin)
    finally:
        umask.reset(before)


def settle_worktree(folder: str, plan: Plan, job: Job) -> tuple[dict[str, object], bool]:
    """``(result, is the worktree gone)``."""
    assert isinstance(job.place, Worktree) and job.place.admin is not None and isinstance(job.state, Done)
    found: dict[str, object] = {}
    before = (jobdir.read(folder, "repository.json") or {}).get("before")
    if before is not None and job.state.started is not None:
        told = fingerprint.changes(before, fingerprint.fingerprint(plan.repo.common), plan.branch)
        if told:
            found["repository_changed"] = told[:50]
    refuse_changed_commands(folder, plan, job.place.admin)
    manifest = (jobdir.read(folder, "worktree.json") or {}).get("manifest") or {}
    helpers = [helper.pid for helper in job.state.how.left]
    why_kept = unchanged.remove_unchanged(plan, job.place.admin, manifest, helpers)
    if why_kept is None:
        return found | {"changed": False}, True
    if not os.path.isdir(plan.path):
        return found | {"missing": f"the worktree {plan.path} is gone"}, False
    work = snapshot.snapshot_job(plan, job.place.admin, words_of(job))
    left_out = snapshot.repositories_inside(tree_of(plan, job.place.admin))
    found |= {"changed": work is not None, "snapshot": work}
    if work is not None:
        found["diffstat"] = snapshot.diffstat(plan.repo, plan.base, work)
    else:
        found["kept"] = f"the worktree is kept: {why_kept}"
    if left_out:
        found["left_out"] = left_out[:PATHS_TOLD]
    return found, False


def refuse_changed_commands(folder: str, plan: Plan, admin: str) -> None:
    """Git runs programs that the repository's configuration names: none that came there since the job began."""
    known = jobdir.read(folder, "repository.json") or {}
    if "commands" not in known:
        return
    for before, of in ((known["commands"], None), (known.get("own_commands") or {}, admin)):
        keys = fingerprint.dangerous_config(before, fingerprint.command_keys(plan.repo.common, of))
        if keys:
            values = ", ".join(f"{k}={' '.join(fingerprint.config_values(plan.repo.common, k, of))}" for k in keys)
            raise Refused(
                f"{fingerprint.config_files(plan.repo.common, of)[0]} was changed while job {plan.job} ran:"
                f" {escaped(values)}; git is not run there for this job; review the change and take it out",
                "changed_config",
            )


def refuse_while_used(path: str) -> None:
    why = unchanged.used_by(process.working_in(path))
    if why is not None:
        raise Refused(f"cannot remove {path}: {why}; end that first", "in_use")


def words_of(job: Job) -> snapshot.Words:
    """What the commit of a job's work says."""
    subject = escaped(job.task.strip() or shlex.join(job.argv), 120)
    message = f"{subject}\n\nAgentd-Job: {job.id}\nAgentd-Agent: {job.agent}\n"
    ended = job.state.ended if isinstance(job.state, Done) else job.created
    return snapshot.Words(message, job.name, f"job-{job.id}@agentd.invalid", ended)


def plan_of(job: Job) -> Plan:
    assert isinstance(job.place, Worktree)
    return plan_from(job.place.plan)


def job_dir(state_dir: str, job: Job) -> str:
    return f"{state_dir}/jobs/{job.id}"


def unstarted_record(state: Done) -> dict[str, object]:
    return {
        "format": 1,
        "code": None,
        "signal": None,
        "reason": "unstarted",
        "errno": 0,
        "folder": True,
        "error": state.how.reason,
        "at": state.ended,
    }


def memory_file(values: dict[str, str]) -> int:
    """A file that exists in memory only: secrets on their way to the keeper."""
    fd = os.memfd_create("agentd-secrets", os.MFD_CLOEXEC)
    jobdir.write_all(fd, json.dumps(values).encode())
    return fd


def sentence_of(error: Exception) -> str:
    return error.message if isinstance(error, AgentdError) else str(error)
