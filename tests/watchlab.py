"""A worktree watcher at the other end of its socket, and worktrees for it."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gitrepo

from agentd.git import fingerprint
from agentd.git.plan import Plan
from agentd.git.run import zsplit
from agentd.watch import wire

PATIENCE_S = 60.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Lab:
    """``prefix``: words in front of the command, such as unshare."""

    def __init__(self, prefix: Sequence[str] = (), **environment: str) -> None:
        self.link, theirs = socket.socketpair()
        began = time.monotonic()
        command = [*prefix, sys.executable, "-P", "-m", "agentd.watch", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env={**os.environ, **environment})
        theirs.close()
        self.began = began
        self.rest = b""
        self.wrote: defaultdict[str, list[str]] = defaultdict(list)
        self.removed: dict[str, set[str]] = {}
        self.modes: dict[str, list[wire.Mode]] = {}
        self.ready: dict[str, int] = {}
        self.gone: set[str] = set()
        self.marks = 0

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        assert self.process.wait(PATIENCE_S) == 0

    # --- orders ---------------------------------------------------------------------------------------------

    def order(self, order: wire.AnyOrder) -> None:
        self.link.sendall(wire.line(order))

    def watch(self, tree: "Tree", key: str = "1", is_awaited: bool = True) -> None:
        self.order(tree.order(key))
        if is_awaited:
            self.until(lambda: self.ready.get(key, 0) > 0)

    def rescan(self, key: str = "1") -> set[str]:
        """What a new scan tells."""
        told, count = len(self.wrote[key]), self.ready.get(key, 0)
        self.order(wire.Rescan(key))
        self.until(lambda: self.ready.get(key, 0) > count)
        return set(self.wrote[key][told:])

    # --- facts ----------------------------------------------------------------------------------------------

    def until(self, is_true: Callable[[], bool], patience: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience
        while not is_true():
            assert self.read(deadline - time.monotonic()), f"waited for {patience} s: {self.modes} {self.ready}"

    def read(self, patience: float) -> bool:
        """False if there was nothing to be read."""
        if not select.select([self.link], [], [], max(0.0, patience))[0]:
            return False
        data = self.link.recv(1 << 16)
        assert data, f"the watcher ended: {self.process.wait(PATIENCE_S)}"
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.take(wire.fact(line))
        return True

    def take(self, fact: wire.AnyFact) -> None:
        match fact:
            case wire.Wrote(key, paths, _, removed):
                self.wrote[key].extend(paths)
                self.removed[key] = self.removed.get(key, set()) - set(paths) | set(removed)
            case wire.Mode(key):
                self.modes.setdefault(key, []).append(fact)
            case wire.Ready(key):
                self.ready[key] = self.ready.get(key, 0) + 1
            case wire.Gone(key):
                self.gone.add(key)

    def told(self, tree: "Tree", key: str = "1") -> set[str]:
        """All that was told until now: what happens after it is told after it, and so a last file ends the list."""
        self.marks += 1
        mark = f"mark-{self.marks}"
        (tree.path / mark).write_text("x")
        self.until(lambda: mark in self.wrote[key])
        return {path for path in self.wrote[key] if not path.startswith("mark-")}

    def quiet(self, seconds: float) -> int:
        """Ticks of CPU in a time in which nothing is told."""
        before = self.ticks()
        assert not self.read(seconds)
        return self.ticks() - before

    def ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def cpu(self) -> float:
        """Seconds, with those of the gits that have ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) * TICK_S

    def memory(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

    def watches(self) -> int:
        """How many folders the kernel watches for it."""
        count = 0
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                if "inotify" in os.readlink(f"/proc/{self.process.pid}/fd/{fd}"):
                    count += Path(f"/proc/{self.process.pid}/fdinfo/{fd}").read_text().count("inotify wd:")
        return count


class Tree:
    """One worktree, made as agentd makes them."""

    def __init__(self, top: str, place: Path, job: int = 7) -> None:
        self.plan: Plan = gitrepo.plan_for(top, place, job, f"tree-{job}")
        self.admin = gitrepo.make(self.plan)
        self.path = Path(self.plan.path)

    def order(self, key: str = "1") -> wire.Watch:
        common = self.plan.repo.common
        return wire.Watch(
            key=key,
            root=self.plan.path,
            common=common,
            admin=self.admin,
            base=self.plan.base,
            commands=fingerprint.command_keys(common),
            own_commands=fingerprint.command_keys(common, self.admin),
        )

    def sh(self, script: str) -> None:
        subprocess.run(["/bin/sh", "-ec", script], cwd=self.path, check=True, stdout=subprocess.DEVNULL)

    def differing(self) -> set[str]:
        """What differs from the base, as the user's own git has it."""
        status = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignore-submodules=dirty"]
        found = {line[3:].rstrip("/") for line in zsplit(self._git(*status))}
        found |= set(zsplit(self._git("diff", "--name-only", "-z", "--no-renames", self.plan.base, "HEAD")))
        return {path for path in found if not path.startswith("mark-")}

    def _git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.path, check=True, capture_output=True)
        return os.fsdecode(done.stdout)


def many_files(top: Path, count: int, in_a_folder: int = 20) -> str:
    """A repository of so many small files."""
    gitrepo.make_repo(top)
    gitrepo.run(top, "config", "gc.auto", "0")  # packing refs races with twenty commits at once
    for start in range(0, count, in_a_folder):
        folder = top / "many" / f"{start // 1000}" / f"{start // in_a_folder}"
        folder.mkdir(parents=True)
        for n in range(start, min(count, start + in_a_folder)):
            (folder / f"{n}.txt").write_text(f"{n}\n")
    gitrepo.run(top, "add", "-A")
    gitrepo.run(top, "commit", "-q", "-m", "many")
    return str(top)


def trees(top: str, place: Path, count: int) -> Iterator[Tree]:
    for number in range(1, count + 1):
        yield Tree(top, place, number)
