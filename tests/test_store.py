"""The store: order, batches, what is answered is there, and what becomes of it on a bad day."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from agentd.core.errors import Fault, NotNow
from agentd.core.job import InPlace, Job, Queued
from agentd.core.machine import Notice
from agentd.store import EPOCH, Change, Entry, Store, Subscriber, Work, connect

PATIENCE = 30.0
JOB = Job(1, "fix", "command", "", ("make",), "me", 1, 1.0, InPlace("/src"), Queued(1.0))


class Teller:
    """Remembers what was delivered, and answers."""

    def __init__(self) -> None:
        self.batches: list[list[Entry]] = []

    def __call__(self, work: Work, entries: list[Entry]) -> None:
        self.batches.append(entries)
        work.done.set_result(entries)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agentd.db")


@pytest.fixture
def teller() -> Teller:
    return Teller()


@pytest.fixture
def store(path: str, teller: Teller) -> Iterator[Store]:
    store = Store(path, teller)
    yield store
    store.close()
    assert not store.thread.is_alive()


def note(n: int, *more: str, must: bool = False) -> Change:
    """Job ``n`` and what is told of it: ``n`` first."""
    types = (f"n{n}", *more)
    return Change(float(n), replace(JOB, id=n), tuple(Notice(type, {"n": n}) for type in types), must=must)


def types(entries: list[Entry]) -> list[str]:
    return [entry.type for entry in entries]


def stored(path: str) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT seq, type FROM events ORDER BY seq").fetchall()


# Order, batches, reading back


def test_an_event_as_it_is_stored_and_told(store: Store, teller: Teller) -> None:
    job = replace(JOB, attempt=2)
    told = store.append(Change(5.0, job, (Notice("job.queued", {}), Notice("x", {"a": [1, "ü"]})))).result(PATIENCE)
    assert told == [
        Entry(1, 5.0, "job.queued", 1, 2, "me", b"{}"),
        Entry(2, 5.0, "x", 1, 2, "me", '{"a":[1,"ü"]}'.encode()),
    ]
    assert store.events(0, 10).result(PATIENCE) == told
    assert store.load() == ([job], [], 2)


def test_changes_are_committed_and_told_in_the_order_they_came(store: Store, teller: Teller) -> None:
    futures = [store.append(note(n, "again")) for n in range(1, 501)]
    told = [future.result(PATIENCE) for future in futures]
    assert teller.batches == told
    assert [entry.seq for entries in told for entry in entries] == list(range(1, 1001))
    assert [job.id for job in store.load()[0]] == list(range(1, 501))


def test_what_arrives_while_it_commits_is_the_next_batch(store: Store, path: str) -> None:
    """While the thread is busy with the first, 300 more arrive: one transaction takes them all."""
    transactions: list[str] = []
    store.ask(lambda db: db.set_trace_callback(transactions.append)).result(PATIENCE)
    is_busy, gate = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> bool:
        is_busy.set()
        return gate.wait(PATIENCE)

    held = store.ask(hold)
    assert is_busy.wait(PATIENCE)
    futures = [store.append(note(n)) for n in range(1, 301)]
    gate.set()
    assert held.result(PATIENCE)
    for future in futures:
        future.result(PATIENCE)
    assert sum(statement.startswith("BEGIN") for statement in transactions) == 1


def test_a_question_sees_what_was_written_before_it(store: Store) -> None:
    for n in range(1, 50):
        store.append(note(n))
        assert len(store.ask(lambda db: db.execute("SELECT * FROM events").fetchall()).result(PATIENCE)) == n


def test_a_question_that_fails_costs_only_itself(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError):
        store.ask(lambda db: db.execute("SELECT nonsense")).result(PATIENCE)
    assert types(store.append(note(1)).result(PATIENCE)) == ["n1"]


def test_events_are_read_in_pages_and_by_owner(store: Store) -> None:
    for n in range(1, 7):
        owner = "me" if n % 2 else "you"
        store.append(Change(1.0, replace(JOB, id=n, owner=owner), (Notice(f"n{n}", {}),)))
    assert types(store.events(0, 4).result(PATIENCE)) == ["n1", "n2", "n3", "n4"]
    assert types(store.events(4, 4).result(PATIENCE)) == ["n5", "n6"]
    assert types(store.events(0, 9, "you").result(PATIENCE)) == ["n2", "n4", "n6"]


def test_subscribers_are_written_and_dropped(store: Store) -> None:
    store.append(Change(1.0, subscriber=Subscriber("a", 3, "", 1.0)))
    store.append(Change(1.0, subscriber=Subscriber("b", 4, "me", 2.0)))
    store.append(Change(1.0, subscriber=Subscriber("a", 5, "", 3.0)))
    assert store.load()[1] == [Subscriber("a", 5, "", 3.0), Subscriber("b", 4, "me", 2.0)]
    (told,) = store.append(Change(2.0, notices=(Notice("subscriber.retired", {}),), drop_subscriber="a")).result(
        PATIENCE
    )
    assert (told.job, told.attempt, told.owner) == (0, 0, "")
    assert store.load()[1] == [Subscriber("b", 4, "me", 2.0)]


def test_words_that_are_no_utf8_are_kept(store: Store) -> None:
    odd = replace(JOB, argv=("cat", "caf\udce9"), task="\udcff \U0001f600 \\u0041")
    store.append(Change(1.0, odd, (Notice("job.created", {"argv": list(odd.argv)}),))).result(PATIENCE)
    assert store.load()[0] == [odd]


def test_a_value_that_cannot_be_stored_costs_its_own_change_only(store: Store) -> None:
    gate_open, gate = os.pipe()
    store.ask(lambda _: os.read(gate_open, 1))
    before = store.append(note(1))
    odd = store.append(Change(1.0, subscriber=Subscriber("a", 1 << 70, "", 1.0), must=True))
    after = store.append(note(2))
    os.write(gate, b"g")
    with pytest.raises(Fault, match="cannot save the change"):
        odd.result(PATIENCE)
    assert [entry.seq for entry in before.result(PATIENCE) + after.result(PATIENCE)] == [1, 2]
    os.close(gate_open)
    os.close(gate)


# Opening again


def test_seq_goes_on_where_it_was(path: str) -> None:
    for n in range(1, 4):
        store = Store(path, Teller())
        assert [entry.seq for entry in store.append(note(n, "again")).result(PATIENCE)] == [2 * n - 1, 2 * n]
        store.close()
    assert [seq for seq, _ in stored(path)] == [1, 2, 3, 4, 5, 6]


def test_a_new_epoch_begins_above_all_before_it(path: str) -> None:
    store = Store(path, Teller())
    store.append(note(1)).result(PATIENCE)
    store.close()
    with closing(connect(path)) as db:
        db.execute("UPDATE meta SET value = '3' WHERE key = 'epoch'")
    for seq in (3 * EPOCH + 1, 3 * EPOCH + 2):
        store = Store(path, Teller())
        assert store.epoch == 3
        assert [entry.seq for entry in store.append(note(2)).result(PATIENCE)] == [seq]
        store.close()
    assert 3 * EPOCH + 2 < 1 << 53  # a number in JSON, for every reader


def test_a_store_of_a_newer_agentd_is_left_alone(path: str) -> None:
    Store(path, Teller()).close()
    with closing(connect(path)) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    with pytest.raises(Fault, match="a newer agentd wrote it; upgrade agentd") as refusal:
        Store(path, Teller())
    assert refusal.value.code == "store_too_new"
    with closing(connect(path)) as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() == ("99",)


@pytest.mark.parametrize("noise", [b"not a database at all, by any means", b"\0" * 5000, os.urandom(100_000)], ids=len)
def test_a_file_that_is_no_database_is_told_by_connect(path: str, noise: bytes) -> None:
    Path(path).write_bytes(noise)
    with pytest.raises(sqlite3.DatabaseError):
        connect(path)


def test_files_are_the_users_own(store: Store, path: str) -> None:
    store.append(note(1)).result(PATIENCE)
    for suffix in ("", "-wal", "-shm"):
        assert os.stat(path + suffix).st_mode & 0o077 == 0, suffix


# Bad days


def test_the_file_is_deleted_under_it(store: Store, path: str) -> None:
    for n in range(1, 20):
        store.append(note(n)).result(PATIENCE)
    for suffix in ("", "-wal", "-shm"):
        os.unlink(path + suffix)
    store.append(note(20)).result(PATIENCE)
    assert [type for _, type in stored(path)] == [f"n{n}" for n in range(1, 21)]


def test_the_file_is_replaced_under_it(store: Store, path: str, tmp_path: Path) -> None:
    store.append(note(1)).result(PATIENCE)
    (tmp_path / "other").write_bytes(b"somebody's idea")
    os.rename(tmp_path / "other", path)
    store.append(note(2)).result(PATIENCE)
    assert [type for _, type in stored(path)] == ["n1", "n2"]


LOCKER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
print(time.monotonic(), flush=True)
db.execute("COMMIT")
"""


def test_locked_by_another_process_it_waits(store: Store, path: str) -> None:
    store.append(note(1)).result(PATIENCE)
    command = [sys.executable, "-c", LOCKER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        waiting = store.append(note(2))
        other.stdin.write("go\n")
        other.stdin.flush()
        released_at = float(other.stdout.readline())
        assert types(waiting.result(PATIENCE)) == ["n2"]
        assert time.monotonic() >= released_at
    assert [type for _, type in stored(path)] == ["n1", "n2"]


def test_a_backup_is_whole(store: Store, path: str) -> None:
    for n in range(1, 300):
        store.append(note(n))
    store.append(Change(1.0, subscriber=Subscriber("a", 3, "", 1.0)))
    store.close()
    assert not os.path.exists(path + ".backup-wal") and not os.path.exists(path + ".backup.new")
    assert stored(path + ".backup") == stored(path)
    copy = Store(path + ".backup", Teller())
    assert len(copy.load()[0]) == 299 and copy.load()[1:] == ([Subscriber("a", 3, "", 1.0)], 299)
    copy.close()
    # The fixture closes it once more; an ended thread takes no harm.
    store.thread.join()


def test_an_idle_store_backs_itself_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.store.BACKUP_EVERY_S", 0.0)
    store = Store(path, Teller())
    store.append(note(1)).result(PATIENCE)
    # The thread takes this one only after it has looked whether a backup is due.
    while not os.path.exists(path + ".backup"):
        store.ask(lambda db: db.execute("SELECT 1").fetchone()).result(PATIENCE)
    assert types(store.events(0, 9).result(PATIENCE)) == ["n1"]
    assert [type for _, type in stored(path + ".backup")] == ["n1"]
    store.close()


def fill(store: Store, path: str) -> NotNow:
    """Append until there is no room for more; what was said then."""
    for n in range(1, 10_000):
        change = Change(1.0, replace(JOB, id=n, task="x" * 20_000), (Notice(f"n{n}", {}),))
        try:
            store.append(change).result(PATIENCE)
        except NotNow as refusal:
            return refusal
    raise AssertionError("the disk never became full")


def check_disk_full(path: str, free: Callable[[], object]) -> None:
    """A request is refused, a fact waits and lands once there is room."""
    store = Store(path, Teller())
    refusal = fill(store, path)
    assert (refusal.exit, refusal.code) == (75, "disk_full")
    assert "free some disk space and try again" in refusal.message
    kept = len(store.events(0, 20_000).result(PATIENCE))
    fact = store.append(Change(1.0, replace(JOB, id=1, task="y" * 20_000), (Notice("fact", {}),), must=True))
    later = store.append(Change(1.0, None, (Notice("later", {}),), must=True))
    while store.trouble is None and not fact.done():
        os.sched_yield()
    assert store.trouble is not None and not fact.done()
    free()
    assert [e.seq for e in fact.result(PATIENCE)] + [e.seq for e in later.result(PATIENCE)] == [kept + 1, kept + 2]
    assert store.trouble is None
    store.close()
    assert [type for _, type in stored(path)] == [*(f"n{n}" for n in range(1, kept + 1)), "fact", "later"]


def test_disk_full(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small tmpfs here (that needs root); the test with a file size limit runs")
    try:
        (place / "ballast").write_bytes(b"x" * (1 << 20))
        check_disk_full(str(place / "agentd.db"), (place / "ballast").unlink)
    finally:
        subprocess.run(["umount", place], check=True)


def test_files_may_not_grow(tmp_path: Path) -> None:
    """The same by RLIMIT_FSIZE, which an ordinary user can set: in a process of its own, as it holds for a process."""
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_store; test_store.limited(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "agentd.db")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def limited(path: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    Store(path, Teller()).close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, hard))
    check_disk_full(path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))


def damaged(path: str) -> None:
    """In a process of its own: the file turns to noise under a store at work."""
    store = Store(path, Teller())
    for n in range(1, 200):
        store.append(note(n))
    store.ask(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()).result(PATIENCE)
    with open(path, "r+b") as file:
        file.write(os.urandom(os.path.getsize(path)))
    store.ask(lambda db: db.execute("PRAGMA shrink_memory")).result(PATIENCE)
    for n in range(1, 200):
        store.append(note(n, must=True)).result(PATIENCE)
    raise AssertionError("it went on with a damaged file")


def test_a_damaged_file_ends_the_process_so_that_it_is_rebuilt(path: str) -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; import test_store; test_store.damaged(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 125, done.stderr
    assert done.stderr.startswith("agentd: the store is damaged (")
    assert done.stderr.endswith("; ending, so that it is rebuilt\n") and done.stderr.count("\n") == 1


APPENDER = """
import os, sys
from agentd.core.job import InPlace, Job, Queued
from agentd.core.machine import Notice
from agentd.store import Change, Store

def deliver(work, entries):
    os.write(1, b"%d %s\\n" % (entries[0].seq, entries[0].type.encode()))
    work.done.set_result(entries)

store = Store(sys.argv[1], deliver)
first = sys.argv[2]
jobs = iter(range(1, 1 << 30))
while True:
    batch = [
        store.append(Change(1.0, Job(n, "x", "command", "", ("x",), "me", 1, 1.0, InPlace("/"), Queued(1.0)),
                            (Notice(f"{first}.{n}", {}),)))
        for n, _ in zip(jobs, range(3))
    ]
    for future in batch:
        future.result()
"""


def test_what_was_answered_is_there_whenever_it_is_killed(path: str) -> None:
    """Thirty-two lives, each ended by kill -9 after a random number of answers; none that was given is lost."""
    rounds, seed = 32, random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    answered: list[tuple[int, str]] = []

    def begin(n: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", APPENDER, path, f"r{n}"], stdout=subprocess.PIPE)

    for n in range(rounds):
        with begin(n) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(dice.randrange(1, 25))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        for seq, type in (line.decode().split() for line in lines if line.endswith(b"\n")):
            answered.append((int(seq), type))
    held = stored(path)
    assert set(answered) <= set(held), f"lost with seed {seed}: {sorted(set(answered) - set(held))[:5]}"
    assert [seq for seq, _ in held] == list(range(1, len(held) + 1))
    assert len({type for _, type in held}) == len(held)
