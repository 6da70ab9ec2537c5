"""Sixteen delegates at once on one repository, again and again: does one fail, is anything left?"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .figures import median, percentile, ratio_text
from .lab import Lab, State, file_system, make_repository, output
from .report import Goal, Result, Table

AT_ONCE = 16
AGENTD, GIT = f"{AT_ONCE} × agentd delegate", f"{AT_ONCE} × git worktree add -b"


class Tally:
    def __init__(self) -> None:
        self.failures: list[str] = []
        self.left: list[str] = []
        self.kept: set[str] = set()
        """Branches that stay on purpose: their jobs lie in the trash, with something in them."""
        self.times: list[float] = []

    def raw(self) -> dict[str, Any]:
        return {"failures": self.failures, "left": self.left, "times": self.times}


def measure(lab: Lab) -> Result:
    rounds = lab.pick(2, 50)
    ours, plain = Tally(), Tally()
    answered: list[float] = []
    repo = make_repository(lab.place("worktrees") / "repo", 200)
    plain_repo = make_repository(lab.place("worktrees-git") / "repo", 200)
    with lab.state("worktrees") as state:
        clients = [state.new_client() for _ in range(AT_ONCE)]
        for number in range(rounds):
            answered.append(delegate_round(state, clients, repo, number, ours))
            git_round(plain_repo, number, plain)
        for client in clients:
            client.close()
    return Result(
        title=f"worktrees: {AT_ONCE} delegates at once on one repository",
        how=f"{AT_ONCE} connections, released by a barrier, each delegate a job in the same repository (200 files, on"
        f" {file_system(repo)}); half of the jobs change nothing, half leave a new file. A round ends"
        " when all jobs have"
        " ended, those with a file are removed (to the trash), and the looks are taken: `git worktree"
        " list`, branches, lock"
        f" files, folders of worktrees. {rounds} rounds; after each, the same number of plain `git worktree add -b` at"
        " once in a second repository, for comparison.",
        tables=[
            Table(
                "",
                ("", "asked for", "failed", "left over (branches, worktrees, locks)", "round: median s", "max s"),
                [
                    row(AGENTD, rounds, ours),
                    row(GIT, rounds, plain),
                ],
            )
        ],
        goals=[
            Goal(
                f"failures of {rounds} × {AT_ONCE} delegates at once", "0", str(len(ours.failures)), not ours.failures
            ),
            Goal("orphan branches, worktrees, lock files", "0", str(len(ours.left)), not ours.left),
        ],
        notes=[
            f"All {AT_ONCE} ids were answered after {median(answered) * 1e3:.0f} ms (median; p90"
            f" {percentile(answered, 0.9) * 1e3:.0f} ms), {ratio_text(answered, ours.times)} of the round.",
            *(f"agentd: {text}" for text in [*ours.failures, *ours.left][:10]),
            *(f"git: {text}" for text in plain.failures[:3]),
        ],
        raw={"agentd": ours.raw(), "git": plain.raw(), "answered": answered, "rounds": rounds},
    )


def row(name: str, rounds: int, tally: Tally) -> tuple[str, ...]:
    times = (f"{median(tally.times):.3f}", f"{max(tally.times):.3f}")
    return (name, str(rounds * AT_ONCE), str(len(tally.failures)), str(len(tally.left)), *times)


def delegate_round(state: State, clients: list[Any], repo: Path, number: int, tally: Tally) -> float:
    """Seconds until the last of them was answered."""
    ids: dict[int, int] = {}

    def delegate(n: int) -> None:
        command = "true" if n % 2 else 'echo "$AGENTD_JOB" > made-by-job'
        ids[n] = clients[n].delegate(["/bin/sh", "-c", command], cwd=str(repo), name=f"r{number}-{n}")["id"]

    began = time.perf_counter()
    tally.failures += at_once(delegate)
    answered = time.perf_counter() - began
    for job in state.finish(list(ids.values())):
        if job["outcome"] != "succeeded":
            tally.failures.append(f"job {job['id']}: {job['outcome']} {job['reason']}")
    for id in ids.values():
        state.client.remove(id)
    tally.times.append(time.perf_counter() - began)
    tally.kept |= {f"refs/heads/agentd/{id}/r{number}-{n}" for n, id in ids.items() if n % 2 == 0}
    tally.left += left_over(repo, tally.kept)
    tally.left += [str(path) for path in (Path(state.path) / "worktrees").glob("*/*")]
    return answered


def git_round(repo: Path, number: int, tally: Tally) -> None:
    def add(n: int) -> None:
        output("git", "worktree", "add", "-q", "-b", f"plain/{n}", str(repo.parent / f"tree-{n}"), cwd=repo)

    def remove(n: int) -> None:
        """As one would: what is missing because it failed is no second failure."""
        subprocess.run(
            ["git", "worktree", "remove", "--force", str(repo.parent / f"tree-{n}")], cwd=repo, capture_output=True
        )
        subprocess.run(["git", "branch", "-q", "-D", f"plain/{n}"], cwd=repo, capture_output=True)

    began = time.perf_counter()
    tally.failures += at_once(add)
    for n in range(AT_ONCE):
        remove(n)
    tally.times.append(time.perf_counter() - began)
    tally.left += left_over(repo)


def at_once(deed: Callable[[int], None]) -> list[str]:
    """``deed(0..15)``, each on a thread, released together: what failed."""
    barrier = threading.Barrier(AT_ONCE)
    failures: list[str] = []

    def run(n: int) -> None:
        barrier.wait()
        try:
            deed(n)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(n,)) for n in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def left_over(repo: Path, kept: Iterable[str] = ()) -> list[str]:
    """Worktrees, branches and locks that should not be there, and kept branches that are not."""
    trees = [entry.split("\n")[0] for entry in output("git", "worktree", "list", "--porcelain", cwd=repo).split("\n\n")]
    branches = set(output("git", "for-each-ref", "--format=%(refname)", "refs/heads", cwd=repo).split())
    wrong = branches ^ {"refs/heads/main", *kept}
    git_files = (os.path.join(top, name) for top, _, names in os.walk(repo / ".git") for name in names)
    locks = [path for path in git_files if path.endswith(".lock")]
    return [*trees[1:], *sorted(wrong), *locks]
