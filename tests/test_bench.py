"""scripts/bench still works: quick measurements, and the three things that they write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def quick(name: str, work: Path) -> dict[str, Any]:
    argv = [sys.executable, "-m", "bench", "--quick", "--only", name, "--out", str(work / "out"), "--work", str(work)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv += ["--clis", str(work / "none")]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((work / "out" / "report.json").read_text())
    assert list(report["results"]) == [name]
    assert report["left_behind"] == []
    assert f"## {name}" in (work / "out" / "report.md").read_text()
    assert not list(work.glob("agentd-bench-*"))
    return report


def test_a_quick_report(tmp_path: Path) -> None:
    quick("start", tmp_path)


def test_agents_alone(tmp_path: Path) -> None:
    """Without a vendor's program there is nothing to compare with, and each is named."""
    result = quick("agents", tmp_path)["results"]["agents"]
    assert sum("is not installed" in note for note in result["notes"]) == 4
    goals = {goal["what"]: goal["is_met"] for goal in result["goals"]}
    assert goals.pop("prefix the same byte for byte, and marked") is True
    assert set(goals.values()) == {None}
