"""Locks as people read them, at the width they have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clishell
import pytest
from clishell import Shell
from gitrepo import make_repo

from agentd.cli import lock_sheet

ME = "session:1:2"


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    yield from clishell.serve(tmp_path, monkeypatch)


def holder(kind: str, owner: str, said: str) -> dict[str, Any]:
    return {"kind": kind, "owner": owner, "said": said, "job": 7 if kind == "job" else None}


def claim(**changes: Any) -> dict[str, Any]:
    mine = holder("session", ME, f'the user "{ME}"')
    basis = {"name": "path:src/**", "mode": "exclusive", "holder": mine, "state": "active", "seconds": 252.0}
    return basis | {
        "automatic": False,
        "queue": [{}],
        "token": 118,
        "enforced": ["merge", "tools"],
        "reason": "login",
        **changes,
    }


def test_a_table_that_fits_is_one() -> None:
    head, line = lock_sheet.table({"claims": [claim()], "waiting": []}, 120, ME)
    assert head.split() == list(lock_sheet.COLUMNS)
    assert line.split() == ["path:src/**", "exclusive", "you", "active", "4m12s", "1", "118", "merge,tools", "login"]


def test_a_table_that_is_too_wide_for_the_terminal_is_none() -> None:
    theirs = holder("job", ME, 'job 7 "a-rather-long-name"')
    wide = {"claims": [claim(holder=theirs, state="pending"), claim(reason="", queue=[])], "waiting": []}
    lines = list(lock_sheet.table(wide, 80, ME))
    assert lines == [
        "path:src/**",
        '  job 7 "a-rather-long-name": login',
        "  exclusive, pending, 4m12s, enforced by merge and tools, 1 waiting",
        "path:src/**",
        "  you",
        "  exclusive, active, 4m12s, enforced by merge and tools",
    ]
    assert len(list(lock_sheet.table(wide, None, ME))) == 3


def test_who_waits_is_behind_holders_and_earlier_waiters() -> None:
    wants = [{"name": "path:a.py", "mode": "exclusive"}]
    waits = {"holder": holder("job", "", "job 9"), "wants": wants, "for": ["job 7", "job 8"], "ticket": 4}
    (line,) = lock_sheet.table({"claims": [], "waiting": [waits]}, 80, ME)
    assert line == "waiting: job 9 for path:a.py (exclusive), behind job 7, job 8 (ticket 4)"


def test_why_tells_you_of_yourself() -> None:
    waits = {"holder": holder("command", ME, 'the command "vim"'), "ticket": 3, "seconds": 5.0}
    told = list(lock_sheet.explained({"name": "path:src/a.py", "claims": [claim()], "waiting": [waits]}, ME))
    assert told == [
        "you hold path:src/** (exclusive, active) since 4m12s: login",
        "  enforced by merge and tools",
        'the command "vim" waits for it since 5s, ticket 3',
    ]


def test_history_is_of_the_repository_where_it_is_asked(agentd: Shell, tmp_path: Path) -> None:
    one, other = make_repo(tmp_path / "one"), make_repo(tmp_path / "other")
    agentd.ok("lock", "--owner", "ada", "a.py", cwd=one)
    agentd.ok("lock", "--owner", "bob", "res:port-3000", cwd=other)
    agentd.ok("lock", "--owner", "bob", "b.py", cwd=other)
    agentd.ok("locks", "break", "path:b.py", "--owner", "eve", "--reason", "urgent", cwd=other)
    told = [line.split("  ", 1)[1] for line in agentd.ok("locks", "history", cwd=other).splitlines()]
    assert told == [
        'granted    the user "bob": res:port-3000',
        f'granted    the user "bob": file:{other}/b.py, path:b.py',
        'broken     the user "bob": path:b.py - by eve: urgent',
    ]
    assert len(agentd.ok("locks", "history", "--all", cwd=other).splitlines()) == 4
    assert len(agentd.ok("locks", "history", cwd=tmp_path).splitlines()) == 1
