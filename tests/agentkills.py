"""Random kills of the built-in agent's processes: runner, keeper and daemon, alone and together, in tasks of 30 turns.

Each step of a task appends its number to a file outside the worktree (so a second execution is seen), and then does in
the worktree what is its own, and first what is missing: what a model does that is told "unknown: look".
"""

import itertools
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import pytest
from agentlab import Record, Scene, bash, scene_of
from conftest import GITCONFIG
from faultlab import Violation

from agentd.runners import conversation

KINDS = ("runner", "keeper", "daemon")
COMBINATIONS = [kinds for size in (1, 2, 3) for kinds in itertools.combinations(KINDS, size)]
TURNS = 30
REPAIRS = 3
"""Turns at the end that do only what is missing: the last step may have been the one that was killed."""
KILLS_A_TASK = 12
PATIENCE = 3
"""Of so many kills one waits for an answer first: after six attempts that came to none, the policy gives up."""
DONE = "All steps are done."


class Task:
    """One job, and the kills that it lives through."""

    def __init__(self, scene: Scene, number: int) -> None:
        self.scene = scene
        self.words = f"Task {number}."
        self.proof = scene.shell.cwd / f"ran-{number}"
        self.proof.touch()
        self.killed: list[tuple[str, ...]] = []
        self.id = scene.delegate(self.words, in_place=False, cwd=scene.repo, restart="on-failure", max_turns=1000)

    def kill(self, kinds: tuple[str, ...], after: float) -> bool:
        """Once it is at work again, so many seconds later; False if it has come too far by then."""
        self.scene.daemon()  # whoever asks has a dead one replaced
        faultlab.until(lambda: self.scene.runner(self.id) is not None, 60, self.state)
        if len(self.killed) % PATIENCE == PATIENCE - 1:
            seen = self.answers()
            faultlab.until(lambda: self.answers() > seen, 60, self.state)
        threading.Event().wait(after)
        if self.answers() > TURNS - 2:
            return False  # so that each kill that is counted hits something that is at work
        victims = self.scene.victims(self.id)
        hit = self.scene.kill(*(victims[kind] for kind in kinds))
        self.killed.append(tuple(kind for kind, is_hit in zip(kinds, hit, strict=True) if is_hit))
        return True

    def state(self) -> str:
        return f"killed {self.killed}; {self.ends()}; {self.scene.client.job(self.id)['job']}"

    def answers(self) -> int:
        return sum(record["type"] == "assistant" for record in self.scene.records(self.id))

    def is_over(self) -> bool:
        job = self.scene.client.job(self.id)["job"]
        return job["state"] == "done" and job["again_at"] is None

    def check(self) -> None:
        faultlab.until(self.is_over, 120, self.state)
        faults = [f"task {self.id}, killed {self.killed}: {fault}" for fault in self.faults()]
        if faults:
            raise Violation("\n".join(faults))

    def ends(self) -> list[Record]:
        """How each attempt ended."""
        completed = self.scene.events("job.completed")
        return [
            {name: event["data"][name] for name in ("outcome", "exit_code", "signal", "reason")} for event in completed
        ]

    def faults(self) -> Iterator[str]:
        scene = self.scene
        job = scene.client.job(self.id)["job"]
        if (job["outcome"], job["progress"]["words"]) != ("succeeded", DONE):
            yield f"it ended {job['outcome']} ({job['reason']}) with {job['progress']['words']!r}"
        deaths = sum("runner" in kinds for kinds in self.killed)
        if job["attempt"] > 1 + deaths:
            yield f"{job['attempt']} attempts for {deaths} deaths of a runner: {self.ends()}"
        log = (Path(job["worktree"]) / "log").read_text().split()
        if log != [str(n) for n in range(1, TURNS + 1)]:
            yield f"its work is wrong: {log}"
        records = scene.records(self.id)
        requests = [request for request in scene.requests() if request["task"].partition("\n")[0] == self.words]
        yield from faults_of_requests(records, requests, len(self.killed))
        yield from faults_of_calls(records, requests, self.proof.read_text().split())


def faults_of_requests(records: list[Record], requests: list[Record], kills: int) -> Iterator[str]:
    answers = [record for record in records if record["type"] == "assistant"]
    last = TURNS + REPAIRS
    if [record["id"] for record in answers] != [f"script_{n}" for n in range(last + 1)]:
        yield f"answers are recorded twice, or are missing: {[record['id'] for record in answers]}"
    answered = {int(record["id"].removeprefix("script_")): record["at"] for record in answers}
    late = [request["turn"] for request in requests if request["at"] > answered.get(request["turn"], float("inf"))]
    if late:
        yield f"requests were sent again that had a recorded answer: turns {late}"
    if not last + 1 <= len(requests) <= last + 1 + kills:
        yield f"{len(requests)} requests for {last + 1} turns and {kills} kills"


def faults_of_calls(records: list[Record], requests: list[Record], ran: list[str]) -> Iterator[str]:
    begun = Counter(record["id"] for record in records if record["type"] == "call")
    results = {record["id"]: record for record in records if record["type"] == "result"}
    executed = Counter(f"toolu_{turn}_0" for turn in ran)
    told = {id for request in requests for id in unknown_in(request["body"]["messages"])}
    if set(begun.values()) != {1} or begun.keys() != results.keys():
        yield f"calls do not have one result each: {begun} {list(results)}"
    for id, result in results.items():
        most_often, least = 1, 0 if result.get("unknown") else 1
        if not least <= executed[id] <= most_often:
            yield f"{id} was executed {executed[id]} times; its result is {result['content']!r}"
        if bool(result.get("unknown")) != (id in told):
            yield f"{id}: the model was {'not ' if id not in told else ''}told that its outcome is unknown"


def unknown_in(messages: list[Record]) -> Iterator[str]:
    for block in itertools.chain.from_iterable(message["content"] for message in messages):
        if block["type"] == "tool_result" and block["content"] == conversation.UNKNOWN:
            yield block["tool_use_id"]


def script(tasks: int, folder: Path) -> dict[str, Any]:
    return {"scripts": [{"task": f"Task {n}.", "turns": steps(folder / f"ran-{n}")} for n in range(1, tasks + 1)]}


def steps(proof: Path) -> list[Record]:
    turns = []
    for turn, n in enumerate([*range(1, TURNS + 1), *[TURNS] * REPAIRS]):
        command = (
            f"echo {turn} >> {proof}; for i in $(seq {n}); do grep -qsx $i log || echo $i >> log; done; sleep 0.05"
        )
        turns.append({"say": f"Step {turn}.", "calls": [bash(command)], "delay": 0.05})
    return [*turns, {"say": DONE}]


def random_kills(scene: Scene, count: int, seed: int) -> list[Task]:
    """Tasks one after another, until so many kills are done; each combination as often as the others."""
    dice = random.Random(seed)
    order = [kinds for _ in range(-(-count // len(COMBINATIONS))) for kinds in dice.sample(COMBINATIONS, 7)][:count]
    scene.serve(script(count, scene.shell.cwd))
    tasks: list[Task] = []
    while order:
        task = Task(scene, len(tasks) + 1)
        tasks.append(task)
        while order and len(task.killed) < KILLS_A_TASK and task.kill(order[-1], dice.random() * 0.6):
            if task.killed[-1] == order[-1]:
                order.pop()
        task.check()
    return tasks


def main(argv: list[str]) -> int:
    """``agentkills builtin COUNT SEED [WITHOUT]``: one batch, for scripts/faults."""
    with tempfile.TemporaryDirectory(prefix="agentd-lab-") as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        for name in [name for name in os.environ if name.startswith(("GIT_", "AGENTD_", "XDG_"))]:
            patch.delenv(name)
        home = {"HOME": place, "AGENTD_STATE_DIR": f"{place}/state", "AGENTD_WITHOUT": argv[3] if argv[3:] else ""}
        for name, value in home.items():
            patch.setenv(name, value)
        (folder / ".gitconfig").write_text(GITCONFIG)
        for scene in scene_of(folder, patch):
            tasks = random_kills(scene, int(argv[1]), int(argv[2]))
            print(f"{sum(len(task.killed) for task in tasks)} kills of {argv[0]}, {len(tasks)} jobs, 0 forgiven")
            told = Counter("+".join(kinds) for task in tasks for kinds in task.killed)
            print(json.dumps(told), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
