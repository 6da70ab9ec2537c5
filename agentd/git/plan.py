"""What is to be made for one job, written down before it is made, and how to find it again."""

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agentd import files
from agentd.git.run import Repo, Tree, refuse_pipe

RULES = (".gitignore", ".gitattributes", ".gitmodules", ".mailmap")


@dataclass(frozen=True)
class Plan:
    repo: Repo
    job: int
    branch: str
    """Short name, such as agentd/7/fix-login."""
    path: str
    base: str
    lock_reason: str

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"


def plan_from(fields: dict[str, Any]) -> Plan:
    return Plan(**{**fields, "repo": Repo(**fields["repo"])})


def admin_dir(repo: Repo, admin: str) -> str:
    return os.path.join(repo.common, "worktrees", admin)


def tree_of(plan: Plan, admin: str) -> Tree:
    return Tree(plan.repo.common, admin_dir(plan.repo, admin), plan.path)


def admin_named_by(path: str, repo: Repo) -> str | None:
    """The admin id that the ``.git`` file at ``path`` names, if it is one of this repository."""
    text = read(os.path.join(path, ".git"))
    if text is None or not text.startswith("gitdir: "):
        return None
    named = os.path.realpath(os.path.join(path, text.removeprefix("gitdir: ").strip()))
    parent, admin = os.path.split(named)
    return admin if parent == os.path.realpath(os.path.join(repo.common, "worktrees")) else None


def points_back(plan: Plan, admin: str) -> bool:
    text = read(os.path.join(admin_dir(plan.repo, admin), "gitdir"))
    return bool(text) and _same(os.path.join(admin_dir(plan.repo, admin), (text or "").strip()), plan)


def is_intact(plan: Plan, admin: str) -> bool:
    """Whether the admin directory is still of this repository and this worktree.

    GIT_COMMON_DIR alone is no defence: git reads *refs* by way of the ``commondir`` file in any case.
    """
    here = admin_dir(plan.repo, admin)
    common = os.path.join(here, (read(os.path.join(here, "commondir")) or "").strip())
    return points_back(plan, admin) and os.path.realpath(common) == os.path.realpath(plan.repo.common)


def stands(plan: Plan, admin: str, path: str | None = None) -> bool:
    """Whether directory and admin directory are the ones we made, and name each other. ``path``: where it is now."""
    path = path or plan.path
    named = None if os.path.islink(path) else admin_named_by(path, plan.repo)
    return named == admin and is_intact(plan, admin)


def _same(gitdir: str, plan: Plan) -> bool:
    """Compared by the real parent: the directory itself may be gone, or replaced by a link."""
    parent, name = os.path.split(os.path.dirname(os.path.normpath(gitdir)))
    mine, base = os.path.split(plan.path)
    return name == base and os.path.realpath(parent) == os.path.realpath(mine)


def half_made_admins(plan: Plan) -> list[str]:
    """Admin directories that an interrupted ``worktree add`` of this plan can have left.

    git numbers them when names collide, and fills them step by step: locked, gitdir, HEAD, commondir.
    Where ``gitdir`` exists it decides; before that, our lock reason; before that, emptiness.
    """
    root = os.path.join(plan.repo.common, "worktrees")
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(root))
        pattern = re.compile(re.escape(os.path.basename(plan.path)) + r"\d*")
        return [name for name in names if pattern.fullmatch(name) and _is_ours(plan, name)]
    return []


def _is_ours(plan: Plan, admin: str) -> bool:
    here = admin_dir(plan.repo, admin)
    if os.path.islink(here) or not os.path.isdir(here):
        return False
    try:
        if read(os.path.join(here, "gitdir")):
            return points_back(plan, admin)
        reason = read(os.path.join(here, "locked"))
    except OSError:
        return False
    return not reason or reason.strip() == plan.lock_reason


def read(path: str) -> str | None:
    """What a small file says; None if there is none. OSError for what is no file, or not small."""
    try:
        return files.read_file(path).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def digest(path: str) -> str:
    """What a manifest says of one file: a link by its target, a file by its bytes, anything else by its kind."""
    what = files.kind(path)
    if what == "symlink":
        return "link:" + os.readlink(path)
    if what != "file":
        return "kind:" + what
    with files.open_file(path, follow=False) as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def files_in(tree: Tree) -> Iterator[tuple[str, bool]]:
    """All there is in a working tree but folders and its own ``.git``: the path, and whether git can read it (a file
    or a link). No link is followed; a folder that cannot be read is an OSError."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(tree.path, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif path != ".git":
                    yield path, entry.is_symlink() or entry.is_file(follow_symlinks=False)


def refuse_pipes_in(tree: Tree) -> None:
    """git reads these wherever they stand in a tree, and would wait at a pipe for ever."""
    refuse_pipe(*(os.path.join(tree.path, path) for path, _ in files_in(tree) if os.path.basename(path) in RULES))


def remove_tree(path: str) -> None:
    """``rm -rf`` of something we made, folders that were made read-only (module caches are) included."""

    def open_up(function: Callable[..., Any], at: str, problem: Any) -> None:
        if isinstance(problem[1], FileNotFoundError):
            return
        if not isinstance(problem[1], PermissionError):
            raise problem[1]
        for folder in (os.path.dirname(at), at):
            if os.path.isdir(folder) and not os.path.islink(folder):
                os.chmod(folder, stat.S_IRWXU)
        if os.path.isdir(at) and not os.path.islink(at):
            shutil.rmtree(at)
        else:
            os.unlink(at)

    shutil.rmtree(path, onerror=open_up)
