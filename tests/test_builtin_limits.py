"""Agents that would spend for ever, and how deep they may delegate: what stops them is not the agent."""

import sys
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from agentlab import HAIKU, KEY, Record, Scene, bash, call, scene_of

from agentd.agents import builtin
from agentd.budget import cost_of, tokens_of

SPENDERS = 50 if faultlab.is_long else 12
OUTPUT = 50_000
LIMITS: dict[str, Record] = {
    "turns": {"max_turns": 5},
    "tokens": {"max_tokens": 5 * OUTPUT},
    "cost": {"max_cost": 0.2},
    "timeout": {"timeout": 6.0},
}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield from scene_of(tmp_path, monkeypatch)


def spender(scene: Scene, n: int) -> tuple[str, str, int]:
    """The limit, the task and the id of an agent."""
    limit = list(LIMITS)[n % len(LIMITS)]
    words = f"Spend for ever, {n}."
    return limit, words, scene.delegate(words, in_place=False, cwd=scene.repo, **LIMITS[limit])


@pytest.mark.timeout(600)
def test_who_would_spend_for_ever_is_stopped_at_its_limit(scene: Scene) -> None:
    more = {"calls": [bash("echo more >> work.txt")], "repeat": True, "usage": {"output_tokens": OUTPUT}}
    scene.serve([{**more, "delay": 0.1}])
    agents = [spender(scene, n) for n in range(SPENDERS)]
    for _, _, id in agents:
        scene.wait(id, timeout=300)
    requests = scene.requests()
    for limit, words, id in agents:
        job = scene.client.job(id)["job"]
        own = [request for request in requests if request["task"].partition("\n")[0] == words]
        check_outcome(job, limit)
        check_overshoot(scene.records(id), len(own), limit)
        check_warning(own, limit)
        done = (Path(job["worktree"]) / "work.txt").read_text()
        assert done in ("more\n" * len(own), "more\n" * (len(own) - 1)), "its work is kept"


def check_outcome(job: Record, limit: str) -> None:
    outcome = "timed_out" if limit == "timeout" else "limited"
    assert (job["outcome"], job["wait_code"]) == (outcome, 124), job
    assert limit in job["reason"] or (limit == "timeout" and "6" in job["reason"]), job


def check_overshoot(records: list[Record], requests: int, limit: str) -> None:
    """What was spent before the last request was below the limit."""
    spent = [record["usage"] for record in records if record["type"] == "assistant"]
    if limit == "timeout":
        assert requests - len(spent) in (0, 1), "one that was under way"
        return
    assert requests == len(spent), "each request was answered"
    rates = builtin.rates(HAIKU)
    of_one = {"turns": lambda _: 1, "tokens": tokens_of, "cost": lambda usage: cost_of(usage, rates)}[limit]
    (most,) = LIMITS[limit].values()
    assert sum(map(of_one, spent[:-1])) < most <= sum(map(of_one, spent)), (limit, requests)


def check_warning(requests: list[Record], limit: str) -> None:
    """It is told once, when four fifths are gone."""
    texts = [str(request["body"]["messages"]) for request in requests]
    wanted = 0 if limit == "timeout" else 1
    assert texts[-1].count("are used up. At the limit you are stopped") == wanted, limit


def test_a_job_three_levels_deep_may_not_delegate(scene: Scene, home: Path) -> None:
    command = f"{sys.executable} -m agentd delegate --in-place 'Dig deeper.'; echo code $?"
    scene.serve([{"calls": [bash(command)]}, {"say": "So deep."}])
    (home / "key").write_text(KEY)  # its commands have no key in their environment
    profile = f'model = "{HAIKU}"\nkey_file = "{home / "key"}"\nendpoint = "{scene.servers[0].url}"\n'
    scene.configure(f"[profiles.default]\n{profile}")
    scene.delegate("Dig deeper.")

    def ends() -> list[tuple[int, str]]:
        return [(job["depth"], job["outcome"]) for job in scene.client.jobs(all=True)]

    faultlab.until(lambda: sorted(ends()) == [(n, "succeeded") for n in (1, 2, 3)], 60, lambda: str(ends()))
    deepest = max(job["id"] for job in scene.client.jobs(all=True))
    (refused,) = [record["content"] for record in scene.records(deepest) if record["type"] == "result"]
    assert "it is 3 levels deep, and deeper is not allowed" in refused and "code 75" in refused


def test_an_agent_is_idle_when_nothing_comes_of_it(scene: Scene) -> None:
    ask = call("ask", question="Go on?")
    busy = [{"calls": [bash("sleep 0.4")]}] * 15
    scene.serve({"scripts": [
        {"task": "Work.", "turns": [*busy, {"calls": [ask]}, {"say": "Done."}]},
        {"task": "Wait.", "turns": [{"say": "too late", "delay": 1000}]},
    ]})  # fmt: skip
    works, waits = (scene.delegate(words, idle_timeout=5.0) for words in ("Work.", "Wait."))
    job = scene.wait(waits)
    assert (job["outcome"], job["reason"], job["wait_code"]) == ("timed_out", "idle_timeout", 124)
    asked = scene.wait(works, "waiting")["waiting_since"]
    scene.wait(int(scene.shell.job("sleep", "6")))  # longer than the limit
    assert scene.client.job(works)["job"]["waiting_since"] == asked
    scene.client.answer(works, "yes")
    assert scene.wait(works)["outcome"] == "succeeded"
