"""The built-in agent's runner from task to report. Real processes, the real SDK, a script for a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runnerlab import DONE, KEY, Lab, Record, bash, call, prefix_is_kept, texts

from agentd import jobdir
from agentd.runners.conversation import Conversation

EVERY_TOOL = [
    {"say": "I look around.", "calls": [call("glob", pattern="*.py"), call("grep", pattern="def (\\w+)", path="src")]},
    {"calls": [call("read", path="src/a.py"), call("note", text="1. mend a.py")]},
    {
        "calls": [
            call("edit", path="src/a.py", old="return 1", new="return 2"),
            call("write", path="new/b.py", content="b"),
        ]
    },
    {
        "calls": [
            call("bash", command="python3 -c 'import src.a; print(src.a.one())'; cd new"),
            call("bash", command="pwd"),
        ]
    },
    {"say": "Mended: `one` returns 2."},
]


def test_a_task_with_every_tool(lab: Lab) -> None:
    (lab.worktree / "src").mkdir()
    (lab.worktree / "src" / "a.py").write_text("def one():\n    return 1\n")
    (lab.worktree / "AGENTS.md").write_text("Write short code.\n")
    run = lab.play(EVERY_TOOL, "mend a.py")
    assert run.code == 0
    assert run.end() | {"at": 0} == {
        "type": "end",
        "at": 0,
        "outcome": "done",
        "code": 0,
        "text": "Mended: `one` returns 2.",
    }
    assert run.results() == [
        "src/a.py",
        "src/a.py:1:def one():",
        "def one():\n    return 1\n",
        "noted",
        "changed: src/a.py, line 2",
        "made: new/b.py, 1 bytes",
        "2",
        f"{lab.worktree}/new",
    ]
    assert run.stderr() == "" and (run.path / "stdout").read_text() == ""
    assert [record["text"] for record in run.records("note")] == ["1. mend a.py"]


def test_what_is_sent(lab: Lab) -> None:
    (lab.worktree / "AGENTS.md").write_text("Write short code.\n")
    (lab.worktree / "CLAUDE.md").write_text("@AGENTS.md\n")
    lab.play([bash("echo 1"), bash("echo 2"), DONE], "mend a.py", profile={"system": "Be brief.", "effort": "high"})
    requests = lab.requests()
    first = requests[0]["body"]
    assert requests[0]["bytes"] < 8000
    assert [block["text"] for block in first["system"]][1:] == [
        "Be brief.",
        "The repository's guidance, AGENTS.md:\nWrite short code.",
    ]
    assert first["system"][-1]["cache_control"] == first["cache_control"] == {"type": "ephemeral"}
    assert texts(first["messages"][0]) == [f"mend a.py\n\n(Your worktree, where the shell starts: {lab.worktree})"]
    assert first["output_config"] == {"effort": "high"}
    assert str(lab.worktree) not in json.dumps([first["system"], first["tools"]])
    assert prefix_is_kept(requests)
    assert all(request["key"] for request in requests)


def test_what_is_read_back_is_what_was_sent(lab: Lab) -> None:
    run = lab.play([*EVERY_TOOL[:-1], {"say": "It begins", "stop": "max_tokens"}, DONE])
    state = Conversation()
    for record in run.records():
        state.apply(record)
    assert state.messages[:-1] == lab.requests()[-1]["body"]["messages"]
    assert (state.turns, state.calls, state.pending) == (6, {}, {})


def test_what_the_model_thought_goes_back_as_it_came(lab: Lab) -> None:
    run = lab.play([{**bash("echo 1"), "think": "Let me see. " * 20}, DONE], profile={"thinking": "adaptive"})
    assert run.code == 0
    first, second = lab.requests()
    assert first["body"]["thinking"] == {"type": "adaptive"}
    thought = {"type": "thinking", "thinking": "Let me see. " * 20, "signature": "signed by the script, 0"}
    assert second["body"]["messages"][1]["content"][0] == thought


def test_only_the_tools_that_are_allowed(lab: Lab) -> None:
    run = lab.play([{"calls": [call("bash", command="touch no")]}, DONE], profile={"tools": ["read", "glob"]})
    assert [tool["name"] for tool in lab.requests()[0]["body"]["tools"]] == ["read", "glob"]
    assert run.results() == ["there is no tool bash; there are: read, glob"]
    assert not (lab.worktree / "no").exists()


def test_eight_tasks_at_once_with_two_models(lab: Lab) -> None:
    scripts = [
        {"task": f"task {n};", "turns": [bash(f"echo {n} > f{n}; cat f{n}"), {"say": f"{n} is done."}]}
        for n in range(8)
    ]
    lab.serve({"scripts": scripts})
    runs = [lab.start(f"task {n};", profile={"model": f"script-{n % 2}"}) for n in range(8)]
    assert [run.wait() for run in runs] == [0] * 8
    assert [run.end()["text"] for run in runs] == [f"{n} is done." for n in range(8)]
    assert [run.results() for run in runs] == [[f"{n}"] for n in range(8)]
    models = {(request["task"][:7], request["body"]["model"]) for request in lab.requests()}
    assert models == {(f"task {n};", f"script-{n % 2}") for n in range(8)}


def test_tried_by_itself(lab: Lab) -> None:
    lab.serve([bash("echo hello"), DONE])
    path = lab.tmp_path / "by-itself"
    path.mkdir()
    profile = {"model": "script-1"}
    spec = {"task": "do it", "worktree": str(lab.worktree), "limits_asked": False, "profile": profile}
    jobdir.write(str(path), "spec.json", spec)
    environment = {**os.environ, "ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": lab.servers[0].url}
    argv = [sys.executable, "-m", "agentd.runners.builtin", str(path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(lab.requests()) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": {"ANTHROPIC_API_KEY": ""}}, "there is no key in the environment variable ANTHROPIC_API_KEY"),
        ({"profile": {"key_env": "OTHER"}}, "there is no key in the environment variable OTHER"),
        ({"profile": {"key_file": "/nowhere"}}, "cannot read the key from /nowhere: No such file or directory"),
        ({"environment": {"ANTHROPIC_API_KEY": "k\u00e9y"}}, "a key with characters that no header can hold"),
        ({"profile": {"model": ""}}, "cannot ask a model: the profile names none"),
        ({"profile": {"endpoint": "localhost:80"}}, "its endpoint 'localhost:80' is no address such as https://host"),
        (
            {"environment": {"HTTP_PROXY": "nonsense://x"}},
            "cannot ask the model: the proxy in HTTP_PROXY cannot be used: ",
        ),
        ({"environment": {"all_proxy": "socks5://x"}}, "cannot ask the model: the proxy in all_proxy cannot be used: "),
        ({"profile": {"endpoint": "http://[x"}}, "its endpoint 'http://[x' is no address such as https://host"),
    ],
)
def test_it_cannot_begin(lab: Lab, changes: Record, said: str) -> None:
    run = lab.play([DONE], **changes)
    assert run.code == 1
    assert said in run.stderr() and run.stderr().count("\n") == 1
    assert said in run.end()["text"]
    assert lab.requests() == []


def test_the_key_is_nowhere(lab: Lab) -> None:
    look = "env; cat /proc/self/environ /proc/$PPID/environ /proc/$PPID/cmdline | tr '\\0' '\\n'; set"
    lab.serve([bash(look), bash(look, background=True), {"calls": [call("bash", id="b1")]}, DONE])
    run = lab.start(environment={"OTHER": KEY}, profile={"key_env": "OTHER"})
    assert run.wait() == 0
    assert any("PAGER=cat" in result for result in run.results())
    for folder, _, names in os.walk(lab.tmp_path):
        for name in names:
            if Path(folder, name).is_file():
                assert KEY.encode() not in Path(folder, name).read_bytes(), name
    (request, *_) = lab.requests()
    assert request["key"]


def test_the_key_in_the_words_of_the_server_is_masked(lab: Lab) -> None:
    run = lab.play([{"fault": "401", "message": f"invalid key {KEY}"}])
    assert run.code == 1
    assert run.end()["text"] == "the model server rejects the request: 401 invalid key [key]"
    assert KEY not in run.stderr()


def test_no_worktree(lab: Lab) -> None:
    lab.serve([DONE])
    path = lab.tmp_path / "by-itself"
    path.mkdir()
    spec = {"task": "do it", "worktree": "/nowhere", "profile": {"model": "m"}}
    argv = [sys.executable, "-c", "import sys, json; from agentd.runners import builtin\n"
            "sys.exit(builtin.main(sys.argv[1], json.loads(sys.argv[2])))", str(path), json.dumps(spec)]  # fmt: skip
    environment = {**os.environ, "ANTHROPIC_API_KEY": KEY}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "agentd: cannot work in /nowhere: No such file or directory\n")


def test_what_a_command_starts_holds_what_the_keeper_gave(lab: Lab) -> None:
    """The keeper tells by a lock on an inherited descriptor whether anything of the agent lives."""
    lab.serve([bash("ls -l /proc/self/fd"), DONE])
    run = lab.start(inherited=str(lab.tmp_path / "life.lock"))
    assert run.wait() == 0
    assert "life.lock" in run.results()[0]
    assert "socket:" not in run.results()[0]


def test_the_key_from_a_file(lab: Lab) -> None:
    file = lab.tmp_path.parent / f"{lab.tmp_path.name}-key"
    file.write_text(f"{KEY}\n")
    run = lab.play([DONE], profile={"key_file": str(file)}, environment={"ANTHROPIC_API_KEY": ""})
    assert run.code == 0
    assert lab.requests()[0]["key"]
