"""Commits inside a job: its git asks before it commits, and all hooks of the repository run as ever."""

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import gitrepo
import pytest
from ladderlab import Site

from agentd.daemon import guarding


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for shell in clishell.serve(tmp_path, monkeypatch):
        site = Site(shell, tmp_path, monkeypatch)
        yield site
        site.close()


def said(site: Site, id: int) -> str:
    return site.shell.ok("logs", str(id))


def claim(site: Site, path: str) -> int:
    """A job that claims a path and goes on until "end" is said."""
    holder = site.command(site.wait_for("end"), name="holder", claims=[{"name": path}])
    faultlab.until(lambda: (f"path:{path}", holder) in site.claims())
    return holder


def test_a_commit_of_what_another_claims_is_refused_and_the_rest_goes_through(site: Site) -> None:
    claim(site, "src/f0.txt")
    script = (
        "echo mine > src/f0.txt; echo mine > src/f1.txt; mkdir -p sub; git add -A; cd src;"
        " git commit -q -m both; echo both $?; git reset -q f0.txt; git commit -q -m rest; echo rest $?;"
        " git commit -q -a --no-verify -m anyway; echo anyway $?"
    )
    id = site.command(script, input=False)
    assert site.done(id)["outcome"] == "succeeded"
    out = said(site, id)
    assert "both 1\n" in out and "rest 0\n" in out and "anyway 0\n" in out, out
    assert '[agentd:locked] src/f0.txt is claimed by job 1 "holder" (path:src/f0.txt, exclusive)' in out
    assert "Not committed: take src/f0.txt out of the commit" in out and "src/f1.txt is claimed" not in out
    merged = site.shell("merge", str(id), cwd=site.repo)
    assert merged.code == 1 and "src/f0.txt" in merged.err, "the merge has the last word"
    assert gitrepo.run(site.repo, "config", "--default", "", "--get", "core.hooksPath") == ""


def test_a_merge_of_what_others_landed_is_no_change_of_the_jobs(site: Site) -> None:
    claim(site, "src/f0.txt")
    id = site.command(
        f"echo x > new; git add new; git commit -q -m new; {site.wait_for('landed')};"
        " git merge -q --no-commit main; git commit -q -m merged; echo code $?"
    )
    gitrepo.write(Path(site.repo) / "src/f0.txt", "landed\n")
    gitrepo.run(site.repo, "commit", "-q", "-a", "-m", "landed")
    site.say("landed")
    site.done(id)
    assert "code 0" in said(site, id)


@pytest.mark.parametrize("where", ["of the repository", "where its configuration says", "beside it, as husky has it"])
def test_the_repositorys_own_hooks_run(site: Site, tmp_path: Path, where: str) -> None:
    folder = Path(site.repo) / ".git" / "hooks"
    if where == "where its configuration says":
        folder = tmp_path / "my hooks"
        gitrepo.run(site.repo, "config", "core.hooksPath", str(folder))
    elif where == "beside it, as husky has it":
        folder = Path(site.repo) / ".husky"
        gitrepo.run(site.repo, "config", "core.hooksPath", ".husky")
    names = ("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-checkout", "reference-transaction")
    for name in names:
        gitrepo.write(folder / name, f'#!/bin/sh\necho "{name} $#" >> {shlex.quote(str(tmp_path / "ran"))}\n')
        os.chmod(folder / name, 0o755)
    if where == "beside it, as husky has it":
        gitrepo.run(site.repo, "add", "-A")
        gitrepo.run(site.repo, "commit", "-q", "-m", "hooks")
        (tmp_path / "ran").unlink()
    id = site.command("echo x > new; git add new; git commit -q -m new && git checkout -q -b other")
    assert site.done(id)["outcome"] == "succeeded", said(site, id)
    ran = (tmp_path / "ran").read_text().splitlines()
    one_each = ["pre-commit 0", "prepare-commit-msg 2", "commit-msg 1", "post-commit 0", "post-checkout 3"]
    assert [line for line in ran if not line.startswith("reference")] == one_each
    assert "reference-transaction 1" in ran

    gitrepo.write(folder / "pre-commit", "#!/bin/sh\necho no >&2; exit 1\n")
    if where == "beside it, as husky has it":
        gitrepo.run(site.repo, "commit", "-q", "-a", "--no-verify", "-m", "refuse")
    id = site.command("echo x > new; git add new; git commit -q -m new")
    assert (site.done(id)["exit_code"], "no\n" in said(site, id)) == (1, True)


def test_a_commit_in_a_hurry_while_the_daemon_is_dead_is_made(site: Site) -> None:
    claim(site, "src/f0.txt")
    id = site.command(f"{site.wait_for('dead')}; echo mine > src/f0.txt; git commit -q -a -m mine; echo code $?")
    faultlab.until(lambda: site.client.job(id)["job"]["state"] == "running")
    os.kill(int(site.client.ask("daemon.status")["pid"]), signal.SIGKILL)
    site.say("dead")
    log = site.shell.path(str(id))
    faultlab.until(lambda: "code 0" in "".join(path.read_text() for path in log.glob("log.out*")), 30)


def test_its_entry_is_added_to_what_git_has_and_taken_out_again() -> None:
    had = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "me", "A": "b"}
    for environment in (had, {"A": "b"}):
        once = guarding.guarded(environment, "/state")
        assert guarding.guarded(once, "/state") == once
        assert guarding.unguarded(once, "/state") == environment
    assert once == {
        "A": "b",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.hooksPath",
        "GIT_CONFIG_VALUE_0": "/state/guard/hooks",
    }
    broken = {"GIT_CONFIG_COUNT": "many"}
    assert guarding.guarded(broken, "/state") == broken


def test_a_job_in_place_and_one_without_guard_have_gits_own_hooks(site: Site) -> None:
    id = int(site.client.delegate(["/bin/sh", "-c", "env"], cwd=site.repo, in_place=True)["id"])
    site.done(id)
    assert "GIT_CONFIG" not in said(site, id)


def test_what_it_costs(site: Site, tmp_path: Path) -> None:
    """Shown, not asserted: a machine may be busy."""
    script = "for n in 1 2 3 4 5 6 7 8 9 10; do git commit -q --allow-empty -m $n; done; date +%s.%N"
    timed = f"date +%s.%N; {script}; export GIT_CONFIG_COUNT=0; {script}"
    id = site.command(timed)
    site.done(id)
    began, guarded, plain = map(float, said(site, id).split())
    print(f"a commit: {(guarded - began) * 100:.1f} ms with the guard, {(plain - guarded) * 100:.1f} ms without")
    assert began < guarded < plain <= time.time()
