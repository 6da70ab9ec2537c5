"""The last bytes of a log, when those that hold them are killed: kept as long as anybody lives, and never missed in
silence."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import faultlab
import pytest
from breaking import group, join, needs_root
from faultlab import Scene, until
from gitrepo import make_repo
from tracing import Tracer, needs_tracer

from agentd import jobdir, keeper, process

needs_pidfd_exit = pytest.mark.skipif(process.without("pidfd-exit"), reason="only a pidfd tells the status here")
ENDS = "ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; echo last words; exit 5"


def kill_all_of_ours(scene: Scene, id: int) -> None:
    for pid in (scene.daemon(), scene.zygote(), scene.keeper(id)):
        os.kill(pid, signal.SIGKILL)
    scene.client.close()


def end_while_nobody_reads(scene: Scene, id: int) -> None:
    """The agent says its last words and ends; its keeper is stopped, so they lie in the pipe."""
    os.kill(scene.keeper(id), signal.SIGSTOP)
    leader = scene.leader(id)
    (scene.proof / "go").touch()
    until(lambda: faultlab.state_of(leader) in ("Z", ""))


@needs_pidfd_exit
def test_what_lies_in_the_pipe_is_held_again_after_all_of_ours_were_killed(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(ENDS)
        old = scene.keeper(id)
        kill_all_of_ours(scene, id)
        until(lambda: scene.client.job(id)["job"]["state"] == "running" and scene.keeper(id) != old)
        until(lambda: os.path.exists(f"{scene.attempt(id)}/keeper.sock"))
        assert scene.client.kill([id], signal="CONT")  # it answers: it has adopted
        end_while_nobody_reads(scene, id)
        os.kill(scene.keeper(id), signal.SIGKILL)
        (job,) = scene.wait(id)
        assert scene.log(id) == b"last words\n"
        assert job["log_whole"]
        scene.check({id: 5})


def test_a_log_that_may_lack_its_end_says_so(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        id = scene.running(ENDS)
        end_while_nobody_reads(scene, id)
        kill_all_of_ours(scene, id)
        (job,) = scene.wait(id)
        assert scene.log(id) == b""
        assert job["log_whole"] is False
        (told,) = scene.events("job.completed")
        assert told["data"]["log_whole"] is False
        command = [sys.executable, "-m", "agentd", "logs", str(id)]
        environment = faultlab.with_path() | {"AGENTD_STATE_DIR": scene.state}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "the end of this log may be missing" in done.stderr
        scene.check({id: job["outcome"] if job["outcome"] == "lost" else 5})


def test_who_reads_of_a_helper_that_stays_is_replaced(tmp_path: Path) -> None:
    """Its output is more than a pipe holds: without a reader it would block for ever."""
    helper = "while read x; do head -c 1000000 /dev/zero; echo $x; done"
    with Scene(tmp_path) as scene:
        os.mkfifo(scene.proof / "orders")
        orders = os.open(scene.proof / "orders", os.O_RDWR)
        id = scene.delegate(f"setsid sh -c '{helper}' < $PROOF/orders & exit 5", leave=["sh -c while*"])
        (job,) = scene.wait(id)
        (left,) = job["left"]
        keepers = []
        for word in (b"one\n", b"two\n"):
            keepers.append(scene.keeper(id))
            os.kill(keepers[-1], signal.SIGKILL)
            os.write(orders, word)
            until(lambda word=word: scene.log(id).endswith(word))
        assert len(scene.log(id)) == 2 * 1000004
        assert len(set(keepers)) == 2
        os.kill(left["pid"], signal.SIGKILL)
        os.close(orders)
        until(lambda: not os.path.exists(f"{scene.attempt(id)}/out.fifo"))
        scene.check({})


def test_what_was_swept_fits_into_the_room_of_the_last_record() -> None:
    many = [{"pid": n, "command": "é" * 200} for n in range(200)]
    told = keeper.in_room(many)
    assert 20 < len(told) < 200
    record = {"swept": told, "left": told}
    assert len(jobdir.json.dumps(record)) < jobdir.PREALLOCATED["end"] - 512


@needs_root
def test_git_is_started_when_the_system_has_room_for_it_again(tmp_path: Path) -> None:
    """pids.max refuses the fork for a while; then for good."""
    top = make_repo(tmp_path / "r")
    program = (
        "import os, sys\n"
        "from agentd.core.errors import NotNow\n"
        "from agentd.git import run\n"
        "run.START_WAIT = float(sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('asks', flush=True)\n"
        "try: print(run.git(['rev-parse', '--is-bare-repository'], cwd=sys.argv[1]).strip())\n"
        "except NotNow as error: print(error.message)\n"
    )
    with group("pids") as place:
        for patience, is_freed, answer in ((60.0, True, "false"), (0.3, False, "cannot start git: Resource")):
            (place / "pids.max").write_text("max")
            command = [sys.executable, "-c", program, top, str(patience)]
            pipe = subprocess.PIPE
            with subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, env=faultlab.with_path(), cwd="/"
            ) as child:
                assert child.stdin and child.stdout and child.stdout.readline() == "ready\n"
                join(place, child.pid)
                (place / "pids.max").write_text("1")
                child.stdin.write("go\n")
                child.stdin.flush()
                assert child.stdout.readline() == "asks\n"
                before = refused(place)
                until(lambda before=before: refused(place) > before)
                if is_freed:
                    (place / "pids.max").write_text("max")
                assert child.stdout.readline().startswith(answer)


def refused(place: Path) -> int:
    return int((place / "pids.events").read_text().split()[1])


# --- the status, when those that hold it are killed -----------------------------------------------------------


@needs_tracer
def test_a_pidfd_of_a_fork_that_never_ran_is_not_taken_for_the_agents(tmp_path: Path) -> None:
    """A keeper dies between record and "go", the next one starts the agent anew, and dies as well: the status that is
    written is the agent's, not that of the fork which gave up."""
    with Scene(tmp_path) as scene:
        ended: dict[int, int | str] = {}
        unexecuted = 0
        for nth in range(1, 200):
            (scene.proof / "go").unlink(missing_ok=True)
            with Tracer(scene.zygote(), nth, next_child=True):
                id = scene.running(ENDS)
            is_between = bool(list(Path(scene.attempt(id)).glob("noexec-*.json")))
            if is_between:
                unexecuted += 1
                scene.client.kill([id], signal="CONT")  # the second keeper answers: it has begun
                os.kill(scene.keeper(id), signal.SIGKILL)
            (scene.proof / "go").touch()
            scene.wait(id)
            ended[id] = 5
            if unexecuted and not is_between:
                break
        assert unexecuted >= 2
        scene.check(ended)


@needs_pidfd_exit
def test_keeper_and_zygote_die_while_the_daemon_is_behind(tmp_path: Path) -> None:
    """The daemon hangs when the agent starts, and until it has ended: what tells the status was sent to it before."""
    with Scene(tmp_path) as scene:
        daemon, zygote = scene.daemon(), scene.zygote()
        os.kill(zygote, signal.SIGSTOP)  # the order to launch waits for it; the daemon goes on
        id = scene.delegate(f'ready() {{ : > "$PROOF/ready.$AGENTD_JOB"; }}\n{ENDS}')
        until(lambda: scene.client.job(id)["job"]["state"] == "starting")
        until(lambda: is_idle(daemon))
        os.kill(daemon, signal.SIGSTOP)
        os.kill(zygote, signal.SIGCONT)
        until((scene.proof / f"ready.{id}").exists)
        leader, keeper = scene.leader(id), scene.keeper(id)
        os.kill(zygote, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        (scene.proof / "go").touch()
        until(lambda: faultlab.state_of(leader) == "")  # process 1 has its status, and tells nobody
        os.kill(daemon, signal.SIGCONT)
        scene.wait(id)
        scene.check({id: 5})


def is_idle(pid: int) -> bool:
    """Asleep in epoll_wait: it has sent what it had to send."""
    return faultlab.state_of(pid) == "S"
