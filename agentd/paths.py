"""Where everything is. Imports nothing of ours; makes nothing but what it is told to."""

import os
import stat

RESIDENT_SOCKET = "resident.sock"
RESIDENT_LOCK = "resident.lock"
"""In the state folder: where short verbs are answered, and the lock that whoever answers holds; it has its pid."""


def state_dir() -> str:
    """AGENTD_STATE_DIR, else $XDG_STATE_HOME/agentd, else ~/.local/state/agentd. Absolute."""
    given = os.environ.get("AGENTD_STATE_DIR")
    if given:
        return os.path.abspath(given)
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(home(), ".local", "state")
    return os.path.join(os.path.abspath(base), "agentd")


def config_file() -> str:
    """Empty if it can be nowhere."""
    given = os.environ.get("AGENTD_CONFIG")
    if given:
        return given
    try:
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home(), ".config")
    except LookupError:
        return ""
    return os.path.join(base, "agentd", "agentd.toml")


def home() -> str:
    """HOME, else what the system knows of the user; LookupError if neither says it."""
    given = os.environ.get("HOME")
    if given:
        return given
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir


def socket_path(state: str) -> str:
    """Where a daemon puts its socket; clients read it from daemon.json instead."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return os.path.join(runtime, f"agentd-{state_mark(state)}", "agentd.sock")
    return os.path.join(state, "agentd.sock")


def state_mark(state: str) -> str:
    """A short name for a state folder, unique on this machine."""
    import hashlib  # 3 ms, and the command line's first step needs state_dir alone

    return hashlib.sha256(os.path.realpath(state).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def attempt_dir(state: str, job: int, attempt: int) -> str:
    return f"{state}/jobs/{job}/{attempt}"


def claimed_mark(state: str) -> str:
    """A file that is there while anybody claims a path or a file: without it nobody who writes need ask."""
    return f"{state}/guard/claimed"


def worktree_dir(state: str, common: str, job: int, name: str) -> str:
    """``common``: the repository's common git directory, real path."""
    import hashlib

    top = os.path.dirname(common) if os.path.basename(common) == ".git" else common
    label = os.path.basename(top).removesuffix(".git")[:40] or "repository"
    mark = hashlib.sha256(common.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{state}/worktrees/{label}-{mark}/{job}-{name}"


def private_folder_fault(path: str) -> str | None:
    """Why ``path`` is no safe place for a socket, as a sentence with its remedy; None if it is one."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return f"{path} is a symlink; remove it"
    if not stat.S_ISDIR(info.st_mode):
        return f"{path} is not a folder; remove it"
    if info.st_uid != os.getuid():
        return f"{path} belongs to user {info.st_uid}, not to you ({os.getuid()}); remove it or choose another place"
    if info.st_mode & 0o077:
        return f"{path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}); run: chmod 700 {path}"
    return None
