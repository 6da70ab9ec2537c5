"""The built-in agent from end to end: real daemon, zygotes, keepers and runners, and a script in place of the model."""

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clishell
import faultlab
import gitrepo
import pytest
from clishell import Shell

from agentd.client import Client, Job
from agentd.scripted import Server

KEY = "sk-test-0123456789-not-to-be-found"
HAIKU, SONNET = "claude-haiku-5-5", "claude-sonnet-5-5"
TURNS, KILLS = 15, 10
Record = dict[str, Any]


def bash(command: str) -> Record:
    return {"tool": "bash", "input": {"command": command}}


def write(path: str, content: str) -> Record:
    return {"tool": "write", "input": {"path": path, "content": content}}


class Scene:
    """A daemon with its client, and the server that its agents ask."""

    def __init__(self, shell: Shell, folder: Path) -> None:
        self.shell = shell
        self.client = Client(str(shell.state), owner="me")
        self.repo = gitrepo.make_repo(folder / "repo")
        self.record = folder / "requests.ndjson"
        self.servers: list[Server] = []

    def serve(self, script: Any) -> None:
        server = Server(script, record=self.record, bodies=True)
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["ANTHROPIC_BASE_URL"] = server.url

    def delegate(self, task: str, **options: Any) -> int:
        options = {"agent": "builtin", "in_place": True, "cwd": str(self.shell.cwd), "model": HAIKU, **options}
        return int(self.client.delegate([], task=task, **options)["id"])

    def wait(self, id: int, until: str = "done") -> Job:
        answer = self.client.wait([id], until=until, timeout=120)
        assert not answer["timed_out"], answer
        return dict(answer["jobs"][0])

    def requests(self) -> list[Record]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def records(self, id: int) -> list[Record]:
        """Of all attempts."""
        paths = sorted(self.shell.state.glob(f"jobs/{id}/*/transcript.ndjson"), key=lambda path: int(path.parent.name))
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def events(self, type: str) -> list[Record]:
        return [event for event in self.client.events(since=0, follow=False) if event["type"] == type]

    # --- processes ------------------------------------------------------------------------------------------

    def daemon(self) -> int:
        return int(self.client.ask("daemon.status")["pid"])

    def attempt(self, id: int) -> Path:
        return max(self.shell.state.glob(f"jobs/{id}/[0-9]*"), key=lambda path: int(path.name))

    def runner(self, id: int) -> int | None:
        """The one that runs now: its process is not a fork that still waits to be let go."""
        path = self.attempt(id)
        if not (path / "transcript.ndjson").exists() or (path / "exit.json").exists() or (path / "end.json").exists():
            return None
        return int(self.shell.record(str(id), f"../{path.name}/agent.json")["agent"]["pid"])

    def keeper(self, id: int) -> int | None:
        title = f"agentd-keeper {id}.{self.attempt(id).name}"
        pids = [int(line.split()[0]) for line in clishell.ours(self.shell.state) if title in line]
        return next((pid for pid in pids if not faultlab.parent_title(str(pid)).startswith("agentd-keeper")), None)

    def kill(self, look: Callable[[], int | None]) -> None:
        """kill -9, as soon as there is something to kill."""

        def is_killed() -> bool:
            pid = look()
            if pid is None:
                return False
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True

        def state() -> str:
            return f"nothing to kill: {self.client.jobs(all=True)}, {clishell.ours(self.shell.state)}"

        faultlab.until(is_killed, timeout=60, what=state)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "")
    for shell in clishell.serve(tmp_path, monkeypatch):
        scene = Scene(shell, tmp_path)
        yield scene
        scene.client.close()
    for server in scene.servers:
        server.shutdown()
        server.server_close()


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
    assert not places_of_the_key(scene)
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
    lists = list(Path("/proc").glob("[0-9]*/cmdline"))
    found = []
    for path in files + lists:
        try:
            found += [str(path)] if KEY.encode() in path.read_bytes() else []
        except OSError:  # gone, or another user's
            continue
    return found


# --- kill -9 --------------------------------------------------------------------------------------------------


def steps() -> list[Record]:
    """Each does what is its own, and first what is missing: what a model does that is told "unknown: look"."""
    turns: list[Record] = []
    for n in [*range(1, TURNS), TURNS - 1]:
        command = (
            f"echo {len(turns)} >> ran; for i in $(seq {n}); do grep -qsx $i log || echo $i >> log; done; sleep 0.1"
        )
        turns.append({"say": f"Step {len(turns)}.", "calls": [bash(command)], "delay": 0.2})
    return [*turns, {"say": "All steps are done."}]


@pytest.mark.timeout(600)
def test_killed_at_any_moment_the_task_ends_right(scene: Scene) -> None:
    dice = random.Random(int(os.environ.get("AGENTD_SEED", "11")))
    scene.serve(steps())
    id = scene.delegate("fifteen steps", restart="on-failure")
    victims = {"runner": lambda: scene.runner(id), "keeper": lambda: scene.keeper(id), "daemon": scene.daemon}
    order = dice.sample([*["runner"] * 4, *["keeper"] * 3, *["daemon"] * 3], KILLS)
    for victim in order:
        scene.daemon()  # whoever asks has a dead one replaced
        threading.Event().wait(dice.random() * 0.6)
        scene.kill(victims[victim])
    faultlab.until(lambda: is_over(scene, id), timeout=120, what=lambda: str(scene.client.job(id)["job"]))
    job = scene.client.job(id)["job"]
    assert (job["outcome"], job["progress"]["words"]) == ("succeeded", "All steps are done.")
    assert job["attempt"] == 5, "a runner's death is an attempt's, nobody else's is"
    check_requests(scene, id, order)
    log, ran = ((scene.shell.cwd / name).read_text().split() for name in ("log", "ran"))
    assert log == [str(n) for n in range(1, TURNS)] and len(ran) == len(set(ran)), "no call was run twice"


def is_over(scene: Scene, id: int) -> bool:
    job = scene.client.job(id)["job"]
    return job["state"] == "done" and job["again_at"] is None


def check_requests(scene: Scene, id: int, order: list[str]) -> None:
    answered = {
        int(record["id"].removeprefix("script_")): record["at"]
        for record in scene.records(id)
        if record["type"] == "assistant"
    }
    assert sorted(answered) == list(range(TURNS + 1))
    answers = [record["id"] for record in scene.records(id) if record["type"] == "assistant"]
    assert len(answers) == len(set(answers)), "each answer is recorded once"
    asked = Counter(request["turn"] for request in scene.requests())
    assert sum(asked.values()) - (TURNS + 1) <= order.count("runner"), "at most one is repeated for a kill"
    late = [request for request in scene.requests() if request["at"] > answered[request["turn"]]]
    assert not late, "no answered request is sent again"
