"""``agentd doctor``: what is weaker or wrong on this system, why, and what to do. It works with the daemon down.

Each check is a function that answers with findings; the tuple at the end lists them all.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import typer

from agentd import follow, paths, process
from agentd.cli import options, render
from agentd.cli.daemon import ask_status
from agentd.client import Client
from agentd.core.errors import EXIT_NO, Usage

OK, WEAKER, WRONG = "ok", "weaker", "wrong"
LOW_BYTES, LOW_INODES = 1 << 30, 10_000
OLD_GIT = (2, 30)
TRUSTED = ("ext4", "tmpfs")


class Finding(NamedTuple):
    check: str
    level: str
    what: str
    remedy: str = ""


def doctor(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a new store from the jobs' files.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> int:
    """Say what is weaker or wrong on this system, why, and what to do; 1 if something is wrong.

    --rebuild: stop the daemon (jobs go on), put its store aside, and have a new one made from the files.
    """
    if rebuild:
        from agentd.cli.rebuild import rebuild_store

        return rebuild_store(json, quiet)
    findings = examine(Client(start=False).state_dir)
    is_wrong = any(finding.level == WRONG for finding in findings)
    if json:
        options.print_json({"ok": not is_wrong, "checks": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            if quiet and finding.level == OK:
                continue
            print(f"{finding.level:<7} {finding.check}: {render.one_line(finding.what)}")
            if finding.remedy:
                print(f"        {render.one_line(finding.remedy)}")
    return EXIT_NO if is_wrong else 0


def examine(state_dir: str) -> list[Finding]:
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check(state_dir)
        except Exception as error:
            # A check that fails must not hide the others.
            name = check.__name__.replace("_", " ")
            findings.append(Finding(name, WEAKER, f"cannot be told: {type(error).__name__}: {error}"))
    return findings


# --- what the kernel gives ----------------------------------------------------------------------------------


def control_groups(_: str) -> Iterator[Finding]:
    home = process.cgroup_home()
    if home is None:
        why = "switched off by AGENTD_WITHOUT" if process.without("cgroup") else "no writable version 2 group here"
        yield Finding(
            "cgroup v2",
            WEAKER,
            f"{why}: a job's tree is found through parents, session and environment, which a process can leave",
            "start the daemon as a systemd user unit with Delegate=yes, or make the control group writable",
        )
        unset = ["memory", "processes"]
    else:
        yield Finding("cgroup v2", OK, "a job's tree is held and ended by a control group")
        unset = process.cgroup_make(f"{home}/agentd-doctor-{os.getpid()}", 1 << 40, 1 << 20)
        process.cgroup_remove(f"{home}/agentd-doctor-{os.getpid()}")
    yield from ceilings(unset)


def ceilings(by_rlimit: list[str]) -> Iterator[Finding]:
    remedy = "delegate the memory and pids controllers to the daemon's control group (cgroup.subtree_control)"
    if "memory" in by_rlimit:
        yield Finding("--memory", WEAKER, "by rlimit only: it binds each process, not the whole job", remedy)
    if "processes" in by_rlimit and os.getuid() == 0:
        what = "by rlimit only, and RLIMIT_NPROC does not bind root: it has no effect"
        yield Finding("--processes", WEAKER, what, f"run as an ordinary user, or {remedy}")
    elif "processes" in by_rlimit:
        yield Finding("--processes", WEAKER, "by rlimit only: it counts all processes of the user", remedy)
    if not by_rlimit:
        yield Finding("--memory, --processes", OK, "held by the control group, for the whole job")


def exit_status(_: str) -> Iterator[Finding]:
    """Fork, hold by a pidfd, reap, and ask the pidfd."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    pidfd = os.pidfd_open(pid)
    try:
        os.waitpid(pid, 0)
        status = process.status_of_reaped(pidfd)
    finally:
        os.close(pidfd)
    if status is not None and os.waitstatus_to_exitcode(status) == 7:
        yield Finding("exit status by pidfd", OK, "known even if keeper and zygote die together")
        return
    why = (
        "switched off by AGENTD_WITHOUT" if process.without("pidfd-exit") else "the kernel cannot tell (Linux 6.15 can)"
    )
    yield Finding(
        "exit status by pidfd",
        WEAKER,
        f"{why}: if keeper and zygote of a job are killed together, its outcome is lost",
        "a kernel of 6.15 or newer",
    )


def pidfs(_: str) -> Iterator[Finding]:
    who = process.identity(os.getpid())
    if who is not None and who["inode"]:
        yield Finding("pidfs", OK, "every process has an identity of its own")
    else:
        yield Finding(
            "pidfs", WEAKER, "no pidfs: a process is known by pid and start time only", "a kernel of 6.9 or newer"
        )


def splice(state_dir: str) -> Iterator[Finding]:
    if process.without("splice"):
        why = "switched off by AGENTD_WITHOUT"
    else:
        why = splice_fault(state_dir)
    if not why:
        yield Finding("splice", OK, "output goes to the log without passing through a process")
        return
    yield Finding(
        "splice", WEAKER, f"{why}: output is copied, and a kill -9 of a keeper can repeat or lose a piece of it",
        "keep the state folder on ext4 or tmpfs (AGENTD_STATE_DIR)",
    )  # fmt: skip


def splice_fault(state_dir: str) -> str:
    source, sink = os.pipe()
    place = existing(state_dir)
    try:
        file = os.open(place, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        os.close(source)
        os.close(sink)
        return f"cannot be tried in {place} ({error.strerror})"
    try:
        os.write(sink, b"x")
        os.splice(source, file, 1)
    except OSError as error:
        return f"not possible in {place} ({error.strerror})"
    finally:
        for fd in (source, sink, file):
            os.close(fd)
    return ""


def terminals(_: str) -> Iterator[Finding]:
    try:
        master, slave = os.openpty()
    except OSError as error:
        what = f"no terminal can be made ({error.strerror}): jobs with -t do not start"
        yield Finding("terminals", WEAKER, what, "mount devpts at /dev/pts; see kernel.pty.max")
        return
    try:
        is_taken = can_take_back(master)
    finally:
        os.close(master)
        os.close(slave)
    if is_taken:
        yield Finding("terminals", OK, "they outlive keeper, zygote and daemon, even if these are killed together")
        return
    why = "switched off by AGENTD_WITHOUT" if process.without("pidfd-getfd") else "the kernel forbids pidfd_getfd"
    what = "if keeper, zygote and daemon are killed together, a job with -t gets SIGHUP, and its log may lack its end"
    yield Finding("terminals", WEAKER, f"{why}: {what}", "Linux 5.6 or newer, with kernel.yama.ptrace_scope=0")


def can_take_back(fd: int) -> bool:
    """One child out of another, which is not its own: as a new keeper would of an agent."""
    awaited, end = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(end)
        os.read(awaited, 1)
        os._exit(0)
    taker = os.fork()
    if taker == 0:
        code = 1
        with contextlib.suppress(OSError):
            code = int(process.take_descriptor(holder, fd) is None)
        os._exit(code)
    _, status = os.waitpid(taker, 0)
    os.close(end)
    os.close(awaited)
    os.waitpid(holder, 0)
    return status == 0


# --- where things are kept ----------------------------------------------------------------------------------


def existing(path: str) -> str:
    """``path``, or the nearest folder above it that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def file_system(state_dir: str) -> Iterator[Finding]:
    real = os.path.realpath(existing(state_dir))
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    over = [m for m in mounts if m[4] == "/" or real == m[4] or real.startswith(m[4] + "/")]
    mount = max(over, key=lambda m: len(m[4]))
    kind = mount[mount.index("-") + 1]
    if kind in TRUSTED:
        yield Finding("file system", OK, f"{state_dir} is on {kind}, where all was tried")
    else:
        yield Finding("file system", WEAKER, f"{state_dir} is on {kind}, where little was tried",
                      "set AGENTD_STATE_DIR to a folder on ext4")  # fmt: skip


def disk(state_dir: str) -> Iterator[Finding]:
    room = os.statvfs(existing(state_dir))
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    has_inodes = room.f_files == 0 or inodes >= LOW_INODES  # btrfs and others count none
    what = f"{free >> 20} MiB" + (f" and {inodes} inodes" if room.f_files else "") + f" free for {state_dir}"
    if free >= LOW_BYTES and has_inodes:
        yield Finding("disk", OK, what)
    else:
        remedy = "free some space: agentd rm, older things in the trash, or a smaller --log-max"
        yield Finding("disk", WEAKER, f"only {what}", remedy)


def git_version(_: str) -> Iterator[Finding]:
    import re
    import subprocess

    program = shutil.which("git")
    if program is None:
        yield Finding("git", WRONG, "there is no git in PATH: delegate has no worktrees", "install git; run needs none")
        return
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, errors="replace").stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) >= OLD_GIT:
        yield Finding("git", OK, f"{said.strip()} ({program})")
    else:
        yield Finding("git", WEAKER, f"{said.strip()} is older than what was tried", "git 2.30 or newer")


def settings(_: str) -> Iterator[Finding]:
    from agentd import config

    path = paths.config_file()
    try:
        config.load(path)
    except Usage as error:
        yield Finding("settings", WRONG, error.message, "mend it: until then no daemon starts")
        return
    is_there = bool(path) and os.path.exists(path)
    yield Finding("settings", OK, f"{path} is in order" if is_there else "there is no settings file; none is needed")


# --- the daemon, and what was left --------------------------------------------------------------------------


def daemon(_: str) -> Iterator[Finding]:
    status = ask_status()
    if status is None:
        yield Finding("daemon", OK, "not running; the next verb starts it")
    elif status["trouble"]:
        yield Finding(
            "daemon", WRONG, f"changes cannot be saved: {status['trouble']}", "free disk space, look at dmesg"
        )
    else:
        yield Finding("daemon", OK, f"running, pid {status['pid']}, version {status['version']}")


def short_verbs(state_dir: str) -> Iterator[Finding]:
    lock = f"{state_dir}/{paths.RESIDENT_LOCK}"
    if process.without("resident"):
        what = "switched off by AGENTD_WITHOUT: each takes a tenth of a second longer"
        yield Finding("short verbs", WEAKER, what, "unset AGENTD_WITHOUT")
    elif process.byte_held(lock, 0):
        with open(lock) as file:
            pid = file.read(20).strip() or "?"
        yield Finding("short verbs", OK, f"answered by a process with all imports done (pid {pid})")
    else:
        yield Finding("short verbs", OK, "not answered by a resident process yet; the next verb starts one")


def unkept_attempts(state_dir: str) -> Iterator[Finding]:
    found = 0
    for id, home in homes(state_dir):
        for number in follow.attempts(home):
            path = f"{home}/{number}"
            if follow.record(path, "agent.json") is None or follow.has_ended(path):
                continue
            if not process.byte_held(f"{path}/life.lock", 0):
                found += 1
                alive = "its processes live" if process.byte_held(f"{path}/life.lock", 1) else "its processes are gone"
                yield Finding(
                    "left-overs", WRONG, f"job {id}, attempt {number}: nobody keeps it, {alive}", "agentd daemon start"
                )
    if not found:
        yield Finding("left-overs", OK, "no attempt without its keeper")


def stale_locks(state_dir: str) -> Iterator[Finding]:
    """``*.lock`` in the admin folder of an ended job's worktree: git was killed while it wrote."""
    found = 0
    for id, home in homes(state_dir):
        numbers = follow.attempts(home)
        admin = (follow.record(home, "worktree.json") or {}).get("admin")
        if not numbers or not admin or not follow.has_ended(f"{home}/{numbers[-1]}"):
            continue
        folder = os.path.join(common_dir(follow.record(f"{home}/{numbers[-1]}", "spec.json") or {}), "worktrees", admin)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if name.endswith(".lock"):
                found += 1
                yield Finding("git locks", WRONG, f"job {id} has ended, and {folder}/{name} is still there",
                              f"if no git runs there: rm '{folder}/{name}'")  # fmt: skip
    if not found:
        yield Finding("git locks", OK, "no lock left in a worktree of ours")


def common_dir(spec: dict[str, Any]) -> str:
    place = (spec.get("job_doc") or {}).get("place") or {}
    return str(((place.get("plan") or {}).get("repo") or {}).get("common", ""))


def homes(state_dir: str) -> Iterator[tuple[int, str]]:
    folder = f"{state_dir}/jobs"
    names = os.listdir(folder) if os.path.isdir(folder) else []
    yield from ((id, f"{folder}/{id}") for id in sorted(int(name) for name in names if name.isdigit()))


CHECKS: tuple[Callable[[str], Iterator[Finding]], ...] = (
    control_groups,
    exit_status,
    pidfs,
    splice,
    terminals,
    file_system,
    disk,
    git_version,
    settings,
    daemon,
    short_verbs,
    unkept_attempts,
    stale_locks,
)
