"""The typed Python client: connect (starting the daemon if there is none), ask, wait, follow events.

    from agentd import Client

    with Client() as client:
        job = client.delegate(["make", "test"], task="run the tests", cwd="/repo")
        done = client.wait([job["id"]])["jobs"][0]

A request that the daemon's death cut off is asked again of the next daemon: every method can be repeated. A job is a
dict with the fields of ``agentd ps --json``; errors are :class:`agentd.core.errors.AgentdError`.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from agentd import __version__, claimfile, jobdir, paths, process
from agentd.core.credentials import is_secret
from agentd.core.errors import EXIT_ANOTHER, EXIT_NOT_NOW, AgentdError, Fault, NotNow, Refused, Usage

PROTOCOL = 1
MAX_MESSAGE = 1 << 20  # as in protocol.py, which takes long to import
START_S = 30.0
Job = dict[str, Any]
Ref = int | str
caller = 0
"""The process whose call this is; 0: this one. The resident process answers for others."""


class ConnectionLost(Exception):
    """The daemon went away in the middle."""


def own_state_dir() -> str:
    try:
        return paths.state_dir()
    except LookupError:
        what = "cannot tell where your home is: HOME is not set; set it, or AGENTD_STATE_DIR"
        raise Refused(what, "no_home") from None
    except FileNotFoundError:
        what = "the state folder is relative to the current one, which has been removed; set AGENTD_STATE_DIR"
        raise Refused(what, "no_folder") from None


def default_owner() -> str:
    """AGENTD_OWNER, else this boot and terminal session."""
    given = os.environ.get("AGENTD_OWNER")
    if given:
        return given
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"session:{file.read()[:8]}:{os.getsid(caller)}"


class Client:
    """One connection, for one thread. ``start``: start a daemon if none answers.

    Inside a job it speaks to the job's own socket, which takes few methods.
    """

    def __init__(self, state_dir: str | None = None, start: bool = True, owner: str | None = None) -> None:
        self.narrow = os.environ.get("AGENTD_SOCKET") if state_dir is None else None
        if self.narrow:
            # jobs/<id>/<attempt>/agent.sock lies in the state folder of the daemon that runs this job.
            self.state_dir = os.path.abspath(os.path.join(os.path.dirname(self.narrow), "../../.."))
        else:
            self.state_dir = os.path.abspath(state_dir) if state_dir else own_state_dir()
        self.start = start
        self.owner = owner if owner is not None else default_owner()
        self.link: socket.socket | None = None
        self.buffer = b""
        self.number = 0
        self.events_waiting: list[dict[str, Any]] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None
        self.buffer = b""

    # --- jobs -----------------------------------------------------------------------------------------------

    def delegate(
        self,
        argv: Sequence[str],
        *,
        task: str = "",
        cwd: str | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> Job:
        """A job in a worktree of its own (``in_place=True``: in ``cwd``). ``options``: as in agentd-protocol(7),
        jobs.delegate. Returns the job as soon as it is durable."""
        return dict(self.delegate_answer(argv, task=task, cwd=cwd, environment=environment, **options)["job"])

    def delegate_answer(
        self,
        argv: Sequence[str],
        *,
        task: str = "",
        cwd: str | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """As :meth:`delegate`, with ``excluded``: what of a dirty tree the job will not have, if known by now."""
        if isinstance(argv, str):
            raise Usage(f"argv must be a list of words, such as {argv.split()!r}, not one string", "bad_command")
        params = {
            "task": task,
            "argv": list(argv),
            "cwd": cwd or os.getcwd(),
            "environment": dict(os.environ) if environment is None else environment,
            "owner": self.owner,
            "umask": current_umask(),
            "limits": current_limits(),
            "key": os.urandom(16).hex(),
        }
        return self.ask("jobs.delegate", **(params | options))

    def jobs(self, all: bool = False, mine: bool = False) -> list[Job]:
        """Jobs that are not done; ``all``: those that are, too. ``mine``: only this owner's."""
        return list(self.ask("jobs.list", all=all, owner=self.owner if mine else None)["jobs"])

    def job(self, ref: Ref) -> dict[str, Any]:
        """Everything about one job, as ``agentd inspect --json`` prints it."""
        return self.ask("jobs.get", job=ref, owner=self.owner)

    def wait(
        self,
        refs: Sequence[Ref] = (),
        *,
        any: bool = False,
        all: bool = False,
        until: str = "done",
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Block until the jobs are done (or in state ``until``). ``{"timed_out": bool, "jobs": [...]}``.

        It outlives the daemon: cut off, it asks the next one.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not all:
            refs = self.ask("jobs.resolve", jobs=list(refs), owner=self.owner)["ids"]
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return self._ask_once(
                    "jobs.wait",
                    jobs=list(refs),
                    owner=self.owner,
                    any=any,
                    all=all,
                    until=until,
                    timeout=left,
                )
            except ConnectionLost:
                self.close()

    def kill(self, refs: Sequence[Ref], signal: str | None = None, grace: float | None = None) -> list[Job]:
        return list(self.ask("jobs.kill", jobs=list(refs), owner=self.owner, signal=signal, grace=grace)["jobs"])

    def send(self, ref: Ref, text: str = "", eof: bool = False) -> dict[str, Any]:
        return self.ask("jobs.send", job=ref, owner=self.owner, data=text, eof=eof)

    def answer(self, ref: Ref, text: str, question: str = "") -> dict[str, Any]:
        """To what an agent asks. ``question``: its id, if the text is for that one only."""
        return self.ask("jobs.answer", job=ref, owner=self.owner, text=text, question=question)

    def interrupt(self, ref: Ref, text: str = "") -> dict[str, Any]:
        """Break off what an agent does now; without a ``text`` it then waits for one."""
        return self.ask("jobs.interrupt", job=ref, owner=self.owner, text=text)

    def restart(self, ref: Ref, resume: bool = False) -> Job:
        """``resume``: an agent goes on with its conversation."""
        environment = dict(os.environ)
        return dict(self.ask("jobs.restart", job=ref, owner=self.owner, resume=resume, environment=environment)["job"])

    def profiles(self) -> list[dict[str, Any]]:
        """The profiles of the built-in agent."""
        return list(self.ask("profiles.list")["profiles"])

    def merge(self, ref: Ref, into: str | None = None, force: bool = False) -> dict[str, Any]:
        """Bring a job's work into ``into``, or into the branch that the current folder's tree has checked out."""
        here = {"cwd": os.getcwd(), "umask": current_umask()}
        return self.ask("jobs.merge", job=ref, owner=self.owner, into=into, force=force, **here)

    def diff(self, ref: Ref, form: str = "patch", binary: bool = False) -> Iterator[str]:
        """What a job changed so far, piece by piece; text that is no UTF-8 as ``surrogateescape`` has it."""
        work, offset = None, 0
        while offset is not None:
            answer = self.ask(
                "jobs.diff", job=ref, owner=self.owner, form=form, binary=binary, work=work, offset=offset
            )
            work, offset = answer["work"], answer["next"]
            yield answer["text"]

    def result(self, ref: Ref) -> dict[str, Any]:
        return dict(self.ask("jobs.result", job=ref, owner=self.owner)["result"])

    def remove(self, ref: Ref) -> Job:
        return dict(self.ask("jobs.remove", job=ref, owner=self.owner)["job"])

    def undo(self, job: int) -> Job:
        return dict(self.ask("jobs.undo", job=job, owner=self.owner)["job"])

    # --- locks ----------------------------------------------------------------------------------------------

    def lock(
        self, wants: Sequence[str | dict[str, str]], *, wait: float | None = 60.0, **options: Any
    ) -> dict[str, Any]:
        """Claim all of ``wants`` or nothing, within ``wait`` seconds (None: no limit). NotNow, with the ticket that
        keeps the place, if it cannot be had so soon; exit 76 if it never could. It outlives the daemon.

        ``options``: as in agentd-protocol(7), lock.acquire."""
        deadline = None if wait is None else time.monotonic() + wait
        asked = [{"name": want} if isinstance(want, str) else want for want in wants]
        params = {"cwd": os.getcwd(), "owner": self.owner, "session": process.identity(os.getsid(caller))} | options
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return self._ask_once("lock.acquire", wants=asked, wait=left, **params)
            except ConnectionLost:
                self.close()

    def unlock(
        self, names: Sequence[str] = (), *, all: bool = False, cwd: str | None = None, claim: str = ""
    ) -> dict[str, Any]:
        where = cwd or os.getcwd()
        return self.ask("lock.release", names=list(names), all=all, cwd=where, owner=self.owner, claim=claim)

    @contextlib.contextmanager
    def locked(
        self, *wants: str | dict[str, str], wait: float | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Hold ``wants`` within a ``with``, at most as long as this process and what it forks meanwhile live."""
        params = {"cwd": os.getcwd()} | options
        record = {"label": " ".join(sys.argv)[:200], "owner": self.owner, "wants": list(wants), "cwd": params["cwd"]}
        key, fd = claimfile.make(self.state_dir, record, is_inherited=False)
        try:
            answer = self.lock(list(wants), wait=wait, claim=key, **params)
            claimfile.rewrite(fd, record | {"token": answer["token"], "granted": answer["granted"]})
            yield answer
        finally:
            with contextlib.suppress(AgentdError):  # without a daemon the next one sees that the file is gone
                self.unlock(all=True, claim=key)
            claimfile.remove(self.state_dir, key)
            os.close(fd)

    def locks(self, cwd: str | None = None) -> dict[str, Any]:
        """All claims and all who wait; with ``cwd`` those of the repository there, and of no repository."""
        return self.ask("lock.list", cwd=cwd)

    # --- events ---------------------------------------------------------------------------------------------

    def events(
        self, name: str | None = None, since: int | None = None, mine: bool = False, follow: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Events in order, each ``{"seq", "at", "type", "job", "attempt", "data"}``.

        With a ``name``: from the last one that name acknowledged, again after every reconnect, until :meth:`ack`.
        Without: those after ``since``. ``follow`` false: what is there now, then the end.
        """
        cursor = since
        while True:
            try:
                link = Client(None if self.narrow else self.state_dir, self.start, self.owner)
                with link:
                    yield from link._events_once(name, cursor, mine, follow, self._note_cursor)
                    return
            except ConnectionLost:
                cursor = self._cursor if name is None and self._cursor is not None else since

    _cursor: int | None = None

    def _note_cursor(self, seq: int) -> None:
        self._cursor = seq

    def _events_once(
        self, name: str | None, since: int | None, mine: bool, follow: bool, note: Any
    ) -> Iterator[dict[str, Any]]:
        params = {"name": name, "since": since, "mine": self.owner if mine else "", "follow": follow}
        self._send("events.subscribe", params)
        number = self.number
        while True:
            message = self._receive()
            if message.get("method") == "event":
                event = message["params"]
                note(event["seq"])
                yield event
            elif message.get("method") == "lagged":
                raise ConnectionLost
            elif is_answer(message, number):
                if "error" in message:
                    raise raised(message["error"])
                note(message["result"]["cursor"])
                if not follow:
                    return

    def subscribe(self) -> None:
        """From now on this connection is readable when something happens; it is good for nothing else."""
        self._send("events.subscribe", {"name": None, "since": None, "mine": "", "follow": True})

    def fileno(self) -> int:
        return -1 if self.link is None else self.link.fileno()

    def rang(self) -> bool:
        """Take what has come, unread; False if the daemon has gone."""
        assert self.link is not None
        try:
            return bool(self.link.recv(1 << 20))
        except OSError:
            return False

    def ack(self, name: str, seq: int) -> dict[str, Any]:
        """``name`` has dealt with everything up to ``seq``."""
        return self.ask("events.ack", name=name, seq=seq)

    def forget_reader(self, name: str) -> dict[str, Any]:
        """``name`` is a reader no more; used again, it is a new one."""
        return self.ask("events.forget", name=name)

    # --- asking ---------------------------------------------------------------------------------------------

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One request, asked again of the next daemon if this one dies before it answers."""
        for _ in range(20):
            try:
                return self._ask_once(method, **params)
            except ConnectionLost:
                self.close()
        raise Fault("cannot get an answer: the daemon dies again and again; see daemon.log", "daemon_dies")

    def _ask_once(self, method: str, **params: Any) -> dict[str, Any]:
        self._send(method, params)
        number = self.number
        while True:
            message = self._receive()
            if not is_answer(message, number):
                continue
            if "error" in message:
                raise raised(message["error"])
            result: dict[str, Any] = message["result"] or {}
            return result

    def _send(self, method: str, params: dict[str, Any]) -> None:
        link = self.connect()
        self.number += 1
        message = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        try:
            # Names and words that are no UTF-8 travel as Python has them, and come back so.
            data = json.dumps(message).encode() + b"\n"
        except (UnicodeEncodeError, ValueError) as error:
            raise Usage(f"cannot send the request: {error}", "bad_request") from None
        if len(data) - 1 > MAX_MESSAGE:
            what = f"cannot send the request: message larger than {MAX_MESSAGE} bytes"
            raise Usage(f"{what}; shorten the text, the command or the environment", "bad_request")
        try:
            link.sendall(data)
        except OSError:
            # An answer may have come before the daemon closed, such as "too large".
            with contextlib.suppress(ConnectionLost):
                answer = self._receive()
                if "error" in answer:
                    raise raised(answer["error"]) from None
            raise ConnectionLost from None

    def _receive(self) -> dict[str, Any]:
        assert self.link is not None
        while b"\n" not in self.buffer:
            try:
                data = self.link.recv(1 << 18)
            except OSError:
                raise ConnectionLost from None
            if not data:
                raise ConnectionLost
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        message = dict(json.loads(line))
        if message.get("method") == "stopping":
            self.close()
            raise NotNow("the daemon has been stopped; jobs go on, and the next verb starts it again", "daemon_stopped")
        return message

    # --- connecting -----------------------------------------------------------------------------------------

    def connect(self) -> socket.socket:
        """The connection, made if need be: to the daemon that is there, or to one that is started now."""
        if self.link is None:
            self.link = self._connect_narrow() if self.narrow else self._connect()
        return self.link

    def _connect(self) -> socket.socket:
        deadline, pause = time.monotonic() + START_S, 0.01
        while True:
            link = self._reach()
            if link is not None and self._is_served(link):
                return link
            if link is None and not self.start:
                raise NotNow("no daemon is running; start it with: agentd daemon start", "no_daemon")
            if link is None and not start_daemon(self.state_dir):
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            if time.monotonic() > deadline:
                raise Fault(
                    f"cannot reach the daemon within {START_S:.0f} s; see {self.state_dir}/daemon.log",
                    "no_daemon",
                )

    def _reach(self) -> socket.socket | None:
        try:
            record = jobdir.read(self.state_dir, "daemon.json")
        except OSError as error:
            what = (
                f"cannot read {self.state_dir}/daemon.json: {error.strerror}; set AGENTD_STATE_DIR to a folder of yours"
            )
            raise Refused(what, "state_not_readable") from None
        if record is None:
            return None
        try:
            link = jobdir.connect(record["socket"])
        except (OSError, KeyError):
            return None
        if jobdir.peer_uid(link) != os.getuid():
            link.close()
            raise Refused(f"{record['socket']} is served by another user; not speaking to it", "foreign_socket")
        self.server_version = str(record.get("version"))
        return link

    def _is_served(self, link: socket.socket) -> bool:
        """An older daemon hands over to a new one before it is asked anything."""
        if not is_newer(__version__, self.server_version):
            return True
        self.link = link
        with contextlib.suppress(ConnectionLost):
            self._ask_once("daemon.stop", handover=True)
            while True:
                self._receive()
        self.close()
        return False

    def _connect_narrow(self) -> socket.socket:
        assert self.narrow is not None
        deadline = time.monotonic() + START_S
        asked = False
        while True:
            try:
                return jobdir.connect(self.narrow)
            except OSError as error:
                if not asked:
                    ask_zygote_for_daemon(self.state_dir)
                    asked = True
                if time.monotonic() > deadline:
                    raise NotNow(f"cannot reach {self.narrow}: {error.strerror}", "no_daemon") from None
                time.sleep(0.02)


def start_daemon(state_dir: str) -> bool:
    """Start a daemon and wait until it serves. False: another one is just starting, or making its socket anew."""
    import subprocess  # with what it needs 3 ms, for the one client that starts a daemon

    try:
        os.makedirs(state_dir, 0o700, exist_ok=True)
        log = os.open(f"{state_dir}/daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        what = f"cannot keep state in {state_dir}: {error.strerror}; set AGENTD_STATE_DIR to a folder of yours"
        raise Refused(what, "state_not_writable") from None
    ready, theirs = os.pipe()
    said_before = os.fstat(log).st_size
    command = [sys.executable, "-P", "-m", "agentd.daemon", state_dir, str(theirs)]
    # Not its starter's secrets: each job brings its own, and /proc shows an environment as long as its process lives.
    of_a_job = ("AGENTD_JOB", "AGENTD_NONCE", "AGENTD_SOCKET")
    environment = {n: v for n, v in os.environ.items() if n not in of_a_job and not is_secret(n)}
    environment["PYTHONUTF8"] = "1"  # to it and its zygotes words are bytes, whatever our character set
    try:
        child = subprocess.Popen(
            command,
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise NotNow(f"cannot start the daemon: {error.strerror}; try again", "cannot_fork") from None
    finally:
        os.close(theirs)
        os.close(log)
    try:
        select.select([ready], [], [], START_S)
        if os.read(ready, 16):
            child.returncode = 0  # it lives on without us: no ResourceWarning when this object goes
            return True
    finally:
        os.close(ready)
    code = child.wait()
    if code not in (0, EXIT_ANOTHER, -signal.SIGKILL):
        with open(f"{state_dir}/daemon.log", errors="replace") as file:
            file.seek(said_before)
            said = file.read().strip().splitlines()
        if is_full(state_dir):
            raise NotNow(f"cannot start the daemon: the disk under {state_dir} is full; free some space", "disk_full")
        if said:
            kind = NotNow if code == EXIT_NOT_NOW else Refused
            raise kind(f"cannot start the daemon: {said[-1].partition(': ')[2] or said[-1]}", "daemon_failed")
    return False


def is_full(path: str) -> bool:
    free = os.statvfs(path)
    return free.f_bavail * free.f_frsize < 1 << 16 or (free.f_files > 0 and free.f_favail == 0)


def ask_zygote_for_daemon(state_dir: str) -> None:
    """From inside a job: a daemon started by us would end with the job, so the zygote starts it."""
    with contextlib.suppress(OSError):
        link = jobdir.connect(f"{state_dir}/zygote.sock", socket.SOCK_SEQPACKET)
        with link:
            link.settimeout(5.0)
            link.send(json.dumps({"op": "daemon", "id": 1, "fds": []}).encode())
            link.recv(4096)


def is_newer(ours: str, theirs: str) -> bool:
    def parts(version: str) -> list[int]:
        return [int(word) for word in version.split(".") if word.isdigit()]

    return parts(ours) > parts(theirs)


def is_answer(message: dict[str, Any], number: int) -> bool:
    """To the one question that is asked. Its number is missing where the daemon could not read it."""
    return "method" not in message and message.get("id") in (number, None)


def raised(error: dict[str, Any]) -> AgentdError:
    """The exception that an answer's ``error`` stands for."""
    data = error.get("data") or {}
    kinds: dict[int, type[AgentdError]] = {1: Refused, 2: Usage, 75: NotNow}
    kind = kinds.get(data.get("exit", 125), Fault)
    return kind(str(error.get("message")), str(data.get("code", "fault")), data.get("exit"))


def current_umask() -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def current_limits() -> dict[str, tuple[int, int]]:
    """This process's resource limits, by name: a job gets its caller's."""
    found = {}
    for name in dir(resource):
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE":
            with contextlib.suppress(ValueError, OSError):
                found[name] = resource.getrlimit(getattr(resource, name))
    return found
