"""The zygote: one thread, imports done, from which keepers are forked. It outlives the daemon.

It is their subreaper. When a keeper dies, it forks an adopter, daemon or no daemon; when the leader whose keeper
died ends, it writes exit.json and reaps it. It keeps copies of the descriptors whose loss would lose something:
both FIFOs (bytes in a pipe die with its last holder), the master of a terminal, the write end of an agent's input,
secrets of a job that has not started. The daemon keeps copies too, so either of them may die.

A new daemon takes over the zygote that it finds (the socket ``zygote.sock``), if that has the same version; else
the old one is *retired*: it hands over what it holds, adopts and reaps as before, and ends with its last child.
Without a daemon, and with nobody to look after, it ends.

Wire: SOCK_SEQPACKET, one JSON object a message, descriptors attached and named in ``fds``.
Requests: ``hello``, ``launch``, ``watch``, ``hold``, ``release``, ``escrow``, ``retire``. Notices to the daemon:
``kept`` (a keeper was forked), ``over`` (the keeper of an attempt is done), ``holds`` (got from a keeper; with copies).
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from agentd import __version__, jobdir, keeper, launch, output, process, terminal

MESSAGE_BYTES = 65536
MAX_FDS = 8
MAX_RETRY_S = 5.0
LAUNCH_ONLY = ("secrets", "stdin_read")
Message = dict[str, Any]


def main(argv: list[str]) -> int:
    """``agentd.zygote FD STATE_DIR KIND``: the daemon's end of a socket pair, where the state lives, and the kind of
    agent: what its runner needs is imported here, once."""
    fd, state_dir, kind = int(argv[0]), argv[1], argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process.become_subreaper()
    process.set_name("agentd-zygote" if kind == jobdir.PLAIN else f"agentd-zygote {kind}")
    control = socket.socket(fileno=fd)
    if kind != jobdir.PLAIN:
        launch.runner(kind).warm()
    gc.collect()
    gc.freeze()
    Zygote(jobdir.zygote_socket(state_dir, kind), control).run()
    return 0


class Zygote:
    def __init__(self, path: str, control: socket.socket) -> None:
        self.path = path
        self.control: socket.socket | None = None
        self.outgoing: list[tuple[Message, list[int]]] = []
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.keepers: dict[int, str] = {}  # pid -> attempt
        self.strangers: dict[int, tuple[socket.socket, str]] = {}  # keepers that are not our children
        self.leaders: dict[int, str] = {}  # pid -> attempt, once its keeper died
        self.held: dict[str, dict[str, int]] = {}  # attempt -> descriptors
        self.retry: dict[str, float] = {}  # attempt -> when (CLOCK_BOOTTIME) it is looked after again
        self.failures: dict[str, int] = {}  # attempt -> how often in a row its keeper failed by itself
        self.listener: socket.socket | None = None
        self.from_keepers, self.to_zygote = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.from_keepers.setblocking(False)
        self.take_control(control)

    def run(self) -> None:
        self.wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.watch(self.wake_read, lambda _: self.on_children())
        self.watch(self.from_keepers.fileno(), lambda _: self.on_word_from_keeper())
        self.listener = jobdir.listen(self.path, socket.SOCK_SEQPACKET)
        while self.has_work():
            self.accept_daemons()
            for fd, events in self.poll.poll(self.milliseconds_to_next_retry()):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            now = process.boottime()
            for path in [path for path, at in self.retry.items() if at <= now]:
                del self.retry[path]
                self.look_after(path)
        if self.listener is not None:
            jobdir.remove_quietly(self.path)

    def milliseconds_to_next_retry(self) -> float | None:
        if not self.retry:
            return None
        return max(0.0, (min(self.retry.values()) - process.boottime()) * 1000 + 0.5)

    def look_later(self, path: str) -> None:
        """Not at once again: 20 ms later, and ever more rarely if it goes on failing."""
        failures = self.failures[path] = self.failures.get(path, 0) + 1
        self.retry[path] = process.boottime() + min(MAX_RETRY_S, 0.01 * 2**failures)

    def has_work(self) -> bool:
        waiting = any("secrets" in fds for fds in self.held.values())
        return bool(self.control or self.keepers or self.leaders or self.strangers or self.retry or waiting)

    def watch(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    # --- the daemon -----------------------------------------------------------------------------------------

    def accept_daemons(self) -> None:
        """The next daemon is let in only when the last one's orders are all read: none is obeyed late."""
        if self.listener is None:
            return
        if self.control is None and self.listener.fileno() not in self.handlers:
            self.watch(self.listener.fileno(), lambda _: self.on_daemon())
        elif self.control is not None:
            self.unwatch(self.listener.fileno())

    def on_daemon(self) -> None:
        assert self.listener is not None
        connection, _ = self.listener.accept()
        if jobdir.peer_uid(connection) != os.getuid():
            return connection.close()
        self.take_control(connection)

    def take_control(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.control = connection
        self.watch(connection.fileno(), self.on_control)

    def lose_control(self) -> None:
        if self.control is None:
            return
        self.unwatch(self.control.fileno())
        self.control.close()
        self.control = None
        for _, fds in self.outgoing:
            close_all(fds)
        self.outgoing.clear()

    def on_control(self, events: int) -> None:
        if events & select.POLLOUT:
            self.flush()
        if self.control is None or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data, fds, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            return self.lose_control()
        for fd in fds:
            os.set_inheritable(fd, False)
        request = json.loads(data)
        named = dict(zip(request.get("fds", ()), fds, strict=True))
        try:
            answer, attached = getattr(self, f"do_{request['op']}")(request, named)
        except OSError as error:
            answer, attached = {"errno": error.errno, "error": str(error)}, {}
        self.say({"id": request["id"], **answer}, attached)

    def say(self, message: Message, fds: dict[str, int] | None = None) -> None:
        fds = fds or {}
        if self.control is not None:
            # Copies: the attempt may end, and its descriptors be closed and their numbers another's, before a
            # daemon that is behind takes this.
            copies = [os.dup(fd) for fd in fds.values()]
            self.outgoing.append((message | {"fds": list(fds)}, copies))
            self.flush()

    def flush(self) -> None:
        while self.outgoing and self.control is not None:
            message, fds = self.outgoing[0]
            try:
                socket.send_fds(self.control, [json.dumps(message).encode()], fds)
            except BlockingIOError:
                self.poll.modify(self.control.fileno(), select.POLLIN | select.POLLOUT)
                return
            except OSError:
                return self.lose_control()
            self.outgoing.pop(0)
            close_all(fds)
        if self.control is not None:
            self.poll.modify(self.control.fileno(), select.POLLIN)

    # --- orders ---------------------------------------------------------------------------------------------

    def do_hello(self, _: Message, __: dict[str, int]) -> tuple[Message, dict[str, int]]:
        return {"version": __version__, "pid": os.getpid(), "held": sorted(self.held)}, {}

    def do_hold(self, request: Message, fds: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """Keep descriptors for an attempt that is not running yet (its secrets)."""
        self.hold(request["path"], fds)
        return {}, {}

    def do_release(self, request: Message, _: dict[str, int]) -> tuple[Message, dict[str, int]]:
        self.release(request["path"], request.get("names"))
        return {}, {}

    def do_escrow(self, request: Message, _: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """Copies of what is held for an attempt."""
        return {}, dict(self.held.get(request["path"], {}))

    def do_launch(self, request: Message, fds: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """Fork a keeper. Harmless when repeated: a second keeper finds byte 0 held, or the attempt launched."""
        path = request["path"]
        self.hold(path, fds)
        held = self.held[path]
        for stream in jobdir.STREAMS:
            if stream not in held:
                held[stream] = output.open_fifo(f"{path}/{stream}.fifo")
                with contextlib.suppress(OSError):  # over the user's quota: the pipe stays smaller
                    fcntl.fcntl(held[stream], fcntl.F_SETPIPE_SZ, output.PIPE_BYTES)
        if request.get("stdin") and "stdin" not in held:
            held["stdin_read"], held["stdin"] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(held["stdin"], False)
            held["stdin_file"] = os.open(f"{path}/stdin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if request.get("tty") and "pty" not in held:
            held["pty"] = terminal.make(tuple(request["tty"]))
        pid = self.fork_keeper(path)
        return {"keeper": pid}, {name: fd for name, fd in held.items() if name not in LAUNCH_ONLY}

    def do_watch(self, request: Message, fds: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """Look after an attempt that was launched by another zygote: adopt it when it has no keeper."""
        path = request["path"]
        self.hold(path, fds)
        if path not in self.keepers.values():
            self.look_after(path)
        return {}, {}

    def do_daemon(self, _: Message, __: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """Start a daemon: asked by a client inside a job, whose own children would end with the job."""
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                process.close_all_but({0, 1, 2})
                os.execv(sys.executable, [sys.executable, "-P", "-m", "agentd.daemon", os.path.dirname(self.path)])
            finally:
                os._exit(125)
        return {"daemon": pid}, {}

    def do_retire(self, _: Message, __: dict[str, int]) -> tuple[Message, dict[str, int]]:
        """A zygote of another version takes over the socket and the launching."""
        if self.listener is not None:
            self.unwatch(self.listener.fileno())
            self.listener.close()
            self.listener = None
        for fds in self.held.values():
            for name in LAUNCH_ONLY:
                if name in fds:
                    os.close(fds.pop(name))
        return {}, {}

    def hold(self, path: str, fds: dict[str, int]) -> None:
        held = self.held.setdefault(path, {})
        for name, fd in fds.items():
            if name == "secrets" and name in held:
                os.close(held.pop(name))  # of a request that came to nothing
            if name in held:
                os.close(fd)
            else:
                held[name] = fd

    def release(self, path: str, names: list[str] | None = None) -> None:
        held = self.held.get(path, {})
        for name in list(held) if names is None else names:
            if name in held:
                os.close(held.pop(name))
        if not held:
            self.held.pop(path, None)

    # --- keepers --------------------------------------------------------------------------------------------

    def fork_keeper(self, path: str) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = self.be_keeper(path)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.keepers[pid] = path
        return pid

    def be_keeper(self, path: str) -> int:
        signal.set_wakeup_fd(-1)
        # The FIFOs it opens by path; and no other job's pipe may be kept alive by this process.
        own = {name: fd for name, fd in self.held.get(path, {}).items() if name not in jobdir.STREAMS}
        process.close_all_but({0, 1, 2, self.to_zygote.fileno(), *own.values()})
        job, attempt = path.rsplit("/", 2)[1:]
        process.set_name(f"agentd-keeper {job}.{attempt}")
        self.to_zygote.setblocking(False)
        return keeper.keep(path, own, self.to_zygote)

    def on_word_from_keeper(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                word = json.loads(self.from_keepers.recv(MESSAGE_BYTES))
                for what, path in word.items():
                    names = list(LAUNCH_ONLY) if what == "started" else ["stdin", "stdin_file"]
                    self.release(path, names)

    def on_children(self) -> None:
        keeper.drain(self.wake_read)
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            if pid in self.keepers:
                self.on_keeper_dead(pid, dead)
            elif pid in self.leaders or self.knows_after_a_look(pid):
                self.on_leader_dead(pid, dead)
            else:
                os.waitpid(pid, 0)  # an escapee whose keeper has died

    def knows_after_a_look(self, pid: int) -> bool:
        """Is it a leader whose keeper's death we have not been told yet? Then that death is dealt with first."""
        for other in list(self.keepers):
            seen = process.look_at_child(other)
            if seen is not None:
                self.on_keeper_dead(other, seen)
        for path in () if pid in self.leaders else self.keepers.values():
            # That it is our child says that its keeper is dead, even if somebody traces that one and hides it from us.
            agent = jobdir.read(path, "agent.json")
            if agent is not None and agent["agent"]["pid"] == pid:
                self.expect_leader(path, agent["agent"])
        return pid in self.leaders

    def on_keeper_dead(self, pid: int, how: os.waitid_result) -> None:
        path = self.keepers.pop(pid)
        agent = jobdir.read(path, "agent.json")
        if agent is not None and jobdir.read(path, "exit.json") is None:
            self.expect_leader(path, agent["agent"])
        os.waitpid(pid, 0)
        if how.si_code == os.CLD_EXITED and how.si_status == keeper.OVER:
            return self.on_over(path)
        if how.si_code == os.CLD_EXITED and how.si_status not in (keeper.OVER, keeper.HELD):
            return self.look_later(path)  # it failed by itself
        self.failures.pop(path, None)
        self.look_after(path)

    def expect_leader(self, path: str, who: process.Identity) -> None:
        """The leader is our child now, or its death was already written down."""
        try:
            process.look_at_child(int(who["pid"]))
        except ChildProcessError:
            return
        if process.identity(int(who["pid"])) == who:
            self.leaders[int(who["pid"])] = path

    def on_leader_dead(self, pid: int, dead: os.waitid_result) -> None:
        path = self.leaders[pid]
        agent = jobdir.read(path, "agent.json")
        if agent is not None and agent["agent"]["pid"] == pid and jobdir.noexec(path, agent) is None:
            record = keeper.exit_record(dead.si_code, dead.si_status)
            cgroup = agent.get("cgroup")
            if cgroup and process.oom_kills(cgroup):
                record["oom"] = True
            jobdir.write_final(path, "exit.json", {"format": 1, **record, "at": time.time()})
        del self.leaders[pid]
        os.waitpid(pid, 0)

    def look_after(self, path: str) -> None:
        """Adopt the attempt if it has no keeper; else be told when that one dies (its socket ends)."""
        end = jobdir.read(path, "end.json")
        if end is not None and not jobdir.has_helpers(path, end):
            return self.on_over(path)
        if not os.path.isdir(path):
            return self.on_over(path)
        self.hold_what_lives(path)
        if not process.byte_held(f"{path}/life.lock", 0):
            pid = self.fork_keeper(path)
            return self.say({"notice": "kept", "path": path, "keeper": pid})
        try:
            connection = jobdir.connect(f"{path}/keeper.sock", blocking=False)
            if "pty" not in self.held.get(path, {}):
                connection.send(b'{"escrow": true}\n')
        except OSError:
            return self.look_later(path)  # between its lock and its socket
        self.failures.pop(path, None)
        fd = connection.fileno()
        self.strangers[fd] = (connection, path)
        self.watch(fd, lambda _: self.on_stranger(fd))

    def hold_what_lives(self, path: str) -> None:
        """Of an attempt that another zygote launched: its FIFOs, if anybody has them (else the adopter must see that
        their bytes are lost), and a pidfd of its leader, which may be the child of process 1 by now."""
        held = self.held.setdefault(path, {})
        for stream in jobdir.STREAMS:
            if stream not in held and (fd := output.open_held(f"{path}/{stream}.fifo")) is not None:
                held[stream] = fd
        agent = jobdir.read(path, "agent.json")
        if agent is not None and jobdir.read(path, "exit.json") is None:
            hold_leader(held, agent["agent"])
        if not held:
            del self.held[path]

    def on_stranger(self, fd: int) -> None:
        """It has sent what it alone held, or is gone."""
        connection, path = self.strangers[fd]
        try:
            data, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MAX_FDS)
        except OSError:
            data, fds = b"", []
        if not data:
            return self.on_stranger_gone(fd)
        for copy in fds:
            os.set_inheritable(copy, False)
        if fds:
            got = dict(zip(json.loads(data)["fds"], fds, strict=True))
            self.hold(path, got)
            self.say({"notice": "holds", "path": path}, {name: self.held[path][name] for name in got})

    def on_stranger_gone(self, fd: int) -> None:
        self.unwatch(fd)
        connection, path = self.strangers.pop(fd)
        connection.close()
        self.look_after(path)

    def on_over(self, path: str) -> None:
        self.failures.pop(path, None)
        self.release(path)
        self.say({"notice": "over", "path": path})


def hold_leader(held: dict[str, int], who: process.Identity) -> None:
    """A pidfd of this very process, in place of one of an earlier fork that was never executed."""
    if "leader" in held and process.is_of(held["leader"], who):
        return
    pidfd = process.open_verified(who)
    if pidfd is not None:
        if "leader" in held:
            os.close(held["leader"])
        held["leader"] = pidfd


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
