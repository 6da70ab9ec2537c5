"""The built-in agent from end to end: real daemon, zygotes, keepers and runners, and a script in place of the model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from agentlab import HAIKU, KEY, SONNET, Scene, bash, scene_of, write


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield from scene_of(tmp_path, monkeypatch)


# --- the tasks ------------------------------------------------------------------------------------------------


def test_eight_tasks_at_once_with_two_models(scene: Scene, tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    meet.mkdir()
    together = f"touch {meet}/%d; while [ $(ls {meet} | wc -l) -lt 8 ]; do sleep 0.02; done"
    scripts = [
        {
            "task": f"task {n}.",
            "turns": [
                {"say": f"I am {n}.", "calls": [bash(together % n), write(f"made-{n}.txt", f"by {n}\n")]},
                *[{"calls": [bash(f"echo {turn} >> turns-{n}.txt")]} for turn in range(n)],
                {"say": f"Task {n} is done."},
            ],
        }
        for n in range(1, 9)
    ]
    scene.serve({"scripts": scripts})
    options = {"in_place": False, "cwd": scene.repo}
    ids = {
        n: scene.delegate(f"Do task {n}.", model=HAIKU if n % 2 else SONNET, name=f"t{n}", **options)
        for n in range(1, 9)
    }
    for n, id in ids.items():
        job = scene.wait(id)
        assert (job["outcome"], job["exit_code"]) == ("succeeded", 0)
        assert (job["progress"]["words"], job["progress"]["turns"]) == (f"Task {n} is done.", n + 2)
        assert job["progress"]["cost"] > 0
        work = Path(job["worktree"])
        assert (work / f"made-{n}.txt").read_text() == f"by {n}\n"
        assert (work / f"turns-{n}.txt").read_text() == "".join(f"{turn}\n" for turn in range(n))
        assert not [path for path in work.glob("made-*") if path.name != f"made-{n}.txt"]
    models = {(request["task"].partition("\n")[0], request["body"]["model"]) for request in scene.requests()}
    assert models == {(f"Do task {n}.", HAIKU if n % 2 else SONNET) for n in range(1, 9)}
    assert len(scene.requests()) == sum(n + 2 for n in range(1, 9))


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
