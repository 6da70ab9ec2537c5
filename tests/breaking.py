"""The means of breaking things: full disks, control groups, pid namespaces, other users."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultlab import Violation, until, with_path

from agentd import process

needs_groups = pytest.mark.skipif(process.without("cgroup"), reason="AGENTD_WITHOUT=cgroup")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: mounts, control groups or another uid")


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own, as small as ``options`` say. Needs root."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    sh(f"mount -t tmpfs -o mode=0700,{options} tmpfs {place}")
    try:
        yield place
    finally:
        sh(f"umount {place} || umount -l {place}")


def fill(place: Path) -> Path:
    """A ballast file that leaves not a byte; delete it to give the room back."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return ballast


def fill_but(place: Path, room: int) -> Path:
    """As :func:`fill`, and leaves ``room`` bytes."""
    ballast = fill(place)
    os.truncate(ballast, ballast.stat().st_size - room)
    return ballast


@contextlib.contextmanager
def group(kind: str, **settings: object) -> Iterator[Path]:
    """A version 1 control group (or a version 2 one, kind ``unified``) of this test alone. Needs root."""
    home = Path("/sys/fs/cgroup") / kind
    if not (home / "cgroup.procs").exists():
        pytest.skip(f"no {kind} control group hierarchy at {home}")
    place = home / f"agentd-faults-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        for name, value in settings.items():
            (place / name.replace("__", ".")).write_text(str(value))
        yield place
    finally:
        for folder, _, _ in os.walk(place, topdown=False):
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (home / "cgroup.procs").write_text(pid)
            until(lambda folder=folder: removed(folder), 10.0, lambda: f"{place} is still in use")


def removed(folder: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)


def join(place: Path, pid: int) -> None:
    (place / "cgroup.procs").write_text(str(pid))


def fork(run: Callable[[], None]) -> int:
    """A child of the test that runs a function and ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return pid


def in_own_pid_namespace(folder: Path, module: str, function: str) -> None:
    """Run ``module.function(folder)`` as process 1 of a PID namespace, where pids can be chosen. Needs root."""
    code = f"import sys, pathlib, {module} as m; m.{function}(pathlib.Path(sys.argv[1]))"
    command = ["unshare", "-pf", "--mount-proc", "--kill-child", sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=with_path())
    if done.returncode != 0:
        raise Violation(f"{function} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def as_ordinary_user(module: str, function: str) -> None:
    """Run ``module.function(folder)``, in a folder of its own, with a uid that nobody has; as itself if it is not root.

    Root may have a Python that nobody else can reach (in its home): then the system's, if it is the same version.
    """
    with tempfile.TemporaryDirectory(prefix="agentd-user-") as folder:
        code = f"import sys, pathlib, {module} as m; m.{function}(pathlib.Path(sys.argv[1]))"
        environment = with_path() | {"HOME": folder}
        drop = []
        if os.getuid() == 0:
            os.chown(folder, 54321, 54321)
            drop = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        for python in (sys.executable, f"/usr/bin/python{version}"):
            probe = [*drop, "/bin/sh", "-c", f"exec {python} -c 'import msgspec, filelock, pytest'"]
            if subprocess.run(probe, env=environment, cwd="/", capture_output=True).returncode == 0:
                break
        else:
            pytest.skip("no Python with our dependencies that an ordinary user could run")
        argv = [*drop, "/bin/sh", "-c", 'exec "$@"', "sh", python, "-c", code, folder]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=150, env=environment, cwd=folder)
        if done.returncode != 0:
            raise Violation(f"{function} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def fork_with_pid(want: int, run: Callable[[], None]) -> int:
    """A child that has exactly this pid. Only in a PID namespace of one's own."""
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(want - 1))
        pid = fork(run)
        if pid == want:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
