"""The built-in agent from end to end: real daemon, zygotes, keepers and runners, and a script in place of the model."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from agentlab import HAIKU, KEY, SONNET, Record, Scene, bash, call, scene_of, write

from agentd.runners import tools


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield from scene_of(tmp_path, monkeypatch)


# --- the tasks ------------------------------------------------------------------------------------------------


EIGHT = range(1, 9)


def task_of(n: int, meet: Path) -> Record:
    """Its own in content and length; all eight meet in the first turn, so that they really run at once."""
    made = f"made-{n}.txt"
    meeting = f"touch {meet}/{n}; while [ $(ls {meet} | wc -l) -lt 8 ]; do sleep 0.02; done"
    look = [
        call("glob", pattern="made-*"),
        call("grep", pattern=f"by {n}"),
        call("read", path=made),
        call("edit", path=made, old="by", new="made by"),
        call("note", text=f"plan of {n}"),
        call("ask", question=f"May {n} go on?"),
    ]
    turns = [
        {"say": f"I am {n}.", "calls": [bash(meeting), write(made, f"by {n}\n")]},
        {"calls": look},
        *[{"calls": [bash(f"echo {turn} >> turns-{n}.txt; cat {made}")]} for turn in range(n)],
        {"say": f"Task {n} is done."},
    ]
    return {"task": f"task {n}.", "turns": turns}


def results_of(n: int) -> list[str]:
    made = f"made-{n}.txt"
    first = ["(no output)", f"made: {made}, {len(f'by {n}') + 1} bytes"]
    look = [made, f"{made}:1:by {n}", f"by {n}\n", f"changed: {made}, line 1", "noted", f"yes, {n}"]
    return [*first, *look, *[f"made by {n}"] * n]


@pytest.mark.timeout(300)
def test_eight_tasks_at_once_with_two_models(scene: Scene, tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    meet.mkdir()
    scene.serve({"scripts": [task_of(n, meet) for n in EIGHT]})
    models = {n: HAIKU if n % 2 else SONNET for n in EIGHT}
    ids = {n: scene.delegate(f"Do task {n}.", model=models[n], in_place=False, cwd=scene.repo) for n in EIGHT}
    for n, id in ids.items():
        scene.wait(id, "waiting")
        scene.client.answer(id, f"yes, {n}")
    for n, id in ids.items():
        job = scene.wait(id)
        assert (job["outcome"], job["exit_code"]) == ("succeeded", 0)
        assert (job["progress"]["words"], job["progress"]["turns"]) == (f"Task {n} is done.", n + 3)
        assert job["progress"]["cost"] > 0 and job["progress"]["plan"] == f"plan of {n}"
        work = Path(job["worktree"])
        assert (work / f"turns-{n}.txt").read_text() == "".join(f"{turn}\n" for turn in range(n))
        assert [path.name for path in work.glob("made-*")] == [f"made-{n}.txt"]
        assert (work / f"made-{n}.txt").read_text() == f"made by {n}\n"
        check_transcript(scene.records(id), n)
    asked = Counter((request["task"].partition("\n")[0], request["body"]["model"]) for request in scene.requests())
    assert asked == {(f"Do task {n}.", models[n]): n + 3 for n in EIGHT}


def check_transcript(records: list[Record], n: int) -> None:
    """Every request with its answer, every call with its result, from the start to the end."""
    of = {kind: [record for record in records if record["type"] == kind] for kind in {r["type"] for r in records}}
    assert (records[0]["type"], records[-1]["type"], records[-1]["outcome"]) == ("start", "end", "done")
    assert len(of["request"]) == len(of["assistant"]) == n + 3 and "failed" not in of
    assert {record["tool"] for record in of["call"]} == set(tools.TOOLS)
    assert [record["id"] for record in of["call"]] == [record["id"] for record in of["result"]]
    assert [record["content"] for record in of["result"]] == results_of(n)
    assert [record["text"] for record in of["question"]] == [f"May {n} go on?"]


@pytest.mark.parametrize(("option", "limit", "turns"), [("max_turns", 3, 3), ("max_cost", 1.0, None)])
def test_a_limit_ends_it_and_its_work_is_kept(scene: Scene, option: str, limit: float, turns: int | None) -> None:
    turn = {"calls": [bash("echo more >> work.txt")], "repeat": True, "usage": {"output_tokens": 50_000}}
    scene.serve([turn])
    id = scene.delegate("for ever", in_place=False, cwd=scene.repo, **{option: limit})
    job = scene.wait(id)
    done = job["progress"]["turns"]
    assert (job["outcome"], job["wait_code"]) == ("limited", 124) and option.removeprefix("max_") in job["reason"]
    assert scene.shell("wait", str(id)).code == 124
    assert len(scene.requests()) == done == (turns or done)
    if turns is None:
        assert limit <= job["progress"]["cost"] < limit * (1 + 1 / (done - 1)) + 0.01, "one request over it at most"
    faultlab.until(lambda: scene.client.job(id)["job"]["result"] is not None)
    assert scene.client.job(id)["job"]["result"]["changed"]
    assert (Path(job["worktree"]) / "work.txt").read_text() == "more\n" * done


def test_what_it_asks_outlives_the_daemon(scene: Scene) -> None:
    ask = {"tool": "ask", "input": {"question": "Which colour?", "options": ["red", "blue"]}}
    scene.serve([{"calls": [ask]}, {"say": "So be it."}])
    id = scene.delegate("choose")
    asked = scene.wait(id, "waiting")["progress"]["question"]
    assert (asked["text"], list(asked["options"])) == ("Which colour?", ["red", "blue"])
    before, runner = scene.daemon(), scene.runner(id)
    scene.kill(lambda: before)
    assert scene.wait(id, "waiting")["progress"]["question"] == asked
    assert scene.daemon() != before and scene.runner(id) == runner
    scene.client.answer(id, "blue")
    job = scene.wait(id)
    assert (job["outcome"], job["attempt"], job["progress"]["words"]) == ("succeeded", 1, "So be it.")
    (said,) = [record for record in scene.records(id) if record["type"] == "result"]
    assert said["content"] == "blue" and len(scene.requests()) == 2


def test_a_message_comes_while_a_long_tool_runs(scene: Scene) -> None:
    gate = scene.shell.cwd / "gate"
    os.mkfifo(gate)
    scene.serve([{"calls": [bash("read word < gate; echo the gate says $word")]}, {"say": "I have read it."}])
    id = scene.delegate("wait at the gate")
    faultlab.until(lambda: any(record["type"] == "call" for record in scene.records(id)))
    number = scene.client.send(id, "Mind the step.")["n"]

    def states() -> list[str]:
        return [e["data"]["state"] for e in scene.events("job.input") if e["data"]["n"] == number]

    faultlab.until(lambda: states() == ["queued", "accepted"], what=lambda: str(states()))
    gate.write_text("open\n")
    assert scene.wait(id)["outcome"] == "succeeded" and states() == ["queued", "accepted", "consumed"]
    first, second = (json.dumps(request["body"]["messages"]) for request in scene.requests())
    assert "Mind the step." not in first
    assert second.count("Mind the step.") == 1 and "the gate says open" in second


def test_refused_by_the_server_it_is_parked_and_goes_on(scene: Scene) -> None:
    scene.serve([{"fault": "429", "retry_after": 1, "times": 2, "say": "At last."}])
    id = scene.delegate("be patient")
    assert scene.wait(id, "parked")["state"] == "parked"
    job = scene.wait(id)
    assert (job["outcome"], job["progress"]["words"]) == ("succeeded", "At last.")
    assert len(scene.requests()) == 3 and len(scene.events("job.parked")) == 2


def test_the_key_is_in_no_file_and_no_process_list(scene: Scene) -> None:
    ask = {"tool": "ask", "input": {"question": "Go on?"}}
    scene.serve([{"calls": [bash("env; cat /proc/$PPID/cmdline; ps -eo args"), ask]}, {"say": "Done."}])
    id = scene.delegate("look for it", in_place=False, cwd=scene.repo, restart="on-failure")
    scene.wait(id, "waiting")
    assert scene.runner(id) in scene.ours() and not places_of_the_key(scene)
    scene.kill(lambda: scene.runner(id))
    faultlab.until(lambda: is_asking(scene, id, attempt=2), timeout=60)
    scene.client.answer(id, "yes")
    assert scene.wait(id)["outcome"] == "succeeded" and all(request["key"] for request in scene.requests())
    assert not places_of_the_key(scene)


def test_what_an_agent_hands_on_has_its_credential(scene: Scene) -> None:
    """Though its tools see neither key nor endpoint. A daemon that came later does not know them."""
    hand_on = f'echo "[$ANTHROPIC_API_KEY]"; {sys.executable} -m agentd delegate -q "The second half."'
    ask = call("ask", question="Go on?")
    scene.serve({"scripts": [
        {"task": "The first half.", "turns": [{"calls": [ask]}, {"calls": [bash(hand_on)]}, {"say": "Handed on."}]},
        {"task": "The second half.", "turns": [{"say": "Done."}]},
    ]})  # fmt: skip
    first = scene.delegate("The first half.", in_place=False, cwd=scene.repo)
    scene.wait(first, "waiting")
    scene.client.answer(first, "yes")
    assert scene.wait(first)["outcome"] == "succeeded"
    said = [record["content"] for record in scene.records(first) if record["type"] == "result"]
    second = int(said[-1].split()[-1])
    assert said[-1].startswith("[]")
    job = scene.wait(second)
    assert (job["outcome"], job["parent"], job["progress"]["words"]) == ("succeeded", first, "Done.")
    assert all(request["key"] for request in scene.requests()) and not places_of_the_key(scene)


def is_asking(scene: Scene, id: int, attempt: int) -> bool:
    job = scene.client.job(id)["job"]
    return (job["attempt"], job["state"]) == (attempt, "waiting")


def places_of_the_key(scene: Scene) -> list[str]:
    files = [path for path in scene.shell.state.rglob("*") if path.is_file()]
    lists = [*Path("/proc").glob("[0-9]*/cmdline"), *(Path("/proc", str(pid), "environ") for pid in scene.ours())]
    found = []
    for path in files + lists:
        try:
            found += [str(path)] if KEY.encode() in path.read_bytes() else []
        except OSError:  # gone, or another user's
            continue
    return found
