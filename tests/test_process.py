"""Who is who, signals that hit no stranger, whole trees, liveness by locks, ceilings."""

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd import process

ROOT = str(Path(__file__).parent.parent)
KERNEL = tuple(int(part) for part in platform.release().split(".")[:2])


@pytest.fixture(autouse=True)
def all_mechanisms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is switched off for a run of the tests is tested here all the same."""
    monkeypatch.delenv("AGENTD_WITHOUT", raising=False)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "99"]) as child:
        yield child
        child.kill()


def script(text: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    """A Python that knows our modules; it says things on its standard output."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r})\n{text}", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)  # type: ignore


# Identity


def test_one_process_one_identity(sleeper: "subprocess.Popen[bytes]") -> None:
    mine, its = process.identity(os.getpid()), process.identity(sleeper.pid)
    assert mine is not None and its is not None and mine != its
    assert mine == process.identity(os.getpid())
    assert mine["boot"] == its["boot"] == process.boot_id() and mine["pid"] == os.getpid()
    if KERNEL >= (6, 9):
        assert 0 != mine["inode"] != its["inode"] != 0


def test_nobody_has_that_pid() -> None:
    with subprocess.Popen(["true"]) as child:
        who = process.identity(child.pid)
    assert who is not None
    assert process.identity(child.pid) is None
    assert process.open_verified(who) is None
    assert process.identity(1 << 22) is None


def test_a_verified_pidfd_is_of_exactly_that_process(sleeper: "subprocess.Popen[bytes]") -> None:
    who = process.identity(sleeper.pid)
    assert who is not None
    pidfd = process.open_verified(who)
    assert pidfd is not None and not os.get_inheritable(pidfd)
    assert not process.has_exited(pidfd) and not process.is_reaped(pidfd)
    assert process.send(pidfd, signal.SIGTERM)
    assert process.has_exited(pidfd, 10_000)
    # Dead, and not yet reaped: still that one.
    again = process.open_verified(who)
    assert again is not None and process.is_zombie(sleeper.pid) and not process.is_reaped(again)
    seen = process.look_at_child(sleeper.pid)
    assert seen is not None and seen.si_status == signal.SIGTERM
    sleeper.wait()
    assert process.is_reaped(pidfd) and not process.send(pidfd, signal.SIGTERM)
    assert process.open_verified(who) is None
    with pytest.raises(ChildProcessError):
        process.look_at_child(sleeper.pid)
    for fd in (pidfd, again):
        os.close(fd)


@pytest.mark.parametrize("what", ["start", "inode", "boot", "pid"])
def test_a_stranger_with_the_same_number_is_left_alone(sleeper: "subprocess.Popen[bytes]", what: str) -> None:
    who = process.identity(sleeper.pid)
    assert who is not None
    was: process.Identity = dict(who) | {what: "another" if what == "boot" else int(who[what]) + 1}
    before = len(os.listdir("/proc/self/fd"))
    assert process.open_verified(was) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_after_a_reboot_nobody_is_who_he_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = process.identity(os.getpid())
    assert who is not None
    (tmp_path / "boot_id").write_text("after-the-reboot\n")
    monkeypatch.setenv("AGENTD_BOOT_ID_FILE", str(tmp_path / "boot_id"))
    assert process.boot_id() == "after-the-reboot"
    assert process.open_verified(who) is None


def test_a_number_that_belongs_to_a_thread_now() -> None:
    number: list[int] = []
    ready, done = threading.Event(), threading.Event()

    def body() -> None:
        number.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=body)
    thread.start()
    ready.wait()
    who = process.identity(os.getpid())
    assert who is not None
    assert process.identity(number[0]) is None
    assert process.open_verified(dict(who) | {"pid": number[0]}) is None
    done.set()
    thread.join()


def test_a_child_that_runs_has_no_status_yet(sleeper: "subprocess.Popen[bytes]") -> None:
    assert process.look_at_child(sleeper.pid) is None


@pytest.mark.parametrize(("command", "status"), [(["sh", "-c", "exit 7"], 7 << 8), (["sh", "-c", "kill -9 $$"], 9)])
def test_the_status_of_a_process_that_another_reaped(
    command: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(command) as child:
        pidfd = os.pidfd_open(child.pid)
        assert process.has_exited(pidfd, 10_000)
        assert process.status_of_reaped(pidfd) is None
    found = process.status_of_reaped(pidfd)
    monkeypatch.setenv("AGENTD_WITHOUT", "cgroup,pidfd-exit")
    assert process.status_of_reaped(pidfd) is None
    os.close(pidfd)
    if KERNEL < (6, 15):
        assert found is None
        pytest.skip(f"Linux {platform.release()} cannot tell (6.15 can): None, as it must be")
    assert found == status


def test_what_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not process.without("cgroup")
    monkeypatch.setenv("AGENTD_WITHOUT", "splice,cgroup")
    assert process.without("cgroup") and process.without("splice") and not process.without("pidfd-exit")
    assert process.cgroup_home() is None


def test_a_name_for_ps() -> None:
    text = "from agentd import process; process.set_name('agentd-keeper 7.1'); print(1, flush=True); input()"
    with script(text) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert Path(f"/proc/{child.pid}/comm").read_text() == "agentd-keeper 7\n"
        assert process.describe(child.pid) == {"pid": child.pid, "command": "agentd-keeper 7.1"}
        child.communicate("\n")


# Trees


def until_it_is(command: str, *pids: int) -> None:
    """Between fork and exec a process has the command line and the environment of before."""
    while any(process.describe(pid)["command"] != command for pid in pids):
        os.sched_yield()


FAMILY = """
import os, subprocess
from agentd import process
process.become_subreaper()
if os.fork() == 0:                      # the middle one ends: its child is an orphan, and comes to us
    if os.fork() == 0:
        os.setsid()
        os.execvp("sleep", ["sleep", "99"])
    os._exit(0)
os.wait()
shell = subprocess.Popen(["sh", "-c", "sleep 99 & echo $!; wait"], stdout=subprocess.PIPE)
print(shell.pid, int(shell.stdout.readline()), flush=True)
sys.stdin.readline()
for pid in process.descendants("self"):
    os.kill(pid, 9)
"""


def test_a_subreaper_has_its_orphans_below_it() -> None:
    with script(FAMILY) as parent:
        assert parent.stdout is not None
        shell, grandchild = map(int, parent.stdout.readline().split())
        (escapee,) = set(process.children(parent.pid)) - {shell}
        assert process.children(shell) == [grandchild]
        below = process.descendants(parent.pid)
        assert set(below[:2]) == {shell, escapee} and below[2:] == [grandchild]
        until_it_is("sleep 99", escapee)
        assert process.matches(escapee, ["sl*p"]) and process.matches(escapee, ["* 99"])
        assert not process.matches(escapee, ["sleep 9", "cat", ""])
        pidfd = os.pidfd_open(escapee)
        parent.communicate("\n")
    assert process.children(parent.pid) == process.descendants(parent.pid) == []
    assert process.has_exited(pidfd, 10_000) and process.is_zombie(escapee)
    os.close(pidfd)
    assert process.describe(1 << 22) == {"pid": 1 << 22, "command": "?"}


# Each line names one process: by how it got away from its parent.
ESCAPE = """
import os, sys
life = sys.argv[1]
def born(name, deed):
    read, write = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            deed()
            os.write(write, b"%d" % os.getpid())
            os.close(write); os.close(read)
            os.closerange(0, 3)
            os.execve("/bin/sleep", ["sleep", "99"], os.environ)
        os._exit(0)
    os.wait()
    os.close(write)
    print(name, os.read(read, 16).decode(), flush=True)

fd = os.open(life, os.O_RDWR)
os.set_inheritable(fd, True)
def bare():
    os.environ.clear()
    os.close(fd)
born("escaped", lambda: (os.setsid(), os.close(fd)))
born("forgetful", lambda: os.environ.clear())
born("stranger", bare)
input()
"""


def test_an_escapee_is_found_by_its_mark_or_by_its_session_and_lock(tmp_path: Path) -> None:
    """Double-forked, in a session of its own: by the nonce. Without the nonce: by session and life.lock together.
    In the session, with neither: a session's number alone can be a stranger's."""
    life = tmp_path / "life.lock"
    life.touch()
    nonce = os.urandom(16).hex()
    environment = {**os.environ, "AGENTD_NONCE": nonce}
    with script(ESCAPE, str(life), env=environment, start_new_session=True) as leader:
        assert leader.stdout is not None
        pids = {name: int(pid) for name, pid in (leader.stdout.readline().split() for _ in range(3))}
        until_it_is("sleep 99", *pids.values())
        try:
            found = process.marked(nonce, leader.pid, str(life))
            assert set(found) == {leader.pid, pids["escaped"], pids["forgetful"]}
            assert set(process.marked("another", leader.pid, str(life))) >= {leader.pid, pids["forgetful"]}
            assert pids["escaped"] not in process.marked("another", leader.pid, str(life))
            assert process.marked("another", leader.pid, "/nosuch") == []
            assert process.marked(nonce[:-1], 0, str(life)) == []
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
            leader.communicate("\n")


def test_who_works_in_a_folder(tmp_path: Path) -> None:
    for name in ("tree/deep", "tree-2"):
        (tmp_path / name).mkdir(parents=True)
    with (
        subprocess.Popen(["sleep", "99"], cwd=tmp_path / "tree/deep") as inside,
        subprocess.Popen(["sleep", "99"], cwd=tmp_path / "tree-2") as beside,
    ):
        assert process.working_in(str(tmp_path / "tree")) == [inside.pid]
        inside.kill()
        beside.kill()


# Liveness locks


def test_a_lock_is_seen_and_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "life.lock")
    assert not process.byte_held(path, 0)
    assert not os.path.exists(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    other = os.open(path, os.O_RDWR)
    assert not process.byte_held(path, 0)
    assert process.take_byte(fd, 0) and process.byte_held(path, 0) and not process.byte_held(path, 1)
    assert process.take_byte(fd, 0)  # it is ours
    assert not process.take_byte(other, 0) and process.take_byte(other, 1)
    assert process.byte_held(path, 1)
    os.close(fd)
    assert not process.byte_held(path, 0) and process.byte_held(path, 1)
    os.close(other)
    assert not process.byte_held(path, 1)


def test_a_lock_lives_as_long_as_the_last_of_the_tree(tmp_path: Path) -> None:
    """Inherited by a child and its child; free when the last is gone, by whatever death."""
    path = str(tmp_path / "life.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert process.take_byte(fd, 1)
    command = ["sh", "-c", "sleep 99 & echo $!; read word"]
    with subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        pidfd = os.pidfd_open(grandchild)
        os.close(fd)
        assert process.byte_held(path, 1)
        shell.kill()
        shell.wait()
        assert process.byte_held(path, 1)
        process.send(pidfd, signal.SIGKILL)
        assert process.has_exited(pidfd, 10_000)
        assert not process.byte_held(path, 1)
        os.close(pidfd)


def test_who_waits_for_a_byte_gets_it_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "life.lock")
    text = """
import os
from agentd import process
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert process.take_byte(fd, 0)
print("held", flush=True)
input()
"""
    with script(text, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        fd = os.open(path, os.O_RDWR)
        assert not process.take_byte(fd, 0)
        holder.kill()
        process.wait_for_byte(fd, 0)
        assert process.byte_held(path, 0)
        os.close(fd)


# Control groups: on files of a fixture, and on the real hierarchy where it may be written


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel would put into a new group."""
    home = tmp_path / "cgroup"
    path = home / "7-1"
    path.mkdir(parents=True)
    for name, content in {
        "cgroup.procs": "",
        "cgroup.kill": "",
        "memory.max": "max\n",
        "pids.max": "max\n",
        "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
    }.items():
        (path / name).write_text(content)
    monkeypatch.setenv("AGENTD_CGROUP_HOME", str(home))
    return path


def test_a_group_with_ceilings(group: Path) -> None:
    assert process.cgroup_home() == str(group.parent)
    assert process.cgroup_make(str(group), 48 << 20, 200) == []
    assert (group / "memory.max").read_text() == str(48 << 20)
    assert (group / "pids.max").read_text() == "200"
    assert process.cgroup_make(str(group.parent / "8-1"), None, None) == []
    assert (group.parent / "8-1").is_dir()


def test_a_ceiling_that_cannot_be_set_is_named(group: Path) -> None:
    for name in ("memory.max", "pids.max"):
        (group / name).unlink()
        (group / name).mkdir()  # as unwritable for root as for anybody
    assert process.cgroup_make(str(group), 1, 1) == ["memory", "processes"]
    assert process.cgroup_make(str(group), None, 1) == ["processes"]


def test_who_is_in_a_group(group: Path) -> None:
    assert process.cgroup_join(str(group), 40)
    assert (group / "cgroup.procs").read_text() == "40"
    (group / "sub").mkdir()
    (group / "sub" / "cgroup.procs").write_text("41\n42\n")
    assert process.cgroup_pids(str(group)) == [40, 41, 42]
    assert process.cgroup_pids(str(group / "nosuch")) == []
    assert not process.cgroup_join(str(group / "nosuch"), 40)


def test_a_group_is_killed_and_counted(group: Path) -> None:
    assert process.cgroup_kill(str(group))
    assert (group / "cgroup.kill").read_text() == "1"
    assert not process.cgroup_kill(str(group / "nosuch"))
    assert process.oom_kills(str(group)) == 1
    assert process.oom_kills(str(group / "nosuch")) == 0


def test_a_group_that_cannot_be_removed_does_no_harm(group: Path) -> None:
    process.cgroup_remove(str(group))
    assert group.is_dir()
    process.cgroup_remove(str(group / "nosuch"))


def test_a_real_group(sleeper: "subprocess.Popen[bytes]") -> None:
    home = process.cgroup_home()
    if home is None:
        pytest.skip("no group of the version 2 hierarchy is writable here")
    path = f"{home}/agentd-test-{os.getpid()}"
    # A bare version 2 tree, without controllers: ceilings are said to be unset.
    assert set(process.cgroup_make(path, 1 << 30, 100)) <= {"memory", "processes"}
    os.mkdir(f"{path}/sub")
    try:
        with subprocess.Popen(["sleep", "99"], start_new_session=True) as other:
            assert process.cgroup_join(path, sleeper.pid) and process.cgroup_join(f"{path}/sub", other.pid)
            assert sorted(process.cgroup_pids(path)) == sorted([sleeper.pid, other.pid])
            process.cgroup_remove(path)  # not while somebody is in it
            assert process.cgroup_pids(path) != []
            assert process.cgroup_kill(path)
            assert (other.wait(), sleeper.wait()) == (-9, -9)
        assert process.oom_kills(path) == 0
    finally:
        process.cgroup_remove(path)
    assert not os.path.exists(path)


BORN = """
import os, subprocess, sys, threading
from agentd import process

pid, is_in_group = process.fork_into(sys.argv[1])
if pid == 0:
    with open("/proc/self/cgroup") as file:
        group = next(line.split(":", 2)[2] for line in file if line.startswith("0::"))
    others = []
    thread = threading.Thread(target=lambda: others.append(threading.get_native_id()))
    thread.start()
    thread.join()
    said = subprocess.run(["echo", "a child of the child"], capture_output=True, text=True).stdout
    is_main = threading.get_native_id() == os.getpid() and threading.current_thread() is threading.main_thread()
    print(os.path.basename(group.strip()), is_main, others != [os.getpid()], said, end="", flush=True)
    os._exit(7)
print(is_in_group, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def born(group: str, **environment: str) -> list[str]:
    argv = [sys.executable, "-c", BORN, group]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_child_is_born_in_a_group_and_is_as_whole_as_any() -> None:
    home = process.cgroup_home()
    if home is None:
        pytest.skip("no group of the version 2 hierarchy is writable here")
    path = f"{home}/agentd-test-born-{os.getpid()}"
    process.cgroup_make(path, None, None)
    try:
        child, parent = born(path)
        if parent == "False 7":
            pytest.skip("this kernel makes no child in a group")
        assert child == f"{os.path.basename(path)} True True a child of the child"
        assert parent == "True 7"
        assert born(path, AGENTD_WITHOUT="clone3")[1] == "False 7"
    finally:
        process.cgroup_remove(path)


def test_where_there_is_no_such_group_it_is_a_fork(tmp_path: Path) -> None:
    assert born(str(tmp_path))[1] == "False 7"
    assert born(str(tmp_path / "nosuch"))[1] == "False 7"
