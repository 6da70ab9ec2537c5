"""Faults around the client and its terminal, and of daemons that meet (F03 F04 F13 F29 F31 F32 F53 F54 F55)."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faultlab
import pytest
from breaking import as_ordinary_user, group, join, needs_groups, needs_root, sh, small_disk
from faultlab import WAITS, Scene, state_of, until
from tracing import needs_trace

from agentd import jobdir, process
from agentd.client import Client
from agentd.core.errors import AgentdError, Refused

CLI = (sys.executable, "-m", "agentd")


def cli(scene: Scene, *words: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
    environment = faultlab.with_path() | {"AGENTD_STATE_DIR": scene.state}
    pipe = subprocess.PIPE
    return scene.spawn([*before, *CLI, *words], env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("verb", ["wait", "logs -f"])
def test_f03_ctrl_c_in_a_client(tmp_path: Path, verb: str) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(f"echo first; {WAITS}")
        before = scene.idle()[1]
        client = cli(scene, *verb.split(), str(id))
        assert client.stdout
        if verb == "wait":
            until(lambda: scene.idle()[1] > before, what=lambda: "the client does not connect")
        else:
            assert client.stdout.readline() == b"first\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 130
        assert scene.client.job(id)["job"]["state"] == "running"
        (scene.proof / "go").touch()
        scene.wait(id)
        scene.check({id: 5})


FROM_A_TERMINAL = """
import os, sys
from agentd import Client
client = Client(sys.argv[1], owner="terminal")
environment = {"PATH": os.environ["PATH"], "PROOF": os.environ["PROOF"], "LAB": sys.argv[3]}
job = client.delegate(["/bin/sh", "-c", sys.argv[2]], environment=environment, cwd="/", in_place=True)
print("job", job["id"], flush=True)
sys.stdin.read()
"""


def test_f04_terminal_closed_right_after_delegate(tmp_path: Path) -> None:
    """The first client, so the daemon is started from that terminal too."""
    scene = Scene(tmp_path)
    script = faultlab.ONCE + 'while [ ! -e "$PROOF/go" ]; do sleep 0.05; done; exit 5'
    pid, terminal = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            argv = [sys.executable, "-c", FROM_A_TERMINAL, scene.state, script, scene.mark]
            os.execve(sys.executable, argv, faultlab.with_path() | {"PROOF": str(scene.proof)})
        os._exit(1)
    said = b""
    while b"\n" not in said:
        said += os.read(terminal, 4096)
    assert said == b"job 1\r\n"
    os.close(terminal)  # SIGHUP to the session
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGHUP
    with scene:
        assert scene.client.job(1)["job"]["state"] in ("starting", "running")
        (scene.proof / "go").touch()
        scene.wait(1)
        scene.check({1: 5}, told=False)


TAKES_AND_HANGS = """
import sys, time
from agentd import Client
for event in Client(sys.argv[1], owner="lab").events(name="boss"):
    if event["type"] == "job.completed":
        print(event["seq"], flush=True)
        time.sleep(1000)
"""


def test_f13_client_dies_before_it_acknowledges(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        scene.client.ask("events.subscribe", name="boss", follow=False)
        id = scene.delegate("exit 5")
        seen = []
        for _ in range(3):
            child = scene.python(TAKES_AND_HANGS, scene.state, stdout=subprocess.PIPE, env=faultlab.with_path())
            assert child.stdout
            seen.append(int(child.stdout.readline()))
            child.kill()
        assert len(set(seen)) == 1, "told again, with the same seq"
        scene.client.ack("boss", seen[0])
        rest = [e for e in scene.client.events(name="boss", follow=False) if e["type"] == "job.completed"]
        assert rest == []
        scene.check({id: 5})


# --- readers and daemons ------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_f29_readers_that_never_read(tmp_path: Path) -> None:
    talk = "ready; while [ ! -e $PROOF/go ]; do sleep 0.02; done; yes 'a line of output' | head -c 40000000; exit 5"
    with Scene(tmp_path) as scene:
        took = []
        ids: list[int] = []
        for crowd in (0, 10):
            (scene.proof / "go").unlink(missing_ok=True)
            id = scene.running(talk)
            ids.append(id)
            links = [jobdir.connect(f"{scene.attempt(id)}/keeper.sock") for _ in range(crowd)]
            for link in links:
                link.sendall(b'{"follow": [0, 0]}\n' * 20)
            if crowd:
                client = cli(scene, "logs", "-f", str(id))  # its pipe fills up, as nobody reads
                until(lambda client=client: state_of(client.pid) == "S")
                client.send_signal(signal.SIGSTOP)
                subscriber = jobdir.connect(jobdir.read(scene.state, "daemon.json")["socket"])  # type: ignore[index]
                links.append(subscriber)
                ask = b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{"since":0}}\n'
                subscriber.sendall(ask)
            memory = resident(scene.daemon())
            began = time.monotonic()
            (scene.proof / "go").touch()
            quick = scene.delegate("exit 0")
            scene.wait(quick)
            assert time.monotonic() - began < 2.0, "another job's completion waits for the readers"
            scene.wait(id)
            took.append(time.monotonic() - began)
            assert jobdir.size(scene.attempt(id), "out") == 40_000_000
            assert resident(scene.daemon()) - memory < 8 << 20
            for link in links:
                link.close()
            ids.append(quick)
        print(f"40 MB alone: {took[0]:.2f} s, with readers that never read: {took[1]:.2f} s")
        assert took[1] < 3 * took[0] + 1.0
        for child in scene.mine:
            child.kill()
            child.wait()
        scene.check({id: 0 if id % 2 == 0 else 5 for id in ids})


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_f31_two_daemons_at_once(tmp_path: Path) -> None:
    """The daemon is killed and two are started at once, while a client asks all the time."""
    rounds = 50 if faultlab.is_long else 8
    with Scene(tmp_path) as scene:
        id = scene.running(WAITS)
        is_over = threading.Event()
        faults: list[BaseException] = []
        answers: list[int] = []

        def hammer() -> None:
            with Client(scene.state, owner="lab") as client:
                while not is_over.is_set():
                    try:
                        client.close()
                        answers.append(client.ask("daemon.status")["pid"])
                    except BaseException as fault:
                        faults.append(fault)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            for _ in range(rounds):
                os.kill(scene.daemon(), signal.SIGKILL)
                argv = [sys.executable, "-P", "-m", "agentd.daemon", scene.state]
                with open(f"{scene.state}/daemon.log", "ab") as log:
                    options: dict[str, Any] = {"env": faultlab.with_path(), "stderr": log, "start_new_session": True}
                    both = [subprocess.Popen(argv, **options) for _ in range(2)]
                until(lambda both=both: any(one.poll() is not None for one in both))
                until(lambda: len(daemons(scene)) == 1, what=lambda: f"daemons: {daemons(scene)}")
                ours = daemons(scene)
                assert all(one.wait(20) == 3 for one in both if one.pid not in ours)
                for one in both:
                    if one.pid in ours:
                        one.returncode = 0  # it lives on: not ours to wait for
                until(lambda ours=ours: ours[0] in answers, what=lambda: f"no answer from the new daemon: {faults}")
        finally:
            is_over.set()
            thread.join()
        assert faults == []
        assert len(set(answers)) >= rounds
        (scene.proof / "go").touch()
        scene.wait(id)
        scene.check({id: 5})


def daemons(scene: Scene) -> list[int]:
    """Those that have the lock: only they have the name."""
    named = [pid for pid in scene.ours() if faultlab.command_of(pid).startswith(("agentd-daemon", sys.executable))]
    return [pid for pid in named if "agentd.zygote" not in faultlab.command_of(pid) and state_of(pid) not in ("Z", "")]


def test_f32_stale_socket_and_a_record_whose_pid_is_a_strangers(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    os.makedirs(scene.state, 0o700)
    path = f"{scene.state}/agentd.sock"
    jobdir.listen(path).close()  # the file stays
    stranger = scene.spawn(["sleep", "1000"])
    who = process.identity(stranger.pid)
    assert who is not None
    record = {"pid": stranger.pid, "version": "0.0.0", "socket": path, "started_at": "2020-01-01T00:00:00.000Z"}
    jobdir.write(scene.state, "daemon.json", record | {"identity": {**who, "start": int(who["start"]) - 1}})
    with scene:
        assert scene.daemon() != stranger.pid
        id = scene.delegate("exit 5")
        scene.wait(id)
        assert stranger.poll() is None
        scene.check({id: 5})


def test_f53_no_permission_on_the_state_folder() -> None:
    as_ordinary_user("test_faults_client", "without_permission")


def without_permission(folder: Path) -> None:
    for parent in (folder / "state", folder):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o500)
        try:
            with pytest.raises(AgentdError) as refused:
                Client(str(folder / "state"), owner="lab").ask("daemon.status")
            print(refused.value)
            assert "ermission denied" in str(refused.value) or "not writable" in str(refused.value)
            assert refused.value.exit == 1
            if parent == folder / "state":
                assert os.listdir(parent) == []
        finally:
            parent.chmod(0o700)
            if parent.name == "state":
                parent.rmdir()


@needs_root
def test_f53_read_only_file_system(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=32m") as disk:
        with Scene(tmp_path, state=disk / "state") as scene:
            id = scene.delegate("echo kept; exit 5")
            scene.wait(id)
        sh(f"mount -o remount,ro {disk}")
        before = sorted(str(path) for path in disk.rglob("*"))
        with pytest.raises(Refused, match="Read-only file system"):
            Client(scene.state, owner="lab").ask("daemon.status")
        sh(f"mount -o remount,rw {disk}")
        assert sorted(str(path) for path in disk.rglob("*")) == before
        with Scene(tmp_path, state=disk / "state") as scene:
            scene.check({id: 5}, told=False)


@needs_trace
def test_f54_no_inotify_to_be_had(tmp_path: Path) -> None:
    with Scene(tmp_path, without="resident") as scene:  # strace would stay with it
        id = scene.running(f"echo first; {WAITS.replace('exit 5', 'echo last; exit 5')}")
        refuse = "inject=inotify_init1,inotify_init:error=EMFILE"
        strace = ("strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=inotify_init1", "-e", refuse)
        client = cli(scene, "logs", "-f", str(id), before=strace)
        assert client.stdout
        assert client.stdout.readline() == b"first\n"
        os.kill(scene.keeper(id), signal.SIGKILL)  # its socket goes; the next one is found by looking again
        (scene.proof / "go").touch()
        assert client.stdout.readline() == b"last\n"
        assert client.wait(20) in (0, 5)
        assert "EMFILE" in (tmp_path / "trace").read_text()
        scene.wait(id)
        scene.check({id: 5})


# --- control groups -----------------------------------------------------------------------------------------


@needs_root
def test_f55_the_daemons_own_group_is_killed(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene, group("unified") as place:
        id = scene.running(WAITS)
        daemon = scene.daemon()
        join(place, daemon)
        (place / "cgroup.kill").write_text("1")
        until(lambda: state_of(daemon) in ("Z", ""))
        (scene.proof / "go").touch()
        scene.wait(id)
        scene.check({id: 5})


@needs_groups
@needs_root
def test_f55_everything_was_started_in_the_group_that_is_killed(tmp_path: Path) -> None:
    """As by a logout, or a unit with KillMode=control-group: nothing of ours is left, nor the agent. Never a wrong
    status, and it is told."""
    start = "import sys; from agentd import Client; Client(sys.argv[1], owner='lab').ask('daemon.status')"
    with group("unified") as place:
        scene = Scene(tmp_path)
        inside = ["/bin/sh", "-c", f'echo $$ > {place}/cgroup.procs; exec "$@"', "sh", sys.executable]
        subprocess.run([*inside, "-c", start, scene.state], env=faultlab.with_path(), check=True)
        with scene:
            id = scene.running(WAITS)
            assert scene.record(id, "agent")["cgroup"].startswith(str(place))
            (place / "cgroup.kill").write_text("1")
            until(lambda: not scene.ours() and not scene.agents())
            scene.client.close()
            (job,) = scene.wait(id)
            assert (job["exit_code"], job["signal"]) in ((None, None), (None, 9))
            scene.check({id: job["outcome"]})
            assert job["outcome"] == "lost" or job["signal"] == 9
