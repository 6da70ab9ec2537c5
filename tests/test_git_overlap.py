"""What two jobs changed, merged beside all trees."""

from pathlib import Path

import gitrepo

from agentd.git import overlap, snapshot
from agentd.git.repository import settle


def work(plan: gitrepo.Plan, **files: str) -> overlap.Work:
    """Of a new job that writes these files of ``src``."""
    admin = gitrepo.make(plan)
    for name, text in files.items():
        gitrepo.write(Path(plan.path) / "src" / f"{name}.txt", text)
    return overlap.work(plan, admin, gitrepo.WORDS)


def test_two_works_meet_in_what_both_changed(tmp_path: Path) -> None:
    top = gitrepo.make_repo(tmp_path / "repo")
    one = work(gitrepo.plan_for(top, tmp_path, 1, "one"), f0="one\n", f1="line 1\n", new="the same\n")
    other = work(gitrepo.plan_for(top, tmp_path, 2, "other"), f0="other\n", f2="line 2\n", new="the same\n")
    assert one.changed & other.changed == {"src/f0.txt", "src/new.txt"}
    assert overlap.conflicts(one, other) == overlap.conflicts(other, one) == ["src/f0.txt"]
    assert gitrepo.run(top, "status", "--porcelain") == "" and gitrepo.run(top, "branch", "--list", "main") == "* main"


def test_what_a_job_began_with_is_none_of_its_own(tmp_path: Path) -> None:
    """The user's uncommitted line is in the one job's worktree only, and no conflict with what the other did there."""
    top = gitrepo.make_repo(tmp_path / "repo")
    gitrepo.write(Path(top) / "src/f0.txt", "the user's\n")
    base = snapshot.snapshot_calling_tree(settle(top, None).repo, 1)
    one = work(gitrepo.plan_for(top, tmp_path, 1, "one", base), f1="one\n")
    other = work(gitrepo.plan_for(top, tmp_path, 2, "other"), f0="other\n", f1="other\n")
    assert (one.is_replayed, other.is_replayed) == (True, False)
    assert one.changed == {"src/f1.txt"}
    assert overlap.conflicts(one, other) == overlap.conflicts(other, one) == ["src/f1.txt"]
