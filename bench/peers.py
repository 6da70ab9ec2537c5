"""kill -9 of the manager: what becomes of the job, its log, its exit status; is there a second copy afterwards?

Every peer really runs the same job: forty numbered lines in two seconds, then code 7. In the middle its manager is
killed with -9, and started again as its users would. The job keeps a diary of its own that no manager touches, so
that what happened does not depend on what the manager believes.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from agentd import jobdir, paths

from .lab import Lab, State, wait_gone
from .report import Goal, Result, Table

LINES = 40
CODE = 7
JOB = f"""\
echo start $$ >> "$DIARY"
n=0
while [ $n -lt {LINES} ]; do n=$((n+1)); echo "line $n"; sleep 0.05; done
echo end $$ >> "$DIARY"
exit {CODE}
"""
WANTED = "".join(f"line {n}\n" for n in range(1, LINES + 1))
KILL_AFTER_LINES = 12
ALL_THREE = "all three at once"
VICTIMS = ("daemon", "keeper", "zygote", ALL_THREE)


class Seen(NamedTuple):
    """What was found out afterwards. ``log``: its text; ``status``: what the manager says the exit status was."""

    log: str
    status: str


class Row(NamedTuple):
    survives: str
    log: str
    status: str
    second_copy: str


PERFECT = Row("yes", "yes", "exact", "no")


class Stage:
    """One run: the job, its diary, and the moments at which something is done to its manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.diary = folder / "diary"
        self.diary.touch()
        (folder / "job.sh").write_text(JOB)
        self.argv = ["/bin/sh", str(folder / "job.sh")]
        self.environment = {**os.environ, "DIARY": str(self.diary), "TMPDIR": str(folder)}

    def entries(self, word: str) -> list[str]:
        return [line.split()[1] for line in self.diary.read_text().splitlines() if line.startswith(word)]

    def until_in_the_middle(self) -> None:
        """The job has written a dozen of its lines by its own time, wherever they went."""
        wait_for(lambda: self.entries("start"), "the job does not start")
        time.sleep(KILL_AFTER_LINES * 0.05)

    def until_over(self) -> None:
        """Every copy that was started has ended or died; a copy that a restart makes has had time to appear."""
        time.sleep(0.5)
        wait_for(lambda: not any(is_alive(int(pid)) for pid in self.entries("start")), "the job does not end")
        time.sleep(0.5)

    def row(self, seen: Seen) -> Row:
        starts, ends = self.entries("start"), self.entries("end")
        survives = "yes" if starts[0] in ends else "no: it dies"
        has_all = seen.log == WANTED
        log = "yes" if has_all else f"no: {seen.log.count(chr(10))} of {LINES} lines" if seen.log else "none kept"
        status = "exact" if seen.status == str(CODE) else f"**wrong: {seen.status}**" if seen.status else "lost"
        if len(starts) > 1 and seen.status:
            status = "lost (it tells of the second copy)"
        return Row(survives, log, status, "**yes**" if len(starts) > 1 else "no")


Play = Callable[[Stage], Seen]


def measure(lab: Lab) -> Result:
    rounds = lab.pick(1, 3)
    found: dict[str, list[Row]] = {}
    skipped = []
    with contextlib.ExitStack() as stack:
        plays = plays_of({victim: stack.enter_context(lab.state(f"peer-{victim}")) for victim in VICTIMS})
        for name, (program, _) in list(plays.items()):
            if program and not shutil.which(program):
                skipped.append(f"{name}: {program} is not installed; **skipped**")
                del plays[name]
        for _ in range(rounds):
            with ThreadPoolExecutor(len(plays)) as pool:
                runs = {name: pool.submit(play_once, lab, play) for name, (_, play) in plays.items()}
            for name, run in runs.items():
                found.setdefault(name, []).append(run.result())
    ours = [row for name, rows in found.items() if name.startswith("agentd") for row in rows]
    bad = [row for row in ours if row != PERFECT]
    return Result(
        title="peers: kill -9 of the manager",
        how=f"The same job for all: {LINES} numbered lines in about 2 s, then exit code {CODE}; it also notes"
        " its start and"
        f" its end in a file that no manager knows. After {KILL_AFTER_LINES * 50} ms its manager gets"
        " kill -9 and is started"
        f" again as its users would. All side by side, {rounds} times; a cell gives what happened, and"
        " how often if it was"
        " not the same each time. supervisord: default settings but for autorestart=false; tmux: with"
        " remain-on-exit and"
        " pipe-pane into a file, the most that it can keep.",
        tables=[
            Table(
                "",
                (
                    "manager (killed)",
                    "job survives",
                    "log complete",
                    "exit status afterwards",
                    "second copy on restart",
                ),
                [(name, *summed(rows)) for name, rows in found.items()],
            )
        ],
        goals=[
            Goal(
                f"agentd, kill -9 of daemon, keeper, zygote, all three ({len(ours)} runs)",
                "yes, yes, exact, no",
                "the same in all" if not bad else "; ".join(", ".join(row) for row in bad[:3]),
                not bad,
            )
        ],
        notes=skipped,
        raw={name: [row._asdict() for row in rows] for name, rows in found.items()},
    )


def plays_of(states: dict[str, State]) -> dict[str, tuple[str | None, Play]]:
    """Manager -> the program it needs, and the play. Each of ours has a daemon of its own: one kill, one victim."""
    return {
        **{f"agentd ({victim})": (None, partial(agentd, state, victim)) for victim, state in states.items()},
        "supervisord": ("supervisord", supervisord),
        "task-spooler (server)": ("tsp", task_spooler),
        "nq (parent)": ("nq", nq),
        "tmux (server)": ("tmux", tmux),
    }


def play_once(lab: Lab, play: Play) -> Row:
    stage = Stage(lab.place("peer"))
    return stage.row(play(stage))


def summed(rows: list[Row]) -> list[str]:
    cells = []
    for column in zip(*rows, strict=True):
        counted = Counter(column).most_common()
        alike = len(counted) == 1
        cells.append(counted[0][0] if alike else ", ".join(f"{text} ({n} of {len(rows)})" for text, n in counted))
    return cells


# --- the managers -------------------------------------------------------------------------------------------


def agentd(state: State, victim: str, stage: Stage) -> Seen:
    with state.new_client() as client:
        job = client.delegate(stage.argv, cwd="/", environment=stage.environment, in_place=True)
        stage.until_in_the_middle()
        status = client.ask("daemon.status")
        keeper = parent_of(int(client.job(job["id"])["job"]["pid"]))
        pids = {"daemon": status["pid"], "zygote": status["zygote"], "keeper": keeper}
        for pid in pids.values() if victim == ALL_THREE else [pids[victim]]:
            os.kill(pid, signal.SIGKILL)
        client.ask("daemon.status")  # any verb starts a daemon where there is none
        stage.until_over()
        done = client.wait([job["id"]], timeout=30)["jobs"][0]
    path = paths.attempt_dir(state.path, job["id"], 1)
    log = b"".join(data for _, data in jobdir.read_range(path, "out", 0, 1 << 30)).decode()
    return Seen(log, "" if done["exit_code"] is None else str(done["exit_code"]))


def supervisord(stage: Stage) -> Seen:
    folder = stage.folder
    (folder / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\n"
        f"directory={folder}\n"
        f"[unix_http_server]\nfile={folder}/supervisor.sock\n"
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
        f"[supervisorctl]\nserverurl=unix://{folder}/supervisor.sock\n"
        f"[program:job]\ncommand={' '.join(stage.argv)}\nautorestart=false\nstartsecs=0\n"
        f"stdout_logfile={folder}/job.log\nstderr_logfile={folder}/job.err\n"
    )
    begin = ["supervisord", "-n", "-c", str(folder / "supervisord.conf")]
    with background(begin, stage) as manager:
        stage.until_in_the_middle()
        log = (folder / "job.log").read_text()
        manager.kill()
        manager.wait()
        with background(begin, stage):
            stage.until_over()
            all_of_it = (folder / "job.log").read_text()
            asked = tell(["supervisorctl", "-c", str(folder / "supervisord.conf"), "status", "job"], stage)
    status = str(CODE) if "EXITED" in asked else ""
    # The second copy writes to the same file: what the first one added ends where the second one begins.
    first = log + all_of_it[len(log) :].partition("line 1\n")[0]
    return Seen(first, status)


def task_spooler(stage: Stage) -> Seen:
    socket = str(stage.folder / "tsp.sock")
    stage.environment |= {"TS_SOCKET": socket}
    id = tell(["tsp", *stage.argv], stage)
    stage.until_in_the_middle()
    log = Path(tell(["tsp", "-o", id], stage))
    kill_server_of(socket)
    os.remove(socket)
    tell(["tsp"], stage)
    stage.until_over()
    listed = [line.split() for line in tell(["tsp"], stage).splitlines()[1:]]
    tell(["tsp", "-K"], stage)
    return Seen(log.read_text(), next((words[3] for words in listed if words[0] == id), ""))


def nq(stage: Stage) -> Seen:
    stage.environment |= {"NQDIR": str(stage.folder)}
    id = tell(["nq", *stage.argv], stage)
    stage.until_in_the_middle()
    os.kill(parent_of(int(stage.entries("start")[0])), signal.SIGKILL)
    stage.until_over()
    tell(["nq", "-t", id], stage)
    text = (stage.folder / id).read_text()
    lines = [line for line in text.splitlines() if line.startswith("line ")]
    return Seen("".join(f"{line}\n" for line in lines), str(CODE) if f"exited with status {CODE}" in text else "")


def tmux(stage: Stage) -> Seen:
    # A socket's path must be short, and a stage's is not.
    command = ["tmux", "-L", f"bench-{os.path.basename(stage.folder)}", "-f", "/dev/null"]
    stage.environment |= {"TMUX_TMPDIR": str(stage.folder)}
    log = stage.folder / "log"
    shell = " ".join(stage.argv)
    tell([*command, "new-session", "-d", "-s", "job", "sleep 0.3; exec " + shell, ";", "set", "remain-on-exit", "on",
          ";", "pipe-pane", f"exec cat > {log}"], stage)  # fmt: skip
    stage.until_in_the_middle()
    os.kill(int(tell([*command, "display", "-p", "#{pid}"], stage)), signal.SIGKILL)
    stage.until_over()
    status = tell([*command, "start-server", ";", "display", "-p", "-t", "job", "#{pane_dead_status}"], stage)
    tell([*command, "kill-server"], stage)
    text = log.read_text().replace("\r\n", "\n") if log.exists() else ""
    return Seen(text, status if status.isdigit() else "")


# --- small things -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def background(argv: list[str], stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    nowhere = subprocess.DEVNULL
    child = subprocess.Popen(argv, env=stage.environment, cwd="/", stdin=nowhere, stdout=nowhere, stderr=nowhere)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


def tell(argv: list[str], stage: Stage) -> str:
    done = subprocess.run(
        argv, env=stage.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip()


def kill_server_of(socket: str) -> None:
    """Who holds the listening end of ``socket``."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(link.laddr == socket for link in process.net_connections("unix")):
                process.kill()
                return wait_gone([process.pid])
    raise RuntimeError(f"nobody serves {socket}")


def parent_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(is_so: Callable[[], Any], otherwise: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.01)
