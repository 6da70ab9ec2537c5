"""The demo shows what it says it shows."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_runs_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """As on a fresh machine: nothing but HOME and PATH; the environment is the one this test runs in."""
    place = tmp_path / "tmp"
    place.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "TMPDIR": str(place),
        "CHECK_VENV": sys.prefix,
    }
    if "AGENTD_WITHOUT" in os.environ:
        environment["AGENTD_WITHOUT"] = os.environ["AGENTD_WITHOUT"]
    with tempfile.TemporaryFile("w+") as said:  # not a pipe: a process that is left would hold it open
        ended = subprocess.run([ROOT / "scripts" / "demo"], env=environment, stdout=said, stderr=said, cwd="/")
        said.seek(0)
        text = said.read()
    assert ended.returncode == 0, text
    assert "WRONG" not in text and "\x1b" not in text
    assert "environment:" not in text  # none was made: the one that was given is good
    assert not list(place.iterdir())
