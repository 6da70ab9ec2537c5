"""What of a repository a job must not touch, hashed before and after, so that a change can be told."""

import contextlib
import hashlib
import os
import re

from agentd import files
from agentd.git.plan import admin_dir
from agentd.git.run import GitFailed, Repo, git, zsplit

MANY_REFS = 2000
OWN = ("refs/heads/agentd/", "refs/agentd/")
COMMANDS = re.compile(
    r"filter\..*|diff\..*\.(command|textconv)|diff\.external|merge\..*\.driver|mergetool\..*|difftool\..*|alias\..*"
    r"|credential\..*|include\..*|includeif\..*|core\..*|gpg\..*|sequence\.editor|pager\..*|uploadpack\..*"
    r"|extensions\.worktreeconfig",
    re.DOTALL,
)


def fingerprint(common: str) -> dict[str, str]:
    """Names are refs, ``config:<key>``, ``hook:<name>`` and ``HEAD`` (the main tree's branch)."""
    marks = {f"config:{key}": value for key, value in _config(common, None).items()}
    marks |= _hooks(common)
    marks["HEAD"] = _bytes(os.path.join(common, "HEAD")).decode("utf-8", "replace").strip()
    refs = _refs(common)
    if len(refs) > MANY_REFS:
        stash = {name: sha for name, sha in refs.items() if name == "refs/stash"}
        refs = {"many refs": _hash(repr(sorted(refs.items())).encode()), **stash}
    return marks | refs


def _refs(common: str) -> dict[str, str]:
    listed = git(["for-each-ref", "--format=%(refname) %(objectname)"], at=_bare(common))
    pairs = [line.rsplit(" ", 1) for line in listed.splitlines()]
    return {name: sha for name, sha in pairs if not name.startswith(OWN)}


def _hooks(common: str) -> dict[str, str]:
    """Hooks that git would run: a job that plants one drives the user's next commit."""
    folder = os.path.join(common, "hooks")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {f"hook:{name}": _hash(_bytes(os.path.join(folder, name))) for name in names if not name.endswith(".sample")}


def changes(before: dict[str, str], after: dict[str, str], own_branch: str) -> list[str]:
    """Sentences, in the order of the names; the job's own branch is its own."""
    own = f"refs/heads/{own_branch.removeprefix('refs/heads/')}"
    names = sorted(name for name in before.keys() | after.keys() if name != own)
    return [_said(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _said(name: str, old: str | None, new: str | None) -> str:
    if name == "refs/stash":
        return "stash changed"
    if name == "many refs":
        return "some branch, tag or remote ref changed"
    if name == "HEAD":
        return f"the main tree's HEAD moved from {_short(old)} to {_short(new)}"
    if name.startswith("config:"):
        return f"config changed: {name.removeprefix('config:')}"
    what = f"hook {name.removeprefix('hook:')}" if name.startswith("hook:") else _noun(name)
    if old is None:
        return f"{what} appeared"
    if new is None:
        return f"{what} was removed" if name.startswith("hook:") else f"{what} was deleted (it was {_short(old)})"
    return f"{what} changed" if name.startswith("hook:") else f"{what} moved from {_short(old)} to {_short(new)}"


def _noun(ref: str) -> str:
    for prefix, noun in (
        ("refs/heads/", "branch"),
        ("refs/tags/", "tag"),
        ("refs/remotes/", "remote branch"),
    ):
        if ref.startswith(prefix):
            return f"{noun} {ref.removeprefix(prefix)}"
    return f"ref {ref}"


def _short(value: str | None) -> str:
    value = (value or "nothing").removeprefix("ref: refs/heads/")
    return value[:12] if re.fullmatch("[0-9a-f]{40,}", value) else value


def command_keys(common: str, admin: str | None = None) -> dict[str, str]:
    """Key -> hash of its values, for keys which name a command git runs or change how it finds one.

    With ``admin``: those of the worktree's own config, which a job can write, and which ``git worktree add`` fills from
    the main tree's. It is compared by itself, with what it was when the worktree was made.
    """
    return {key: value for key, value in _config(common, admin).items() if COMMANDS.fullmatch(key)}


def commands_in(marks: dict[str, str]) -> dict[str, str]:
    """The same, of the repository's own config, out of a fingerprint."""
    keys = {name.removeprefix("config:"): value for name, value in marks.items() if name.startswith("config:")}
    return {key: value for key, value in keys.items() if COMMANDS.fullmatch(key)}


def dangerous_config(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The keys of ``command_keys`` that came or changed. One that went away runs nothing."""
    return sorted(key for key, value in after.items() if before.get(key) != value)


def config_values(common: str, key: str, admin: str | None = None) -> list[str]:
    """What the key holds now, for the sentence that names it. Treat it as hostile text."""
    values = []
    for file in filter(os.path.isfile, config_files(common, admin)):
        query = ["config", "--file", file, "--includes", "-z", "--get-all", key]
        with contextlib.suppress(GitFailed):
            values += zsplit(git(query, at=_bare(common)))
    return values


def _config(common: str, admin: str | None) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for file in filter(os.path.lexists, config_files(common, admin)):
        try:
            listed = git(["config", "--file", file, "--includes", "-z", "--list"], at=_bare(common))
        except GitFailed:
            values.setdefault("core.unreadable", []).append(_hash(_bytes(file)))
            continue
        for key, _, value in (item.partition("\n") for item in zsplit(listed)):
            values.setdefault(key, []).append(value)
    return {key: _hash(repr(held).encode("utf-8", "surrogateescape")) for key, held in values.items()}


def config_files(common: str, admin: str | None = None) -> list[str]:
    """Where the repository's configuration stands; with ``admin``, one worktree's own."""
    if admin is not None:
        return [os.path.join(admin_dir(_bare(common), admin), "config.worktree")]
    return [os.path.join(common, "config"), os.path.join(common, "config.worktree")]


def _bare(common: str) -> Repo:
    return Repo(common=common, top=None, git_dir=common)


def _bytes(path: str) -> bytes:
    """The first MiB of a file; of anything else its kind."""
    try:
        with files.open_file(path) as file:
            return file.read(1 << 20)
    except OSError as failure:
        return f"{files.kind(path, follow=True)} {failure.errno}".encode()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
