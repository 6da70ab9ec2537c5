"""Two jobs that change the same files: would their changes merge, as they stand now?

What ``git merge`` would say of their work, committed as it is, without a branch or a tree being touched.
"""

import os
from dataclasses import dataclass

from agentd.git import merge, predict
from agentd.git.plan import Plan
from agentd.git.repository import ref_value
from agentd.git.run import Repo
from agentd.git.snapshot import Words, job_commit


@dataclass(frozen=True)
class Work:
    """What one job has changed so far."""

    repo: Repo
    base: str
    commit: str
    changed: frozenset[str]
    is_replayed: bool
    """It began with the user's uncommitted changes, which are none of its own."""


def work(plan: Plan, admin: str, words: Words) -> Work:
    if os.path.isdir(plan.path):
        commit = job_commit(plan, admin, words)
    else:
        commit = ref_value(plan.repo, f"refs/agentd/work/{plan.job}") or plan.base
    changed = frozenset(merge.changed(plan, commit))
    return Work(plan.repo, plan.base, commit, changed, merge.began_with_changes(plan))


def conflicts(one: Work, other: Work) -> list[str]:
    """The files in which the two conflict."""
    if other.is_replayed and not one.is_replayed:
        one, other = other, one
    ours, theirs = other.commit, one.commit
    if one.is_replayed:
        ours, theirs = predict.as_siblings(one.repo, one.base, ours, theirs)
    return predict.merged_tree(one.repo, ours, ours, theirs)[1]
