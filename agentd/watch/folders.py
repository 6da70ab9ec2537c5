"""The watched folders of one worktree, and what the kernel's events say of its files.

A folder is opened without following a link, and its place is asked of what was opened: neither it nor a folder above it
can be exchanged for a link that leads out. It is watched first and listed then.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from agentd.git.plan import RULES
from agentd.watch.kernel import (
    ATTRIB,
    CREATE,
    DELETE,
    DELETE_SELF,
    IGNORED,
    ISDIR,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    Kernel,
)

MAX_NAMES = 20_000
"""In one batch; more is a flood, and git is asked for the sum of it."""
MADE, UNLINKED = 1, 2


class RootGone(Exception):
    """The worktree is not where it was."""


@dataclass
class Batch:
    names: dict[str, int] = field(default_factory=dict)
    """Files that something happened to: MADE if they were new then, UNLINKED if the name was taken away."""
    new: dict[str, None] = field(default_factory=dict)
    """Folders that appeared."""
    moved: set[str] = field(default_factory=set)
    """Folders that went away with all that was in them."""
    is_lost: bool = False
    """Something is missing here."""


@dataclass
class Listing:
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    is_repository: bool = False
    """One of its own: to git it is one name, and it is none of ours to look into."""


class Folders:
    def __init__(self, root: str, kernel: Kernel, wake: asyncio.Event) -> None:
        self.kernel = kernel
        self.wake = wake
        self.root = root
        self.real, self.identity = self._place_of_root()
        self.by_watch: dict[int, str] = {}
        self.by_path: dict[str, int] = {}
        self.repositories: set[str] = set()
        self.batch = Batch()

    # --- events ---------------------------------------------------------------------------------------------

    def take(self) -> Batch:
        taken, self.batch = self.batch, Batch()
        return taken

    def on_lost(self) -> None:
        self.batch = Batch(is_lost=True)
        self.wake.set()

    def on_event(self, watch: int, mask: int, name: bytes) -> None:
        folder = self.by_watch.get(watch)
        if folder is None:
            return
        if mask & IGNORED:
            self._unmap(watch)
        if not name:
            if not folder and mask & (IGNORED | DELETE_SELF | MOVE_SELF):
                self.wake.set()  # the root: whoever wakes looks for it
            return
        if self.batch.is_lost:
            return
        self._note(folder, os.fsdecode(name), mask)
        if len(self.batch.names) + len(self.batch.new) > MAX_NAMES:
            self.on_lost()

    def _note(self, folder: str, name: str, mask: int) -> None:
        path = f"{folder}/{name}" if folder else name
        if name == ".git":
            if not folder:
                return
            self.batch.new[folder] = None  # it has become a repository, or is none any more
        elif folder in self.repositories:
            self.batch.names.setdefault(folder, 0)
        elif mask & ISDIR:
            if not self._note_folder(path, mask):
                return
        else:
            self._note_file(path, mask)
        self.wake.set()

    def _note_file(self, path: str, mask: int) -> None:
        before = self.batch.names.get(path)
        if before is None:
            before = MADE if mask & CREATE else 0
        self.batch.names[path] = before | (UNLINKED if mask & (DELETE | MOVED_FROM) else 0)

    def _note_folder(self, path: str, mask: int) -> bool:
        if mask & (CREATE | MOVED_TO) or (mask & ATTRIB and path not in self.by_path):
            self.batch.new[path] = None  # ATTRIB: perhaps it may be read now
        elif mask & MOVED_FROM:
            self.batch.moved.add(path)
            self.forget(path)
        elif mask & DELETE:
            if path in self.repositories:
                self.batch.names[path] = UNLINKED
                self.repositories.discard(path)
            self._drop([path])
        else:
            return False
        return True

    # --- watches --------------------------------------------------------------------------------------------

    def watch(self, path: str) -> Listing | None:
        """Watch one folder, and say what is in it; None if that cannot be done: it is gone, a link, or not to be read.
        OutOfWatches if the kernel has none left."""
        try:
            fd = self._open(path)
        except OSError:
            return None
        try:
            watch = self.kernel.add(f"/proc/self/fd/{fd}".encode(), self)
            if watch is None:
                return None
            self._map(watch, path)
            with os.scandir(fd) as entries:
                listing = list_entries(entries, path)
        except OSError:
            return None
        finally:
            os.close(fd)
        if listing.is_repository:
            self.forget(path, but_itself=True)
            self.repositories.add(path)
        else:
            self.repositories.discard(path)
        return listing

    def watch_all(self, ignored: frozenset[str]) -> bool:
        """Every folder but the ignored ones; watches of what is not there any more go. False: not even the root."""
        seen, folders = set(), [""]
        while folders:
            path = folders.pop()
            listing = self.watch(path)
            if listing is None:
                continue
            seen.add(path)
            if not listing.is_repository:
                folders += (folder for folder in listing.folders if folder not in ignored)
        self._drop([path for path in self.by_path if path not in seen])
        return bool(seen)

    def is_inside_another(self, path: str) -> bool:
        """In a repository of its own, which is one name."""
        return bool(self.repositories) and any(folder in self.repositories for folder in folders_above(path))

    def forget(self, path: str, but_itself: bool = False) -> None:
        """It, and all below it."""
        below = path + "/"
        self._drop([p for p in self.by_path if p.startswith(below) or (p == path and not but_itself)])
        self.repositories = {p for p in self.repositories if not p.startswith(below) and p != path}

    def close(self) -> None:
        self._drop(list(self.by_path))
        self.repositories.clear()
        self.batch = Batch()

    def check_root(self) -> None:
        """RootGone if there is nothing now; what has taken its place is looked at anew."""
        real, identity = self._place_of_root()
        if (real, identity) != (self.real, self.identity):
            self.close()
            self.real, self.identity = real, identity
            self.on_lost()

    def _place_of_root(self) -> tuple[str, tuple[int, int]]:
        try:
            fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RootGone(f"{self.root}: {error.strerror}") from None
        try:
            info = os.fstat(fd)
            return os.readlink(f"/proc/self/fd/{fd}"), (info.st_dev, info.st_ino)
        finally:
            os.close(fd)

    def _open(self, path: str) -> int:
        full = f"{self.real}/{path}" if path else self.real
        fd = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.readlink(f"/proc/self/fd/{fd}") != full:
            os.close(fd)
            raise NotADirectoryError(path)
        return fd

    def _map(self, watch: int, path: str) -> None:
        """A folder that was moved has its watch still: it is of its new path from now on."""
        old_path, old_watch = self.by_watch.get(watch), self.by_path.get(path)
        if old_path is not None and old_path != path and self.by_path.get(old_path) == watch:
            del self.by_path[old_path]
        if old_watch is not None and old_watch != watch:
            self._drop([path])
        self.by_watch[watch] = path
        self.by_path[path] = watch

    def _unmap(self, watch: int) -> None:
        path = self.by_watch.pop(watch, None)
        if path is not None and self.by_path.get(path) == watch:
            del self.by_path[path]

    def _drop(self, paths: list[str]) -> None:
        watches = [watch for path in paths if (watch := self.by_path.pop(path, None)) is not None]
        for watch in watches:
            self.by_watch.pop(watch, None)
        self.kernel.remove(watches, self)


def list_entries(entries: "os._ScandirIterator[str]", path: str) -> Listing:
    listing, prefix = Listing(), f"{path}/" if path else ""
    for entry in entries:
        if entry.name == ".git":
            listing.is_repository = bool(path)
        elif entry.is_dir(follow_symlinks=False):
            listing.folders.append(prefix + entry.name)
        else:
            listing.files.append(prefix + entry.name)
    return listing


def are_rules(path: str) -> bool:
    """A file that says what git ignores, or how it reads: what was known of other files is not sure any more."""
    return path.rpartition("/")[2] in RULES


def folders_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
