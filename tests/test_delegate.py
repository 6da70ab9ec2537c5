"""The prompt is back, however slow the repository's checkouts are."""

import subprocess
from pathlib import Path

import faultlab

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
