"""A short loop of random kills of the built-in agent's processes; ``scripts/faults builtin:100`` runs the long one."""

from pathlib import Path

import agentkills
import pytest
from agentlab import scene_of


@pytest.mark.timeout(600)
def test_killed_at_any_moment_the_task_ends_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scene in scene_of(tmp_path, monkeypatch):
        tasks = agentkills.random_kills(scene, count=7, seed=11)
        assert {kinds for task in tasks for kinds in task.killed} >= set(agentkills.COMBINATIONS)
