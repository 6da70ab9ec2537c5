"""Locks, through the real daemon: held by what lives, let go by the kernel, in order, and never by a guess."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import gitrepo
import lockslab
import pytest
from faultlab import Scene, until
from gitrepo import make_repo

from agentd import Client
from agentd.core.errors import AgentdError, NotNow, Refused, Usage

LONG = os.environ.get("AGENTD_LONG") == "1"
PEOPLE: list[Client] = []
AGENTD = [sys.executable, "-m", "agentd"]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path / "scene") as scene:
        yield scene
        while PEOPLE:
            PEOPLE.pop().close()


@pytest.fixture
def repo(tmp_path: Path) -> str:
    top = make_repo(tmp_path / "repo", files=30)
    for name in ("a.py", "b.py", "src/c.py"):
        gitrepo.write(f"{top}/{name}", f"{name}\n")
    gitrepo.run(top, "add", ".")
    gitrepo.run(top, "commit", "-qm", "more")
    return top


def person(scene: Scene, name: str) -> Client:
    PEOPLE.append(Client(scene.state, owner=name))
    return PEOPLE[-1]


def names(scene: Scene, **wanted: Any) -> list[str]:
    """What was claimed on purpose, as ``mode name state``."""
    rows = [row for row in scene.client.locks()["claims"] if not row["automatic"]]
    return sorted(f"{row['mode']} {row['name']} {row['state']}" for row in rows if row.items() >= wanted.items())


def agentd(scene: Scene, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    environment = faultlab.with_path() | {"AGENTD_STATE_DIR": scene.state} | options.pop("env", {})
    return scene.spawn([*AGENTD, *words], env=environment, **options)


def ran(child: "subprocess.Popen[bytes]", timeout: float = 60.0) -> int:
    return child.wait(timeout)


def locked_command(scene: Scene, name: str, script: str, cwd: str) -> "subprocess.Popen[bytes]":
    """``agentd lock NAME -- sh -c SCRIPT``, when the script runs: it must ``echo ready`` first."""
    child = agentd(scene, "lock", name, "--", "/bin/sh", "-c", f"echo ready; {script}", cwd=cwd, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_a_claim_keeps_others_off_until_it_is_given_back(scene: Scene, repo: str) -> None:
    one, other = person(scene, "one"), person(scene, "other")
    answer = one.lock(["a.py"], cwd=repo, reason="login rewrite")
    assert [claim["name"] for claim in answer["claims"]] == [f"file:{repo}/a.py", "path:a.py"]
    with pytest.raises(NotNow) as busy:
        other.lock(["a.py"], cwd=repo, wait=0)
    assert (busy.value.code, busy.value.exit) == ("busy", 75)
    assert "one" in busy.value.message
    assert "path:a.py" in busy.value.message
    with pytest.raises(NotNow) as late:
        other.lock(["a.py"], cwd=repo, wait=0.05)
    assert late.value.code == "timeout"
    ticket = other.locks()["waiting"][0]["ticket"]
    assert str(ticket) in late.value.message
    one.unlock(["a.py"], cwd=repo)
    assert other.lock([], cwd=repo, ticket=ticket, wait=0)["claims"][0]["token"] > answer["token"]
    assert one.unlock(["b.py"], cwd=repo) == {"released": [], "withdrawn": [], "still": []}
    with pytest.raises(Refused, match="other"):
        one.unlock(["a.py"], cwd=repo)


def test_a_folder_is_all_below_it_with_or_without_its_slash(scene: Scene, repo: str) -> None:
    Path(repo, "lib").mkdir()
    one, other = person(scene, "one"), person(scene, "other")
    assert [claim["name"] for claim in one.lock(["lib"], cwd=repo)["claims"]] == ["path:lib/**"]
    with pytest.raises(NotNow, match="one"):
        other.lock(["lib/c.py"], cwd=repo, wait=0)
    assert scene.client.ask("lock.explain", name=".", cwd=f"{repo}/lib")["name"] == "path:lib/**"
    assert one.unlock(["lib"], cwd=repo)["released"] == ["path:lib/**"]
    one.lock(["new"], cwd=repo)
    Path(repo, "new").mkdir()
    assert set(one.unlock(["new"], cwd=repo)["released"]) == {"path:new", f"file:{repo}/new"}
    os.symlink("lib", f"{repo}/link")
    assert [claim["name"] for claim in one.lock(["link"], cwd=repo)["claims"]] == ["path:lib/**"]


def test_a_part_of_a_claim_is_neither_given_back_nor_broken(scene: Scene, repo: str) -> None:
    Path(repo, "lib").mkdir()
    one = person(scene, "one")
    one.lock(["lib/**"], cwd=repo)
    assert one.unlock(["lib/c.py"], cwd=repo) == {"released": [], "withdrawn": [], "still": ["'path:lib/**'"]}
    with pytest.raises(Refused, match=r"agentd locks break 'path:lib/\*\*' --reason TEXT") as refused:
        scene.client.ask("lock.break", name="lib/c.py", cwd=repo, reason="urgent", owner="boss")
    assert refused.value.code == "not_held"
    assert names(scene) == ["exclusive path:lib/** active"]
    assert scene.client.ask("lock.break", name="lib", cwd=repo, reason="urgent", owner="boss")["broken"] != []
    assert names(scene) == []


def test_asking_again_is_the_same_claim(scene: Scene, repo: str) -> None:
    one = person(scene, "one")
    first = one.lock(["a.py"], cwd=repo)
    again = one.lock(["a.py"], cwd=repo)
    assert again["token"] == first["token"]
    assert (first["is_new"], again["is_new"]) == (True, False)


def test_a_set_is_granted_whole_in_order(scene: Scene, repo: str) -> None:
    one, two, three = (person(scene, name) for name in ("one", "two", "three"))
    one.lock(["path:a.py"], cwd=repo)
    with pytest.raises(NotNow):
        two.lock(["path:a.py", "path:b.py"], cwd=repo, wait=0.05)
    with pytest.raises(NotNow):  # two came first, though b.py is held by nobody
        three.lock(["path:b.py"], cwd=repo, wait=0.05)
    assert names(scene) == ["exclusive path:a.py active"]
    one.unlock(all=True)
    until(lambda: len(names(scene)) == 2)
    assert {row["holder"]["owner"] for row in two.locks()["claims"]} == {"two"}
    two.unlock(all=True)
    until(lambda: [row["holder"]["owner"] for row in three.locks()["claims"]] == ["three"])


@pytest.mark.parametrize("parties", [2, 3, 7])
def test_a_deadlock_is_refused_and_the_others_go_on(scene: Scene, repo: str, parties: int) -> None:
    people = [person(scene, f"p{number}") for number in range(parties)]
    for number, one in enumerate(people):
        one.lock([f"res:thing-{number}"], cwd=repo)
    for number, one in enumerate(people[:-1]):
        with pytest.raises(NotNow):
            one.lock([f"res:thing-{number + 1}"], cwd=repo, wait=0.01)
    before = names(scene)
    with pytest.raises(AgentdError) as refused:
        people[-1].lock(["res:thing-0"], cwd=repo)
    assert (refused.value.code, refused.value.exit) == ("deadlock", 76)
    for number in range(parties):
        assert f"p{number}" in refused.value.message
        assert f"res:thing-{number}" in refused.value.message
    assert names(scene) == before
    for number in reversed(range(1, parties)):  # the others get what they wait for, one after another
        people[number].unlock(all=True)
        until(lambda n=number: ["exclusive", f"res:thing-{n}"] in held_by(scene, f"p{n - 1}"))


def held_by(scene: Scene, owner: str) -> list[list[str]]:
    rows = scene.client.locks()["claims"]
    return [[row["mode"], row["name"]] for row in rows if row["holder"]["owner"] == owner]


@pytest.mark.parametrize("is_daemon_there", [True, False])
def test_a_command_holds_its_lock_as_long_as_anything_of_it_lives(
    scene: Scene, tmp_path: Path, is_daemon_there: bool
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    script = "sleep 1000 & echo $! >child; wait"
    command = locked_command(scene, "f", script, str(folder))
    until(lambda: (folder / "child").exists() and (folder / "child").read_text().strip() != "")
    child = int((folder / "child").read_text())
    held = [f"exclusive file:{folder}/f active"]
    assert names(scene) == held
    if not is_daemon_there:
        os.kill(scene.daemon(), signal.SIGKILL)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    assert names(scene) == held  # a new daemon, too: it has seen that the child lives
    if not is_daemon_there:
        os.kill(scene.daemon(), signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    until(lambda: names(scene) == [])
    until(lambda: os.listdir(f"{scene.state}/claims") == [])


def test_a_command_passes_on_its_code_and_knows_its_locks(scene: Scene, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert ran(agentd(scene, "lock", "res:db", "--", "/bin/sh", "-c", f"echo $AGENTD_LOCKS >{said}; exit 7")) == 7
    assert said.read_text() == "res:db\n"
    until(lambda: names(scene) == [])


def test_a_command_under_a_lock_does_not_wait_for_itself(scene: Scene) -> None:
    inner = " ".join(AGENTD)
    script = f"{inner} lock res:other -- true || exit 1; {inner} lock res:db -- true"
    outer = agentd(scene, "lock", "res:db", "--", "/bin/sh", "-c", script, stderr=subprocess.PIPE)
    told = outer.communicate()[1].decode()
    assert outer.returncode == 76, told
    assert told.endswith(", under which this runs, holds res:db: it would wait for itself\n")


def test_no_daemon_no_command(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("no folder")
    ran_anyway = tmp_path / "ran"
    environment = faultlab.with_path() | {"AGENTD_STATE_DIR": str(state / "agentd")}
    done = subprocess.run(
        [*AGENTD, "lock", "f", "--", "touch", str(ran_anyway)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 75, done.stderr
    assert "not run" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not ran_anyway.exists()


def test_two_terminals_exclude_each_other_while_the_daemon_is_killed(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    first = locked_command(scene, "f", f"cat {folder}/go", str(folder)) if os.mkfifo(folder / "go") is None else None
    assert first is not None
    second = agentd(scene, "lock", "f", "--", "/bin/sh", "-c", "cp f seen; echo two >f", cwd=folder)
    until(lambda: bool(scene.client.locks()["waiting"]))
    (folder / "f").write_text("one")
    for _ in range(3):
        os.kill(scene.daemon(), signal.SIGKILL)
    assert names(scene) == [f"exclusive file:{folder}/f active"]
    assert second.poll() is None
    (folder / "go").write_text("go")
    assert ran(first) == 0
    assert ran(second) == 0
    assert (folder / "seen").read_text() == "one"
    assert (folder / "f").read_text() == "two\n"


def first_line(child: "subprocess.Popen[bytes]") -> str:
    assert child.stderr is not None
    return child.stderr.readline().decode()


def test_who_waits_is_told_for_whom(scene: Scene, repo: str) -> None:
    one = person(scene, "one")
    one.lock(["res:port-3000"], cwd=repo)
    locking = agentd(scene, "lock", "res:port-3000", "--", "true", cwd=repo, stderr=subprocess.PIPE)
    assert first_line(locking).startswith('agentd: waiting: res:port-3000 is claimed by the user "one" ')
    running = agentd(scene, "run", "--res", "port-3000", "true", cwd=repo, stderr=subprocess.PIPE)
    assert re.fullmatch(r'agentd: job \d+ waits for res:port-3000, held by the user "one"\n', first_line(running))
    delegating = agentd(scene, "delegate", "--res", "port-3000", "--", "true", cwd=repo, stderr=subprocess.PIPE)
    assert first_line(delegating).startswith("agentd: job ")
    assert 'waits for res:port-3000, held by the user "one"' in first_line(delegating)
    assert ran(delegating) == 0
    one.unlock(["res:port-3000"], cwd=repo)
    assert (ran(locking), ran(running)) == (0, 0)


def test_what_can_be_done_stands_in_a_column(scene: Scene, repo: str) -> None:
    person(scene, "one").lock(["res:gpu"], cwd=repo)
    refused = agentd(scene, "lock", "res:gpu", "--wait", "0s", cwd=repo, stderr=subprocess.PIPE)
    told = refused.communicate()[1].decode().split("\n")
    assert refused.returncode == 75
    column = next(line for line in told if line.startswith("Do one of:")).index("agentd lock ")
    assert " " * column + "agentd locks why res:gpu" in told


def test_what_is_held_within_a_with_ends_with_it_however_it_ends(scene: Scene, tmp_path: Path) -> None:
    one, other = person(scene, "one"), person(scene, "other")
    with pytest.raises(ZeroDivisionError), one.locked("f", cwd=str(tmp_path)):
        raise ZeroDivisionError
    with other.locked("f", cwd=str(tmp_path), wait=0):
        with pytest.raises(NotNow), one.locked("f", cwd=str(tmp_path), wait=0.01):
            pytest.fail("it is held")
        assert scene.client.locks()["waiting"] == []  # who gave up does not get it later
    assert names(scene) == []
    assert os.listdir(f"{scene.state}/claims") == []


@pytest.mark.parametrize("session", [{}, {"boot": "x", "pid": 1 << 40, "start": 1, "inode": 1}, {"pid": "1"}])
def test_a_session_that_is_none_is_refused(scene: Scene, session: dict[str, Any]) -> None:
    with pytest.raises(Usage, match=r"lock\.acquire"):
        scene.client.lock(["res:a"], cwd="/", session=session)
    assert names(scene) == []


def test_a_persons_claim_ends_with_the_session(scene: Scene, repo: str) -> None:
    shell = scene.spawn(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE, start_new_session=True)
    code = (
        "import os, sys; from agentd.client import Client; from agentd import process\n"
        "client = Client(sys.argv[1], owner='somebody')\n"
        "client.lock(['a.py'], cwd=sys.argv[2], session=process.identity(int(sys.argv[3])))"
    )
    locking = scene.python(code, scene.state, repo, str(shell.pid), env=faultlab.with_path())
    assert ran(locking) == 0
    held = [f"exclusive file:{repo}/a.py active", "exclusive path:a.py active"]
    assert names(scene) == held
    os.kill(scene.daemon(), signal.SIGKILL)
    assert names(scene) == held
    shell.kill()
    shell.wait()
    until(lambda: names(scene) == [])


def test_a_job_waits_for_its_claims_before_it_starts(scene: Scene, repo: str) -> None:
    one = scene.running("ready; sleep 1000", claims=[{"name": "res:port-3000"}])
    two = scene.delegate("echo two", claims=[{"name": "res:port-3000"}])
    (job,) = (job for job in scene.client.jobs() if job["id"] == two)
    assert job["state"] == "queued"
    assert "res:port-3000" in job["waiting"]
    assert f"job {one}" in job["waiting"]
    three = scene.delegate("echo three")  # what claims nothing waits for nobody
    scene.wait(three)
    os.kill(scene.daemon(), signal.SIGKILL)
    (job,) = (job for job in scene.client.jobs() if job["id"] == two)
    assert job["state"] == "queued"
    scene.client.kill([one], signal="KILL")
    (ended,) = scene.wait(two)
    assert ended["outcome"] == "succeeded"
    until(lambda: names(scene) == [])


def test_a_path_claim_is_pending_until_the_work_is_merged(scene: Scene, repo: str) -> None:
    one = scene.delegate("echo more >>a.py", in_place=False, cwd=repo, claims=[{"name": "a.py"}])
    scene.wait(one)
    scene.client.result(one)
    assert names(scene) == ["exclusive path:a.py pending"]
    two = scene.delegate("echo other >>a.py", in_place=False, cwd=repo, claims=[{"name": "b.py"}])
    scene.wait(two)
    three, four = (scene.delegate("true", cwd=repo, claims=[{"name": "path:a.py"}]) for _ in range(2))
    waits = {job["id"]: job["waiting"] for job in scene.client.jobs()}
    assert (
        waits[three] == f'lock path:a.py, until job {one} "{scene.client.job(one)["job"]["name"]}" is merged or removed'
    )
    assert waits[four].startswith("lock path:a.py, ")
    with pytest.raises(Refused) as refused:
        scene.client.ask("jobs.merge", job=two, cwd=repo)
    assert refused.value.code == "contested"
    assert f"job {one}" in refused.value.message
    scene.client.ask("jobs.merge", job=one, cwd=repo)
    scene.wait(three)
    scene.wait(four)
    until(lambda: names(scene) == ["exclusive path:b.py pending"])
    scene.client.remove(two)
    until(lambda: names(scene) == [])


def test_a_worktree_that_ends_as_it_began_claims_nothing(scene: Scene, repo: str) -> None:
    one = scene.delegate("true", in_place=False, cwd=repo, claims=[{"name": "a.py"}])
    scene.wait(one)
    scene.client.result(one)
    until(lambda: names(scene) == [])


@pytest.mark.parametrize("is_daemon_there", [True, False])
def test_what_was_left_keeps_the_claims_of_its_job(scene: Scene, is_daemon_there: bool) -> None:
    script = 'ready; setsid sleep 1000 & echo $! >"$PROOF/helper"; sleep 0.1'
    one = scene.running(script, leave=["sleep 1000"], claims=[{"name": "res:db"}, {"name": "file:/tmp/x"}])
    scene.wait(one)
    helper = int((scene.proof / "helper").read_text())
    held = ["exclusive file:/tmp/x active", "exclusive res:db active"]
    assert names(scene) == held
    if not is_daemon_there:
        os.kill(scene.daemon(), signal.SIGKILL)
        assert names(scene) == held
        os.kill(scene.daemon(), signal.SIGKILL)
    os.kill(helper, signal.SIGKILL)
    until(lambda: names(scene) == [])


def test_in_place_jobs_and_people_exclude_each_other(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    (folder / "sub").mkdir(parents=True)
    one = scene.running("ready; sleep 1000", cwd=str(folder), claims=[{"name": "file:./"}])
    with pytest.raises(NotNow, match=f"job {one}"):
        person(scene, "me").lock(["sub/f"], cwd=str(folder), wait=0)
    two = scene.delegate("true", cwd=str(folder / "sub"), claims=[{"name": "f"}])
    assert scene.client.job(two)["job"]["state"] == "queued"
    scene.client.kill([one], signal="KILL")
    scene.wait(two)


def test_a_break_is_told_and_kept(scene: Scene, repo: str) -> None:
    one = scene.running("ready; sleep 1000", in_place=False, cwd=repo, claims=[{"name": "src/c*"}])
    before = scene.client.locks()["claims"][0]["token"]
    with pytest.raises(Refused, match=r"holds path:src/c\*"):
        scene.client.ask("lock.break", name="src/c.py", cwd=repo, reason="too little")
    with pytest.raises(Usage, match="reason"):
        scene.client.ask("lock.break", name="src/c*", cwd=repo, reason=" ")
    scene.client.ask("lock.break", name="src/c*", cwd=repo, reason="urgent hotfix", owner="boss")
    assert names(scene) == []
    (event,) = scene.events("lock.broken")
    assert event["job"] == one
    assert event["data"].items() >= {"why": "urgent hotfix", "by": "boss", "token": before}.items()
    assert event["data"]["new_token"] > before
    told = scene.client.ask("lock.history", name="src/c.py", cwd=repo)["events"]
    assert [event["type"] for event in told] == ["lock.granted", "lock.broken"]
    scene.client.kill([one], signal="KILL")


def test_a_job_locks_for_itself_and_breaks_nothing(scene: Scene, repo: str) -> None:
    script = f"""
    set +e
    {sys.executable} -m agentd lock a.py; echo "lock $?"
    {sys.executable} -m agentd locks break b.py --reason x; echo "break $?"
    ready; sleep 1000"""
    environment = scene.environment() | {"PYTHONPATH": faultlab.with_path()["PYTHONPATH"]}
    person(scene, "me").lock(["b.py"], cwd=repo)
    job = scene.client.delegate(
        ["/bin/sh", "-c", faultlab.ONCE + 'ready() { : > "$PROOF/ready"; }\n' + script],
        environment=environment,
        cwd=repo,
        limits={},
    )
    until(lambda: (scene.proof / "ready").exists(), timeout=60)
    id = int(job["id"])
    until(lambda: scene.log(id) == b"lock 0\nbreak 1\n", what=lambda: str((scene.log(id), scene.log(id, "err"))))
    assert b"not allowed" in scene.log(id, "err")
    assert held_by(scene, "lab") == [["exclusive", "path:a.py"]]
    scene.client.kill([id], signal="KILL")
    until(lambda: held_by(scene, "lab") == [])


def test_a_counter_is_exact_whoever_is_killed(scene: Scene, tmp_path: Path) -> None:
    """32 processes, half of them jobs; holders, waiters and the daemon are killed at random."""
    import random

    workers, each, kills = (32, 400, 60) if LONG else (8, 40, 8)
    chance = random.Random(int(os.environ.get("AGENTD_SEED", "7")))
    folder = tmp_path / "counting"
    folder.mkdir()
    (folder / lockslab.COUNTER).write_text("0")
    program = [sys.executable, lockslab.__file__, scene.state, str(folder)]
    people, jobs, born = [], [], 0

    def start() -> None:
        nonlocal born
        born += 1
        words = [*program, f"w{born}", str(each)]
        if born % 2:
            people.append(scene.spawn(words, env=faultlab.with_path(), stdout=subprocess.DEVNULL))
        else:
            environment = scene.environment() | {"PYTHONPATH": faultlab.with_path()["PYTHONPATH"]}
            made = scene.client.delegate(words, environment=environment, in_place=True, cwd=str(folder), limits={})
            jobs.append(int(made["id"]))

    for _ in range(workers):
        start()
    killed: Counter[str] = Counter()
    since = time.monotonic()
    for number in range(kills):
        goal = lockslab.acknowledged(folder) + chance.randrange(1, 5)
        until(lambda g=goal: lockslab.acknowledged(folder) >= g, timeout=120, what=lambda: "nobody gets on")
        if number % 4 == 0:
            os.kill(scene.daemon(), signal.SIGKILL)
            killed["daemon"] += 1
            continue
        holders = {claim["holder"]["pid"] for claim in scene.client.locks()["claims"]}
        holding = [one for one in people if one.pid in holders and number % 4 == 3]
        live = [job for job in scene.client.jobs() if job["id"] in jobs and job["pid"]]
        if number % 4 == 2 and live:
            faultlab.signal_marked([f"AGENTD_JOB={chance.choice(live)['id']}"], signal.SIGKILL)
        else:
            victim = chance.choice(holding or people)
            victim.kill()
            victim.wait()
        killed["job" if number % 4 == 2 else "holder" if holding else "person, mostly a waiter"] += 1
        start()
    for one in people:
        assert one.wait(600) in (0, -signal.SIGKILL)
    scene.client.wait(jobs, timeout=600)
    took = time.monotonic() - since
    print(f"{lockslab.acknowledged(folder)} increments by {born} processes in {took:.0f} s; killed: {dict(killed)}")
    assert lockslab.violations(folder) == []
    assert lockslab.acknowledged(folder) > workers * each / 2
    until(lambda: names(scene) == [] and not scene.client.locks()["waiting"])
