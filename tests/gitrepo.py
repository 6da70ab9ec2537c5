"""Real repositories for the tests of agentd.git."""

import os
import subprocess
from pathlib import Path

from agentd.git import worktree
from agentd.git.repository import settle
from agentd.git.snapshot import Words
from agentd.git.worktree import Plan

WORDS = Words("mend it\n\nAgentd-Job: 7\n", "fix", "job-7@agentd.invalid", 1_700_000_000.0)


def run(cwd: str | Path, *args: str, env: dict[str, str] | None = None) -> str:
    """The user's own git, with nothing of ours switched off."""
    done = subprocess.run(["git", *args], cwd=cwd, env={**os.environ, **(env or {})}, text=True, capture_output=True)
    assert done.returncode == 0, f"git {args}: {done.stderr}"
    return done.stdout.strip()


def write(path: str | Path, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_text(text)


def make_repo(path: Path, files: int = 3) -> str:
    """One commit on main, a .gitignore for .env, *.db and node_modules."""
    path.mkdir(parents=True)
    run(path, "init", "-q", "-b", "main")
    write(path / ".gitignore", ".env\n*.db\nnode_modules\n__pycache__/\n")
    for n in range(files):
        write(path / "src" / f"f{n}.txt", f"line {n}\n")
    run(path, "add", "-A")
    run(path, "commit", "-q", "-m", "first")
    return str(path)


def plan_for(top: str, place: Path, job: int = 7, name: str = "fix-login", base: str | None = None) -> Plan:
    settled = settle(top, base)
    return Plan(
        repo=settled.repo,
        job=job,
        branch=f"agentd/{job}/{name}",
        path=str(place / "worktrees" / "r-1234" / f"{job}-{name}"),
        base=settled.base,
        lock_reason=f"agentd job {job}",
    )


def make(plan: Plan) -> str:
    worktree.preflight(plan)
    admin = worktree.add(plan)
    worktree.checkout(plan, admin)
    return admin


def everything_below(path: str | Path) -> dict[str, tuple[int, bytes]]:
    """Path -> mode and content (or link target) of each file, .git file left out."""
    found: dict[str, tuple[int, bytes]] = {}
    for folder, names, files in os.walk(path):
        for name in [*files, *(n for n in names if os.path.islink(os.path.join(folder, n)))]:
            full = os.path.join(folder, name)
            body = os.readlink(full).encode() if os.path.islink(full) else Path(full).read_bytes()
            found[os.path.relpath(full, path)] = (os.lstat(full).st_mode, body)
    found.pop(".git", None)
    return found


def assert_nothing_left(plan: Plan) -> None:
    """No branch, no directory, no admin entry, no lock; and git can list the worktrees."""
    common = Path(plan.repo.common)
    run(common, "worktree", "list")
    assert run(common, "for-each-ref", f"refs/heads/{plan.branch}") == ""
    assert not os.path.lexists(plan.path)
    admins = os.listdir(common / "worktrees") if (common / "worktrees").is_dir() else []
    assert [name for name in admins if name.startswith(f"{plan.job}-")] == []
    locks = [str(p) for p in common.rglob("*.lock")]
    assert locks == []
