"""What git says of one worktree. Blocks: for worker threads.

git runs programs that its configuration names, and a job can write that: it is compared first with what it was when it
was known to be harmless. It reads no file that is a pipe, takes no lock, and is not run in repositories inside.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agentd.core.errors import AgentdError, Refused
from agentd.git import fingerprint
from agentd.git.plan import RULES, Plan, is_intact, tree_of
from agentd.git.repository import ref_value
from agentd.git.run import GitFailed, Repo, git, refuse_pipe, zsplit
from agentd.watch.folders import folders_above
from agentd.watch.wire import Watch

GIT_S = 30.0
NAMES_AT_ONCE = 5000
STATUS = (
    *("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"),
    *("--ignored=matching", "--ignore-submodules=dirty"),
)
Signature = tuple[int, int, int]


class Blind(Exception):
    """git cannot be asked; why, in a sentence."""


@dataclass(frozen=True)
class Survey:
    changed: tuple[str, ...]
    """What differs from the base: modified, removed, new; committed since or not."""
    ignored: frozenset[str]
    """Folders."""


class Look:
    def __init__(self, order: Watch) -> None:
        self.order = order
        repo = Repo(common=order.common, top=None, git_dir=order.common)
        self.plan = Plan(repo=repo, job=0, branch="", path=order.root, base=order.base, lock_reason="")
        self.tree = tree_of(self.plan, order.admin)
        self.harmless: tuple[Signature | None, ...] = ()
        """Its configuration as it was when it was last compared."""
        self.index: Signature | None = None
        self.kept: frozenset[str] = frozenset()
        """Files that git tracks although they match what is ignored, and the folders they lie in."""

    def survey(self, thoroughly: bool) -> Survey:
        try:
            self._be_careful()
            if thoroughly:
                self._refuse_pipes()
            changed, ignored = [], set()
            for line in zsplit(git(STATUS, at=self.tree, timeout=GIT_S)):
                how, path = line[:2], line[3:]
                if how != "!!":
                    changed.append(path.rstrip("/"))
                elif path.endswith("/"):
                    ignored.add(path.rstrip("/"))
            self._learn_kept()
            return Survey(tuple(dict.fromkeys([*changed, *self._committed()])), frozenset(ignored))
        except (AgentdError, GitFailed, OSError) as error:
            raise Blind(getattr(error, "message", str(error))) from None

    def ignored(self, names: Iterable[str]) -> set[str]:
        """Those of the names that git ignores; that of a folder ends with a slash."""
        asked = list(names)
        try:
            self._be_careful()
            found = {name for few in _in_pieces(asked) for name in self._matching(few)}
            if found and signature(f"{self.tree.git_dir}/index") != self.index:
                self._learn_kept()
        except (AgentdError, GitFailed, OSError) as error:
            raise Blind(getattr(error, "message", str(error))) from None
        return {name for name in found if name.rstrip("/") not in self.kept}

    def _matching(self, names: list[str]) -> list[str]:
        # Not with the index: git would go through all of it for each name. "./" keeps a name from being magic.
        query = ["check-ignore", "--no-index", "-z", "--stdin"]
        asked = "".join(f"./{name}\0" for name in names)
        said = zsplit(git(query, at=self.tree, input=asked, ok=(0, 1), timeout=GIT_S))
        return [name.removeprefix("./") for name in said]

    def _committed(self) -> list[str]:
        head = ref_value(self.tree, "HEAD")
        if head is None or head == self.order.base:
            return []
        query = ["diff-tree", "-r", "-z", "--name-only", "--no-renames", self.order.base, head]
        return zsplit(git(query, at=self.tree, timeout=GIT_S))

    def _learn_kept(self) -> None:
        self.index = signature(f"{self.tree.git_dir}/index")
        listed = zsplit(git(["ls-files", "-z", "-c", "-i", "--exclude-standard"], at=self.tree, timeout=GIT_S))
        self.kept = frozenset(part for path in listed for part in (path, *folders_above(path)))

    def _refuse_pipes(self) -> None:
        """Rules that git would read, and wait at. A folder that may not be read hides them from git, too."""
        walk = os.walk(self.tree.path)
        refuse_pipe(*(f"{folder}/{name}" for folder, _, names in walk for name in names if name in RULES))

    def _be_careful(self) -> None:
        if not is_intact(self.plan, self.order.admin):
            raise Refused(f"{self.tree.git_dir} was rewritten", code="not_ours")
        common, admin = self.order.common, self.order.admin
        configured = [*fingerprint.config_files(common), *fingerprint.config_files(common, admin)]
        now = tuple(map(signature, configured))
        if now == self.harmless:
            return
        self.harmless, includes = (), False
        for before, of in ((self.order.commands, None), (self.order.own_commands, admin)):
            if before is None:
                continue
            found = fingerprint.command_keys(common, of)
            includes = includes or any(key.startswith("include") for key in found)
            if keys := fingerprint.dangerous_config(before, found):
                told = ", ".join(keys)
                raise Refused(f"git's configuration was changed ({told}): git is not run there", code="changed_config")
        if not includes:  # else what it says may change in files that we do not know
            self.harmless = now


def signature(path: str) -> Signature | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def _in_pieces(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), NAMES_AT_ONCE):
        yield names[start : start + NAMES_AT_ONCE]
