"""Which repository, which commit: settled once, when a job is asked for."""

import functools
import os
import re
from dataclasses import dataclass

from agentd import files
from agentd.core.errors import Refused, Usage
from agentd.git.run import GitFailed, Repo, Tree, git, refuse_pipes

__all__ = ["Place", "Repo", "Settled", "Tree", "calling_tree", "find", "ref_value", "refs_there", "settle"]

SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True)
class Settled:
    repo: Repo
    base: str
    """The full object id the job starts from."""
    subdir: str
    """Where in the tree the command ran; '' at its top."""
    ref: str | None
    """The calling tree's branch, such as "refs/heads/main"; None if detached."""


def settle(cwd: str, base: str | None) -> Settled:
    """One git process, whatever the size of the repository; a second one where there is no tree."""
    if base is not None and base.startswith("-"):
        raise Usage('base must not start with "-"; name a branch, a tag or a commit', code="bad_base")
    if base is not None and (not base or "\0" in base):
        raise Usage("base must be a branch, a tag or a commit, not an empty or binary text", code="bad_base")
    if not os.path.isdir(cwd):
        raise Refused(f"cannot start a job in {cwd}: there is no such folder", code="no_folder")
    _refuse_pipes_above(cwd)
    commit = f"{base or 'HEAD'}^{{commit}}"
    where = ["--git-common-dir", "--absolute-git-dir"]
    try:
        lines = git(["rev-parse", "--verify", *where, "--show-prefix", "--show-toplevel", commit], cwd=cwd)
    except GitFailed as failure:
        if "must be run in a work tree" not in failure.stderr:
            raise _refusal(failure, cwd, base) from None
        return _settle_without_tree(cwd, base, ["rev-parse", "--verify", *where, commit])
    # From the right: a sha holds no line feed, the others may.
    common, git_dir, prefix, top, sha = _fields(lines, 5, cwd)
    repo = Repo(common=_real(cwd, common), top=os.path.realpath(top), git_dir=os.path.realpath(git_dir))
    return Settled(repo, _checked(sha, base, cwd), prefix.rstrip("/"), _current_branch(repo.git_dir))


@dataclass(frozen=True)
class Place:
    """Where in which repository somebody is, whether it has a commit or not."""

    common: str
    """The common git directory, real path: one for all worktrees and all ways to it."""
    top: str
    """The working tree's, real path."""
    prefix: str
    """The folder below the top; '' at its top."""
    folds_case: bool
    """Its file system takes A and a for one name."""


def find(cwd: str) -> Place | None:
    """The working tree that ``cwd`` is in; None if it is in none. As git finds it, but without a git: whoever claims a
    path waits for this."""
    if not os.path.isdir(cwd):
        raise Refused(f"there is no folder {cwd}; go to another one, and try again", code="no_folder")
    real = os.path.realpath(cwd)
    top = real
    while True:
        git_dir = os.path.join(top, ".git")
        if not os.path.isdir(git_dir) and os.path.lexists(git_dir):
            git_dir = os.path.join(top, _line(git_dir).removeprefix("gitdir: "))
        if _is_git_dir(git_dir):
            break
        if top == os.path.dirname(top):
            return None
        top = os.path.dirname(top)
    common = os.path.realpath(os.path.join(git_dir, _line(os.path.join(git_dir, "commondir"))))
    prefix = os.path.relpath(real, top) if real != top else ""
    return Place(common, top, prefix, _folds_case(common))


def _is_git_dir(path: str) -> bool:
    parts = ("HEAD", "commondir") if os.path.exists(os.path.join(path, "commondir")) else ("HEAD", "objects", "refs")
    return all(os.path.lexists(os.path.join(path, part)) for part in parts)


@functools.lru_cache(maxsize=256)
def _folds_case(common: str) -> bool:
    asked = ["config", "--type=bool", "--get", "core.ignorecase"]
    return git(asked, at=Repo(common, None, common), ok=(0, 1)).strip() == "true"


def _refuse_pipes_above(cwd: str) -> None:
    """In the repository that git will find: a pipe there would hold up everybody who delegates."""
    here = os.path.realpath(cwd)
    while not os.path.lexists(os.path.join(here, ".git")):
        if here == os.path.dirname(here):
            return
        here = os.path.dirname(here)
    git_dir = os.path.join(here, ".git")
    if not os.path.isdir(git_dir):
        git_dir = os.path.join(here, _line(git_dir).removeprefix("gitdir: "))
    refuse_pipes(Repo(git_dir, None, git_dir))
    common = os.path.join(git_dir, _line(os.path.join(git_dir, "commondir")))
    refuse_pipes(Repo(common, None, common))


def _line(path: str) -> str:
    try:
        return os.fsdecode(files.read_file(path)).rstrip("\n")
    except OSError:
        return ""


def _settle_without_tree(cwd: str, base: str | None, query: list[str]) -> Settled:
    try:
        common, git_dir, sha = _fields(git(query, cwd=cwd), 3, cwd)
    except GitFailed as failure:
        raise _refusal(failure, cwd, base) from None
    repo = Repo(common=_real(cwd, common), top=None, git_dir=os.path.realpath(git_dir))
    return Settled(repo, _checked(sha, base, cwd), "", _current_branch(repo.git_dir))


def _fields(text: str, count: int, cwd: str) -> list[str]:
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != count:
        raise Refused(
            f"cannot use the repository at {cwd!r}: a line feed in its path; rename the folder",
            code="bad_path",
        )
    return lines


def _checked(sha: str, base: str | None, cwd: str) -> str:
    if not SHA.fullmatch(sha):
        raise Refused(
            f'base "{base}" is not one commit in {cwd}; name a branch, a tag or a commit', code="unknown_base"
        )
    return sha


def _real(cwd: str, path: str) -> str:
    return os.path.realpath(os.path.join(cwd, path))


def _current_branch(git_dir: str) -> str | None:
    head = files.read_file(os.path.join(git_dir, "HEAD")).decode("utf-8", "surrogateescape").strip()
    return head.removeprefix("ref: ") if head.startswith("ref: refs/heads/") else None


def _refusal(failure: GitFailed, cwd: str, base: str | None) -> Exception:
    if "not a git repository" in failure.stderr:
        message = f"{cwd} is not in a git repository; use agentd run (in place), or: git init"
        return Refused(message, code="no_repository")
    if "dubious ownership" in failure.stderr:
        remedy = f"git config --global --add safe.directory {cwd}"
        message = f"cannot use the repository at {cwd}: another user owns it; {remedy}"
        return Refused(message, code="foreign_repository")
    if not re.search(
        "single revision|unknown revision|bad revision|ambiguous|Not a valid|expected commit", failure.stderr
    ):
        return failure
    top = _top_of(failure.stdout, cwd)
    if base is None or base in ("HEAD", "@"):
        return Refused(f"no commit yet in {top}; make a first commit", code="no_commit")
    return Refused(
        f'base "{base}" is not a commit in {top} (git: unknown revision); name a branch, a tag or a commit',
        code="unknown_base",
    )


def _top_of(printed: str, cwd: str) -> str:
    git_dir = printed.split("\n")[1] if printed.count("\n") >= 2 else ""
    return os.path.dirname(git_dir) if os.path.basename(git_dir) == ".git" else cwd


def calling_tree(repo: Repo) -> Tree:
    if repo.top is None:
        raise Refused(f"cannot read a working tree of {repo.common}: the repository is bare", code="bare")
    return Tree(repo.common, repo.git_dir, repo.top)


def ref_value(at: Tree | Repo, ref: str) -> str | None:
    return git(["rev-parse", "--verify", "-q", ref], at=at, ok=(0, 1)).strip() or None


def refs_there(at: Tree | Repo, refs: list[str]) -> list[str]:
    """Those of ``refs`` that exist: one git for all of them."""
    answers = git(["cat-file", "--batch-check"], at=at, input="".join(f"{ref}\n" for ref in refs)).splitlines()
    return [ref for ref, answer in zip(refs, answers, strict=True) if answer != f"{ref} missing"]
