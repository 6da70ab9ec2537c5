"""The worktree as the file tools see it: no path leads out of it.

A path is walked folder by folder, each opened relative to the one before and never through a symbolic link; a link is
read and its target walked in turn, from inside. ``..`` goes back to the descriptor it came from. So it does not matter
what is renamed or replaced by a link meanwhile: a step can only fail.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .results import ToolError

FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_LINKS = 40


class Worktree:
    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.aliases = tuple({self.path, os.path.abspath(path)})
        self.root = os.open(self.path, FOLDER)

    def close(self) -> None:
        os.close(self.root)

    @contextmanager
    def place(self, path: str, writing: bool = False) -> Iterator[tuple[int, str]]:
        """The real folder of a path (a descriptor) and the name in it, "." for the worktree itself. When it is for
        writing, folders that are missing are made."""
        stack = [os.dup(self.root)]
        try:
            name = self._walk(stack, path, writing)
            yield stack[-1], name
        except OSError as error:
            raise ToolError(f"cannot reach {path}: {os.strerror(error.errno or errno.EIO)}") from None
        finally:
            for fd in stack:
                os.close(fd)

    def _walk(self, stack: list[int], path: str, writing: bool) -> str:
        steps = deque(self._relative(path, path).split("/"))
        links = 0
        while steps:
            step = steps.popleft()
            if step in ("", "."):
                continue
            if step == ".git" and writing:
                raise ToolError(f"cannot write {path}: what git keeps is changed by git only")
            if step == "..":
                if len(stack) == 1:
                    raise outside(path)
                os.close(stack.pop())
                continue
            target = link_target(step, stack[-1])
            if target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, "too many links")
                if target.startswith("/"):
                    target = self._relative(target, path)
                    while len(stack) > 1:
                        os.close(stack.pop())
                steps.extendleft(reversed(target.split("/")))
                continue
            if not any(rest not in ("", ".") for rest in steps):
                return step
            stack.append(open_folder(step, stack[-1], writing))
        return "."

    def _relative(self, path: str, asked: str) -> str:
        if "\0" in path or not path:
            raise ToolError(f"not a path: {asked!r}")
        if not path.startswith("/"):
            return path
        for root in self.aliases:
            if path == root or path.startswith(root + "/"):
                return path[len(root) :].lstrip("/")
        raise outside(asked)

    @contextmanager
    def open_file(self, path: str) -> Iterator[int]:
        """A regular file, for reading."""
        with self.place(path) as (folder, name):
            # Not blocking: a FIFO without a writer would hold us.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                mode = os.fstat(fd).st_mode
                if stat.S_ISDIR(mode):
                    raise ToolError(f"{path} is a folder; use glob, or ls in bash")
                if not stat.S_ISREG(mode):
                    raise ToolError(f"{path} is no regular file")
                yield fd
            finally:
                os.close(fd)

    def replace(self, path: str, data: bytes) -> bool:
        """Write a file whole or not at all, with the mode it had. Whether it was there before."""
        with self.place(path, writing=True) as (folder, name):
            try:
                old = os.lstat(name, dir_fd=folder) if name != "." else os.fstat(folder)
            except FileNotFoundError:
                old = None
            if old is not None and not stat.S_ISREG(old.st_mode):
                raise ToolError(f"cannot write {path}: it is there and is no regular file")
            aside = f".{name[:200]}.{os.getpid()}.agentd"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(aside, flags, 0o666, dir_fd=folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    if old is not None:
                        os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                    file.write(data)
                os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(aside, dir_fd=folder)
                raise
            return old is not None

    def read(self, path: str, limit: int) -> str | None:
        """A file's beginning, or None where there is none to be had."""
        try:
            with self.open_file(path) as fd:
                return os.pread(fd, limit, 0).decode("utf-8", "replace")
        except (ToolError, OSError):
            return None


def link_target(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def open_folder(name: str, parent: int, make: bool) -> int:
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, FOLDER, dir_fd=parent)


def outside(path: str) -> ToolError:
    return ToolError(f"{path} is outside the worktree; file tools work inside it only")
