"""Jobs in worktrees, through the client: the prompt is back however slow checkouts are, and nobody is blamed for
what others did to the repository."""

import subprocess
from pathlib import Path

import faultlab
from faultlab import Scene
from gitrepo import make_repo, run

from agentd import Client
from agentd.daemon.perform import GIT_THREADS


def test_no_delegate_waits_for_the_checkouts_of_others(tmp_path: Path) -> None:
    """Each checkout blocks in a filter until the test opens the gate; every id has been answered by then."""
    repository, gate = tmp_path / "repository", tmp_path / "gate"
    repository.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(repository), *words], check=True, capture_output=True)

    git("init")
    (repository / ".gitattributes").write_text("slow.txt filter=slow\n")
    (repository / "slow.txt").write_text("content\n")
    git("config", "filter.slow.clean", "cat")
    git("config", "filter.slow.smudge", f"while [ ! -e {gate} ]; do sleep 0.02; done; cat")
    git("add", ".")
    git("commit", "-m", "one")
    with Client(str(tmp_path / "state"), owner="tester") as client:
        try:
            ids = [client.delegate(["cat", "slow.txt"], cwd=str(repository))["id"] for _ in range(GIT_THREADS)]
            faultlab.until(lambda: [job["waiting"] for job in client.jobs()] == ["checkout"] * GIT_THREADS)
            ids.append(client.delegate(["cat", "slow.txt"], cwd=str(repository))["id"])
            assert not any((tmp_path / "state").glob("worktrees/*/*/slow.txt"))
            assert {job["state"] for job in client.jobs()} <= {"queued", "preparing"}
            gate.touch()
            ended = client.wait(ids, timeout=60)["jobs"]
            assert [job["outcome"] for job in ended] == ["succeeded"] * len(ids)
        finally:
            gate.touch()
            pid = client.ask("daemon.status")["pid"]
            client.ask("daemon.stop", kill_jobs=True)
    faultlab.until(lambda: not Path(f"/proc/{pid}/exe").exists())


def test_an_attempt_is_not_blamed_for_what_was_done_before_it(tmp_path: Path) -> None:
    top = make_repo(tmp_path / "repo")
    with Scene(tmp_path) as scene:
        id = scene.delegate("git branch theirs; echo x > new; exit 3", in_place=False, cwd=top)
        scene.wait(id)
        faultlab.until(lambda: bool(scene.events("job.result")))
        run(top, "branch", "mine")
        run(top, "config", "user.mine", "1")
        scene.client.restart(id)
        scene.wait(id)
        faultlab.until(lambda: len(scene.events("job.result")) == 2)
        (told,) = scene.events("repository.changed")
        assert told["attempt"] == 1 and ["theirs" in line for line in told["data"]["what"]] == [True]
        unstarted = scene.client.delegate(["/no/such/program"], cwd=top)["id"]
        run(top, "branch", "mine-too")
        scene.wait(unstarted)
        faultlab.until(lambda: len(scene.events("job.result")) == 3)
        assert len(scene.events("repository.changed")) == 1


def test_files_are_as_open_as_in_the_callers_own_checkout(tmp_path: Path) -> None:
    top = make_repo(tmp_path / "repo")
    with Scene(tmp_path) as scene:
        for mask, modes in ((0o022, "644 755"), (0o007, "660 770"), (0o077, "600 700")):
            script = 'file=$(git ls-files | grep / | head -n 1); stat -c %a "$file" "${file%/*}"'
            id = scene.delegate(script, in_place=False, cwd=top, umask=mask)
            scene.wait(id)
            assert scene.log(id).split() == modes.encode().split()


def test_nobody_at_a_prompt_waits_for_a_look_at_a_large_tree(tmp_path: Path) -> None:
    """What of it the job has not is told by an event; of a small tree it is in the answer."""
    small, large = make_repo(tmp_path / "small"), make_repo(tmp_path / "large")
    blob = run(large, "hash-object", "-w", "/dev/null")
    listed = "".join(f"100644 {blob} 0\t{'d' * 90}/{n}\n" for n in range(8000))
    subprocess.run(["git", "-C", large, "update-index", "--index-info"], input=listed, text=True, check=True)
    run(large, "commit", "-q", "-m", "many")
    for top in (small, large):
        Path(top, "mine.txt").write_text("mine")
    with Scene(tmp_path) as scene:
        options = {"cwd": small, "environment": scene.environment()}
        answer = scene.client.delegate_answer(["true"], **options)
        assert answer["is_tree_known"] and answer["excluded"]["untracked"] == 1
        answer = scene.client.delegate_answer(["true"], **(options | {"cwd": large}))
        assert not answer["is_tree_known"] and answer["excluded"] is None
        id = answer["job"]["id"]
        scene.wait(id)
        (told,) = [event for event in scene.events("worktree.excludes") if event["job"] == id]
        assert told["data"]["untracked"] == 1
