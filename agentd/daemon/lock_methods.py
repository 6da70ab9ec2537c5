"""The methods of the protocol that are about locks."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from agentd import protocol
from agentd.core import events as on
from agentd.core import lock_texts as texts
from agentd.core import patterns
from agentd.core.claims import APPEND, EXCLUSIVE, MODES, SHARED, Broken, Claim, Holder, Mode, Name, Want
from agentd.core.errors import Refused, Usage
from agentd.core.job import Job, Worktree
from agentd.core.ladder import ladder
from agentd.daemon import lock_names
from agentd.daemon.engine import Engine
from agentd.daemon.lock_names import Where
from agentd.daemon.locking import Locking, claim_view, day_time
from agentd.daemon.perform import Performer
from agentd.daemon.server import Connection
from agentd.daemon.views import event_view, iso
from agentd.git import repository, tracked
from agentd.store import Entry

MODE_OF: dict[str, Mode] = {"exclusive": EXCLUSIVE, "shared": SHARED, "append": APPEND}


class LockMethods:
    engine: Engine
    locking: Locking
    performer: Performer

    async def place_of(self, cwd: str) -> repository.Place | None:
        if not os.path.isabs(cwd) or "\0" in cwd:
            raise Usage("cwd must be an absolute path", "bad_cwd")
        return await self.performer.in_prompt_thread(repository.find, cwd)

    async def where(self, cwd: str, job: Job | None = None) -> Where:
        place = await self.place_of(cwd)
        is_isolated = job is not None and isinstance(job.place, Worktree)
        return Where(os.path.realpath(cwd), place, is_isolated)

    async def do_lock_acquire(self, connection: Connection, ask: protocol.AcquireLock) -> dict[str, Any]:
        if not ask.wants and ask.ticket is None:
            raise Usage("lock what? Name a path, such as src/a.py, or a resource, res:NAME", "empty")
        if ask.wait is not None and not 0 <= ask.wait < 1e9:
            raise Usage("wait: a time such as 30s, 5m, or 0 for not at all", "bad_time")
        job = self.job_of(connection)
        where = await self.where(ask.cwd, job)
        wants = [Want(name, MODE_OF[want.mode]) for want in ask.wants for name in lock_names.names(want.name, where)]
        if not ask.broad:
            await self.refuse_broad(wants, where.place)
        holder = self.asker(connection, ask)
        if holder.kind == "command" and job is not None:
            # What the job itself holds keeps others out already.
            mine = {claim.name for claim in self.locking.table.claims(self.locking.holder_of(job))}
            wants = [want for want in wants if want.name not in mine]
            if not wants:
                return {"state": "granted", "token": 0, "claims": [], "granted": [], "is_new": False, "beside": []}
        granted = await self.locking.acquire(holder, wants, ask.wait, ask.reason[:500], ask.ticket)
        return {
            "state": "granted",
            "token": max(claim.token for claim in granted.claims),
            "claims": [claim_view(claim) for claim in granted.claims],
            "granted": [
                {"name": [one.name.kind, one.name.scope, one.name.text], "mode": one.mode} for one in granted.claims
            ],
            "is_new": granted.is_new,
            "beside": [{"name": str(one.name), "holder": texts.holder_text(one.holder)} for one in granted.beside],
        }

    async def claims_asked(self, ask: protocol.Delegate, parent: Job | None) -> tuple[Want, ...]:
        """What a new job is to hold before it starts: in its own worktree the right to land, in place the files."""
        if not ask.claims:
            return ()
        where = await self.where(ask.cwd)
        where = where._replace(is_isolated=not ask.in_place)
        wants = [Want(name, MODE_OF[want.mode]) for want in ask.claims for name in lock_names.names(want.name, where)]
        await self.refuse_broad(wants, where.place)
        return tuple(wants)

    def job_of(self, connection: Connection) -> Job | None:
        if connection.job is None:
            return None
        job = self.engine.jobs[connection.job]
        if job.is_done:
            raise Refused(
                f"attempt {job.attempt} of job {job.id} has ended; ask from a job that runs, or outside of jobs",
                "has_ended",
            )
        return job

    def asker(self, connection: Connection, ask: protocol.AcquireLock) -> Holder:
        if ask.claim:
            return self.locking.command(ask.claim)
        job = self.job_of(connection)
        if job is not None:
            return self.locking.holder_of(job)
        if not ask.owner:
            raise Usage("owner: who asks? An empty one would be everybody", "bad_owner")
        return self.locking.session(ask.owner, ask.session)

    def holder_asking(self, connection: Connection, owner: str) -> Holder:
        job = self.job_of(connection)
        return self.locking.holder_of(job) if job is not None else Holder("session", owner or "?")

    async def refuse_broad(self, wants: list[Want], place: repository.Place | None) -> None:
        wide = [want.name for want in wants if want.name.kind == "path" and "**" in want.name.text.split("/")]
        if place is None or not wide:
            return
        files = await self.performer.in_prompt_thread(tracked.files, place)
        for name in wide:
            count = patterns.covered(name.text, files, place.folds_case)
            patterns.refuse_broad(name.text, count, len(files))

    async def do_lock_release(self, connection: Connection, ask: protocol.ReleaseLock) -> dict[str, Any]:
        holder = self.locking.command(ask.claim) if ask.claim else self.holder_asking(connection, ask.owner)
        table = self.locking.table
        held = {claim.name: claim for claim in table.claims(holder)}
        waiting = [request for request in table.waiting() if request.holder.id == holder.id]
        names = list(held)
        if not ask.all:
            where = await self.where(ask.cwd, self.job_of(connection))
            names = [name for text in ask.names for name in lock_names.names(text, where)]
            self.refuse_foreign(names, holder, held)
        found = [name for name in names if name in held and held[name].state != "pending"]
        given_up = [r for r in waiting if ask.all or {want.name for want in r.wants} & set(names)]
        for request in given_up:
            await self.locking.save(table.give_up(request.ticket, self.locking.now()))
        if found:
            await self.locking.save(table.release(holder, found, self.locking.now()))
        if ask.claim and ask.all:
            self.locking.forget(holder)
        return {"released": [str(name) for name in found], "withdrawn": [one.ticket for one in given_up]}

    def refuse_foreign(self, names: list[Name], holder: Holder, held: dict[Name, Claim]) -> None:
        if any(name in held for name in names):
            return
        for name in names:
            for claim in self.locking.table.who(name):
                if is_blocking(claim) and claim.holder.id != holder.id:
                    raise Refused(texts.not_yours(claim, self.locking.now()), "not_holder")

    async def do_lock_list(self, _: Connection, ask: protocol.ListLocks) -> dict[str, Any]:
        scopes = None
        if ask.cwd is not None:
            place = await self.place_of(ask.cwd)
            scopes = {"", place.common if place else ""}
        table = self.locking.table
        rows = []
        for claim in sorted(table.claims(), key=lambda one: (one.name, one.token)):
            if scopes is None or claim.name.scope in scopes:
                rows.append(self.row(claim))
        waiting = [
            {
                "ticket": request.ticket,
                "holder": self.holder_view(request.holder),
                "wants": [{"name": str(want.name), "mode": MODES[want.mode]} for want in request.wants],
                "repo": request.wants[0].name.scope,
                "since": iso(request.since),
                "reason": request.reason,
                "position": self.locking.position(request.ticket),
                "for": [texts.holder_text(one.holder) for one in table.blockers(request)],
            }
            for request in table.waiting()
            if scopes is None or any(want.name.scope in scopes for want in request.wants)
        ]
        return {"claims": rows, "waiting": waiting, "now": iso(self.locking.now())}

    def row(self, claim: Claim) -> dict[str, Any]:
        _, queue = self.locking.table.why(claim.name)
        return {
            **claim_view(claim),
            "holder": self.holder_view(claim.holder),
            "since": iso(claim.since),
            "seconds": max(0.0, self.locking.now() - claim.since),
            "automatic": claim.is_automatic,
            "queue": [
                {"ticket": one.ticket, "holder": texts.holder_text(one.holder), "since": iso(one.since)}
                for one in queue
            ],
            "enforced": self.enforced(claim),
        }

    def holder_view(self, holder: Holder) -> dict[str, Any]:
        job = self.engine.jobs.get(int(holder.key)) if holder.kind == "job" else None
        owner = job.owner if job is not None else self.locking.owners.get(holder.id, "")
        return {
            "kind": holder.kind,
            "job": job.id if job is not None else None,
            "name": job.name if job is not None else holder.label,
            "pid": job.pid if job is not None else holder.pid,
            "owner": owner,
            "said": texts.holder_text(holder),
        }

    def enforced(self, claim: Claim) -> list[str]:
        """What really keeps others off, as things are: never more than is live."""
        if claim.name.kind == "integrate":
            return ["merge"]
        if claim.name.kind != "path":
            return ["agentd"]
        if not is_blocking(claim):
            return ["watch"] if self.is_watched(claim) else []
        found = ["merge", "tools"]
        return [*found, "watch"] if self.is_watched(claim) else found

    def is_watched(self, claim: Claim) -> bool:
        return False

    async def do_lock_explain(self, connection: Connection, ask: protocol.ExplainLock) -> dict[str, Any]:
        name = lock_names.names(ask.name, await self.where(ask.cwd, self.job_of(connection)))[0]
        claims, queue = self.locking.table.why(name)
        return {
            "name": str(name),
            "claims": [self.row(claim) for claim in claims],
            "waiting": [
                {"ticket": one.ticket, "holder": self.holder_view(one.holder), "since": iso(one.since)} for one in queue
            ],
        }

    async def do_lock_graph(self, _: Connection, __: protocol.Nothing) -> dict[str, Any]:
        return {
            "edges": [
                {
                    "waiter": texts.holder_text(edge.waiter),
                    "wants": str(edge.want.name),
                    "for": texts.holder_text(edge.blocker),
                    "holds": str(edge.held),
                    "ticket": edge.ticket or None,
                }
                for edge in self.locking.table.graph()
            ]
        }

    async def do_lock_history(self, _: Connection, ask: protocol.LockHistory) -> dict[str, Any]:
        name = None
        if ask.name is not None:
            name = lock_names.names(ask.name, await self.where(ask.cwd))[0]
        if not 0 < ask.limit <= 10_000:
            raise Usage("limit: a number from 1 to 10000", "bad_number")

        def is_about(entry: dict[str, Any]) -> bool:
            if name is None:
                return True
            data = entry["data"]
            scope = str(data.get("repo", ""))
            told = [(text, scope) for text in (data.get("name"), *data.get("names", ())) if text]
            told += [(one["name"], one["repo"]) for one in data.get("claims", ())]
            return any(lock_names.is_about(text, whose, name) for text, whose in told)

        rows = await asyncio.wrap_future(
            self.engine.store.ask(
                lambda db: db.execute(
                    "SELECT seq, at, type, job, attempt, owner, data FROM events"
                    " WHERE type LIKE 'lock.%' ORDER BY seq DESC LIMIT 100000"
                ).fetchall()
            )
        )
        found = []
        for row in rows:
            event = event_view(Entry(*row))
            if is_about(event):
                found.append(event)
                if len(found) == ask.limit:
                    break
        return {"events": found[::-1]}

    async def do_lock_break(self, connection: Connection, ask: protocol.BreakLock) -> dict[str, Any]:
        if not ask.reason.strip():
            raise Usage("why? Give a reason, which the holder is told: --reason TEXT", "no_reason")
        names = lock_names.names(ask.name, await self.where(ask.cwd))
        held = [claim for name in names for claim in self.locking.table.who(name)]
        if not held:
            raise Refused(f"{names[0]} is not held by anybody; agentd locks lists what is", "not_held")
        facts = self.locking.table.break_(names, self.locking.now(), ask.owner or "the user", ask.reason[:500])
        await self.locking.save(facts)
        for fact in facts:
            if isinstance(fact, Broken):
                await self.tell_holder(fact, ask.kill)
        return {"broken": [claim_view(claim) | {"holder": texts.holder_text(claim.holder)} for claim in held]}

    async def tell_holder(self, lost: Broken, is_ended: bool) -> None:
        holder = lost.claim.holder
        job = self.engine.jobs.get(int(holder.key)) if holder.kind == "job" else None
        if job is None or job.is_done:
            return
        if is_ended:
            await self.engine.apply(job.id, on.KillAsked(time.time(), "lock break", ladder(None, None)))
        elif job.progress is not None:
            await self.tell_runner(job, "message", texts.lost(lost, day_time))

    tell_runner: Callable[..., Any]


def is_blocking(claim: Claim) -> bool:
    return not claim.is_automatic and not claim.is_contested
