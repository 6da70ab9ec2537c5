"""scripts/bench still works: one quick measurement, and the three things that it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_quick_report(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--quick", "--only", "start", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*argv, "--work", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["results"]) == ["start"]
    assert report["left_behind"] == []
    assert "## start" in (tmp_path / "out" / "report.md").read_text()
    assert not list(tmp_path.glob("agentd-bench-*"))
