"""In the agent's process, between fork and exec: everything is set up, "go" is waited for, and then it is the agent.
What fails is noted in noexec-PID.json."""

import contextlib
import errno
import fcntl
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, NoReturn

from agentd import jobdir, process, terminal
from agentd.jobdir import Record

FIRST_HIGH_FD = 100


def become_agent(path: str, spec: Record, fds: dict[str, int], life: int, go: int, by_rlimit: list[str]) -> NoReturn:
    """Set everything up, wait for "go", then be the agent. What fails is noted in noexec-PID.json."""
    what, note = "set up", f"noexec-{os.getpid()}.json"
    process.set_name(f"agentd-agent {spec['job']}.{spec['attempt']}")
    try:
        jobdir.remove_quietly(f"{path}/{note}")  # of a fork that had this number before
        os.setsid()
        restore_signals()
        environment = dict(spec["env"])
        if "secrets" in fds:
            environment |= json.loads(os.pread(fds["secrets"], os.fstat(fds["secrets"]).st_size, 0))
        kept = place_descriptors(path, fds, life)
        os.umask(spec.get("umask", 0o077))
        set_limits(spec, by_rlimit)
        if os.read(go, 1) != b"g":
            jobdir.write_final(path, note, {"errno": None, "error": "the keeper died before the start"})
            os._exit(125)
        what = f"enter {spec['cwd']}"
        os.chdir(spec["cwd"])
        environment["PWD"] = spec["cwd"]
        if spec.get("runner"):
            what = f"load the runner {spec['runner']}"
            become_runner(path, spec, environment, kept)
        what = f"run {spec['argv'][0]}"
        execute(spec["argv"], environment)
    except Exception as error:
        missing_folder = what.startswith("enter")
        number = getattr(error, "errno", None) or errno.EINVAL
        text = f"cannot {what}: {os.strerror(number) if isinstance(error, OSError) else error}"
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # its caller's limit on files may be too small for the note
        jobdir.write_final(path, note, {"errno": number, "error": text, "folder": missing_folder})
    os._exit(125)


def become_runner(path: str, spec: Record, environment: dict[str, str], kept: list[int]) -> NoReturn:
    """A program of ours, imported before the fork. What would be closed at an exec is closed here."""
    main = runner(spec["runner"]).main
    os.environ.clear()
    os.environ.update(environment)
    process.close_all_but({0, 1, 2, *kept})
    process.set_name(f"agentd-{spec['runner']} {spec['job']}.{spec['attempt']}")
    code = 125
    try:
        failed = os.waitstatus_to_exitcode(os.system(spec["setup"])) if spec.get("setup") else 0
        if failed:
            print(f"agentd: the set-up command failed with code {failed}", file=sys.stderr)
        code = failed or main(path, spec)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def runner(name: str) -> Any:
    """The module of a runner: ``warm()`` is called in the zygote, ``main(path, spec)`` in the agent's process."""
    return importlib.import_module(f"agentd.runners.{name}")


def restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and number < 32:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def place_descriptors(path: str, fds: dict[str, int], life: int) -> list[int]:
    """0 to 2, and the anchors and the life.lock, which are returned; all else is close-on-exec. The anchors are opened
    for reading and writing, so the FIFOs have a reader as long as the tree lives: no SIGPIPE, no byte is dropped. The
    master of its terminal is kept for the same reason: nobody hangs it up."""
    anchors = [os.open(f"{path}/{stream}.fifo", os.O_RDWR | os.O_CLOEXEC) for stream in jobdir.STREAMS]
    if "pty" in fds:
        anchors.append(fds["pty"])
    kept = [keep_high(fd) for fd in (life, *anchors)]
    for target, fd in enumerate(standard_streams(path, fds)):
        # None of the three is below 3: keeper and zygote keep 0 to 2 occupied.
        os.dup2(fd, target, inheritable=True)
    return kept


def standard_streams(path: str, fds: dict[str, int]) -> tuple[int, int, int]:
    if "pty" in fds:
        slave = terminal.become_controlling(fds["pty"])
        return slave, slave, slave
    stdin = fds.get("stdin_read")
    if stdin is None:
        stdin = os.open("/dev/null", os.O_RDONLY)
    out = os.open(f"{path}/out.fifo", os.O_WRONLY | os.O_CLOEXEC)
    err = os.open(f"{path}/err.fifo", os.O_WRONLY | os.O_CLOEXEC)
    return stdin, out, err


def keep_high(fd: int) -> int:
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_HIGH_FD)
    except OSError:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
    os.set_inheritable(high, True)
    return high


def set_limits(spec: Record, by_rlimit: list[str]) -> None:
    """The caller's limits; where no control group can hold a ceiling, it becomes a limit too."""
    wanted = {getattr(resource, name): tuple(pair) for name, pair in (spec.get("limits") or {}).items()}
    if "memory" in by_rlimit:
        wanted[resource.RLIMIT_AS] = (spec["memory"], spec["memory"])
    if "processes" in by_rlimit:
        wanted[resource.RLIMIT_NPROC] = (spec["processes"], spec["processes"])
    for number, (soft, hard) in wanted.items():
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError):
            _, ceiling = resource.getrlimit(number)
            try:
                resource.setrlimit(number, (soft if ceiling < 0 or 0 <= soft <= ceiling else ceiling, ceiling))
            except (ValueError, OSError):
                continue


def execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """execvp, as a shell would: PATH of the job, and a file without an interpreter line is a shell script."""
    encoded = {os.fsencode(k): os.fsencode(v) for k, v in environment.items()}
    refused: OSError | None = None
    for candidate in candidates(argv[0], environment.get("PATH", os.defpath)):
        try:
            os.execve(candidate, argv, encoded)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve("/bin/sh", ["sh", candidate, *argv[1:]], encoded)
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                refused = refused or error
                if error.errno not in (errno.EACCES,):
                    raise
    raise refused or OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def candidates(program: str, path: str) -> list[str]:
    if "/" in program:
        return [program]
    return [os.path.join(folder or ".", program) for folder in path.split(":")]
