"""What a job can put in the place of a file: nothing of ours waits at a pipe, or reads a device or what has no end."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from gitrepo import WORDS, make, make_repo, plan_for, write

from agentd import config, files, jobdir
from agentd.core.errors import AgentdError, Refused, Usage
from agentd.git import fingerprint, worktree
from agentd.git.plan import digest
from agentd.git.repository import settle
from agentd.git.snapshot import snapshot_calling_tree, snapshot_job
from agentd.git.worktree import Plan

T = TypeVar("T")


def in_time(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises; it fails, and does not hang the tests, if it blocks."""
    ended: list[Callable[[], T]] = []

    def run() -> None:
        try:
            result = call()
            ended.append(lambda: result)
        except BaseException as error:
            caught = error

            def again() -> T:
                raise caught

            ended.append(again)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ended, "it blocks"
    return ended[0]()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dead_socket(path: Path) -> None:
    jobdir.listen(str(path)).close()


def device(path: Path) -> None:
    os.symlink("/dev/zero", path)


@pytest.mark.parametrize(("put", "what"), [(pipe, "named pipe"), (dead_socket, "socket"), (device, "device")])
def test_only_files_are_read(tmp_path: Path, put: Callable[[Path], None], what: str) -> None:
    path = tmp_path / "f"
    put(path)
    for call in (files.open_file, files.read_file):
        with pytest.raises(OSError, match=f"it is a {what}, not a file") as refusal:
            in_time(lambda call=call: call(str(path)))  # type: ignore[misc]
        assert refusal.value.errno == errno.EINVAL
    assert files.kind(str(path), follow=True) == what


def test_never_more_than_was_said(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(50 << 30)
    with pytest.raises(OSError, match="it has more than 1,000 bytes"):
        files.read_file(str(tmp_path / "huge"), 1000)
    assert jobdir.read(str(tmp_path), "huge") is None


def test_a_link_is_followed_unless_it_must_not_be(tmp_path: Path) -> None:
    write(tmp_path / "f", "x")
    os.symlink("f", tmp_path / "link")
    assert files.read_file(str(tmp_path / "link")) == b"x"
    with pytest.raises(OSError) as refusal:
        files.read_file(str(tmp_path / "link"), follow=False)
    assert refusal.value.errno == errno.ELOOP
    with pytest.raises(OSError):
        files.write_over(str(tmp_path / "link"), b"y")
    files.write_over(str(tmp_path / "f"), b"")
    assert (tmp_path / "f").read_bytes() == b""


def test_a_pipe_in_the_place_of_a_record_is_no_record(tmp_path: Path) -> None:
    pipe(tmp_path / "spec.json")
    assert in_time(lambda: jobdir.read(str(tmp_path), "spec.json")) is None
    pipe(tmp_path / f".end.json.{os.getpid()}")
    with pytest.raises(OSError):
        in_time(lambda: jobdir.write(str(tmp_path), "end.json", {}))
    jobdir.write(str(tmp_path), "end.json", {"a": 1})
    assert jobdir.read(str(tmp_path), "end.json") == {"a": 1}


def test_a_pipe_in_the_place_of_settings(tmp_path: Path) -> None:
    pipe(tmp_path / "agentd.toml")
    with pytest.raises(Usage, match=r"cannot read .*: it is a named pipe, not a file"):
        in_time(lambda: config.load(str(tmp_path / "agentd.toml")))
    assert config.load("/dev/null") == config.Config()


# In a repository


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_for(make_repo(tmp_path / "r"), tmp_path)


def test_what_is_no_file_has_its_kind_for_a_digest(tmp_path: Path) -> None:
    pipe(tmp_path / "p")
    dead_socket(tmp_path / "s")
    device(tmp_path / "d")
    found = [in_time(lambda name=name: digest(str(tmp_path / name))) for name in "psd"]  # type: ignore[misc]
    assert found == ["kind:named pipe", "kind:socket", "link:/dev/zero"]


@pytest.mark.parametrize("where", ["p", "node_modules/p", "src/__pycache__/p", "src/f0.txt"])
def test_a_pipe_is_work_and_blocks_nothing(plan: Plan, tmp_path: Path, where: str) -> None:
    admin = make(plan)
    path = Path(plan.path, where)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    pipe(path)
    assert in_time(lambda: worktree.remove_unchanged(plan, admin, {})) == f"{where} is new or changed"
    in_time(lambda: snapshot_job(plan, admin, WORDS))
    entry = in_time(lambda: worktree.to_trash(plan, admin, str(tmp_path / "trash"), {})).entry
    in_time(lambda: worktree.restore(entry))
    assert path.is_fifo()


@pytest.mark.parametrize("name", [".gitignore", "src/.gitattributes"])
@pytest.mark.parametrize("put", [pipe, device])
def test_git_is_not_led_to_a_pipe_in_the_tree(plan: Plan, name: str, put: Callable[[Path], None]) -> None:
    admin = make(plan)
    Path(plan.path, name).unlink(missing_ok=True)
    put(Path(plan.path, name))
    assert in_time(lambda: worktree.remove_unchanged(plan, admin, {})) is not None
    with pytest.raises(Refused, match=r"cannot run git there: .*\.git.* is a .*, not a file; remove it"):
        in_time(lambda: snapshot_job(plan, admin, WORDS))


@pytest.mark.parametrize("name", ["config", "config.worktree", "info/exclude", "packed-refs", "HEAD"])
def test_git_is_not_led_to_a_pipe_in_the_repository(plan: Plan, name: str) -> None:
    admin = make(plan)
    Path(plan.repo.common, name).unlink(missing_ok=True)
    pipe(Path(plan.repo.common, name))
    assert in_time(lambda: worktree.remove_unchanged(plan, admin, {})) is not None
    for call in (lambda: fingerprint.fingerprint(plan.repo.common), lambda: snapshot_job(plan, admin, WORDS)):
        with pytest.raises(AgentdError, match="is a named pipe, not a file; remove it"):
            in_time(call)  # type: ignore[arg-type]


@pytest.mark.parametrize("inside", ["a worktree", "the main tree"])
@pytest.mark.parametrize("name", ["config", "HEAD", "packed-refs"])
def test_nobody_who_delegates_is_held_up(plan: Plan, name: str, inside: str) -> None:
    make(plan)
    Path(plan.repo.common, name).unlink(missing_ok=True)
    pipe(Path(plan.repo.common, name))
    cwd = f"{plan.path if inside == 'a worktree' else plan.repo.top}/src"
    with pytest.raises(Refused, match="is a named pipe, not a file; remove it"):
        in_time(lambda: settle(cwd, None))


def test_changes_are_not_taken_along_with_a_pipe(plan: Plan) -> None:
    pipe(Path(str(plan.repo.top), "src", ".gitignore"))
    with pytest.raises(Refused, match=r"src/\.gitignore is a named pipe, not a file; remove it"):
        in_time(lambda: snapshot_calling_tree(plan.repo, 7))


@pytest.mark.parametrize("name", ["index", "logs/HEAD", "commondir", "gitdir", "HEAD"])
@pytest.mark.parametrize("put", [pipe, device])
def test_a_git_folder_with_a_pipe_is_kept(plan: Plan, name: str, put: Callable[[Path], None]) -> None:
    admin = make(plan)
    path = Path(plan.repo.common, "worktrees", admin, name)
    path.unlink()
    put(path)
    assert in_time(lambda: worktree.remove_unchanged(plan, admin, {})) is not None
    with pytest.raises((AgentdError, OSError)):
        in_time(lambda: snapshot_job(plan, admin, WORDS))
    assert os.path.isfile(f"{plan.path}/src/f0.txt")


def test_a_hook_that_is_a_pipe_is_told(plan: Plan) -> None:
    before = fingerprint.fingerprint(plan.repo.common)
    pipe(Path(plan.repo.common, "hooks", "pre-commit"))
    after = in_time(lambda: fingerprint.fingerprint(plan.repo.common))
    assert fingerprint.changes(before, after, plan.branch) == ["hook pre-commit appeared"]


def test_a_pipe_among_what_is_to_be_copied(plan: Plan) -> None:
    top = str(plan.repo.top)
    write(f"{top}/.worktreeinclude", "*.db\n")
    write(f"{top}/a.db", "x")
    pipe(Path(top, "b.db"))
    admin = make(plan)
    assert in_time(lambda: worktree.fill(plan, admin, top)).copied == ("a.db",)
    os.unlink(f"{top}/.worktreeinclude")
    pipe(Path(top, ".worktreeinclude"))
    assert in_time(lambda: worktree.fill(plan, admin, top)).copied == ()
