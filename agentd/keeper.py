"""The keeper: one small process per attempt, forked from the zygote, stupid on purpose.

It is the agent's parent, pumps its output into the log, holds its timers, and writes down how it ended. It may
be killed at any moment. Then the zygote forks another one, which *adopts*: everything it needs is in files
(:mod:`agentd.jobdir`), in the kernel (the FIFOs, the agent itself), or held by the zygote (descriptors).

What makes that safe:

* **One at a time.** Byte 0 of life.lock is taken before anything else; who does not get it goes away (HELD).
* **No execution without a record.** The agent's fork waits at the go-pipe until agent.json is durable. If the
  keeper dies first, the pipe ends, the fork notes in noexec-PID.json that it never ran, and the adopter starts
  it then. So an attempt is executed once.
* **The status is written before it is reaped.** While exit.json is absent, the zombie still has it.
* **Bytes are in the FIFO or in the log, never in us** (:mod:`agentd.output`). Standard input works the same way
  round: the kernel's file position, shared with the zygote's copy of the descriptor, is how far it was read.

One thread, one poll loop, no import that costs memory.
"""

import contextlib
import errno
import functools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from agentd import jobdir, launch, output, process, terminal
from agentd.budget import Spending, silent_for
from agentd.jobdir import Record

HELD = 3  # exit code: somebody else keeps this attempt
OVER = 0  # exit code: the attempt has ended, end.json says how

LADDER = [["INT", 0.0], ["TERM", 5.0], ["KILL", 15.0]]
LEFTOVER_GRACE = 2.0
LEFTOVER_LADDER = [["INT", 0.0], ["TERM", 1.0], ["KILL", 3.0]]
UNKILLABLE_AFTER = 30.0
MOST_HEARD = 65536


def keep(path: str, fds: dict[str, int], escrow: socket.socket | None) -> int:
    """Launch the attempt in ``path``, or adopt it if it has been launched. Returns the process's exit code.

    ``fds`` may hold: ``secrets`` (a memfd with JSON of environment values), ``stdin`` (the pipe's write end),
    ``stdin_file``, ``stdin_read`` (launch only), ``leader`` (a pidfd somebody kept for us), ``pty`` (the master
    of its terminal).
    """
    life = os.open(f"{path}/life.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not process.take_byte(life, 0):
        return HELD
    spec = jobdir.read(path, "spec.json") or jobdir.bare_spec(path)
    keeper = Keeper(path, spec, fds, escrow)
    end = jobdir.read(path, "end.json")
    if end is None:
        keeper.run()
    elif jobdir.has_helpers(path, end):
        keeper.stay_for(end["left"])
    return OVER


class Keeper:
    def __init__(self, path: str, spec: Record, fds: dict[str, int], escrow: socket.socket | None) -> None:
        self.path = path
        self.spec = spec
        self.fds = fds
        self.escrow = escrow
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.timers: dict[str, float] = {}
        self.log = output.Log(path, int(spec.get("log_max") or 0))
        self.followers: dict[int, tuple[int, int]] = {}
        self.connections: dict[int, socket.socket] = {}
        self.heard: dict[int, bytes] = {}  # the beginning of a request, by connection
        self.terminal: terminal.Terminal | None = None
        self.watched: dict[int, int] = {}  # pidfds of leftovers that are not our children: pidfd -> pid

        self.agent: Record = {}
        self.is_parent = False
        self.has_given_up = False
        self.leader_pidfd: int | None = None
        self.exit: Record | None = None
        self.order: Record | None = None  # the ladder being climbed
        self.rungs_done = 0
        self.swept: dict[int, Record] = {}
        self.unkillable = False
        self.hidden_since: float | None = None
        self.blocked: set[str] = set()  # streams whose bytes wait for room on the disk
        self.fifos: dict[str, int] = {}
        self.spending = Spending(
            f"{path}/transcript.ndjson", spec.get("budget") or {}, spec.get("rates"), spec.get("spent")
        )
        self.is_log_whole = True
        self.untold = ""
        self.last_output = process.boottime()
        self.has_ended = False
        self.is_over = False

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.prepare()
        agent = jobdir.read(self.path, "agent.json")
        self.open_fifos(must_be_held=agent is not None)
        self.open_terminal(agent)
        if agent is None:
            self.launch()
        else:
            self.adopt(agent)
        self.loop()

    def prepare(self) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        process.become_subreaper()
        self.watch(self.wake_read, self.on_child)
        self.listen()

    def stay_for(self, left: list[Record]) -> None:
        """After the end, in place of a keeper that was killed: only what helpers that stay still write."""
        self.prepare()
        self.agent = jobdir.read(self.path, "agent.json") or {}
        self.exit, self.has_ended = jobdir.read(self.path, "exit.json"), True
        self.open_fifos(must_be_held=True)
        self.open_terminal(self.agent)
        self.pump_for(left)
        self.loop()

    def open_fifos(self, must_be_held: bool) -> None:
        for stream in jobdir.STREAMS:
            path = f"{self.path}/{stream}.fifo"
            held = output.open_held(path)
            if held is None and must_be_held:
                self.is_log_whole = False
            self.fifos[stream] = output.open_fifo(path) if held is None else held

    def open_terminal(self, agent: Record | None) -> None:
        """Where there is one, and somebody has it. If nobody does, it has been hung up."""
        if not self.spec.get("tty"):
            return
        if "pty" not in self.fds and agent is not None:
            master = terminal.taken_back(int(agent["agent"]["pid"]))
            self.is_log_whole = self.is_log_whole and master is not None
            if master is not None:
                self.fds["pty"] = master
        if "pty" in self.fds:
            self.terminal = terminal.Terminal(self.fds["pty"], self)

    def loop(self) -> None:
        if self.terminal is not None:
            self.terminal.watch()
        for stream, fd in self.fifos.items():
            self.watch(fd, self.output_handler(stream))
        while not self.is_over:
            for fd, events in self.poll.poll(self.milliseconds_to_next_timer()):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            self.fire_timers()

    def watch(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def milliseconds_to_next_timer(self) -> float | None:
        if not self.timers:
            return None
        wait = (min(self.timers.values()) - process.boottime()) * 1000 + 0.5
        return min(max(0.0, wait), 2e9)  # poll takes no more than 2^31: in 23 days we look again

    def fire_timers(self) -> None:
        now = process.boottime()
        for name in [name for name, at in self.timers.items() if at <= now]:
            if self.timers.pop(name, None) is not None:
                getattr(self, f"on_timer_{name}")()

    def after(self, name: str, seconds: float) -> None:
        self.timers[name] = process.boottime() + seconds

    # --- launch and adopt -----------------------------------------------------------------------------------

    def launch(self) -> None:
        self.is_log_whole = True  # nothing has run yet
        self.order = jobdir.read(self.path, "kill.json")
        if self.order is not None:
            return self.finish_unstarted(0, "killed before it started")
        if "argv" not in self.spec:
            return self.finish_unstarted(errno.EIO, "its spec.json is gone")
        if self.spec.get("tty") and self.terminal is None:
            # Whoever held the one that was made for it is dead, and so is a fork that was never executed.
            try:
                self.fds["pty"] = terminal.make(self.spec["tty"])
            except OSError as error:
                return self.finish_unstarted(error.errno or 0, f"cannot make a terminal: {error.strerror}")
            self.terminal = terminal.Terminal(self.fds["pty"], self)
            self.terminal.watch()
        cgroup = self.spec.get("cgroup")
        unset = [name for name in ("memory", "processes") if self.spec.get(name)]
        if cgroup:
            try:
                unset = process.cgroup_make(cgroup, self.spec.get("memory"), self.spec.get("processes"))
            except OSError:
                cgroup = None
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        exec_read, exec_write = os.pipe2(os.O_CLOEXEC)
        tree_life = os.open(f"{self.path}/life.lock", os.O_RDWR | os.O_CLOEXEC)
        process.wait_for_byte(tree_life, 1)  # an earlier fork that was never executed may be on its way out
        pid, is_in_cgroup = process.fork_into(cgroup)
        if pid == 0:
            try:
                os.close(go_write)
                launch.become_agent(self.path, self.spec, self.fds, tree_life, go_read, unset)
            finally:
                os._exit(125)
        for fd in (
            go_read,
            exec_write,
            tree_life,
            self.fds.pop("stdin_read", -1),
            self.fds.pop("secrets", -1),
        ):
            if fd >= 0:
                os.close(fd)
        if cgroup and not is_in_cgroup and not process.cgroup_join(cgroup, pid):
            cgroup = None
        who = process.identity(pid)
        self.agent = {
            "format": 1,
            "agent": who,
            "nonce": self.spec["nonce"],
            "keeper": os.getpid(),
            "cgroup": cgroup,
            "ceilings": {"cgroup": cgroup is not None, "by_rlimit": unset},
            "started": process.boottime(),
            "started_at": time.time(),
            "paused": 0.0,
            "stopped": None,
        }
        self.is_parent = True
        self.leader_pidfd = os.pidfd_open(pid)
        try:
            jobdir.write(self.path, "agent.json", self.agent)
        except OSError as error:
            # The fork sees the pipe end and exits unexecuted: nothing has run, and the reason is told.
            os.close(go_write)
            os.close(exec_read)
            os.waitpid(pid, 0)
            self.finish_unstarted(error.errno or 0, f"cannot record the start: {error.strerror}")
            return
        self.set_timers()
        self.nudge("leader", self.leader_pidfd)
        try:
            os.write(go_write, b"g")
        except BrokenPipeError:
            self.has_given_up = True  # the fork could not even be set up
        os.close(go_write)
        self.watch(exec_read, lambda _: self.on_executed(exec_read), select.POLLIN | select.POLLHUP)

    def on_executed(self, exec_read: int) -> None:
        # The pipe's other end was close-on-exec: it ends at the exec, or when the fork gives up.
        self.unwatch(exec_read)
        os.close(exec_read)
        self.tell_zygote("started")
        if jobdir.noexec(self.path, self.agent) is None:
            self.nudge("started")
        if self.spec.get("stdin"):
            self.pump_input()  # what was sent before we listened

    def adopt(self, agent: Record) -> None:
        self.agent = agent
        who = agent["agent"]
        self.exit = jobdir.read(self.path, "exit.json")
        if who["boot"] != process.boot_id():
            self.record_exit({"code": None, "signal": None, "reason": "rebooted"})
            return self.finish()
        self.read_order()
        if self.exit is not None:
            return self.sweep()
        self.leader_pidfd = self.held_leader(who) or process.open_verified(who)
        if self.leader_pidfd is None:
            # Gone and reaped. The zygote writes before it reaps, so a record is there if a zygote was the parent.
            self.exit = jobdir.read(self.path, "exit.json")
            return self.sweep() if self.exit else self.on_leader_gone(None)
        pieces = [piece for stream in jobdir.STREAMS for piece in jobdir.segments(self.path, stream)]
        mtime = max((os.stat(piece.path).st_mtime for piece in pieces), default=0.0)
        self.last_output -= max(0.0, time.time() - mtime) if mtime else 0.0
        self.watch(self.leader_pidfd, lambda _: self.on_leader_exited())
        self.set_timers()
        if self.spec.get("stdin"):
            self.pump_input()
        if self.spec.get("tty") and self.terminal is None:
            self.signal_tree("HUP")  # its other end lives on in the tree, where we cannot get it: nobody will read it
        self.nudge("adopted")

    def held_leader(self, who: process.Identity) -> int | None:
        """A pidfd that zygote or daemon kept: it may be one of an earlier fork, which was never executed."""
        held = self.fds.pop("leader", None)
        return held if held is not None and process.is_of(held, who) else None

    # --- timers of the agent --------------------------------------------------------------------------------

    def set_timers(self) -> None:
        """Time limits count while the agent is not stopped; the clock goes on in suspend, and when we are dead."""
        for name in ("timeout", "idle"):
            self.timers.pop(name, None)
        if self.agent.get("stopped") is not None or self.exit is not None or self.order is not None:
            return
        if self.spec.get("timeout"):
            self.timers["timeout"] = self.agent["started"] + self.agent["paused"] + self.spec["timeout"]
        if self.spec.get("idle_timeout"):
            self.timers["idle"] = self.last_output + self.spec["idle_timeout"]

    def on_timer_timeout(self) -> None:
        self.give_order({"reason": "timed_out", "limit": "timeout", "seconds": self.spec["timeout"]})

    def on_timer_idle(self) -> None:
        self.see_transcript()
        quiet_until = self.last_output + self.spec["idle_timeout"]
        if quiet_until > process.boottime():
            self.timers["idle"] = quiet_until
            return
        self.give_order({"reason": "timed_out", "limit": "idle_timeout", "seconds": self.spec["idle_timeout"]})

    def see_transcript(self) -> None:
        """An agent with a runner works without a word on its standard streams."""
        self.last_output = max(self.last_output, process.boottime() - silent_for(self.spending.path))

    def note_stopped(self, is_stopped: bool) -> None:
        now = process.boottime()
        since: float | None = self.agent["stopped"]
        if is_stopped == (since is not None):
            return
        if is_stopped:
            self.see_transcript()
        self.agent["stopped"] = now if is_stopped else None
        if since is not None:
            self.agent["paused"] += now - since
            self.last_output += now - since
        try:
            jobdir.write(self.path, "agent.json", self.agent)
        except OSError as error:
            if not jobdir.is_full(error):
                raise
        self.set_timers()
        self.nudge("stopped" if is_stopped else "continued")

    # --- ending it ------------------------------------------------------------------------------------------

    def give_order(self, order: Record) -> None:
        """Our own decision to end the agent: written down first, so that an adopter goes on with it."""
        order = {"rungs": LADDER, "at": process.boottime(), **order}
        try:
            jobdir.write_order(self.path, order)
        except OSError as error:
            if not jobdir.is_full(error):
                raise
        self.take_order(order)
        self.nudge("stopping")

    def read_order(self, said: object = None) -> None:
        """``said``: the order itself, for the case that it could not be written."""
        order = jobdir.read(self.path, "kill.json") or (said if isinstance(said, dict) else None)
        if order is not None:
            self.take_order(order)

    def take_order(self, order: Record) -> None:
        # A newer order replaces the ladder (kill, then kill -9); the first reason stands.
        if self.order is not None and self.order.get("reason"):
            order = {**order, "reason": self.order["reason"], "limit": self.order.get("limit")}
        self.order = order
        self.rungs_done = 0
        self.timers.pop("leftover", None)
        self.set_timers()
        self.on_timer_rung()

    def on_timer_rung(self) -> None:
        order = self.order
        if order is None or self.is_over:
            return
        elapsed = process.boottime() - order["at"]
        due = [name for name, offset in order["rungs"] if offset <= elapsed]
        if len(due) > self.rungs_done:
            self.rungs_done = len(due)
            self.signal_tree(due[-1])
        rest = order["rungs"][self.rungs_done :]
        if rest:
            self.timers["rung"] = order["at"] + rest[0][1]
        elif self.is_killing():
            self.timers.setdefault("unkillable", process.boottime() + UNKILLABLE_AFTER)

    def is_killing(self) -> bool:
        if self.order is None or self.rungs_done == 0:
            return False
        return bool(self.order["rungs"][self.rungs_done - 1][0] == "KILL")

    def on_timer_unkillable(self) -> None:
        self.unkillable = True
        self.nudge("unkillable", processes=[process.describe(pid) for pid in self.tree()[:20]])

    def signal_tree(self, name: str) -> None:
        """Signal every process of the tree through a pidfd, and wake what is stopped."""
        cgroup = self.agent.get("cgroup")
        if name == "KILL" and cgroup and not self.spec.get("leave"):
            self.note_swept([pid for pid in self.tree() if pid != self.agent["agent"]["pid"]])
            if process.cgroup_kill(cgroup):
                return
        if name == "KILL" and self.is_parent:
            return self.kill_children()
        number = signal.Signals[f"SIG{name}"]
        if name == "KILL":
            self.freeze_growth()
        leader = self.agent["agent"]["pid"]
        for pidfd, pid in self.held_tree():
            if pid != leader:
                self.note_swept([pid])
            process.send(pidfd, number)
            if name != "KILL":
                process.send(pidfd, signal.SIGCONT)
            os.close(pidfd)

    def kill_children(self) -> None:
        """From the top, each at first sight: a number of our child's is nobody else's until we reap it, and whom a
        death leaves behind is our child next. So it is quicker than a storm of forks that live for 2 ms."""
        leader = self.agent["agent"]["pid"]
        patterns = (self.spec.get("leave") or []) if self.exit is not None else []
        killed: set[int] = set()
        for _ in range(1000):
            new = [pid for pid in process.children("self") if pid not in killed]
            new = [pid for pid in new if not (patterns and process.matches(pid, patterns))]
            if not new:
                return
            for pid in new:
                if pid != leader and not process.is_zombie(pid):
                    self.note_swept([pid])
                with contextlib.suppress(PermissionError):  # it has become another user: told as unkillable
                    os.kill(pid, signal.SIGKILL)
            self.reap_orphans()
            killed = (killed | set(new)) & set(process.children("self"))

    def freeze_growth(self) -> None:
        """SIGSTOP until a look finds nobody new: a fork storm cannot outrun a kill of what stands still."""
        known: set[int] = set()
        for _ in range(100):
            new = [pid for pid in self.tree() if pid not in known]
            if not new:
                return
            known.update(new)
            for pidfd, _ in self.held_tree():
                process.send(pidfd, signal.SIGSTOP)
                os.close(pidfd)

    def held_tree(self) -> list[tuple[int, int]]:
        """``(pidfd, pid)`` of the tree: looked at, opened, looked at again, so a reused number is left alone."""
        opened: list[tuple[int, int]] = []
        for pid in self.tree():
            try:
                opened.append((os.pidfd_open(pid), pid))
            except OSError:
                continue
        still = set(self.tree())
        for pidfd, pid in [pair for pair in opened if pair[1] not in still]:
            os.close(pidfd)
            opened.remove((pidfd, pid))
        return opened

    def tree(self) -> list[int]:
        """The living processes of this job that are not released by ``--leave``."""
        cgroup = self.agent.get("cgroup")
        found = process.descendants("self")
        if cgroup:
            found += [pid for pid in process.cgroup_pids(cgroup) if pid not in found]
        if not self.is_parent and not cgroup and self.agent["agent"]["boot"] == process.boot_id():
            tree = process.marked(self.agent["nonce"], self.agent["agent"]["pid"], f"{self.path}/life.lock")
            found += [pid for pid in tree if pid not in found]
        patterns = self.spec.get("leave") or []
        if self.exit is not None and patterns:
            found = [pid for pid in found if not process.matches(pid, patterns)]
        return [pid for pid in found if pid != os.getpid() and not process.is_zombie(pid)]

    # --- the leader's end -----------------------------------------------------------------------------------

    def on_child(self, _: int) -> None:
        drain(self.wake_read)
        if self.is_parent and self.exit is None:
            self.look_at_leader()
        self.reap_orphans()
        if self.exit is not None and not self.is_over:
            self.sweep()

    def look_at_leader(self) -> None:
        pid = self.agent["agent"]["pid"]
        flags = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT
        while (seen := os.waitid(os.P_PID, pid, flags)) is not None:
            if seen.si_code in (os.CLD_STOPPED, os.CLD_CONTINUED):
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
                self.note_stopped(seen.si_code == os.CLD_STOPPED)
                continue
            self.on_leader_ended(seen)
            return

    def on_leader_ended(self, seen: os.waitid_result) -> None:
        noexec = jobdir.noexec(self.path, self.agent)
        if noexec is None and self.has_given_up:
            noexec = {"errno": errno.EIO, "error": "cannot set up its process"}
        if noexec is not None:
            os.waitid(os.P_PID, seen.si_pid, os.WEXITED)
            return self.finish_unstarted(noexec["errno"] or 0, noexec["error"])
        # What it said is as safe as its status: a power cut shall not leave a success without its output.
        for stream in jobdir.STREAMS:
            self.pump(stream, once=True)
        self.log.sync()
        self.record_exit(exit_record(seen.si_code, seen.si_status) | self.oom())
        os.waitid(os.P_PID, seen.si_pid, os.WEXITED)

    def oom(self) -> Record:
        cgroup = self.agent.get("cgroup")
        return {"oom": True} if cgroup and process.oom_kills(cgroup) else {}

    def reap_orphans(self) -> None:
        """Whatever else died below us: escapees that became our children. The leader is not touched here."""
        leader = self.agent.get("agent", {}).get("pid")
        for pid in process.children("self"):
            if pid == leader and self.exit is None:
                continue
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue

    def on_leader_exited(self) -> None:
        """Adopted: the pidfd says the leader is dead; its parent (zygote or process 1) has the status."""
        assert self.leader_pidfd is not None
        self.unwatch(self.leader_pidfd)
        self.on_timer_recheck()

    def on_timer_recheck(self) -> None:
        # The parent is the zygote, which writes exit.json and then reaps, or process 1, which reaps when it likes.
        assert self.leader_pidfd is not None
        self.exit = jobdir.read(self.path, "exit.json")
        if self.exit is None and not process.is_reaped(self.leader_pidfd):
            return self.after("recheck", 0.005)
        if self.exit is None:
            self.exit = jobdir.read(self.path, "exit.json")
        if self.exit is None:
            self.on_leader_gone(process.status_of_reaped(self.leader_pidfd))
        else:
            self.sweep()

    def on_leader_gone(self, status: int | None) -> None:
        noexec = jobdir.noexec(self.path, self.agent)
        if noexec is not None and noexec["errno"] is None:
            return self.launch_again()
        if noexec is not None:
            return self.finish_unstarted(noexec["errno"], noexec["error"])
        if status is None:
            record: Record = {"code": None, "signal": None, "reason": "supervisor_lost"}
        elif os.WIFSIGNALED(status):
            record = {"code": None, "signal": os.WTERMSIG(status)} | self.oom()
        else:
            record = {"code": os.WEXITSTATUS(status), "signal": None} | self.oom()
        self.record_exit(record)
        self.sweep()

    def launch_again(self) -> None:
        """The keeper before us died between record and "go": nothing has run yet."""
        jobdir.remove_quietly(f"{self.path}/agent.json")
        jobdir.sync_folder(self.path)
        self.leader_pidfd = None
        self.launch()

    def record_exit(self, record: Record) -> None:
        self.exit = {"format": 1, **record, "at": time.time()}
        jobdir.write_final(self.path, "exit.json", self.exit)
        for name in ("timeout", "idle", "recheck"):
            self.timers.pop(name, None)

    def finish_unstarted(self, number: int, error: str) -> None:
        self.record_exit({"code": None, "signal": None, "reason": "unstarted", "errno": number, "error": error})
        self.finish()

    # --- the tree's end -------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Nothing to do, normally. Else what is left gets two seconds, then the ladder."""
        if self.has_ended:
            return
        left = self.tree()
        if not left:
            if not self.hides():
                return self.finish()
            self.after("resweep", 0.002)
        if self.order is None:
            if "leftover" not in self.timers:
                self.nudge("exited")
                self.after("leftover", LEFTOVER_GRACE)
        else:
            self.note_swept(left)
            if self.is_killing():
                self.signal_tree("KILL")
        self.watch_strangers(left)

    def hides(self) -> bool:
        """Does something live that a look at the tree has missed? Who forks and ends faster than we look is in no
        list of children at the moment we read it; but it is our child then, or has byte 1 of life.lock.

        Helpers that are let go have both, so with them it cannot be told. A descriptor that was handed to a
        stranger holds the byte, but not us for ever.
        """
        if self.spec.get("leave"):
            return False
        self.reap_orphans()
        if not self.has_children() and not process.byte_held(f"{self.path}/life.lock", 1):
            self.hidden_since = None
            return False
        self.hidden_since = self.hidden_since or process.boottime()
        return process.boottime() - self.hidden_since < UNKILLABLE_AFTER

    def has_children(self) -> bool:
        """Only the kernel's own word that there is no child is proof; a walk through /proc is none."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def on_timer_leftover(self) -> None:
        left = self.tree()
        self.note_swept(left)
        self.order = {"rungs": LEFTOVER_LADDER, "at": process.boottime(), "reason": None}
        self.rungs_done = 0
        self.on_timer_rung()
        self.sweep()

    def note_swept(self, pids: list[int]) -> None:
        for pid in pids:
            if pid not in self.swept and len(self.swept) < 200:
                self.swept[pid] = process.describe(pid)

    def watch_strangers(self, pids: list[int]) -> None:
        """Be woken by the end of processes that are not our children (their deaths bring us no SIGCHLD)."""
        mine = set(process.children("self"))
        for pid in pids:
            if pid in mine or pid in self.watched.values():
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                self.after("resweep", 0.005)
                continue
            self.watched[pidfd] = pid
            self.watch(pidfd, self.stranger_handler(pidfd))

    def stranger_handler(self, pidfd: int) -> Callable[[int], None]:
        return lambda _: self.on_stranger_exited(pidfd)

    def on_stranger_exited(self, pidfd: int) -> None:
        self.unwatch(pidfd)
        del self.watched[pidfd]
        os.close(pidfd)
        if self.exit is not None and not self.is_over:
            self.sweep()

    def on_timer_resweep(self) -> None:
        if self.exit is not None and not self.is_over:
            self.sweep()

    def finish(self) -> None:
        """The tree is gone. The log is drained and made durable, then end.json says that all of it is there."""
        for stream in jobdir.STREAMS:
            if not self.pump(stream):
                return self.after("resweep", 0.2)  # the disk is full: the bytes wait in the FIFO, and so do we
        self.log.sync()
        released = self.released()
        end: Record = {
            "format": 1,
            "at": time.time(),
            "log": dict(self.log.ends),
            "log_whole": self.is_log_whole,
            "swept": in_room(list(self.swept.values())),
            "left": released,
            "reason": (self.order or {}).get("reason"),
            "order": self.order if self.order and self.order.get("reason") else None,
        }
        cgroup = self.agent.get("cgroup")
        if cgroup:
            for item in released:
                process.cgroup_join(f"{os.path.dirname(cgroup)}/left", int(item["pid"]))
            process.cgroup_remove(cgroup)
        jobdir.write_final(self.path, "end.json", end)
        self.has_ended = True
        for name in jobdir.PREALLOCATED:
            jobdir.remove_quietly(f"{self.path}/.{name}.room")
        self.nudge("ended")
        self.pump_for(released)

    def pump_for(self, released: list[Record]) -> None:
        """Helpers that were meant to stay go on writing into our FIFOs: without a reader they would block."""
        held = {pidfd for item in released if (pidfd := process.open_verified(item["who"])) is not None}
        for pidfd in held:
            self.watch(pidfd, functools.partial(lambda fd, _: self.on_helper_gone(fd, held), pidfd))
        if not held:
            self.be_over()

    def on_helper_gone(self, pidfd: int, held: set[int]) -> None:
        self.unwatch(pidfd)
        os.close(pidfd)
        held.discard(pidfd)
        if not held:
            self.be_over()

    def be_over(self) -> None:
        for stream in jobdir.STREAMS:
            self.pump(stream)
            jobdir.remove_quietly(f"{self.path}/{stream}.fifo")
        jobdir.remove_quietly(f"{self.path}/keeper.sock")
        self.is_over = True

    def released(self) -> list[Record]:
        patterns = self.spec.get("leave") or []
        if not patterns:
            return []
        cgroup = self.agent.get("cgroup")
        if cgroup:
            os.makedirs(f"{os.path.dirname(cgroup)}/left", exist_ok=True)
        pids = process.cgroup_pids(cgroup) if cgroup else process.descendants("self")
        staying = [pid for pid in pids if process.matches(pid, patterns)]
        return in_room([process.describe(pid) | {"who": who} for pid in staying if (who := process.identity(pid))])

    # --- output ---------------------------------------------------------------------------------------------

    def output_handler(self, stream: str) -> Callable[[int], None]:
        return lambda _: self.on_output(stream)

    def on_output(self, stream: str) -> None:
        before = dict(self.log.ends)
        if self.pump(stream, once=True) and self.log.ends != before:
            self.last_output = process.boottime()
            self.tell_followers()
        if self.log.pending is not None:
            self.timers.setdefault("index", process.boottime() + 0.2)

    def on_timer_index(self) -> None:
        self.log.write_index()

    def pump(self, stream: str, once: bool = False) -> bool:
        """Move what is in the FIFO into the log. False if the disk is full and bytes are waiting."""
        try:
            while (self.log.take(self.fifos[stream], stream) or self.refill(stream)) and not once:
                pass
        except OSError as error:
            if not jobdir.is_full(error):
                raise
            if not self.blocked:
                self.nudge("log_blocked")
            self.blocked.add(stream)
            self.unwatch(self.fifos[stream])
            if self.terminal is not None:
                self.terminal.unwatch()
            self.timers.setdefault("unblock", process.boottime() + 0.2)
            return False
        if stream in self.blocked:
            self.blocked.remove(stream)
            if not self.blocked:
                self.nudge("log_unblocked")
        return True

    def refill(self, stream: str) -> int:
        """What the agent wrote to its terminal goes through the FIFO of its standard output."""
        return self.terminal.take(self.fifos[stream]) if self.terminal is not None and stream == "out" else 0

    def on_timer_redraw(self) -> None:
        if self.terminal is not None:
            self.terminal.end_redraw()

    def on_timer_unblock(self) -> None:
        if self.terminal is not None:
            self.terminal.watch()
        for stream, fd in self.fifos.items():
            if fd not in self.handlers:
                self.watch(fd, self.output_handler(stream))
            self.on_output(stream)

    # --- input ----------------------------------------------------------------------------------------------

    def pump_input(self) -> None:
        pipe, file = self.fds.get("stdin"), self.fds.get("stdin_file")
        if pipe is None or file is None:
            return
        self.unwatch(pipe)
        try:
            while os.splice(file, pipe, output.SPLICE_BYTES, flags=os.SPLICE_F_NONBLOCK):
                pass
        except BlockingIOError:
            self.watch(pipe, lambda _: self.pump_input(), select.POLLOUT)
            return
        except BrokenPipeError:
            return self.close_input()
        if os.path.exists(f"{self.path}/stdin.eof"):
            # Looked at after the file was empty; a last write may have come between, so look once more.
            if os.lseek(file, 0, os.SEEK_CUR) < os.fstat(file).st_size:
                return self.pump_input()
            self.close_input()

    def close_input(self) -> None:
        for name in ("stdin", "stdin_file"):
            fd = self.fds.pop(name, None)
            if fd is not None:
                self.unwatch(fd)
                os.close(fd)
        self.tell_zygote("input_closed")
        self.nudge("input_closed")

    def tell_zygote(self, what: str) -> None:
        """Which of the descriptors that it keeps for us it may close now."""
        if self.escrow is None:
            return
        try:
            self.escrow.send(json.dumps({what: self.path}).encode())
        except BlockingIOError:
            self.untold = what
            self.after("tell", 0.2)
        except OSError:
            self.escrow = None  # that zygote is dead

    def on_timer_tell(self) -> None:
        self.tell_zygote(self.untold)

    # --- orders and followers -------------------------------------------------------------------------------

    def listen(self) -> None:
        self.listener = jobdir.listen(f"{self.path}/keeper.sock")
        self.listener.setblocking(False)
        self.watch(self.listener.fileno(), lambda _: self.on_connection())

    def on_connection(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.unwatch(self.listener.fileno())  # no busy loop: the backlog waits
                self.after("accept", 0.5)
            return
        if jobdir.peer_uid(connection) != os.getuid():
            return connection.close()
        connection.setblocking(False)
        fd = connection.fileno()
        self.connections[fd] = connection
        self.watch(fd, lambda _: self.on_request(fd))

    def on_timer_accept(self) -> None:
        self.watch(self.listener.fileno(), lambda _: self.on_connection())

    def on_request(self, fd: int) -> None:
        connection = self.connections[fd]
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            return self.forget(fd)
        if self.terminal is not None and self.terminal.is_viewer(fd):
            data, self.heard[fd] = whole_lines(self.heard.get(fd, b"") + data)
            if len(self.heard[fd]) > MOST_HEARD:
                return self.forget(fd)
        for line in data.splitlines():
            try:
                request = json.loads(line)
                self.obey(fd, request)
            except Exception:  # whatever it says, it cannot end us
                self.answer(fd, {"error": "not understood"})

    def forget(self, fd: int) -> None:
        self.unwatch(fd)
        self.followers.pop(fd, None)
        self.heard.pop(fd, None)
        self.connections.pop(fd).close()
        if self.terminal is not None:
            self.terminal.leave(fd)

    def pause_reading(self, fd: int) -> None:
        self.unwatch(fd)

    def resume_reading(self, fd: int) -> None:
        if fd in self.connections:
            self.watch(fd, lambda _: self.on_request(fd))

    def obey(self, fd: int, request: Record) -> None:
        """``{"follow": [out, err]}``, ``{"order": order}`` (kill.json is new), ``{"signal": name}``,
        ``{"input": true}`` (stdin has grown), ``{"stop": true}`` and ``{"cont": true}`` (the whole tree); of a zygote
        ``{"escrow": true}``; of a viewer ``{"attach": how}``, and what :class:`terminal.Terminal` obeys; of a runner
        ``{"turn": n}`` (may it ask its model?) and ``{"news": what}`` (its transcript has grown)."""
        if "follow" in request:
            out, err = request["follow"]
            self.followers[fd] = (int(out), int(err))
            self.tell_followers()
        elif "order" in request:
            self.answer(fd, {"ok": True})
            self.read_order(request["order"])
        elif "signal" in request:
            self.answer(fd, {"ok": self.signal_leader(str(request["signal"]))})
        elif "input" in request:
            self.answer(fd, {"ok": True})
            self.pump_input()
        elif "turn" in request:
            self.answer(fd, self.permit(int(request["turn"])))
            self.nudge("transcript")
        elif "news" in request:
            self.nudge("transcript")
        elif "stop" in request or "cont" in request:
            self.answer(fd, {"ok": self.stop_tree() if "stop" in request else self.continue_tree()})
        elif "escrow" in request:
            self.give_copies(fd)
        elif "attach" in request:
            self.attach(fd, request["attach"])
        elif self.terminal is None or not self.terminal.obey(fd, request):
            raise ValueError("no such order")

    def attach(self, fd: int, how: Record) -> None:
        if self.terminal is not None:
            self.terminal.attach(fd, how)
        else:
            self.answer(fd, {"error": "hung up" if self.spec.get("tty") else "no terminal"})

    def give_copies(self, fd: int) -> None:
        """Of what a zygote cannot get in another way: one that came after us."""
        held = {name: self.fds[name] for name in ("pty",) if name in self.fds}
        with contextlib.suppress(OSError):
            line = json.dumps({"fds": list(held)}).encode() + b"\n"
            socket.send_fds(self.connections[fd], [line], list(held.values()))

    def stop_tree(self) -> bool:
        """Every process of it, whatever it forks meanwhile. Time limits wait."""
        if self.leader_pidfd is None or self.exit is not None:
            return False
        self.freeze_growth()
        self.note_stopped(True)
        return True

    def continue_tree(self) -> bool:
        if self.leader_pidfd is None or self.exit is not None:
            return False
        for pidfd, _ in self.held_tree():
            process.send(pidfd, signal.SIGCONT)
            os.close(pidfd)
        self.note_stopped(False)
        return True

    def signal_leader(self, name: str) -> bool:
        if self.leader_pidfd is None or self.exit is not None:
            return False
        number = signal.Signals[f"SIG{name}"]
        sent = process.send(self.leader_pidfd, number)
        if not self.is_parent and number in (signal.SIGSTOP, signal.SIGCONT):
            self.note_stopped(number == signal.SIGSTOP)  # an adopter is not told by the kernel
        return sent

    def permit(self, turn: int) -> Record:
        """May the runner make its next request, for the turn of that number?"""
        self.spending.look()
        limit = self.spending.exceeded(turn)
        if limit is None:
            return {"go": True, "warn": self.spending.warning()}
        if self.order is None:
            self.give_order({"reason": "limited", "limit": limit})
        return {"go": False, "why": f"the limit of {limit} is reached"}

    def tell_followers(self) -> None:
        out, err = self.log.ends["out"], self.log.ends["err"]
        for fd, (seen_out, seen_err) in list(self.followers.items()):
            if out > seen_out or err > seen_err:
                del self.followers[fd]
                self.answer(fd, {"log": [out, err]})

    def answer(self, fd: int, reply: Record) -> None:
        try:
            self.connections[fd].send(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # it reads nothing, or is gone: it never holds us up

    # --- the daemon -----------------------------------------------------------------------------------------

    def nudge(self, what: str, fd: int | None = None, **facts: Any) -> None:
        """Tell the daemon to look at our files. Nobody at home is no fault: the next one looks when it starts.
        It never blocks: a daemon that hangs with a full backlog is told again later, or by the zygote."""
        message = {"job": self.spec["job"], "attempt": self.spec["attempt"], "what": what, **facts}
        try:
            with jobdir.connect(jobdir.nudge_socket(self.spec["state_dir"]), socket.SOCK_SEQPACKET, False) as link:
                socket.send_fds(link, [json.dumps(message).encode()], [] if fd is None else [fd])
        except BlockingIOError:
            self.after("nudge", 0.5)
        except OSError:
            return

    def on_timer_nudge(self) -> None:
        self.nudge("look")


def whole_lines(data: bytes) -> tuple[bytes, bytes]:
    """``(lines, the beginning of the next one)``"""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def drain(fd: int) -> None:
    try:
        while os.read(fd, 512):
            pass
    except BlockingIOError:
        pass


def in_room(processes: list[Record]) -> list[Record]:
    """The first of them, so many that end.json fits into the room that was made for it."""
    fitting, size = [], 0
    for item in processes:
        size += len(json.dumps(item)) + 2
        if size > jobdir.PREALLOCATED["end"] // 2 - 1024:
            break
        fitting.append(item)
    return fitting


def exit_record(si_code: int, si_status: int) -> Record:
    if si_code == os.CLD_EXITED:
        return {"code": si_status, "signal": None}
    return {"code": None, "signal": si_status, "core": si_code == os.CLD_DUMPED}
