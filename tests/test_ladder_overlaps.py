"""Jobs that write the same files: claims appear by themselves, and each overlap is told, with its verdict."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import gitrepo
import pytest
from ladderlab import Site, bash, write

CASES = 50 if os.environ.get("AGENTD_LONG") else 4
SOON_S = 5.0 if os.environ.get("AGENTD_LONG") else 30.0
"""From the second write to the report; a busy machine is no failure."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for shell in clishell.serve(tmp_path, monkeypatch):
        site = Site(shell, tmp_path, monkeypatch)
        yield site
        site.close()


def test_three_agents_overlap_and_each_is_told(site: Site) -> None:
    """Two built-in agents, driven by a script, and a command: the first write claims, the second is contested."""
    site.serve(
        {
            "task": "the first",
            "turns": [
                {"calls": [write("src/f0.txt", "line 0 of the first\n"), write("src/f1.txt", "top\nline 1\n")]},
                {"calls": [bash(f"touch {site.go}/first; {site.wait_for('end')}")]},
                {"say": "done"},
            ],
        },
        {
            "task": "the second",
            "turns": [
                {"calls": [bash(site.wait_for("second")), write("src/f0.txt", "line 0 of the second\n")]},
                {"calls": [bash(site.wait_for("end"))]},
                {"say": "done"},
            ],
        },
    )
    first, second = site.agent("the first"), site.agent("the second")
    script = (
        f"{site.wait_for('third')}; printf 'line 1\\nbelow\\n' > src/f1.txt; echo new > own.txt; {site.wait_for('end')}"
    )
    third = site.command(script, owner="somebody else")
    site.has_said("first")
    faultlab.until(lambda: ("path:src/f0.txt", first) in site.claims(), 60)
    assert site.claims()["path:src/f0.txt", first]["automatic"]

    began = time.monotonic()
    site.say("second")
    told = site.until("overlap", SOON_S, jobs=[first, second], verdict="conflicting")
    assert told["data"]["conflicts"] == told["data"]["paths"] == ["src/f0.txt"]
    print(f"second write to report: {time.monotonic() - began:.2f} s")
    claim = site.claims()["path:src/f0.txt", second]
    assert claim["state"] == "contested" and claim["token"] == 0 and claim["enforced"] == ["watch"]
    assert site.shell("locks", cwd=site.repo).out.count("contested") == 1

    site.say("third")
    told = site.until("overlap", SOON_S, jobs=[first, third])
    faultlab.until(lambda: ("path:own.txt", third) in site.claims())
    assert (told["data"]["verdict"], told["data"]["paths"]) == ("clean", ["src/f1.txt"])
    owners = [event for event in site.events("overlap") if event["data"]["jobs"] == [first, third]]
    assert {event["job"] for event in owners} == {first, third}, "each owner has one of its own"
    assert [one["job"] for one in site.client.job(first)["job"]["overlaps"]] == [second, third]

    site.say("end")
    for id in (first, second, third):
        site.done(id)
    of_second, of_third = site.heard(first)
    assert f'job {second} "' in of_second and "the two changes conflict, in src/f0.txt" in of_second
    assert f'job {third} "' in of_third and "merge cleanly" in of_third
    (of_first,) = site.heard(second)
    assert f'job {first} "' in of_first and "conflict" in of_first


def test_files_that_everybody_adds_to_are_told_of_only_if_they_conflict(site: Site) -> None:
    """And what was told is not told again, by the next daemon neither."""
    gitrepo.write(Path(site.repo) / "pkg" / "__init__.py", "".join(f"line {n}\n" for n in range(9)))
    gitrepo.run(site.repo, "add", "-A")
    gitrepo.run(site.repo, "commit", "-q", "-m", "package")
    first = site.command(f"sed -i '1s/$/ first/' pkg/__init__.py; {site.wait_for('end')}")
    more = f"{site.wait_for('more')}; sed -i '1s/$/ second/' pkg/__init__.py; {site.wait_for('end')}"
    second = site.command(f"sed -i '9s/$/ second/' pkg/__init__.py; {more}")
    faultlab.until(lambda: [one["verdict"] for one in site.client.job(first)["job"]["overlaps"]] == ["clean"], 60)
    assert site.events("overlap", "lock.contested") == []
    assert site.claims()["path:pkg/__init__.py", second]["mode"] == "append"
    site.say("more")
    site.until("overlap", jobs=[first, second], verdict="conflicting")
    os.kill(int(site.client.ask("daemon.status")["pid"]), signal.SIGKILL)
    faultlab.until(lambda: [one["job"] for one in site.client.job(second)["job"]["overlaps"]] == [first], 60)
    site.say("end")
    site.done(first)
    assert "conflicting: pkg/__init__.py" in site.shell.ok("inspect", str(second))
    assert len(site.events("overlap")) == 1


def test_a_job_too_short_to_be_watched_claims_what_it_changed(site: Site) -> None:
    first = site.command("echo first > src/f0.txt")
    site.done(first)
    faultlab.until(lambda: site.claims().get(("path:src/f0.txt", first), {}).get("state") == "pending", 60)
    second = site.command(f"echo second > src/f0.txt; {site.wait_for('end')}")
    told = site.until("overlap", jobs=[first, second])
    assert told["data"]["verdict"] == "conflicting"
    site.shell.ok("rm", str(first))
    faultlab.until(lambda: ("path:src/f0.txt", first) not in site.claims())
    assert site.claims()["path:src/f0.txt", second]["state"] == "active", "it is its own now"
    assert site.client.job(second)["job"]["overlaps"] == []
    site.say("end")


def test_the_verdict_is_that_of_git_merge(site: Site) -> None:
    chance = random.Random(os.environ.get("AGENTD_SEED", "7"))
    for n in range(CASES):
        lines = [f"line {k}" for k in range(12)]
        files = {f"case/{n}-{k}.txt": lines for k in range(chance.choice((1, 2, 3)))}
        for path, text in files.items():
            gitrepo.write(Path(site.repo) / path, "\n".join(text) + "\n")
        gitrepo.run(site.repo, "add", "-A")
        gitrepo.run(site.repo, "commit", "-q", "-m", f"case {n}")
        jobs = []
        for side in ("one", "two"):
            edits = " && ".join(edit(chance, path, side) for path in files)
            commit = "git add -A && git commit -q -m work &&" if chance.random() < 0.5 else ""
            jobs.append(site.command(f"{edits} && {commit} {site.wait_for(f'end-{n}')}"))
        told = site.until("overlap", 60.0, jobs=jobs)["data"]
        site.say(f"end-{n}")
        for id in jobs:
            assert site.done(id)["outcome"] == "succeeded"
        faultlab.until(lambda jobs=jobs: all(site.client.job(id)["job"]["result"] for id in jobs))
        tips = [site.client.job(id)["job"]["result"]["snapshot"] for id in jobs]
        last = [event["data"] for event in site.events("overlap") if event["data"]["jobs"] == jobs][-1]
        conflicts = merged_by_git(site.repo, *tips)
        assert (last["verdict"], last["conflicts"]) == ("conflicting" if conflicts else "clean", conflicts), (n, told)
        print(f"case {n}: {last['verdict']} {len(last['paths'])} {conflicts}")


def edit(chance: random.Random, path: str, side: str) -> str:
    """A shell command that changes a file somewhere, or takes it away, or adds to its end."""
    how = chance.random()
    if how < 0.1:
        return f"rm {path}"
    if how < 0.2:
        return f"echo {side} >> {path}"
    return f"sed -i '{chance.randrange(1, 13)}s/$/ {side}/' {path}"


def merged_by_git(repo: str, one: str, other: str) -> list[str]:
    """The files in which a real merge of the two ends in conflict."""
    tree = Path(repo).parent / "merge"
    gitrepo.run(repo, "worktree", "add", "-q", "--detach", str(tree), one)
    done = subprocess.run(["git", "merge", "-q", "--no-edit", other], cwd=tree, capture_output=True, check=False)
    found = gitrepo.run(tree, "diff", "--name-only", "--diff-filter=U").split()
    assert (done.returncode == 0) == (not found), done
    gitrepo.run(repo, "worktree", "remove", "--force", str(tree))
    return found
