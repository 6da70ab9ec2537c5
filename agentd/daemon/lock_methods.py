"""The methods of the protocol that are about locks."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from agentd import config, protocol
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
from agentd.daemon.lock_views import claim_view, day_time, is_blocking
from agentd.daemon.locking import Locking
from agentd.daemon.perform import Performer, plan_of
from agentd.daemon.server import Connection
from agentd.daemon.views import event_view, iso
from agentd.daemon.watching import is_at_work
from agentd.git import repository, tracked
from agentd.store import Entry

MODE_OF: dict[str, Mode] = {"exclusive": EXCLUSIVE, "shared": SHARED, "append": APPEND}


class LockMethods:
    settings: config.Config
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
        granted = await self.locking.acquire(holder, wants, ask.wait, ask.reason[:500], ask.ticket, ask.broad)
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

    async def do_lock_check(self, connection: Connection, ask: protocol.CheckLock) -> dict[str, Any]:
        """What stands in the way of writes. A path that is none, or is outside, is nobody's."""
        job = self.job_of(connection)
        holder, where = self.holder_asking(connection, ask.owner), await self.place_for_writes(ask.cwd, job)
        blocked = []
        for path in ask.paths:
            with contextlib.suppress(Usage):
                names = lock_names.written(path, where)
                claim = self.locking.stands_before(holder, names)
                if claim is not None:
                    blocked.append(self.blocked_view(path, names, claim, holder))
        return {"blocked": blocked}

    async def place_for_writes(self, cwd: str, job: Job | None) -> Where:
        """As :meth:`where`; of a job's own worktree it is known without asking git."""
        if job is not None and isinstance(job.place, Worktree):
            top, here = os.path.realpath(job.place.path), os.path.realpath(cwd)
            if (here + "/").startswith(top + "/"):
                common = plan_of(job).repo.common
                folds = await self.performer.in_prompt_thread(repository.folds_case, common)
                return Where(here, repository.Place(common, top, here[len(top) + 1 :], folds), True)
        return await self.where(cwd, job)

    def blocked_view(self, path: str, names: list[Name], claim: Claim, asker: Holder) -> dict[str, Any]:
        now = self.locking.now()
        answer = self.locking.table.peek(asker, [Want(name, self.locking.mode_of_write(name)) for name in names], now)
        assert answer is not None, "a claim stands before it"
        return {
            "path": path,
            **claim_view(claim),
            "holder": self.holder_view(claim.holder),
            "since": iso(claim.since),
            "text": texts.locked(answer, now, day_time),
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
            return self.locking.holders.command(ask.claim)
        job = self.job_of(connection)
        if job is not None:
            return self.locking.holder_of(job)
        if not ask.owner:
            raise Usage("owner: who asks? An empty one would be everybody", "bad_owner")
        leader = None if ask.session is None else msgspec.structs.asdict(ask.session)
        return self.locking.holders.session(ask.owner, leader)

    def holder_asking(self, connection: Connection, owner: str) -> Holder:
        job = self.job_of(connection)
        return self.locking.holder_of(job) if job is not None else Holder("session", owner or "?")

    async def refuse_broad(self, wants: list[Want], place: repository.Place | None) -> None:
        wide = [want.name for want in wants if want.name.kind == "path" and not patterns.is_literal(want.name.text)]
        if place is None or not wide:
            return
        files = await self.performer.in_prompt_thread(tracked.files, place)
        for name in wide:
            count = patterns.covered(name.text, files, place.folds_case)
            patterns.refuse_broad(name.text, count, len(files))

    async def do_lock_release(self, connection: Connection, ask: protocol.ReleaseLock) -> dict[str, Any]:
        holder = self.locking.holders.command(ask.claim) if ask.claim else self.holder_asking(connection, ask.owner)
        table = self.locking.table
        held = {claim.name: claim for claim in table.claims(holder)}
        waiting = [request for request in table.waiting() if request.holder.id == holder.id]
        names = list(held)
        if not ask.all:
            where = await self.where(ask.cwd, self.job_of(connection))
            names = [name for text in ask.names for name in lock_names.every_meaning(text, where)]
            self.refuse_foreign(names, holder, held)
        found = [name for name in names if name in held and held[name].state != "pending"]
        given_up = [r for r in waiting if ask.all or {want.name for want in r.wants} & set(names)]
        for request in given_up:
            await self.locking.save(table.give_up(request.ticket, self.locking.now()))
        if found:
            await self.locking.save(table.release(holder, found, self.locking.now()))
        if ask.claim and ask.all:
            self.locking.holders.forget(holder)
        still = {claim.name for name in names for claim in table.who(name) if claim.holder.id == holder.id}
        return {
            "released": [str(name) for name in found],
            "withdrawn": [one.ticket for one in given_up],
            "still": [texts.name_word(name) for name in sorted(still)],
        }

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
                "position": place,
                "for": [texts.holder_text(one.holder) for one in table.blockers(request)],
            }
            for place, request in enumerate(table.waiting(), 1)
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
        owner = job.owner if job is not None else self.locking.holders.owners.get(holder.id, "")
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
        found = ["merge"]
        if self.locking.is_marked:  # else nobody asks
            found += ["tools", *(["commit"] if self.settings.locks.commit_guard else [])]
        return [*found, "watch"] if self.is_watched(claim) else found

    def is_watched(self, claim: Claim) -> bool:
        """Somebody is at work in its repository, and everybody who is, is seen."""
        at_work = [job for job in self.engine.jobs.live.values() if is_at_work(job)]
        seen = [self.is_seen(job) for job in at_work if plan_of(job).repo.common == claim.name.scope]
        return bool(seen) and all(seen)

    is_seen: Callable[[Job], bool]
    """The watcher tells of what it writes."""

    async def do_lock_explain(self, connection: Connection, ask: protocol.ExplainLock) -> dict[str, Any]:
        name = lock_names.names(ask.name, await self.where(ask.cwd, self.job_of(connection)))[0]
        claims, queue = self.locking.table.why(name)
        return {
            "name": str(name),
            "claims": [self.row(claim) for claim in claims],
            "waiting": [
                {
                    "ticket": one.ticket,
                    "holder": self.holder_view(one.holder),
                    "since": iso(one.since),
                    "seconds": max(0.0, self.locking.now() - one.since),
                }
                for one in queue
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
        where = await self.where(ask.cwd)
        name = None if ask.name is None else lock_names.names(ask.name, where)[0]
        here = {"", where.place.common if where.place else ""}
        if not 0 < ask.limit <= 10_000:
            raise Usage("limit: a number from 1 to 10000", "bad_number")

        def is_about(entry: dict[str, Any]) -> bool:
            data = entry["data"]
            scope = str(data.get("repo", ""))
            if name is None:
                return ask.all or {scope, *(one["repo"] for one in data.get("claims", ()))} <= here
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
            entry = Entry(*row)
            event = event_view(entry) | {"owner": entry.owner}
            if is_about(event):
                found.append(event)
                if len(found) == ask.limit:
                    break
        return {"events": found[::-1]}

    async def do_lock_break(self, connection: Connection, ask: protocol.BreakLock) -> dict[str, Any]:
        if not ask.reason.strip():
            raise Usage("why? Give a reason, which the holder is told: --reason TEXT", "no_reason")
        asked = names = lock_names.every_meaning(ask.name, await self.where(ask.cwd))
        facts = self.locking.table.break_(names, self.locking.now(), ask.owner or "the user", ask.reason[:500])
        if not facts:  # typed as a hint spells it, which a name with such characters cannot be
            names = [
                one.name for one in self.locking.table.who(names[0]) if patterns.typed(one.name.text) == names[0].text
            ]
            facts = self.locking.table.break_(names, self.locking.now(), ask.owner or "the user", ask.reason[:500])
        broken = [fact for fact in facts if isinstance(fact, Broken)]
        if not broken:
            raise Refused(texts.not_held(asked[0], self.locking.table.who(asked[0])), "not_held")
        await self.locking.save(facts)
        for fact in broken:
            await self.tell_holder(fact, ask.kill)
        claims = [fact.claim for fact in broken]
        return {"broken": [claim_view(claim) | {"holder": texts.holder_text(claim.holder)} for claim in claims]}

    async def tell_holder(self, lost: Broken, is_ended: bool) -> None:
        holder = lost.claim.holder
        job = self.engine.jobs.get(int(holder.key)) if holder.kind == "job" else None
        if job is None or job.is_done:
            return
        if is_ended:
            await self.engine.apply(job.id, on.KillAsked(time.time(), "lock break", ladder(None, None)))
        elif job.progress is not None:
            await self.tell_runner(job, "notice", texts.lost(lost, day_time))

    tell_runner: Callable[..., Any]
