"""A job's work, looked at: what it changed so far, and what it committed. Nothing of the job's is written."""

import os

from agentd.core.errors import Refused
from agentd.git.plan import Plan
from agentd.git.repository import ref_value
from agentd.git.run import Repo, git
from agentd.git.snapshot import intact_tree, worktree_content

COMMITS_SHOWN = 100
SUBJECT_SHOWN = 200
FORMS = {"patch": ["-p"], "stat": ["--stat=100"], "names": ["--name-only"]}


def content(plan: Plan, admin: str) -> str:
    """The tree the job has now, untracked files included; of a worktree that is gone, that of its last snapshot."""
    if os.path.isdir(plan.path):
        return worktree_content(intact_tree(plan, admin))
    kept = ref_value(plan.repo, f"refs/agentd/work/{plan.job}^{{tree}}")
    if kept is None:
        raise Refused(f"the worktree {plan.path} is gone, and there is no snapshot of it", "files_gone")
    return kept


def diff(repo: Repo, base: str, work: str, form: str, is_binary: bool) -> str:
    """As git shows it, whatever the user's configuration says of prefixes and colours."""
    how = [*FORMS[form], "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "-M"]
    prefixes = ["--src-prefix=a/", "--dst-prefix=b/"]
    return git(
        ["diff-tree", "-r", *how, *prefixes, *(["--binary", "--full-index"] if is_binary else []), base, work], at=repo
    )


def commits(repo: Repo, base: str, work: str) -> dict[str, object]:
    """Newest first: the first hundred, and how many there are. None is left out for what it says of itself."""
    listed = git(["log", f"--max-count={COMMITS_SHOWN}", "--format=%H%x00%an%x00%s", f"{base}..{work}"], at=repo)
    shown = [
        {"commit": sha, "author": author[:SUBJECT_SHOWN], "subject": subject[:SUBJECT_SHOWN]}
        for sha, author, subject in (line.split("\0") for line in listed.split("\n") if line)
    ]
    return {"count": int(git(["rev-list", "--count", f"{base}..{work}"], at=repo)), "first": shown}
