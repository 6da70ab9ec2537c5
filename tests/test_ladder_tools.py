"""The built-in agent's tools ask before they write, where there is anything to ask for."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import clishell
import faultlab
import msgspec
import pytest
from ladderlab import Site, bash, write

from agentd import paths
from agentd.core import patterns
from agentd.core.claims import Busy, Holder, Name, Queued, Want
from agentd.core.locks import Table
from agentd.runners.tools.claims import Claims
from agentd.runners.tools.results import ToolError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for shell in clishell.serve(tmp_path, monkeypatch):
        site = Site(shell, tmp_path, monkeypatch)
        yield site
        site.close()


def claim(site: Site, path: str) -> int:
    holder = site.command(site.wait_for("end"), name="holder", claims=[{"name": path}])
    faultlab.until(lambda: (f"path:{path}", holder) in site.claims())
    return holder


# --- with a daemon ---------------------------------------------------------------------------------------------


def test_a_write_to_what_another_claims_is_refused_with_all_there_is_to_know(site: Site) -> None:
    """And the command that the refusal names works: it waits, and then the file may be written."""
    hint = "agentd lock path:src/f0.txt --wait 60s"
    site.serve(
        {
            "task": "both files",
            "turns": [
                {"calls": [write("src/f0.txt", "mine\n"), write("other.txt", "mine\n")]},
                {"calls": [bash(f"{hint} && echo got it"), write("src/f0.txt", "mine\n")]},
                {"say": "done"},
            ],
        }
    )
    holder = claim(site, "src/f0*")
    agent = site.agent("both files")
    faultlab.until(lambda: len(site.results(agent)) >= 2, 60)
    refused, other = site.results(agent)[:2]
    assert refused.startswith("src/f0.txt was not written.\n[agentd:locked] src/f0.txt is claimed by job")
    assert f'job {holder} "holder" (path:src/f0*, exclusive) for "claimed at its start" since ' in refused
    assert hint in refused
    assert (
        "coordination, not a fault" in refused
        and "(wait; you are 1st, ticket " in refused
        and "through the shell" in refused
    )
    assert other.startswith("made: other.txt")
    site.say("end")
    site.done(agent)
    assert site.results(agent)[3].startswith("overwritten: src/f0.txt")


def test_a_write_waits_a_little_for_who_lets_go(site: Site) -> None:
    site.serve(
        {
            "task": "one file",
            "turns": [
                {"calls": [bash("touch ready"), write("src/f0.txt", "mine\n")]},
                {"say": "done"},
            ],
        }
    )
    claim(site, "src/f0.txt")
    agent = site.agent("one file")
    site.until("lock.queued", names=["path:src/f0.txt"])
    site.say("end")
    site.done(agent)
    assert site.results(agent)[1].startswith("overwritten: src/f0.txt")
    assert site.claims()["path:src/f0.txt", agent]["state"] == "pending"


def test_the_mark_is_there_while_somebody_claims_a_path(site: Site, tmp_path: Path) -> None:
    mark = Path(paths.claimed_mark(str(site.shell.state)))
    site.shell.ok("lock", "res:port", cwd=site.repo)
    assert not mark.exists(), "nobody writes a port"
    site.shell.ok("lock", "src/f0.txt", cwd=site.repo)
    assert mark.exists()
    os.kill(int(site.client.ask("daemon.status")["pid"]), 9)
    assert mark.exists(), "the claim outlives the daemon"
    site.shell.ok("unlock", "src/f0.txt", cwd=site.repo)
    assert not mark.exists()


# --- without one -----------------------------------------------------------------------------------------------


Asked = list[dict[str, Any]]


def before_write(tmp_path: Path, path: str, answer: Callable[[dict[str, Any]], Awaitable[Any]], **policy: Any) -> Asked:
    """Write ``path``, where ``answer`` stands for a daemon; what that was asked."""
    asked: Asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.loads(await reader.readline()))
        try:
            writer.write(json.dumps(await answer(asked[-1])).encode() + b"\n")
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "socket"))
        try:
            await Claims(str(tmp_path / "socket"), str(tmp_path), str(tmp_path), policy).before_write(path)
        finally:
            server.close()

    asyncio.run(run())
    return asked


async def nobody(_: dict[str, Any]) -> dict[str, Any]:
    return {"result": {"blocked": [], "state": "granted"}}


async def never(_: dict[str, Any]) -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def claimed(tmp_path: Path) -> None:
    mark = Path(paths.claimed_mark(str(tmp_path)))
    mark.parent.mkdir()
    mark.touch()


def test_nothing_is_asked_while_nobody_claims_anything(tmp_path: Path) -> None:
    assert before_write(tmp_path, "src/a.py", nobody) == []
    asked = before_write(tmp_path, "web/package-lock.json", nobody)
    assert [one["method"] for one in asked] == ["lock.check", "lock.acquire"], "one writer at a time: it is claimed"
    claimed(tmp_path)
    assert [one["method"] for one in before_write(tmp_path, "src/a.py", nobody)] == ["lock.check"]
    assert before_write(tmp_path, "src/a.py", nobody)[0]["params"]["paths"] == ["src/a.py"]
    assert before_write(tmp_path, "../elsewhere", nobody) == []


def test_a_daemon_that_is_slow_or_dead_keeps_nobody_from_writing(tmp_path: Path) -> None:
    claimed(tmp_path)
    assert len(before_write(tmp_path, "src/a.py", never)) == 1
    asyncio.run(Claims(str(tmp_path / "no-socket"), str(tmp_path), str(tmp_path), {}).before_write("src/a.py"))


def test_what_would_close_a_circle_is_told(tmp_path: Path) -> None:
    async def deadlock(request: dict[str, Any]) -> dict[str, Any]:
        if request["method"] == "lock.check":
            return {"result": {"blocked": [{"text": "locked"}]}}
        return {"error": {"message": "a waits for b", "data": {"code": "deadlock"}}}

    claimed(tmp_path)
    with pytest.raises(ToolError, match=r"deadlock.*src/a.py was not written: a waits for b"):
        before_write(tmp_path, "src/a.py", deadlock)


def test_a_write_that_nobody_minds_costs_next_to_nothing(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path / "no-socket"), str(tmp_path), str(tmp_path), {"doc/**": "wait"})

    async def many() -> float:
        began = time.perf_counter()
        for _ in range(200):
            await claims.before_write("src/deep/down/a.py")
        return (time.perf_counter() - began) / 200

    cost = asyncio.run(many())
    print(f"{cost * 1e6:.0f} us a write")
    assert cost < 0.02, "a busy machine is no failure; a request would be"


# --- the look that changes nothing -----------------------------------------------------------------------------


def test_a_look_at_what_stands_before_a_write_changes_nothing() -> None:
    table, path = Table(), Name("path", "/r", "src/a.py")
    mine, other = Holder("job", "1", "mine"), Holder("job", "2", "other")
    assert table.peek(mine, [Want(path)], 1.0) is None
    table.ask(other, [Want(Name("path", "/r", "src/**"))], 2.0)
    before = table.claims(), table.waiting(), table.last_ticket
    busy = table.peek(mine, [Want(path)], 3.0)
    assert isinstance(busy, Busy) and (busy.position, busy.blockers[0].holder) == (1, other)
    assert (table.claims(), table.waiting(), table.last_ticket) == before
    queued, _ = table.ask(mine, [Want(path)], 4.0)
    assert isinstance(queued, Queued)
    assert table.peek(mine, [Want(path)], 5.0) == msgspec.structs.replace(queued, at=5.0)


@pytest.mark.parametrize("path", ["src/[id].ts", "a{b}", "!x", "a*b", "a\\*b", "plain/é.py"])
def test_a_path_with_any_characters_can_be_typed_as_a_pattern(path: str) -> None:
    pattern = patterns.normal(patterns.typed(path))
    assert patterns.matches(pattern, path) and not patterns.matches(pattern, "src/other.ts")
