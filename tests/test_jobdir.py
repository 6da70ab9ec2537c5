"""The files of an attempt: records whole or not there at all, sockets with long paths, the log and its index."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd import jobdir
from agentd.jobdir import INDEX_RECORD, PREALLOCATED, Arrival, Record, Segment

ROOT = str(Path(__file__).parent.parent)


@pytest.fixture
def path(tmp_path: Path) -> str:
    folder = tmp_path / "1"
    folder.mkdir()
    return str(folder)


# Records


def test_a_record_is_read_as_it_was_written(path: str) -> None:
    record = {"a": [1, None, 2.5], "ü": "\udcff\0"}
    jobdir.write(path, "spec.json", record)
    assert jobdir.read(path, "spec.json") == record
    jobdir.write(path, "spec.json", {})
    assert jobdir.read(path, "spec.json") == {}
    assert os.listdir(path) == ["spec.json"]
    assert os.stat(f"{path}/spec.json").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"", b"\0" * 2048, b"{", b'{"a": 1', b"[1]", b"7", b"\xff", b"null", b" " * 2048])
def test_half_a_truth_is_none(path: str, data: bytes) -> None:
    Path(path, "exit.json").write_bytes(data)
    assert jobdir.read(path, "exit.json") is None


def test_what_is_not_there(path: str) -> None:
    assert jobdir.read(path, "exit.json") is None
    assert jobdir.read(path + "/nosuch", "exit.json") is None
    Path(path, "file").touch()
    assert jobdir.read(path + "/file", "exit.json") is None


def test_a_final_record_takes_the_room_that_was_kept(path: str) -> None:
    jobdir.preallocate(path)
    assert {name: os.path.getsize(f"{path}/{name}") for name in os.listdir(path)} == {
        ".kill.room": 4096,
        ".noexec.room": 2048,
        ".exit.room": 2048,
        ".end.room": 65536,
    }
    jobdir.write_final(path, "exit.json", {"code": 7})
    assert jobdir.read(path, "exit.json") == {"code": 7}
    assert os.path.getsize(f"{path}/exit.json") == 2048 and not os.path.exists(f"{path}/.exit.room")


def test_the_first_final_record_stands(path: str) -> None:
    jobdir.preallocate(path)
    jobdir.write_final(path, "exit.json", {"code": 7})
    jobdir.write_final(path, "exit.json", {"code": 8})
    assert jobdir.read(path, "exit.json") == {"code": 7}


def test_a_final_record_without_room_and_one_that_is_longer(path: str) -> None:
    jobdir.write_final(path, "exit.json", {"code": 7})
    jobdir.preallocate(path)
    long = {"swept": ["x" * 1000] * 100}
    jobdir.write_final(path, "end.json", long)
    assert (jobdir.read(path, "exit.json"), jobdir.read(path, "end.json")) == ({"code": 7}, long)


def test_a_long_record_that_was_begun_spoils_no_shorter_one(path: str) -> None:
    """Whoever began it was killed before the rename."""
    jobdir.preallocate(path)
    Path(path, ".end.room").write_bytes(b'{"swept": "' + b"x" * 100_000)
    jobdir.write_final(path, "end.json", {"at": 1})
    assert jobdir.read(path, "end.json") == {"at": 1}


def test_the_note_of_a_fork_is_its_own(path: str) -> None:
    jobdir.preallocate(path)
    jobdir.write_final(path, "noexec-40.json", {"errno": 2})
    assert jobdir.noexec(path, {"agent": {"pid": 40}}) == {"errno": 2}
    assert jobdir.noexec(path, {"agent": {"pid": 41}}) is None
    assert not os.path.exists(f"{path}/.noexec.room")


# Killed at every system call

CALLS = "openat,write,fsync,ftruncate,fallocate,rename,unlink,close"
DEED = "import sys; sys.path.insert(0, {!r}); from agentd import jobdir; jobdir.{}"


def strace(folder: str, deed: str, *inject: str) -> tuple[int, list[str]]:
    """Do it in a process of its own, traced as far as it touches ``folder``: its status, and the calls it made.

    With -D it is the tracer that is forked: the deed's pid, which stands in an aside's name, is the shell's.
    """
    names = ["", "/spec.json", "/.spec.json.$$", "/exit.json", "/.exit.room", "/.noexec.room", "/.end.room"]
    watched = " ".join(f'-P "{folder}{name}"' for name in names)
    trace, theirs = os.pipe()
    line = f'exec strace -D -qq -o /dev/fd/{theirs} {watched} -e trace={CALLS} "$@"'
    command = ["sh", "-c", line, "sh", *inject, sys.executable, "-S", "-c", DEED.format(ROOT, deed)]
    with subprocess.Popen(command, pass_fds=[theirs]) as child, open(trace) as told:
        os.close(theirs)
        lines = told.read().splitlines()
    return child.returncode, [line.split("(")[0] for line in lines if "(" in line]


def killed_at_every_call(folder: str, deed: str, before: Callable[[], None]) -> Iterator[str]:
    """Yields after each death; strace delivers the signal on entry, so that call itself is not made."""
    before()
    status, seen = strace(folder, deed)
    assert status == 0
    assert "fsync" in seen or "fallocate" in seen
    for name in dict.fromkeys(seen):
        for k in range(1, seen.count(name) + 1):
            before()
            status, _ = strace(folder, deed, "-e", f"inject={name}:signal=KILL:when={k}")
            assert status == -signal.SIGKILL, (name, k)
            yield f"{name} {k}"


@pytest.fixture(scope="module")
def traced() -> None:
    """strace is here and may trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(["strace", "-D", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if probe.returncode != 0 or probe.stderr:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()}")


def emptied(path: str) -> None:
    shutil.rmtree(path)
    os.mkdir(path)


@pytest.mark.usefixtures("traced")
def test_a_record_replaced_is_the_old_or_the_new_at_every_call(path: str) -> None:
    def before() -> None:
        emptied(path)
        jobdir.write(path, "spec.json", {"old": True})

    deaths: list[str] = []
    seen = set()
    for where in killed_at_every_call(path, f"write({path!r}, 'spec.json', {{'new': True}})", before):
        deaths.append(where)
        record = jobdir.read(path, "spec.json")
        assert record in ({"old": True}, {"new": True}), where
        seen.add(str(record))
        jobdir.write(path, "spec.json", {"again": True})
        assert jobdir.read(path, "spec.json") == {"again": True}, where
    assert len(seen) == 2 and {"write 1", "fsync 1", "rename 1", "fsync 2"} <= set(deaths)


@pytest.mark.usefixtures("traced")
def test_a_final_record_is_there_or_not_at_every_call(path: str) -> None:
    def before() -> None:
        emptied(path)
        jobdir.preallocate(path)

    seen = set()
    for where in killed_at_every_call(path, f"write_final({path!r}, 'exit.json', {{'code': 7}})", before):
        record = jobdir.read(path, "exit.json")
        assert record in (None, {"code": 7}), where
        seen.add(str(record))
        # Somebody else writes it now; what stands already stands.
        jobdir.write_final(path, "exit.json", {"code": None})
        assert jobdir.read(path, "exit.json") == (record or {"code": None}), where
    assert len(seen) == 2


@pytest.mark.usefixtures("traced")
def test_room_is_kept_whole_after_a_death_at_any_call(path: str) -> None:
    for where in killed_at_every_call(path, f"preallocate({path!r})", lambda: emptied(path)):
        jobdir.preallocate(path)
        assert {os.path.getsize(f"{path}/.{kind}.room") for kind in PREALLOCATED} == {2048, 4096, 65536}, where


def test_a_full_disk_takes_the_final_records(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small tmpfs here: that needs root")
    try:
        path = str(small)
        jobdir.write(path, "spec.json", {"old": True})
        jobdir.preallocate(path)
        fill(small / "ballast")
        with pytest.raises(OSError) as full:
            jobdir.write(path, "spec.json", {"new": "x" * 5000})
        assert jobdir.is_full(full.value)
        assert jobdir.read(path, "spec.json") == {"old": True}
        assert sorted(os.listdir(path)) == [
            *(".end.room", ".exit.room", ".kill.room", ".noexec.room"),
            *("ballast", "spec.json"),
        ]
        jobdir.write_final(path, "exit.json", {"code": 7})
        jobdir.write_final(path, "end.json", {"swept": ["x" * 100] * 500})
        jobdir.write_final(path, "noexec-40.json", {"errno": 28})
        assert jobdir.read(path, "exit.json") == {"code": 7}
        assert jobdir.read(path, "end.json") == {"swept": ["x" * 100] * 500}
        assert jobdir.read(path, "noexec-40.json") == {"errno": 28}
    finally:
        subprocess.run(["umount", small], check=True)


def fill(ballast: Path) -> None:
    with open(ballast, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


# Sockets


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
@pytest.mark.parametrize("length", [0, 107, 108, 109, 200])
def test_a_socket_with_a_path_of_any_length(path: str, length: int, kind: int) -> None:
    folder = f"{path}/{'d' * max(0, length - len(path) - 3)}".rstrip("/")
    os.makedirs(folder, exist_ok=True)
    where = f"{folder}/s"
    with jobdir.listen(where, kind) as listener, jobdir.connect(where, kind) as link:
        served, _ = listener.accept()
        with served:
            link.send(b"hello")
            assert served.recv(10) == b"hello"
            assert jobdir.peer_uid(served) == jobdir.peer_uid(link) == os.getuid()
        info = os.lstat(where)
        assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600
        assert os.listdir(folder) == [os.path.basename(where)]
        for one in (listener, link):
            assert not os.get_inheritable(one.fileno())


def test_a_listener_is_replaced_and_the_path_never_missing(path: str) -> None:
    where = f"{path}/s"
    old = jobdir.listen(where)
    for _ in range(20):
        new = jobdir.listen(where)
        old.close()
        with jobdir.connect(where):
            new.accept()[0].close()
        old = new
    old.close()
    assert os.listdir(path) == ["s"]


def test_nobody_listens(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        jobdir.connect(f"{path}/s")
    jobdir.listen(f"{path}/s").close()
    with pytest.raises(ConnectionRefusedError):
        jobdir.connect(f"{path}/s")


def test_a_full_backlog_is_told_at_once(path: str) -> None:
    with jobdir.listen(f"{path}/s", backlog=0):
        links = [jobdir.connect(f"{path}/s", blocking=False)]
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                links.append(jobdir.connect(f"{path}/s", blocking=False))
        for link in links:
            link.close()


# The log


def write_log(path: str, stream: str, *pieces: tuple[int, bytes]) -> None:
    for start, data in pieces:
        Path(path, f"log.{stream}.{start}").write_bytes(data)


def test_segments_in_their_order(path: str) -> None:
    write_log(path, "out", (100, b"b" * 900), (0, b"a" * 100), (1000, b"c"))
    write_log(path, "err", (0, b"e"))
    for other in ("log.out", "log.out.x", "log.out.5.old", "log.index", "xlog.out.7"):
        Path(path, other).touch()
    assert jobdir.segments(path, "out") == [Segment(n, f"{path}/log.out.{n}") for n in (0, 100, 1000)]
    assert (jobdir.size(path, "out"), jobdir.size(path, "err")) == (1001, 1)


def test_no_log_at_all(path: str) -> None:
    assert jobdir.segments(path, "out") == jobdir.segments(path + "/nosuch", "out") == []
    assert jobdir.size(path, "out") == 0
    assert list(jobdir.arrivals(path)) == []
    assert list(jobdir.read_range(path, "out", 0, 100)) == []


def test_a_range_over_segments(path: str) -> None:
    write_log(path, "out", (0, b"0123"), (4, b"4567"), (8, b"89"))
    assert list(jobdir.read_range(path, "out", 2, 9)) == [(2, b"23"), (4, b"4567"), (8, b"8")]
    assert list(jobdir.read_range(path, "out", 4, 8)) == [(4, b"4567")]
    assert list(jobdir.read_range(path, "out", 9, 100)) == [(9, b"9")]
    assert list(jobdir.read_range(path, "out", 5, 5)) == []


def test_what_was_dropped_is_skipped_and_offsets_stay_true(path: str) -> None:
    write_log(path, "out", (1000, b"abc"), (1003, b"def"))
    assert jobdir.size(path, "out") == 1006
    assert list(jobdir.read_range(path, "out", 0, 1004)) == [(1000, b"abc"), (1003, b"d")]


@given(some.lists(some.binary(max_size=8), max_size=8), some.integers(0, 70), some.integers(0, 70))
def test_any_range_is_what_was_written(pieces: list[bytes], start: int, end: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        offset = 0
        for piece in pieces:
            write_log(path, "out", (offset, piece))
            offset += len(piece)
        whole = b"".join(pieces)
        assert b"".join(data for _, data in jobdir.read_range(path, "out", start, end)) == whole[start:end]
        assert all(whole[at : at + len(data)] == data for at, data in jobdir.read_range(path, "out", start, end))
        assert jobdir.size(path, "out") == len(whole)


def test_the_index_keeps_order_and_time(path: str) -> None:
    told = [Arrival(1000, 5, "out"), Arrival(1001, 3, "err"), Arrival(2000, 9, "out")]
    data = b"".join(INDEX_RECORD.pack(a.at, a.end, jobdir.STREAMS.index(a.stream)) for a in told)
    Path(path, "log.index").write_bytes(data)
    assert list(jobdir.arrivals(path)) == told
    assert list(jobdir.arrivals(path, 2)) == told[2:]
    assert list(jobdir.arrivals(path, 3)) == list(jobdir.arrivals(path, 99)) == []


@pytest.mark.parametrize("torn", range(1, INDEX_RECORD.size))
def test_a_torn_last_record_is_left_out(path: str, torn: int) -> None:
    record = INDEX_RECORD.pack(1000, 5, 0)
    Path(path, "log.index").write_bytes(record + INDEX_RECORD.pack(2000, 9, 1)[:torn])
    assert list(jobdir.arrivals(path)) == [Arrival(1000, 5, "out")]


def test_a_long_index(path: str) -> None:
    """More than is read at a time."""
    records: list[Record] = [{"at": n, "end": 2 * n} for n in range(10_000)]
    data = b"".join(INDEX_RECORD.pack(r["at"], r["end"], r["at"] & 1) for r in records)
    Path(path, "log.index").write_bytes(data + b"torn")
    found = list(jobdir.arrivals(path))
    assert found == [Arrival(r["at"], r["end"], jobdir.STREAMS[r["at"] & 1]) for r in records]
    assert list(jobdir.arrivals(path, 5000)) == found[5000:]
