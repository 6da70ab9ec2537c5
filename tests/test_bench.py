"""scripts/bench still works: one quick measurement, and the three things that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["start", "agents"])
def test_a_quick_report(tmp_path: Path, name: str) -> None:
    argv = [sys.executable, "-m", "bench", "--quick", "--only", name, "--out", str(tmp_path / "out")]
    argv += ["--clis", str(tmp_path / "none")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*argv, "--work", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["results"]) == [name]
    assert report["left_behind"] == []
    assert f"## {name}" in (tmp_path / "out" / "report.md").read_text()
    assert not list(tmp_path.glob("agentd-bench-*"))
