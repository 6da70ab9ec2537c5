"""kill -9 of the runner at any moment: the task ends right, no answer is paid for again, nothing runs twice."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from runnerlab import DONE, KEY, Door, Lab, Record, Run, bash, prefix_is_kept, until

from agentd import process
from agentd.runners import conversation, transcript

TURNS = 30
KILLS = 100 if os.environ.get("AGENTD_LONG") else 24


def script() -> list[Record]:
    """Each step does what is its own, and first what is missing: what a model does that is told "unknown: look"."""
    steps = []
    for n in range(1, TURNS + 1):
        command = (
            f"echo {n} >> ran; for i in $(seq {n}); do grep -qsx $i log || echo $i >> log; done;"
            f"sleep 0.0{n % 3}; echo did {n}"
        )
        calls = [{"tool": "bash", "input": {"command": command}}]
        if n % 5 == 0:
            calls.append({"tool": "write", "input": {"path": f"part{n}", "content": str(n)}})
        steps.append({"say": f"Step {n}.", "calls": calls, "delay": 0.002 * (n % 4)})
    return [*steps, {"say": "All steps are done."}]


def sweep(nonce: str) -> None:
    """What the keeper does when the runner is dead: nothing that it started goes on."""

    def all_gone() -> bool:
        alive = [pid for pid in process.marked(nonce, 0, "") if not process.is_zombie(pid)]
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not alive

    until(all_gone)


def live_through(lab: Lab, dice: random.Random, task: str, kills: int) -> tuple[list[Run], int]:
    """The attempts at a task, each but the last killed, until it is done or so many kills are used up."""
    attempts: list[Run] = []
    done = 0
    while True:
        nonce = f"{task}-{len(attempts)}"
        resume = f"{attempts[-1].path}/transcript.ndjson" if attempts else None
        attempts.append(lab.start(task, resume=resume, environment={"AGENTD_NONCE": nonce}))
        run = attempts[-1]
        if done < kills:
            threading.Event().wait(dice.random() ** 2 * 0.4)
            os.kill(run.pid, signal.SIGKILL)
        code = run.wait()
        sweep(nonce)
        if code != 128 + signal.SIGKILL:
            assert code == 0, run.stderr()
            return attempts, done
        done += 1


def check(lab: Lab, task: str, attempts: list[Run], kills: int) -> None:
    records = [record for run in attempts for record in run.records()]
    answers = [record["id"] for record in records if record["type"] == "assistant"]
    assert answers == [f"script_{n}" for n in range(TURNS + 1)], "each answer is recorded once, in order"

    requests = [request for request in lab.requests() if request["task"].startswith(task + "\n")]
    repeated = len(requests) - (TURNS + 1)
    assert 0 <= repeated <= kills
    last_of_each_turn = list({request["turn"]: request for request in requests}.values())
    assert len(last_of_each_turn) == TURNS + 1
    assert prefix_is_kept(last_of_each_turn)

    started = Counter(record["id"] for record in records if record["type"] == "call")
    ended = Counter(record["id"] for record in records if record["type"] == "result")
    assert set(started.values()) == set(ended.values()) == {1} and started.keys() == ended.keys()
    unknown = {record["id"] for record in records if record.get("unknown")}
    assert len(unknown) <= kills

    ran = (lab.worktree / "ran").read_text().split()
    assert len(ran) == len(set(ran)), "no call was run twice"
    missing = {str(n) for n in range(1, TURNS + 1)} - set(ran)
    assert missing <= {str(int(id.split("_")[1]) + 1) for id in unknown}, "what was not run is told as unknown"
    assert (lab.worktree / "log").read_text().split() == [str(n) for n in range(1, TURNS + 1)]
    assert attempts[-1].end()["text"] == "All steps are done."


@pytest.mark.timeout(900)
def test_killed_at_any_moment(lab: Lab) -> None:
    dice = random.Random(int(os.environ.get("AGENTD_SEED", "7")))
    lab.serve(script())
    kills, tasks, repeated, unknown = 0, 0, 0, 0
    while kills < KILLS:
        for name in ("ran", "log"):
            (lab.worktree / name).unlink(missing_ok=True)
        task = f"task-{tasks}"
        attempts, done = live_through(lab, dice, task, min(KILLS - kills, KILLS // 3 + 1))
        check(lab, task, attempts, done)
        kills += done
        tasks += 1
        records = [record for run in attempts for record in run.records()]
        repeated += sum(record["type"] == "request" for record in records) - (TURNS + 1)
        unknown += sum(bool(record.get("unknown")) for record in records)
    print(f"{kills} kills in {tasks} tasks: {repeated} requests begun again, {unknown} calls told as unknown")


# --- single moments, forced ---------------------------------------------------------------------------------


def cut_after(run: Run, kind: str, count: int = 1, torn: bytes = b"") -> None:
    """The transcript as a kill right after its n-th record of a kind leaves it, or with a torn line after that."""
    file = run.path / "transcript.ndjson"
    kept, seen = [], 0
    for line in file.read_bytes().splitlines(keepends=True):
        kept.append(line)
        seen += json.loads(line)["type"] == kind
        if seen == count:
            break
    file.write_bytes(b"".join(kept) + torn)


TWO_CALLS = [
    {"calls": [{"tool": "bash", "input": {"command": f"echo {n} >> log; echo {n}"}} for n in (1, 2)]},
    {"say": "Done."},
]


@pytest.mark.parametrize("torn", [b"", b'{"type":"resu', b"\0" * 100], ids=["whole", "torn", "zeros"])
def test_a_call_without_a_result_is_unknown_and_one_not_begun_is_run(lab: Lab, torn: bytes) -> None:
    run = lab.play(TWO_CALLS)
    cut_after(run, "call", torn=torn)
    (lab.worktree / "log").write_text("1\n")
    again = run.resumed()
    assert again.wait() == 0
    assert again.results() == [conversation.UNKNOWN, "2"]
    assert (lab.worktree / "log").read_text() == "1\n2\n"
    assert len(lab.requests()) == 3  # the second of the first run was taken back by the cut
    first, second, notice = lab.requests()[-1]["body"]["messages"][-1]["content"]
    assert first["is_error"] and first["tool_use_id"] == "toolu_0_0" and second["content"] == "2"
    assert notice["text"].startswith("[agentd] You were stopped and go on now.")


def test_killed_between_the_last_answer_and_the_end(lab: Lab) -> None:
    run = lab.play([{"say": "Done."}])
    cut_after(run, "assistant")
    again = run.resumed()
    assert (again.wait(), again.end()["text"]) == (0, "Done.")
    assert len(lab.requests()) == 1


def test_one_that_had_given_up_is_given_another_try(lab: Lab) -> None:
    run = lab.play([{"say": "Done.", "fault": "cut", "times": 6}])
    assert run.code == 1
    again = run.resumed()
    assert again.wait() == 0
    assert len(lab.requests()) == 7


def test_killed_before_the_first_record_of_a_later_attempt(lab: Lab) -> None:
    run = lab.play(TWO_CALLS)
    cut_after(run, "result", 2)
    second = run.resumed()
    second.wait()
    (second.path / "transcript.ndjson").unlink()
    third = second.resumed()
    assert third.wait() == 0
    assert len(lab.requests()[-1]["body"]["messages"]) == 3
    assert (lab.worktree / "log").read_text() == "1\n2\n"


def test_the_next_writer_cuts_a_torn_line_off(tmp_path: Path) -> None:
    file = tmp_path / "transcript.ndjson"
    file.write_bytes(b'{"type":"note","text":"one"}\n' + b'{"type":"note","te' * 10000)
    assert [record["text"] for record in transcript.read(str(file))] == ["one"]
    writer = transcript.Transcript(str(file))
    writer.write("note", text="two")
    writer.close()
    assert [record["text"] for record in transcript.read(str(file))] == ["one", "two"]


FOREIGN = [
    b"{nonsense",
    b"\0" * 5000,
    b"[" * 100_000,
    b"[]",
    b"7",
    b'{"no": "type"}',
    b'{"type": ["note"]}',
    b'{"type": "start"}',
    b'{"type": "user"}',
    b'{"type": "assistant", "content": [{}], "usage": {}, "stop": "end_turn"}',
    b'{"type": "assistant", "content": [{"type": "tool_use"}], "usage": {}, "stop": "tool_use"}',
    b'{"type": "assistant", "content": [{"type": "text", "text": 5}], "usage": {}, "stop": "end_turn"}',
    b'{"type": "assistant", "content": [{"type": "text", "text": "x"}], "usage": {"output_tokens": []}, "stop": null}',
    b'{"type": "call", "id": "none"}',
    b'{"type": "result", "id": "none", "content": "x", "error": false}',
    b'{"type": "consumed", "n": 1, "sent": 1.0}',
    b'{"type": "consumed", "n": [], "sent": 1.0}',
    b'{"type": "compacted", "messages": [5]}',
    b'{"type": "something new", "in": "a later version"}',
]


@pytest.mark.parametrize("place", [0, 1, 3, 6])
def test_what_is_no_record_is_left_out_and_the_rest_is_gone_on_from(lab: Lab, place: int) -> None:
    run = lab.play(TWO_CALLS)
    cut_after(run, "result", 2)
    file = run.path / "transcript.ndjson"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"".join(line + b"\n" for line in [*lines[:place], *FOREIGN, *lines[place:]]))
    again = run.resumed()
    assert (again.wait(), again.end()["text"]) == (0, "Done."), again.stderr()
    told = f"{len(FOREIGN) - 1} lines, from line {place + 1} on"
    assert again.stderr() == f"agentd: left out of {file} what is no record of a run: {told}\n"
    _, before, after = (request["body"]["messages"] for request in lab.requests())
    notice = after[-1]["content"].pop()
    assert after == before and notice["text"].startswith("[agentd] You were stopped and go on now.")
    assert (lab.worktree / "log").read_text() == "1\n2\n"


LOST = ["start", "request", "assistant", "call", "result"]


@pytest.mark.parametrize("kind", LOST)
def test_a_record_that_was_destroyed_leaves_a_conversation_that_a_server_takes(lab: Lab, kind: str) -> None:
    run = lab.play([bash("echo one"), bash("echo two"), DONE])
    cut_after(run, "result", 2)
    file = run.path / "transcript.ndjson"
    lines = file.read_bytes().splitlines(keepends=True)
    destroyed = next(number for number, line in enumerate(lines) if json.loads(line)["type"] == kind)
    lines[destroyed] = b"\0" * (len(lines[destroyed]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    again = run.resumed()
    assert again.wait() == 0, again.stderr()
    told = f"3 lines, from line {destroyed + 1} on" if kind == "assistant" else f"line {destroyed + 1}"
    assert again.stderr() == f"agentd: left out of {file} what is no record of a run: {told}\n"
    messages = lab.requests()[-1]["body"]["messages"]
    assert messages[0]["role"] == "user"
    for one, two in itertools.pairwise(messages):
        called = [block["id"] for block in one["content"] if block["type"] == "tool_use"]
        answered = [block["tool_use_id"] for block in two["content"] if block["type"] == "tool_result"]
        assert called == answered


def test_a_command_that_writes_into_the_transcript_spoils_none_of_its_records(lab: Lab) -> None:
    lab.serve([bash("printf junk >> ../attempts/0/transcript.ndjson; echo one"), DONE])
    run = lab.start()
    assert run.wait() == 0
    lines = (run.path / "transcript.ndjson").read_bytes().splitlines()
    assert lines.count(b"junk") == 1
    assert run.results() == ["one"] and run.end()["text"] == "Done."


def test_of_two_runners_of_one_attempt_the_second_does_nothing(lab: Lab) -> None:
    door = Door(lab)
    lab.serve([bash(door.command), DONE])
    run = lab.start()
    door.until_reached()
    before = (run.path / "transcript.ndjson").read_bytes()
    second = Run(lab, run.path, run.spec, {"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": KEY})
    assert second.wait() == 1
    assert "transcript.ndjson: another runner of this attempt does" in second.stderr()
    assert (run.path / "transcript.ndjson").read_bytes() == before
    door.open()
    assert run.wait() == 0 and len(lab.requests()) == 2


def test_a_full_disk_is_waited_for_and_tears_no_record(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small tmpfs here: that needs root")
    try:
        program = (
            "import sys; from agentd.runners.transcript import Transcript; t = Transcript(sys.argv[1])\n"
            "for n in range(20): t.write('note', text=str(n) * 5000)"
        )
        file = small / "transcript.ndjson"
        filler = small / "filler"
        filler.write_bytes(b"x" * 40_000)
        argv = [sys.executable, "-c", program, str(file)]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as writer:
            assert writer.stderr is not None
            assert writer.stderr.readline().startswith("agentd: cannot write the transcript: the disk is full")
            whole = len(list(transcript.read(str(file))))
            assert 0 < whole < 20 and file.read_bytes().endswith(b"\n")
            subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
            assert writer.wait(60) == 0
        assert [record["text"][0] for record in transcript.read(str(file))] == [str(n)[0] for n in range(20)]
    finally:
        subprocess.run(["umount", small], check=True)
