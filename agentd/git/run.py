"""The one place that runs git.

git is found once, by absolute path, so that no directory a job can write is searched for it. Its environment
is rebuilt from nothing: no ``GIT_*`` of the caller gets through. ``GIT_CONFIG_NOSYSTEM`` is left unset on
purpose: /etc/gitconfig belongs to root, and holds ``safe.directory`` and the LFS filters on many machines;
without them git refuses the repository, or a snapshot stores large files whole. The ``-c`` options switch
off what a job could plant in a configuration it can write; they cannot switch off ``filter.*``.
"""

import contextlib
import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from filelock import FileLock, Timeout

from agentd import files
from agentd.core.errors import AgentdError, Fault, NotNow, Refused

OUTPUT_CAP = 256 * 1024 * 1024
MUTEX_WAIT = 120.0
START_WAIT = 10.0
PATH = os.pathsep.join(p for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(p))

umask: ContextVar[int] = ContextVar("umask", default=-1)
"""With what umask git writes; -1: our own. What lands in the user's tree is as open as the user's files are."""

SAFE = (
    "core.fsmonitor=",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "diff.external=",
    "core.sshCommand=",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "commit.gpgsign=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.safecrlf=false",
)


READ_BY_GIT = (
    *("HEAD", "config", "config.worktree", "commondir", "gitdir", "index", "packed-refs", "shallow", "logs/HEAD"),
    *("info/exclude", "info/attributes", "info/grafts", "info/sparse-checkout", "objects/info/alternates"),
)


@dataclass(frozen=True)
class Repo:
    common: str
    """Real path of the common directory."""
    top: str | None
    """Top level of the calling tree; None in a bare repository."""
    git_dir: str
    """The calling tree's own git directory."""


@dataclass(frozen=True)
class Tree:
    """A working tree and the directories we know to be its own, whatever its ``.git`` file says."""

    common: str
    git_dir: str
    path: str


class GitFailed(Exception):
    def __init__(self, argv: Sequence[str], code: int, stdout: str, stderr: str, note: str = "") -> None:
        super().__init__(argv, code, stdout, stderr, note)
        self.argv, self.code, self.stdout, self.stderr, self.note = tuple(argv), code, stdout, stderr, note

    def __str__(self) -> str:
        said = self.note or self.stderr.strip()[-2000:] or self.stdout.strip()[-500:] or "it said nothing"
        return f"git {' '.join(self.argv)} ended with {self.code}: {said}"

    @property
    def disk_full(self) -> bool:
        return bool(re.search("No space left on device|Disk quota exceeded", self.stderr))


@cache
def program() -> str:
    found = shutil.which("git", path=PATH)
    if found is None:
        raise Fault("cannot run git: it is not in PATH; install git 2.30 or newer", code="no_git")
    return os.path.realpath(found)


def git(
    args: Sequence[str],
    *,
    cwd: str | None = None,
    at: Tree | Repo | None = None,
    index: str | None = None,
    input: str | None = None,
    write: bool = False,
    timeout: float = 120,
    ok: Sequence[int] = (0,),
    env: Mapping[str, str] | None = None,
    holding: int | None = None,
) -> str:
    """What git printed, decoded so that any path survives the way back to the file system.

    ``at`` addresses a tree, or a repository without a tree, explicitly; without it git discovers from
    ``cwd``. ``holding`` is the descriptor of a lock which shall stay locked while git lives, even if we
    are killed meanwhile.
    """
    options = list(SAFE)
    if at is not None:
        options.append("safe.bareRepository=explicit")
        refuse_pipes(at)
    argv = [program(), *(word for option in options for word in ("-c", option)), *args]
    environment = _environment(at, index, write) | dict(env or {})
    process = _started(
        argv,
        cwd=cwd or (at.path if isinstance(at, Tree) else at.common if at else None),
        env=environment,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=() if holding is None else (holding,),
        umask=umask.get(),
    )
    with process:
        try:
            out, err, note = _converse(process, os.fsencode(input or ""), timeout)
        except BaseException:
            _kill_group(process)
            raise
    stdout, stderr = os.fsdecode(out), os.fsdecode(err)
    if note or process.returncode not in ok:
        raise GitFailed(args, process.returncode, stdout, stderr, note)
    return stdout


def refuse_pipes(at: Tree | Repo) -> None:
    """git would wait for ever at a pipe that stands for a file it reads, and read a device without end."""
    for folder in dict.fromkeys((at.common, at.git_dir)):
        refuse_pipe(*(os.path.join(folder, name) for name in READ_BY_GIT))


def refuse_pipe(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            what = files.kind(path, follow=True)
            if what not in ("file", "folder", "nothing"):
                raise Refused(f"cannot run git there: {path} is a {what}, not a file; remove it", code="special_file")


def _started(argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    """When the system can make no process just now (EAGAIN, ENOMEM) it is tried again for a while."""
    deadline = time.monotonic() + START_WAIT
    while True:
        try:
            return subprocess.Popen(argv, **options)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                raise
            if time.monotonic() > deadline:
                message = f"cannot start git: {error.strerror}; end some processes, then try again"
                raise NotNow(message, code="no_process") from None
            time.sleep(0.05)


def _environment(at: Tree | Repo | None, index: str | None, write: bool) -> dict[str, str]:
    environment = {
        "PATH": PATH,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        # git refuses to write a commit, and a reflog on some machines, without a name.
        "GIT_AUTHOR_NAME": "agentd",
        "GIT_AUTHOR_EMAIL": "agentd@localhost",
        "GIT_COMMITTER_NAME": "agentd",
        "GIT_COMMITTER_EMAIL": "agentd@localhost",
    }
    # The user's own configuration: safe.directory, filters such as LFS, autocrlf, the global ignore file.
    for name in ("HOME", "XDG_CONFIG_HOME"):
        if name in os.environ:
            environment[name] = os.environ[name]
    if not write:
        environment["GIT_OPTIONAL_LOCKS"] = "0"
    if isinstance(at, Tree):
        environment |= {"GIT_DIR": at.git_dir, "GIT_COMMON_DIR": at.common, "GIT_WORK_TREE": at.path}
    elif at is not None:
        environment["GIT_DIR"] = at.common
    if index is not None:
        environment["GIT_INDEX_FILE"] = index
    return environment


def _converse(process: subprocess.Popen[bytes], data: bytes, timeout: float) -> tuple[bytes, bytes, str]:
    """Feed and read until both streams end; a note says why the process group was killed."""
    deadline = time.monotonic() + timeout
    assert process.stdout and process.stderr
    chunks: dict[object, list[bytes]] = {process.stdout: [], process.stderr: []}
    size, pending = 0, memoryview(data)
    with selectors.DefaultSelector() as selector:
        for stream in chunks:
            selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                _kill_group(process)
                return b"", b"", f"no end after {timeout:g} s; killed"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    pending = _feed(key.fd, pending)
                    if not pending:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                chunks[key.fileobj].append(chunk)
                size += len(chunk)
            if size > OUTPUT_CAP:
                _kill_group(process)
                return b"", b"", f"more than {OUTPUT_CAP} bytes of output; killed"
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return b"", b"", f"no end after {timeout:g} s; killed"
    return b"".join(chunks[process.stdout]), b"".join(chunks[process.stderr]), ""


def _feed(fd: int, pending: memoryview) -> memoryview:
    try:
        return pending[os.write(fd, pending[: 1 << 16]) :]
    except BrokenPipeError:
        return pending[:0]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def zsplit(text: str) -> list[str]:
    return [part for part in text.split("\0") if part]


def sentence(failure: GitFailed | OSError, deed: str, *places: str) -> AgentdError:
    """The failure in our words: "cannot DEED: why; what to do". ``places`` are where it wanted to write."""
    if isinstance(failure, GitFailed):
        full = failure.disk_full or any(_is_full(place) for place in places)
    else:
        full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
    if full:
        return NotNow(f"cannot {deed}: the disk is full; free some space, then try again", code="disk_full")
    if isinstance(failure, OSError):
        return Refused(f"cannot {deed}: {failure}", code="io_error")
    return Fault(f"cannot {deed}: {failure}", code="git_failed")


def _is_full(place: str) -> bool:
    """git does not always name the cause ("couldn't write ...")."""
    try:
        free = os.statvfs(place)
    except OSError:
        return False
    return free.f_bavail * free.f_frsize < 1 << 16 or (free.f_files > 0 and free.f_favail == 0)


@contextlib.contextmanager
def mutex(repo: Repo) -> Iterator[int]:
    """The repository's mutex: one of ours at a time makes, moves or removes worktrees and branches.

    Yields the lock's descriptor, for ``git(holding=...)``. The file is never unlinked.
    """
    try:
        with locked(os.path.join(repo.common, "agentd.mutex")) as fd:
            yield fd
    except Timeout:
        message = f"cannot change worktrees of {repo.common}: its mutex is busy since {MUTEX_WAIT:g} s; try again"
        raise NotNow(message, code="repository_busy") from None


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    held: list[int] = []
    lock = FileLock(
        path,
        fallback_to_soft=False,
        thread_local=False,
        poll_interval=0.01,
        timeout=MUTEX_WAIT,
        on_acquired=held.append,
    )
    try:
        lock.acquire()
    except OSError as failure:
        if failure.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = os.path.join(os.path.dirname(path), "worktrees")
        message = f"cannot write {where} (permission denied); make it writable for this user"
        raise Refused(message, code="read_only") from None
    try:
        yield held[0]
    finally:
        lock.release()
