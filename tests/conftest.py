"""What every test gets: a home of its own, and nothing of the developer's."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from runnerlab import Forks, Lab

settings.register_profile("agentd", deadline=None)  # a busy machine is not a failure
settings.load_profile("agentd")

GITCONFIG = """\
[user]
\tname = Test
\temail = test@example.invalid
[init]
\tdefaultBranch = main
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary HOME with a git identity; no GIT_*, AGENTD_* or XDG_* of the caller reaches the test, but for
    the two that say how to test: AGENTD_LONG (long forms) and AGENTD_WITHOUT (a mechanism switched off)."""
    for name in list(os.environ):
        if name.startswith(("GIT_", "AGENTD_", "XDG_")) and name not in ("AGENTD_LONG", "AGENTD_WITHOUT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")  # without one a terminal is taken for one that can do little
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # output is buffered, as a user has it
    home = tmp_path / "home"
    state = home / ".local" / "state"
    state.mkdir(parents=True)
    (home / ".gitconfig").write_text(GITCONFIG)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("AGENTD_STATE_DIR", str(state / "agentd"))
    return home


@pytest.fixture(scope="session")
def forks() -> Iterator["Forks"]:
    """A warmed process that forks runners of the built-in agent: importing the SDK takes a second."""
    from runnerlab import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def lab(tmp_path: Path, forks: "Forks") -> Iterator["Lab"]:
    from runnerlab import Lab

    lab = Lab(tmp_path, forks)
    yield lab
    lab.close()
