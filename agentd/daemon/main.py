"""Start-up and shutdown: exactly one daemon by lock, what was left by the last one, then serve."""

import asyncio
import contextlib
import functools
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from typing import Any

import filelock

from agentd import __version__, agents, config, jobdir, paths, process
from agentd.core import events as on
from agentd.core.effects import Effect
from agentd.core.errors import EXIT_ANOTHER, EXIT_FAULT, AgentdError, NotNow, Refused
from agentd.core.job import Job, Preparing, Queued, Running, Starting, Stopped, Stopping, Trashed
from agentd.core.machine import Notice, owed
from agentd.daemon import guarding, rebuild, restarts
from agentd.daemon.boards import Boards
from agentd.daemon.engine import Engine
from agentd.daemon.feed import Feed
from agentd.daemon.locking import Locking
from agentd.daemon.methods import Methods
from agentd.daemon.notify import Notifier
from agentd.daemon.nudges import Nudges
from agentd.daemon.perform import Performer
from agentd.daemon.server import Server
from agentd.daemon.views import iso
from agentd.daemon.watching import Watching
from agentd.daemon.zygotes import Zygotes
from agentd.store import Change, Entry

REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph")
HOUSEKEEPING_S = 86400.0
LAST_WORDS_S = 5.0


def main() -> int:
    """``agentd.daemon [STATE_DIR [READY_FD]]``: serve until told to stop; "ready" is written to READY_FD."""
    state_dir = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else paths.state_dir()
    try:
        return run(state_dir, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except AgentdError as error:
        say(f"{error.message}")
        return error.exit
    except Exception as error:
        traceback.print_exc()
        say(f"cannot go on: {error}")
        return EXIT_FAULT


def run(state_dir: str, ready_fd: int | None) -> int:
    os.umask(0o077)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until we serve: a rival may ask for our socket before it is there
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whoever started us may have blocked some
    os.chdir("/")
    make_private(state_dir)
    refuse_remote(state_dir)
    settings = config.load(paths.config_file())
    lock = filelock.FileLock(f"{state_dir}/daemon.lock", fallback_to_soft=False, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        ask_for_socket(state_dir)
        return EXIT_ANOTHER
    except OSError as error:
        raise Refused(f"cannot lock {state_dir}/daemon.lock: {error.strerror}", "state_not_writable") from None
    if refuse_a_second(state_dir):
        lock.release()
        return EXIT_ANOTHER
    process.set_name("agentd-daemon")
    raise_limits()
    try:
        asyncio.run(Daemon(state_dir, settings, ready_fd, lock).run())
    finally:
        lock.release()
    return 0


class Daemon:
    def __init__(
        self, state_dir: str, settings: config.Config, ready_fd: int | None, lock: filelock.BaseFileLock
    ) -> None:
        self.state_dir = state_dir
        self.lock = lock
        self.lock_inode = os.stat(f"{state_dir}/daemon.lock").st_ino
        self.ready_fd = ready_fd
        self.settings = settings
        self.socket_path = paths.socket_path(state_dir)
        self.stopping = asyncio.Event()
        self.started_at = time.time()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_exception)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        path = f"{self.state_dir}/agentd.db"
        why = rebuild.is_needed(self.state_dir, path)
        if why is not None:
            say(f"{why}; rebuilding it from the jobs' files and the backup")
            say(f"epoch {rebuild.rebuild(self.state_dir, path)} begins")
        self.feed = Feed()
        self.performer = Performer(self.state_dir, self.settings)
        self.engine = Engine(path, self.settings.limits.running, self.publish, self.performer.perform, self.on_trouble)
        self.feed.engine = self.performer.engine = self.engine
        self.feed.load(self.engine.load(), self.engine.store.seq)
        self.notifier = Notifier(self.state_dir, self.engine.jobs)
        self.boards = Boards(self.state_dir, self.engine.jobs)
        self.engine.on_change.append(self.boards.on_change)
        await self.boards.catch_up(self.stored_events)
        self.zygotes = {
            kind: Zygotes(self.state_dir, kind, self.on_notice, functools.partial(self.on_new_zygote, kind))
            for kind in agents.ZYGOTES
        }
        self.performer.zygotes = self.zygotes
        self.performer.start_again = functools.partial(restarts.restart_when_due, self.engine, self.performer)
        self.locking = Locking(self.state_dir, self.settings, self.engine)
        self.locking.hold_back_queued()
        self.methods = methods = Methods(
            self.state_dir,
            self.settings,
            self.engine,
            self.performer,
            self.locking,
            self.feed,
            self.stopping.set,
            self.facts(),
        )
        self.server = Server(methods.handle, self.feed)
        self.watching = Watching(self.state_dir, self.engine.jobs.live.get, self.on_wrote, self.on_mode)
        self.modes: dict[int, str] = {}
        self.performer.stop_watching = self.leave_worktree
        methods.is_seen = self.is_seen
        self.performer.listen_for = self.listen_for
        self.performer.stop_listening_for = self.stop_listening_for
        self.remove_unanswered()
        self.install_hooks()
        # The socket first, the look at the files after: what a keeper writes in between is seen, or nudged.
        self.nudges = Nudges(jobdir.nudge_socket(self.state_dir), self.performer.on_nudge)
        self.listen()
        loop.add_signal_handler(signal.SIGUSR1, self.listen_again)
        loop.add_signal_handler(signal.SIGUSR2, say_tasks)
        try:
            for kind, zygotes in self.zygotes.items():
                self.performer.held |= set(await zygotes.start(must=kind == jobdir.PLAIN))
            await self.performer.let_go_of_strangers()
            await self.recover()
            await self.locking.recover()
            methods.pausing.recover()
            self.notifier.recover()
            self.engine.reschedule()
            self.say_ready()
            self.engine.spawn(methods.merging.recover())
            self.engine.spawn(self.housekeep())
            await self.stopping.wait()
        finally:
            await self.shut_down()

    def publish(self, entries: list[Entry]) -> None:
        """A terminal's shell first: who waits for a job comes back to its prompt, and is told there."""
        self.boards.publish(entries)
        self.feed.publish(entries)
        self.notifier.publish(entries)
        for entry in entries:
            if entry.job in self.engine.jobs:
                self.watching.consider(self.engine.jobs[entry.job])
            if entry.type == "job.result":
                self.methods.overlaps.on_result(entry.job)
            if entry.type in ("job.merged", "job.removed"):
                self.methods.overlaps.forget(entry.job)

    async def leave_worktree(self, job: Job) -> None:
        await self.watching.let_go(job)
        await self.methods.overlaps.let_go(job)

    async def stored_events(self, since: int, limit: int, owner: str) -> list[Entry]:
        return await asyncio.wrap_future(self.engine.store.events(since, limit, owner))

    def facts(self) -> dict[str, Any]:
        return {"started_at": iso(self.started_at), "socket": self.socket_path}

    # --- the socket -----------------------------------------------------------------------------------------

    def listen(self) -> None:
        folder = os.path.dirname(self.socket_path)
        if folder != self.state_dir:
            make_private(folder)
        self.nudges.listen()
        self.server.listen(self.socket_path)
        record = {"pid": os.getpid(), "version": __version__, "socket": self.socket_path, **self.facts()}
        record["identity"] = process.identity(os.getpid())
        try:
            jobdir.write(self.state_dir, "daemon.json", record)
        except OSError as error:
            if not jobdir.is_full(error):
                raise
            jobdir.write_over(f"{self.state_dir}/daemon.json", record)  # that of the last one

    def listen_again(self) -> None:
        """SIGUSR1, from one that would be our successor: a cleaner removed our socket, daemon.json or the lock."""
        with contextlib.suppress(OSError, AgentdError):
            self.take_lock_again()
            self.listen()

    def take_lock_again(self) -> None:
        """Somebody removed the file that we have locked: another daemon could lock a new one."""
        path = f"{self.state_dir}/daemon.lock"
        if os.path.exists(path) and os.stat(path).st_ino == self.lock_inode:
            return
        self.lock.release()
        try:
            self.lock.acquire(timeout=1)
        except filelock.Timeout:
            say("another daemon has the state folder; ending")
            self.stopping.set()
        self.lock_inode = os.stat(path).st_ino

    def listen_for(self, job: Job) -> None:
        path = f"{self.performer.attempt_dir(job)}/agent.sock"
        if path not in self.server.listeners:
            self.server.listen(path, job.id)

    def stop_listening_for(self, path: str) -> None:
        self.server.stop_listening(f"{path}/agent.sock")
        jobdir.remove_quietly(f"{path}/agent.sock")

    def say_ready(self) -> None:
        if self.ready_fd is not None:
            with contextlib.suppress(OSError):
                os.write(self.ready_fd, b"ready\n")
            os.close(self.ready_fd)

    # --- what the last daemon left --------------------------------------------------------------------------

    async def recover(self) -> None:
        for job in list(self.engine.jobs.values()):
            if isinstance(job.state, Starting | Running | Stopped | Stopping):
                await self.performer.look(job.id)
        for job in list(self.engine.jobs.values()):
            if isinstance(job.state, Queued | Preparing) and not self.performer.has_secrets(job):
                await self.engine.apply(job.id, on.SecretsLost(time.time(), job.secrets))
                continue
            self.engine.carry_out(job, owed(job))
            self.watching.consider(job)

    def remove_unanswered(self) -> None:
        """Folders of jobs whose id was never answered: their daemon died before the commit. Before the socket is there:
        then none of them is of a job that is just being made."""
        for id in rebuild.numbers_in(f"{self.state_dir}/jobs"):
            if id not in self.engine.jobs:
                shutil.rmtree(f"{self.state_dir}/jobs/{id}", ignore_errors=True)

    def install_hooks(self) -> None:
        try:
            guarding.install(self.state_dir)
        except OSError as error:
            say(f"cannot write {guarding.folder(self.state_dir)}: {error.strerror}; jobs commit without a guard")

    def on_notice(self, message: dict[str, Any], fds: dict[str, int]) -> None:
        """From the zygote: a keeper was forked for an attempt, is done with it, or has given what it alone held."""
        if fds:
            self.performer.hold(message["path"], fds)
        head, id, attempt = message["path"].rsplit("/", 2)
        job = self.engine.jobs.get(int(id)) if head == f"{self.state_dir}/jobs" else None
        if job is not None and job.attempt == int(attempt):
            self.engine.spawn(self.performer.look(job.id))
        elif fds:
            self.performer.release(message["path"])

    def on_new_zygote(self, kind: str) -> None:
        for job in self.engine.jobs.live.values():
            if kind == jobdir.PLAIN and self.performer.still_needs(job):
                self.engine.spawn(self.performer.share_secrets(job))
            if agents.zygote_of(job.agent) == kind and isinstance(job.state, Starting | Running | Stopped | Stopping):
                self.engine.carry_out(job, owed(job))

    def is_seen(self, job: Job) -> bool:
        is_watched = bool(self.watching.pid) and job.id in self.watching.watched
        return is_watched and self.modes.get(job.id) in ("inotify", "polling")

    def on_wrote(self, job_id: int, paths: tuple[str, ...]) -> None:
        """These files of its worktree differ from the base, or something happened to them just now."""
        self.methods.overlaps.on_wrote(job_id, paths)

    def on_mode(self, job_id: int, how: str, why: str) -> None:
        self.modes[job_id] = how
        if how != "inotify":
            say(f"job {job_id}: the watch over its worktree is {how}: {why}")

    def on_trouble(self, job: Job, effect: Effect, error: BaseException) -> None:
        """An effect failed in a way nobody foresaw: it is told, and stays owed for the next start."""
        say(f"job {job.id}: {type(effect).__name__} failed: {type(error).__name__}: {error}")
        data: dict[str, object] = {
            "effect": type(effect).__name__,
            "error": f"{type(error).__name__}: {error}",
        }
        self.engine.spawn(self.engine.note(job.id, "agentd.trouble", data))

    # --- the rest -------------------------------------------------------------------------------------------

    async def housekeep(self) -> None:
        """Once a day: the trash's retention, readers that nobody is, events that all have acknowledged."""
        while True:
            await self.feed.retire_unused()
            await self.feed.forget_old(self.settings.events.days)
            limit = time.time() - self.settings.trash.days * 86400
            for job in list(self.engine.jobs.values()):
                if isinstance(job.shelf, Trashed) and job.shelf.since < limit and job.shelf.entry:
                    await self.forget(job.id)
            await asyncio.sleep(HOUSEKEEPING_S)

    async def forget(self, id: int) -> None:
        async with self.engine.verbs.of(id):
            job = self.engine.jobs[id]
            if isinstance(job.shelf, Trashed) and job.shelf.entry:
                await self.performer.in_thread(self.performer.empty_trash, job)
                emptied = (Notice("job.forgotten", {}),)
                await self.engine.commit(Change(time.time(), forget(job), emptied, must=True))

    async def shut_down(self) -> None:
        jobdir.remove_quietly(f"{self.state_dir}/daemon.json")
        jobdir.remove_quietly(self.socket_path)
        self.nudges.close()
        jobdir.remove_quietly(jobdir.nudge_socket(self.state_dir))
        await self.server.close()
        await self.engine.close()
        self.boards.close()
        self.notifier.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.performer.let_go_of_strangers(), LAST_WORDS_S)
        for zygotes in self.zygotes.values():
            zygotes.close()
        self.watching.close()
        self.methods.overlaps.close()
        self.methods.pausing.close()
        if self.performer.cgroup and not self.engine.jobs.live:
            process.cgroup_remove(self.performer.cgroup)
        for task in self.engine.tasks:
            task.cancel()


def forget(job: Job) -> Job:
    from msgspec.structs import replace

    assert isinstance(job.shelf, Trashed)
    return replace(job, shelf=Trashed(job.shelf.since, {}))


def make_private(path: str) -> None:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        fault = paths.private_folder_fault(path)
    except OSError as error:
        raise Refused(f"cannot make {path}: {error.strerror}", "state_not_writable") from None
    if fault is not None:
        raise Refused(fault, "unsafe_folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise Refused(f"{path} is not writable for you; run: chmod 700 {path}", "state_not_writable")


def refuse_remote(path: str) -> None:
    """Locks and sqlite need a local file system."""
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    real = os.path.realpath(path)
    holding = [m for m in mounts if m[4] == "/" or real == m[4] or real.startswith(m[4] + "/")]
    kind = max(holding, key=lambda m: len(m[4]))
    name = kind[kind.index("-") + 1]
    if name in REMOTE:
        raise Refused(
            f"cannot keep state in {path}: it is on {name}, where locks cannot be trusted;"
            " set AGENTD_STATE_DIR to a local folder",
            "remote_state",
        )


def ask_for_socket(state_dir: str) -> None:
    """Another daemon holds the lock. If its socket is gone, have it make a new one."""
    record = jobdir.read(state_dir, "daemon.json")
    if record is not None and os.path.exists(record["socket"]):
        return
    who = record["identity"] if record is not None else holder_of(f"{state_dir}/daemon.lock")
    pidfd = process.open_verified(who) if who is not None else None
    if pidfd is not None:
        process.send(pidfd, signal.SIGUSR1)
        os.close(pidfd)


def holder_of(path: str) -> process.Identity | None:
    """The daemon that holds a lock, as the kernel tells it."""
    info = os.stat(path)
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with open("/proc/locks") as file:
        pids = [int(words[4]) for words in map(str.split, file) if words[1] == "FLOCK" and words[5] == place]
    named = [pid for pid in pids if str(process.describe(pid)["command"]).startswith("agentd-daemon")]
    return process.identity(named[0]) if named else None


def refuse_a_second(state_dir: str) -> bool:
    """Is there a daemon that lost its lock, because somebody removed the file? Then it takes that up again."""
    record = jobdir.read(state_dir, "daemon.json")
    pidfd = process.open_verified(record["identity"]) if record is not None else None
    if pidfd is None or process.has_exited(pidfd):
        return False
    process.send(pidfd, signal.SIGUSR1)
    os.close(pidfd)
    return True


LIMITS = {
    # what it limits, as ulimit calls it, and what a daemon needs at least
    "RLIMIT_NOFILE": ("the number of open files (ulimit -n)", 256),
    "RLIMIT_FSIZE": ("the size of files (ulimit -f)", 1 << 30),
    "RLIMIT_AS": ("memory (ulimit -v)", 1 << 30),
    "RLIMIT_DATA": ("memory (ulimit -d)", 1 << 30),
    "RLIMIT_CPU": ("processor time (ulimit -t)", 1 << 40),
}


def raise_limits() -> None:
    """Those of whoever needed a daemon first are none of the daemon's: all jobs of all shells are run by it."""
    for name, (what, least) in LIMITS.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        for wanted in (resource.RLIM_INFINITY, 1 << 20, hard):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(number, (wanted, wanted))
                break
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and soft < least:
            raise NotNow(
                f"cannot start a daemon from here: {what} is limited to {soft}, and so would all jobs be;"
                " from a shell without that limit: agentd daemon start",
                "low_limits",
            )


def say_tasks() -> None:
    """SIGUSR2: what every task waits for, into daemon.log."""
    for task in asyncio.all_tasks():
        steps: list[str] = []
        at: object = task.get_coro()
        while (frame := getattr(at, "cr_frame", None)) is not None:
            steps.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
            at = getattr(at, "cr_await", None)
        say(" > ".join([*steps, type(at).__name__]))


def on_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A background failure is never dropped: it stands in daemon.log."""
    error = context.get("exception")
    say(str(context.get("message")))
    if error is not None:
        traceback.print_exception(error, file=sys.stderr)


def say(text: str) -> None:
    """A line for daemon.log."""
    with contextlib.suppress(OSError):  # the disk is full
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} agentd[{os.getpid()}]: {text}", file=sys.stderr, flush=True)
