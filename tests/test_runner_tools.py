"""The tools by themselves: real files, real programs; file tools never leave the worktree, whoever moves things."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import faultlab
import pytest

from agentd.runners import tools
from agentd.runners.tools.results import Bounded, Result, ToolError, bounded
from agentd.runners.tools.shell import Shell, environment_for_tools
from agentd.runners.tools.worktree import Worktree
from agentd.runners.tools.world import World

ALL = list(tools.TOOLS)
Use = Callable[..., Result]


async def no_answer(question: str, options: list[str]) -> str:
    return f"nobody answers {question}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "a.py").write_text("def one():\n    return 1\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret\n")
    return tree


@pytest.fixture
def use(tree: Path) -> Use:
    """One tool, in a world of its own."""

    def run(name: str, **input: Any) -> Result:
        async def once(world: World) -> Result:
            return await tools.run(world, ALL, name, input)

        return in_world(tree, once)

    return run


def in_world(tree: Path, work: Callable[[World], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        environment = environment_for_tools(dict(os.environ), "NO_KEY")
        world = World(Worktree(str(tree)), Shell(str(tree), environment), no_answer, lambda text: None)
        try:
            return await work(world)
        finally:
            await world.close(ends_commands=True)

    return asyncio.run(run())


# --- inside the worktree ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../outside/secret", "src/../../outside/secret", "link-out/secret", "link-secret"),
        *("link-up/outside/secret", "chain/secret", "src/../link-out/secret", "link-absolute/../../outside/secret"),
    ],
)
@pytest.mark.parametrize("tool", ["read", "write", "edit", "grep"])
def test_no_path_leads_out(tree: Path, use: Use, path: str, tool: str) -> None:
    outside = tree.parent / "outside"
    (tree / "link-out").symlink_to(outside)
    (tree / "link-secret").symlink_to("../outside/secret")
    (tree / "link-up").symlink_to("..")
    (tree / "chain").symlink_to("src/chain")
    (tree / "src" / "chain").symlink_to("../link-out")
    (tree / "link-absolute").symlink_to(tree / "src")
    more = {
        "read": {},
        "write": {"content": "x"},
        "edit": {"old": "secret", "new": "x"},
        "grep": {"pattern": "."},
    }[tool]
    done = use(tool, path=path, **more)
    assert done.is_error
    assert done.text == f"{path} is outside the worktree; file tools work inside it only"
    assert (outside / "secret").read_text() == "secret\n"
    assert os.listdir(outside) == ["secret"]


def test_links_that_stay_inside_are_followed(tree: Path, use: Use) -> None:
    (tree / "to-file").symlink_to("src/a.py")
    (tree / "to-folder").symlink_to(tree / "src")
    for path in ("to-file", "to-folder/a.py", f"{tree}/to-folder/../src/a.py", "src/../to-folder/./a.py"):
        assert use("read", path=path).text.startswith("def one")
    use("edit", path="to-file", old="1", new="2")
    assert (tree / "to-file").is_symlink() and "return 2" in (tree / "src" / "a.py").read_text()
    assert use("grep", pattern="return", path="to-folder").text == "to-folder/a.py:2:    return 2"


def test_links_in_a_circle(tree: Path, use: Use) -> None:
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    assert use("read", path="a").text == "cannot reach a: Too many levels of symbolic links"


def test_a_worktree_that_is_reached_through_a_link(tree: Path) -> None:
    link = tree.parent / "link"
    link.symlink_to(tree)

    async def read(world: World) -> Result:
        return await tools.run(world, ALL, "read", {"path": f"{link}/src/a.py"})

    assert in_world(link, read).text.startswith("def one")


def test_a_path_that_turns_into_a_link_while_it_is_walked(tree: Path) -> None:
    """A folder is swapped for a link to the outside and back, as fast as can be: never is the outside reached."""
    outside = tree.parent / "outside"
    (tree / "real").mkdir()
    (tree / "real" / "secret").write_text("harmless\n")
    (tree / "bad").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(tree / "real", tree / "kept")
            os.rename(tree / "bad", tree / "real")
            os.rename(tree / "real", tree / "bad")
            os.rename(tree / "kept", tree / "real")

    async def hammer(world: World) -> set[str]:
        seen = set()
        for _ in range(3000):
            seen.add((await tools.run(world, ALL, "read", {"path": "real/secret"})).text)
            seen.add((await tools.run(world, ALL, "edit", {"path": "real/secret", "old": "secret", "new": "x"})).text)
        return seen

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = in_world(tree, hammer)
    finally:
        over.set()
        swapper.join()
    assert "secret\n" not in seen
    assert (outside / "secret").read_text() == "secret\n" and os.listdir(outside) == ["secret"]
    assert {"harmless\n", "real/secret is outside the worktree; file tools work inside it only"} <= seen


def test_what_git_keeps_is_not_written(tree: Path, use: Use) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    (tree / "innocent").symlink_to(".git/hooks")
    for path in (".git/config", "innocent/pre-commit", "src/../.git/HEAD", f"{tree}/.git"):
        done = use("write", path=path, content="x")
        assert done.text == f"cannot write {path}: what git keeps is changed by git only"
    assert use("read", path=".git/HEAD").text.startswith("ref:")


@pytest.mark.parametrize("tool", ["read", "write", "edit"])
def test_a_fifo_does_not_hold_us(tree: Path, use: Use, tool: str) -> None:
    os.mkfifo(tree / "fifo")
    more = {"read": {}, "write": {"content": "x"}, "edit": {"old": "a", "new": "b"}}[tool]
    assert "no regular file" in use(tool, path="fifo", **more).text


def test_not_a_path(use: Use) -> None:
    assert use("read", path="").text == "not a path: ''"
    assert use("read", path="a\0b").is_error
    assert use("read", path="nowhere/x").text == "cannot reach nowhere/x: No such file or directory"
    assert use("read", path="src").text == "src is a folder; use glob, or ls in bash"
    assert use("write", path=".", content="").is_error


# --- read, write, edit --------------------------------------------------------------------------------------


def test_read_in_parts(tree: Path, use: Use) -> None:
    (tree / "long").write_text("".join(f"line {n}\n" for n in range(1, 10_001)))
    first = use("read", path="long").text
    assert first.startswith("line 1\n") and len(first) < 30_200
    last = int(first.splitlines()[-2].split()[1])
    assert first.endswith(f"[agentd: lines 1 to {last}; more follow, read on with offset {last + 1}]")
    assert use("read", path="long", offset=last + 1, limit=1).text.startswith(f"line {last + 1}\n[agentd")
    assert use("read", path="long", offset=10_000).text == "line 10000\n"
    assert use("read", path="long", offset=20_000).text == "long has 10000 lines: none from 20000 on"


def test_read_what_is_no_text(tree: Path, use: Use) -> None:
    (tree / "empty").write_text("")
    (tree / "binary").write_bytes(b"\x7fELF\0\1")
    (tree / "latin").write_bytes(b"caf\xe9\n")
    (tree / "one-line").write_bytes(b"x" * 1_000_000)
    assert use("read", path="empty").text == "empty is empty"
    assert use("read", path="binary").text == "binary is binary (6 bytes); look at it with a program, in bash"
    assert use("read", path="latin").text == "caf\ufffd\n"
    assert "bytes cut out here" in use("read", path="one-line").text


def test_write_keeps_the_mode(tree: Path, use: Use) -> None:
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o755)
    assert use("write", path="tool", content="#!/bin/sh\nexit\n").text == "overwritten: tool, 15 bytes"
    assert (tree / "tool").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(tree)) == ["src", "tool"]


def test_edit_wants_one_place(tree: Path, use: Use) -> None:
    file = tree / "f"
    file.write_text("a = 1\nb = 1\n\tc = 2\n")
    assert use("edit", path="f", old="= 1", new="= 3").text == (
        "`old` stands 2 times in f (lines 1, 2): give more of the text around the right one, or set `all`"
    )
    assert use("edit", path="f", old="  c = 2", new="").text == (
        "`old` is not in f: it differs in white space from lines 3 to 3, which are:\n\tc = 2"
    )
    assert use("edit", path="f", old="d", new="").text.startswith("`old` is not in f: read the file again")
    assert use("edit", path="f", old="", new="x").is_error and use("edit", path="f", old="a", new="a").is_error
    assert file.read_text() == "a = 1\nb = 1\n\tc = 2\n"
    assert use("edit", path="f", old="= 1", new="= 3", all=True).text == "changed: f, 2 places"
    assert use("edit", path="f", old="a = 3\nb", new="b").text == "changed: f, line 1"
    assert file.read_text() == "b = 3\n\tc = 2\n"


def test_edit_leaves_all_other_bytes(tree: Path, use: Use) -> None:
    (tree / "dos").write_bytes(b"one\r\ntwo\xe9\r\n")
    use("edit", path="dos", old="one\n", new="1\n2\n")
    assert (tree / "dos").read_bytes() == b"1\r\n2\r\ntwo\xe9\r\n"


# --- glob, grep ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_git", [True, False])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.py", {"src/a.py", "src/deep/c.py"}),
        ("src/*.py", {"src/a.py"}),
        ("src/**/*.py", {"src/a.py", "src/deep/c.py"}),
        ("**/*.{md,txt}", {"read.md", "src/deep/d.txt"}),
        ("src/[ab].py", {"src/a.py"}),
        ("src/[!a]*", set()),
        ("src/?.py", {"src/a.py"}),
        ("nothing*", set()),
    ],
)
def test_glob(tree: Path, use: Use, pattern: str, found: set[str], has_git: bool) -> None:
    if has_git:
        subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    (tree / "src" / "deep").mkdir()
    for name in ("read.md", "src/deep/c.py", "src/deep/d.txt"):
        (tree / name).write_text("x\n")
    (tree / "node_modules").mkdir()
    (tree / "node_modules" / "m.py").write_text("x\n")
    (tree / ".gitignore").write_text("node_modules\n")
    told = use("glob", pattern=pattern).text
    assert set(told.splitlines()) == (found or {f"no file matches {pattern}"})
    if pattern != "*.py":
        assert use("glob", pattern=f"{tree}/{pattern}").text == told


@pytest.mark.parametrize("program", ["rg", "grep"])
def test_grep(tree: Path, use: Use, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("grep", "git", program):
        if (there := shutil.which(name)) is None:
            pytest.skip(f"no {name}")
        if not (bin / name).exists():
            (bin / name).symlink_to(there)
    monkeypatch.setenv("PATH", str(bin))
    (tree / "src" / "b.txt").write_text("Return\n")
    assert use("grep", pattern="^ +return").text == "src/a.py:2:    return 1"
    lines = use("grep", pattern="return", ignore_case=True, path="src").text.splitlines()
    assert sorted(lines) == ["src/a.py:2:    return 1", "src/b.txt:1:Return"]
    assert use("grep", pattern="return", glob="*.txt").text == "no match"
    assert use("grep", pattern="one|two", path="src/a.py").text == "1:def one():"
    assert use("grep", pattern="--help").text == "no match"
    done = use("grep", pattern="(")
    assert done.is_error and done.text.startswith("cannot search for '(': ")


# --- bash ---------------------------------------------------------------------------------------------------


def commands(tree: Path, *inputs: dict[str, Any]) -> list[str]:
    async def run(world: World) -> list[str]:
        return [(await tools.run(world, ALL, "bash", input)).text for input in inputs]

    told: list[str] = in_world(tree, run)
    return told


def test_the_shell_lasts(tree: Path) -> None:
    told = commands(
        tree,
        {"command": "cd src; x='a  b'; export Y=$'1\n2'; f() { echo \"f $x\"; }; list=(1 '2 3'); alias hi='echo hi'"},
        {"command": 'pwd; echo "$x"; f; echo "${list[1]}"; sh -c \'echo "$Y"\'; shopt -s nullglob; hi'},
        {"command": "set -e; echo *.none; exit 4"},
        {"command": "echo still here; false; echo not reached"},
        {"command": "set +e; kill -9 $$"},
        {"command": "false; echo in $PWD; unset x; cd /; rmdir nowhere"},
        {"command": "echo x=$x $PWD"},
    )
    assert told == [
        "(no output)",
        f"{tree}/src\na  b\nf a  b\n2 3\n1\n2\nhi",
        "[agentd: exit code 4]",
        "still here\n[agentd: exit code 1]",
        "[agentd: ended by signal 9]",
        "[agentd: exit code 1]",  # what was killed changed nothing: `set -e` still holds
        f"x=a b {tree}/src",
    ]


def test_a_heredoc_and_a_large_command(tree: Path) -> None:
    large = "x" * 300_000
    told = commands(tree, {"command": f"cat > big <<'EOF'\n{large}\nEOF\nwc -c < big"}, {"command": "if"})
    assert told[0] == "300001"
    assert "syntax error" in told[1]


def test_nobody_answers_on_standard_input(tree: Path) -> None:
    assert commands(tree, {"command": "read x; echo [$x]; cat"}) == ["[]"]


def test_a_command_that_meets_its_time_limit_goes_on(tree: Path) -> None:
    os.mkfifo(tree / "door")
    slow, more, again, gone = commands(
        tree,
        {"command": "echo one; read x < door; echo two; exit 3", "timeout": 1},
        {"command": "echo > door"},
        {"id": "b1", "timeout": 30},
        {"id": "b1"},
    )
    assert slow.startswith("one\n") and "still running after 1 s; it goes on in the background as b1" in slow
    assert more == "(no output)"
    assert again.startswith("two\n")
    assert "[agentd: b1 has ended, exit code 3]" in again + gone


def test_in_the_background(tree: Path) -> None:
    started, shell, read, ended = commands(
        tree,
        {"command": "x=1; echo up; exec sleep 1000", "background": True},
        {"command": "echo [$x]"},
        {"id": "b1", "timeout": 10},
        {"id": "b1", "kill": True},
    )
    assert started == "It runs in the background as b1."
    assert shell == "[]"
    assert read == "up\n\n[agentd: b1 is still running]"
    assert ended == "\n[agentd: b1 has ended, ended by signal 15]"


def test_what_a_command_leaves_running_is_named(tree: Path) -> None:
    told = commands(tree, {"command": "(trap '' TERM; echo up; sleep 1000) & sleep 0.2"}, {"id": "b1", "kill": True})
    assert told[0] == "up\n[agentd: something it started goes on in the background as b1]"
    assert told[1].endswith("[agentd: b1 has ended, exit code 0]")


def test_output_without_end_does_not_hold_us(tree: Path) -> None:
    (told,) = commands(tree, {"command": "timeout 1 yes"})
    assert "bytes cut out here; write it to a file" in told and told.endswith("[agentd: exit code 124]")
    assert len(told) < 31_000


def test_nothing_is_left_running(tree: Path) -> None:
    (told,) = commands(tree, {"command": "sleep 1000 & echo $!"})
    pid = told.split()[0]
    faultlab.until(lambda: faultlab.state_of(int(pid)) in ("", "Z"))


# --- what tools give back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[10], [100], [101], [30, 40, 50], [1] * 250, [1000], [99, 1, 1, 500]])
def test_bounded_keeps_both_ends(sizes: list[int]) -> None:
    whole = b"".join(bytes([65 + n % 26]) * size for n, size in enumerate(sizes))
    kept = Bounded(100)
    at = 0
    for size in sizes:
        kept.add(whole[at : at + size])
        at += size
    if len(whole) <= 100:
        assert kept.text() == whole.decode()
    else:
        head, tail = whole[:50].decode(), whole[-50:].decode()
        assert kept.text("m") == f"{head}\n[agentd: {len(whole) - 100} of {len(whole)} bytes cut out here; m]\n{tail}"


def test_bounded_cuts_no_letter_in_half() -> None:
    assert "\ufffd" not in bounded("\u20ac".encode() * 1000, limit=100)


def test_the_key_is_taken_from_the_environment_of_tools() -> None:
    given = {"PATH": "/bin", "MY_KEY": "k", "ANTHROPIC_API_KEY": "k", "ANTHROPIC_CUSTOM_HEADERS": "k"}
    assert "k" not in environment_for_tools(given, "MY_KEY").values()


def test_a_tool_never_raises(tree: Path) -> None:
    async def fail(world: World, input: dict[str, Any]) -> Result:
        raise ToolError("a sentence")

    async def run(world: World) -> Result:
        tools.TOOLS["broken"] = tools.Tool("", {}, (), fail)
        try:
            return await tools.run(world, ["broken"], "broken", {})
        finally:
            del tools.TOOLS["broken"]

    assert in_world(tree, run) == Result("a sentence", True)


def test_what_does_not_heed_a_signal_is_killed_when_it_is_interrupted(tree: Path) -> None:
    os.mkfifo(tree / "door")

    async def interrupt(world: World) -> Result:
        command = "trap '' TERM; echo $$; echo up > door; while :; do sleep 0.1; done"
        task = asyncio.ensure_future(tools.run(world, ALL, "bash", {"command": command}))
        await asyncio.to_thread((tree / "door").read_text)
        task.cancel()
        return await task

    done = in_world(tree, interrupt)
    pid, *_ = done.text.split()
    assert done.text.endswith("[agentd: interrupted; the command was ended]")
    assert not Path(f"/proc/{pid}").exists()
