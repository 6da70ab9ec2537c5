"""What every test gets: a home of its own, and nothing of the developer's."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # output is buffered, as a user has it
    home = tmp_path / "home"
    state = home / ".local" / "state"
    state.mkdir(parents=True)
    (home / ".gitconfig").write_text(GITCONFIG)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("AGENTD_STATE_DIR", str(state / "agentd"))
    return home
