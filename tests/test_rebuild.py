"""The store is deleted or damaged: the next daemon makes another from the attempts' files and the backup.

Nothing is lost, no id is given twice, nothing is run twice, and what is not provably acknowledged is told again.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gitrepo import make_repo, run
from test_feed import completions, settle
from test_socket import PATIENCE, Lab

from agentd import jobdir
from agentd.store import EPOCH

# Each attempt makes a file of its own: the second of the same nonce would fail (O_EXCL). Then it waits to be let go.

ONCE = 'set -C; : > "$RUNS/$AGENTD_JOB.$AGENTD_ATTEMPT.$AGENTD_NONCE" || exit 99; '


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """One job runs at a time."""
    (tmp_path / "agentd.toml").write_text("[limits]\nrunning = 1\n")
    (tmp_path / "runs").mkdir()
    os.mkfifo(tmp_path / "gate")
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    lab = Lab(tmp_path / "home" / "state")
    yield lab
    lab.stop()


def runs(tmp_path: Path) -> list[str]:
    """``job.attempt`` of every execution."""
    return sorted(name.rsplit(".", 1)[0] for name in os.listdir(tmp_path / "runs"))


def delete(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)


def delete_with_backup(path: str) -> None:
    delete(path)
    Path(path + ".backup").unlink(missing_ok=True)


def damage(path: str) -> None:
    Path(path + "-wal").unlink(missing_ok=True)
    Path(path).write_bytes(os.urandom(os.path.getsize(path)))


def damage_with_backup(path: str) -> None:
    damage(path)
    Path(path + ".backup").write_bytes(b"noise")


def empty(path: str) -> None:
    delete(path)
    Path(path).touch()


def forget_the_last_changes(path: str) -> None:
    Path(path + "-wal").unlink(missing_ok=True)


def cut_short(path: str) -> None:
    Path(path + "-wal").unlink(missing_ok=True)
    os.truncate(path, os.path.getsize(path) // 2 + 100)


BLOWS: list[Callable[[str], None]] = [delete, delete_with_backup, damage, damage_with_backup, cut_short, empty]


@pytest.mark.parametrize("has_restarted", [True, False], ids=["with an older backup", "without"])
@pytest.mark.parametrize("blow", BLOWS)
def test_all_that_was_there_is_there_again(
    lab: Lab, tmp_path: Path, blow: Callable[[str], None], has_restarted: bool
) -> None:
    with lab.client() as client:
        lab.events(name="reader")

        def delegate(name: str, script: str) -> int:
            command = ["sh", "-c", ONCE + script]
            return int(client.delegate(command, cwd=str(tmp_path), in_place=True, name=name)["id"])

        done, trashed = delegate("done", "exit 3"), delegate("trashed", "exit 0")
        client.wait([done, trashed], timeout=PATIENCE)
        settle(lab, done, trashed)
        acked = completions(lab.events())[0]["seq"]
        client.ack("reader", acked)
        client.remove(trashed)
        if has_restarted:
            # A daemon that ends makes a backup; it knows of these two and the acknowledgement, and of nothing later.
            client.ask("daemon.stop")
            client.close()
        late = delegate("late", "exit 4")
        client.wait([late], timeout=PATIENCE)
        settle(lab, late)
        running, queued = delegate("running", "read word < gate"), delegate("queued", "exit 5")
        client.wait([running], until="running", timeout=PATIENCE)
        before = lab.status()
        known = {job["id"]: job for job in client.jobs(all=True)}
        lab.kill_daemon()
        blow(f"{lab.state}/agentd.db")
        client.close()

        after = lab.status()
        assert after["epoch"] == before["epoch"] + 1
        assert after["newest_seq"] >= after["epoch"] * EPOCH > before["newest_seq"]
        assert runs(tmp_path) == [f"{id}.1" for id in (done, trashed, late, running)]

        # The running one goes on, and is let go; only then comes the turn of the queued one.
        jobs = {job["id"]: job for job in client.jobs(all=True)}
        assert set(jobs) == {done, late, running, queued} == set(known)
        assert (jobs[running]["state"], jobs[queued]["state"]) == ("running", "queued")
        assert jobs[running]["pid"] == known[running]["pid"]
        (tmp_path / "gate").write_text("go\n")
        client.wait([running, queued], timeout=PATIENCE)
        new = delegate("new", "exit 6")
        assert new == queued + 1
        client.wait([new], timeout=PATIENCE)
        settle(lab, running, queued, new)

        # Each ended as it ended, and was run once.
        ended = {job["id"]: (job["outcome"], job["exit_code"]) for job in client.jobs(all=True)}
        assert ended == {
            done: ("failed", 3),
            late: ("failed", 4),
            running: ("succeeded", 0),
            queued: ("failed", 5),
            new: ("failed", 6),
        }
        for id in (done, late):
            same = ("name", "task", "argv", "owner", "pid", "created_at", "started_at", "ended_at", "attempt")
            now = client.job(id)["job"]
            assert {field: now[field] for field in same} == {field: known[id][field] for field in same}
        assert runs(tmp_path) == [f"{id}.1" for id in (done, trashed, late, running, queued, new)]

        # Told again: all that is not proved to be acknowledged; at least once, in order, by rising numbers.
        # Where no backup knows the reader, it begins as a new one does, and asks for what came since.
        with_since = client.events(name="reader", since=acked, follow=False)
        told = list(with_since)
        again = completions(told)
        expected = {trashed, late, running, queued, new}
        assert expected - ({trashed} if has_restarted else set()) <= {event["job"] for event in again}
        if has_restarted and "backup" not in blow.__name__:
            assert done not in {event["job"] for event in again}
        assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})
        for id in (late, running, queued, new):
            assert sum(event["job"] == id and event["seq"] > after["epoch"] * EPOCH for event in again) == 1

        # The trash is there, and gives back.
        assert [job["id"] for job in client.ask("jobs.undo")["trash"]] == [trashed]
        back = client.undo(trashed)
        assert (back["id"], back["state"], back["outcome"], back["removed"]) == (trashed, "done", "succeeded", False)
        assert client.restart(trashed)["attempt"] == 2
        client.wait([trashed], timeout=PATIENCE)
        assert runs(tmp_path).count(f"{trashed}.2") == 1


@pytest.mark.parametrize("blow", [delete, delete_with_backup])
def test_a_live_subscriber_goes_on(lab: Lab, tmp_path: Path, blow: Callable[[str], None]) -> None:
    """It follows by name and acknowledges as it goes; over the rebuild it misses nothing."""
    heard: list[dict[str, Any]] = []
    with lab.client() as client:
        following = client.events(name="reader", since=0)

        def hear(id: int) -> None:
            for event in following:
                heard.append(event)
                client.ack("reader", event["seq"])
                if event["type"] == "job.completed" and event["job"] == id:
                    return

        first = lab.run("true")
        hear(first["id"])
        lab.kill_daemon()
        blow(f"{lab.state}/agentd.db")
        second = lab.run("true")
        hear(second["id"])
        following.close()  # type: ignore[attr-defined]
    assert [event["seq"] for event in heard] == sorted(event["seq"] for event in heard)
    assert {event["job"] for event in completions(heard)} == {first["id"], second["id"]}
    assert heard[-1]["seq"] > EPOCH


@pytest.mark.parametrize("blow", [delete_with_backup, damage_with_backup])
def test_work_in_the_trash_comes_back(lab: Lab, tmp_path: Path, blow: Callable[[str], None]) -> None:
    """A worktree that was removed with its work is restored after the store is gone."""
    top = make_repo(tmp_path / "r")
    with lab.client() as client:
        job = client.delegate(["sh", "-c", "echo work > new.txt"], cwd=top)
        client.wait([job["id"]], timeout=PATIENCE)
        removed = client.remove(job["id"])
        assert removed["removed"] and not os.path.exists(job["worktree"])
        lab.kill_daemon()
        blow(f"{lab.state}/agentd.db")
        client.close()
        assert [one["id"] for one in client.ask("jobs.undo")["trash"]] == [job["id"]]
        assert client.jobs() == []
        back = client.undo(job["id"])
    assert (back["outcome"], back["worktree"]) == ("succeeded", job["worktree"])
    assert Path(job["worktree"], "new.txt").read_text() == "work\n"
    assert job["branch"] in run(top, "branch", "--list", "agentd/*")


def test_a_job_taken_out_of_the_trash_after_the_backup_stays_out(lab: Lab) -> None:
    with lab.client() as client:
        job = lab.run("true")
        client.remove(job["id"])
        client.ask("daemon.stop")
        client.close()
        client.undo(job["id"])
        lab.kill_daemon()
        delete(f"{lab.state}/agentd.db")
        client.close()
        assert [one["id"] for one in client.jobs(all=True)] == [job["id"]]
        assert client.ask("jobs.undo")["trash"] == []


@pytest.mark.parametrize("blow", [forget_the_last_changes, empty, cut_short])
def test_nothing_that_ran_is_taken_for_rubbish(lab: Lab, blow: Callable[[str], None]) -> None:
    """sqlite finds no fault with such a file; the jobs' folders say that it is not all."""
    lab.run("true")
    lab.stop()
    with lab.client() as client:
        job = client.delegate(["sleep", "99"], cwd="/", in_place=True)
        client.wait([job["id"]], until="running", timeout=PATIENCE)
        lab.kill_daemon()
        blow(f"{lab.state}/agentd.db")
        client.close()
        assert [(one["id"], one["state"]) for one in client.jobs(all=True)] == [(1, "done"), (2, "running")]


def test_rebuilt_again_and_again(lab: Lab) -> None:
    newest = 0
    for epoch in range(1, 4):
        job = lab.run("true")
        assert job["id"] == epoch
        lab.kill_daemon()
        delete_with_backup(f"{lab.state}/agentd.db")
        status = lab.status()
        assert status["epoch"] == epoch and status["newest_seq"] > newest
        newest = status["newest_seq"]
        with lab.client() as client:
            assert [one["outcome"] for one in client.jobs(all=True)] == ["succeeded"] * epoch


def test_the_damaged_file_is_put_aside(lab: Lab) -> None:
    lab.run("true")
    lab.kill_daemon()
    delete(f"{lab.state}/agentd.db")
    Path(f"{lab.state}/agentd.db").write_bytes(b"noise, but somebody's")
    lab.status()
    assert Path(f"{lab.state}/agentd.db.old-1").read_bytes() == b"noise, but somebody's"
    assert (jobdir.read(lab.state, "epoch.json") or {})["put_aside"] == f"{lab.state}/agentd.db.old-1"
    said = Path(lab.state, "daemon.log").read_text()
    assert "the store is damaged" in said and "epoch 1 begins" in said


def test_a_fresh_state_is_no_loss(lab: Lab) -> None:
    assert lab.status()["epoch"] == 0
    assert jobdir.read(lab.state, "epoch.json") is None


def test_a_locked_store_is_no_damage(lab: Lab) -> None:
    lab.run("true")
    lab.stop()
    with closing(sqlite3.connect(f"{lab.state}/agentd.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")
        assert lab.status()["epoch"] == 0
    with lab.client() as client:
        assert len(client.jobs(all=True)) == 1


def test_an_attempt_without_a_spec_is_passed_over(lab: Lab) -> None:
    job = lab.run("true")
    lab.kill_daemon()
    os.makedirs(f"{lab.state}/jobs/99/1")
    shutil.copy(f"{lab.state}/jobs/{job['id']}/1/exit.json", f"{lab.state}/jobs/99/1/exit.json")
    delete_with_backup(f"{lab.state}/agentd.db")
    with lab.client() as client:
        assert [one["id"] for one in client.jobs(all=True)] == [job["id"]]
