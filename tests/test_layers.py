"""Who may import whom. Imports point inward only; everything under agentd/ stands in the table below.

A ring is a file or folder directly under agentd/. An import counts wherever it stands: at the top, inside a
function, under TYPE_CHECKING, or by a literal name given to ``import_module``.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "agentd"

# Ring -> the rings it may import. Each row names only rows above it. Every ring may import itself, and
# `agentd` alone for its version. To add a module: give it a row here and say where it belongs.
RINGS: dict[str, set[str]] = {
    # pure
    "core": set(),
    # looks and acts, knows nothing of ours; open to every ring but core
    "process": set(),
    "paths": set(),
    "files": set(),
    "forms": set(),
    # written by the daemon, read by shells without us
    "noticeboard": {"process", "files"},
    # one module owns each outside thing
    "protocol": {"core", "process", "paths", "files"},
    "config": {"core", "process", "paths", "files"},
    "store": {"core", "process", "paths", "files"},
    "git": {"core", "process", "paths", "files"},
    "jobdir": {"core", "process", "paths", "files"},
    "agents": {"core", "process", "paths", "files"},
    "claimfile": {"jobdir", "process", "files"},
    # a process of its own; knows worktrees, and nothing of jobs
    "watch": {"core", "git", "process", "paths", "files"},
    # a script in place of a model, for tests and demonstrations: it must not know whom it serves
    "scripted": set(),
    # run by git's hooks in jobs, by itself: somebody waits for it at each commit
    "hook": set(),
    # small processes that outlive the daemon; a zygote forks keepers, and loads runners by the dotted name
    # in the spec
    "budget": {"files"},
    "output": {"jobdir", "process", "paths", "files"},
    "terminal": {"output", "jobdir", "process", "paths", "files"},
    "launch": {"terminal", "output", "jobdir", "process", "paths", "files"},
    "keeper": {"budget", "output", "terminal", "launch", "jobdir", "protocol", "process", "paths", "files"},
    "zygote": {"keeper", "budget", "output", "terminal", "launch", "jobdir", "protocol", "process", "paths", "files"},
    # the client starts the daemon as `sys.executable -m agentd.daemon`, never by importing it
    "client": {"core", "protocol", "jobdir", "claimfile", "process", "paths", "files"},
    # reads an attempt's files and listens to its keeper: works while the daemon is dead
    "follow": {"core", "protocol", "jobdir", "process", "paths", "files"},
    # what a terminal shows: bytes in, bytes out
    "screen": set(),
    # at an agent's terminal, through its keeper and its log: works while the daemon is dead
    "attach": {"follow", "screen", "core", "protocol", "jobdir", "process", "paths", "files"},
    "runners": {"core", "protocol", "jobdir", "client", "process", "paths", "files"},
    "daemon": {
        *{"core", "protocol", "store", "git", "jobdir", "claimfile", "agents", "config", "process", "paths", "files"},
        *{"keeper", "zygote", "runners", "budget", "watch", "hook", "forms", "noticeboard"},
    },
    # what the user and the main agent touch; none of it ever meets the daemon
    # the demonstration types verbs, and asks the client for facts
    "demo": {"client", "core", "process", "paths", "files"},
    "cli": {
        *{"client", "claimfile", "follow", "core", "protocol", "config", "process", "paths", "files", "budget"},
        *{"demo", "scripted", "attach", "screen", "forms", "noticeboard"},
    },
    "mcp": {"client", "core", "protocol", "config", "process", "paths", "files"},
    "bridges": {"client", "core", "protocol", "config", "process", "paths", "files"},
    "chat": {"client", "core", "protocol", "config", "process", "paths", "files", "runners"},
    # the command line with its imports done, which answers for others; the door that every call goes through
    "door": {"paths"},
    "likeness": {"door", "client", "process"},
    "resident": {"door", "likeness", "cli", "core", "jobdir", "process", "paths"},
    # the package itself and `python -m agentd`: doors
    "__init__": {"client"},
    "__main__": {"door", "resident", "cli"},
}

# The core gets time and observations in events, and answers with effects.
CLOCKS_AND_IO = {
    *{"time", "datetime", "sched", "calendar", "random", "secrets", "uuid", "signal", "queue"},
    *{"os", "posix", "io", "pathlib", "shutil", "tempfile", "glob", "fcntl", "mmap", "linecache"},
    *{"asyncio", "threading", "_thread", "concurrent", "multiprocessing", "subprocess", "pty"},
    *{"socket", "socketserver", "select", "selectors", "ssl", "http", "urllib", "sqlite3", "dbm", "shelve"},
    *{"logging", "warnings", "getpass", "pwd", "grp", "platform", "resource", "termios", "tty", "ctypes"},
}
CALLS_THAT_DO_IO = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}

# The conversation of an agent: what is outside it is passed in. It serves a job in the background and a chat alike.
CONVERSATION = {f"agentd/runners/{name}.py" for name in ("loop", "conversation", "answers", "parts", "compact")}
WAITING = {"asyncio"}

# Each of these processes exists once per attempt or once per kind of agent, and must start at once.
SMALL = {"budget", "output", "terminal", "launch", "keeper", "zygote", "jobdir", "process", "files"}
HEAVY = {
    *{"asyncio", "subprocess", "multiprocessing", "concurrent", "logging", "sqlite3", "ssl", "http"},
    *{"urllib", "msgspec", "pydantic", "typer", "rich", "psutil", "filelock", "watchdog", "anthropic"},
    *{"mcp", "acp", "textual", "prompt_toolkit", "httpx2"},
}


class Import(NamedTuple):
    line: int
    module: str  # agentd.core.job, or time


def module_of(path: str) -> str:
    """agentd/core/job.py -> agentd.core.job; a package is named with its ``__init__``."""
    return path.removesuffix(".py").replace("/", ".")


def ring_of(module: str) -> str:
    """agentd.core.job -> core; agentd -> __init__."""
    return [*module.split("."), "__init__"][1]


def imports(path: str, tree: ast.AST) -> Iterator[Import]:
    package = module_of(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(node.lineno, named_in(source, alias.name))
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            target = node.args[0]
            if (
                name in {"import_module", "__import__"}
                and isinstance(target, ast.Constant)
                and isinstance(target.value, str)
            ):
                yield Import(node.lineno, target.value)


def named_in(source: str, name: str) -> str:
    """What ``from source import name`` reaches: of the package itself, a ring, the client, or its version."""
    if source != "agentd":
        return source
    if name == "Client":
        return "agentd.client"
    return "agentd" if name.startswith("__") else f"agentd.{name}"


def violations(path: str, source: str) -> Iterator[str]:
    """Every broken rule in one file, as ``agentd/x.py:3: what, and which rule``."""
    tree = ast.parse(source, path)
    ring = ring_of(module_of(path))
    if ring not in RINGS:
        yield f"{path}:1: agentd.{ring} is in no ring: say in the table where it belongs"
        return
    for line, module in imports(path, tree):
        top, here = module.split(".")[0], f"{path}:{line}"
        if top == "agentd":
            target = ring_of(module)
            if target not in RINGS:
                yield f"{here}: agentd.{target} is in no ring: say in the table where it belongs"
            elif target not in {ring, "__init__"} and target not in RINGS[ring]:
                allowed = ", ".join(sorted(RINGS[ring])) or "nothing of ours"
                yield f"{here}: imports {module}, but {ring} may import only: {allowed}"
        elif ring == "core" and top in CLOCKS_AND_IO:
            yield f"{here}: imports {module}, but core is pure: time and observations come in events"
        elif path in CONVERSATION and top in (CLOCKS_AND_IO | HEAVY) - WAITING:
            yield f"{here}: imports {module}, but the conversation does no I/O: it is passed in"
        elif ring in SMALL and top in HEAVY:
            yield f"{here}: imports {module}, but {ring} must stay small: nothing heavy"
    if ring == "core" or path in CONVERSATION:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in CALLS_THAT_DO_IO:
                yield f"{path}:{node.lineno}: calls {ast.unparse(node.func)}(), but does no I/O"


def test_every_module_keeps_to_its_ring() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no modules under {PACKAGE}"
    found = [
        line
        for file in files
        for line in violations(file.relative_to(PACKAGE.parent).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_table_points_inward() -> None:
    above: set[str] = set()
    for ring, allowed in RINGS.items():
        assert allowed <= above, f"{ring} names {sorted(allowed - above)}, which must stand above it"
        above.add(ring)


def test_daemon_and_cli_never_meet() -> None:
    def reach(ring: str) -> set[str]:
        return RINGS[ring].union(*(reach(inner) for inner in RINGS[ring]))

    assert not {"cli", "mcp", "chat"} & reach("daemon")
    for outer in ("client", "cli", "mcp", "bridges", "chat"):
        assert "daemon" not in reach(outer), outer


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("agentd/core/job.py", "x = 1\nimport time", "agentd/core/job.py:2: imports time, but core is pure"),
        ("agentd/core/job.py", "from os.path import join", "imports os.path, but core is pure"),
        ("agentd/core/job.py", "import agentd.store", "but core may import only: nothing of ours"),
        ("agentd/core/job.py", "from ..protocol import Reply", ":1: imports agentd.protocol"),
        ("agentd/core/job.py", "def f():\n    open('x')", "core/job.py:2: calls open()"),
        ("agentd/core/__init__.py", "from .. import store", "imports agentd.store"),
        ("agentd/store.py", "from .protocol import Reply", "agentd.protocol, but store may import"),
        ("agentd/keeper.py", "def f():\n\n    import asyncio", "keeper.py:3: imports asyncio, but"),
        ("agentd/process.py", "from subprocess import run", "process must stay small"),
        ("agentd/client.py", "from agentd import daemon", "client.py:1: imports agentd.daemon"),
        ("agentd/client.py", "import_module('agentd.daemon.main')", "imports agentd.daemon.main"),
        ("agentd/cli/ps.py", "from agentd.daemon import main", "cli/ps.py:1: imports agentd.daemon"),
        ("agentd/daemon/main.py", "from agentd.cli import render", "main.py:1: imports agentd.cli"),
        ("agentd/daemon/main.py", "from agentd import Client", "imports agentd.client, but daemon"),
        ("agentd/runners/loop.py", "import time", "but the conversation does no I/O: it is passed in"),
        ("agentd/runners/compact.py", "import anthropic", "compact.py:1: imports anthropic, but the conversation"),
        ("agentd/runners/loop.py", "print('x')", "loop.py:1: calls print(), but does no I/O"),
        ("agentd/runners/model.py", "from agentd.store import Store", "but runners may import only: client, core,"),
        ("agentd/scripted.py", "from agentd import jobdir", "but scripted may import only: nothing of ours"),
        ("agentd/utils.py", "", "agentd/utils.py:1: agentd.utils is in no ring: say in the table"),
        ("agentd/cli/ps.py", "import agentd.helpers", "ps.py:1: agentd.helpers is in no ring"),
    ],
)
def test_a_violation_is_told_with_its_place_and_rule(path: str, source: str, told: str) -> None:
    (found,) = violations(path, source)
    assert told in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agentd/core/machine.py", "from dataclasses import dataclass\nfrom .job import Job\nimport re"),
        ("agentd/keeper.py", "import os, select, signal\nfrom agentd import jobdir, __version__"),
        ("agentd/client.py", "import sys\nDAEMON = [sys.executable, '-m', 'agentd.daemon']"),
        ("agentd/cli/daemon.py", "from . import render\nfrom agentd.client import Client"),
        ("agentd/cli/__init__.py", "from .ps import ps\nfrom importlib import import_module"),
        ("agentd/daemon/__main__.py", "from agentd.daemon.main import main\nimport asyncio"),
        ("agentd/runners/loop.py", "import asyncio\nfrom . import compact"),
        ("agentd/runners/model.py", "import anthropic, os\nfrom agentd import jobdir, process"),
        ("agentd/zygote.py", "import importlib\ndef load(name):\n    return importlib.import_module(name)"),
    ],
)
def test_what_is_allowed_is_let_through(path: str, source: str) -> None:
    assert list(violations(path, source)) == []
