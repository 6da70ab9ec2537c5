"""Where one writer at a time is the rule: the first write keeps others off, and who could not be asked is stopped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import pytest
from ladderlab import Site, bash, write

from agentd import config
from agentd.core.errors import Usage
from agentd.core.lock_policy import Policy, policy_of

POLICY = '[locks.policy]\n"held/**" = "pause"\n"one.txt" = "wait"\n'


@pytest.fixture
def site(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    settings = home / ".config" / "agentd" / "agentd.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(POLICY)
    for shell in clishell.serve(tmp_path, monkeypatch):
        site = Site(shell, tmp_path, monkeypatch)
        yield site
        site.close()


def is_stopped(site: Site, id: int) -> bool:
    return str(site.client.job(id)["job"]["state"]) == "stopped"


def writer(site: Site, path: str, go: str, more: str = "") -> int:
    """A command whose helper writes, when told to, and then goes on till it is told to end."""
    folder = os.path.dirname(path) or "."
    script = f"mkdir -p {folder}; {site.wait_for(go)}; sh -c 'echo $$ > {path}; touch {site.go}/{go}-wrote'; {more}"
    return site.command(f"{script} {site.wait_for(f'{go}-end')}; touch {site.go}/{go}-over")


# --- which policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        *[
            ("package-lock.json", "wait"),
            ("web/package-lock.json", "wait"),
            ("a/b/uv.lock", "wait"),
            ("go.sum", "wait"),
        ],
        *[("app/migrations/0001_first.py", "wait"), ("migrations/x.sql", "wait"), ("notes/a.ipynb", "wait")],
        *[("pkg/__init__.py", "share"), ("CHANGELOG.md", "share"), ("doc/CHANGELOG", "share")],
        *[("src/a.py", "warn"), ("my-package-lock.json", "warn"), ("migrations.py", "warn")],
    ],
)
def test_the_defaults(path: str, policy: Policy) -> None:
    assert policy_of(path, {}) == policy


def test_what_is_configured_goes_first_and_the_last_that_fits_counts() -> None:
    configured: dict[str, Policy] = {"**/*.lock": "pause", "web/**": "warn", "CHANGELOG*": "wait"}
    assert policy_of("uv.lock", configured) == "pause"
    assert policy_of("web/uv.lock", configured) == "warn"
    assert policy_of("CHANGELOG.md", configured) == "wait"
    assert policy_of("doc/CHANGELOG.md", configured) == "share"
    assert policy_of("changelog.md", configured, fold=True) == "wait"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[locks.policy]\n\n"src/**" = "stop"\n',
            'line 3: locks.policy: "src/**" must be one of warn, share, wait, pause',
        ),
        ('[locks.policy]\n"src/[ab].py" = "warn"\n', 'line 2: locks.policy: "src/[ab].py": of patterns there are only'),
        ('[locks.policy]\n"../x" = "warn"\n', 'line 2: locks.policy: "../x" may lead outside the repository'),
        ("[locks]\npolicy = 3\n", "line 2: locks.policy must be a table, not a whole number"),
    ],
)
def test_a_wrong_policy_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "agentd.toml"
    path.write_text(text)
    with pytest.raises(Usage) as error:
        config.load(str(path))
    assert told in error.value.message and "\n" not in error.value.message


# --- wait ------------------------------------------------------------------------------------------------------


def test_the_first_writer_of_a_single_file_keeps_others_off(site: Site) -> None:
    """An agent that asks holds it from before its write; of a command the write is seen, and told."""
    site.serve(
        {
            "task": "ask first",
            "turns": [{"calls": [write("one.txt", "mine\n"), bash(site.wait_for("end"))]}, {"say": "done"}],
        }
    )
    agent = site.agent("ask first")
    faultlab.until(lambda: ("path:one.txt", agent) in site.claims(), 60)
    assert not site.claims()["path:one.txt", agent]["automatic"]
    levels = ["merge", "tools", "commit"]
    faultlab.until(lambda: site.claims()["path:one.txt", agent]["enforced"][:3] == levels)  # once it is saved
    command = writer(site, "one.txt", "second")
    site.say("second")
    faultlab.until(lambda: site.claims().get(("path:one.txt", command), {}).get("state") == "contested", 60)
    assert site.until("lock.contested", name="path:one.txt")["job"] == command
    assert not is_stopped(site, command)
    site.say("second-end")
    site.done(command)
    assert site.shell("merge", str(command), cwd=site.repo).code == 1
    site.say("end")
    site.done(agent)
    assert site.shell("merge", str(agent), cwd=site.repo).code == 0


# --- pause -----------------------------------------------------------------------------------------------------


def test_who_writes_what_is_claimed_is_stopped_until_it_is_free(site: Site) -> None:
    first, second = (
        writer(site, "held/a", "first"),
        writer(site, "held/a", "second", f"while :; do echo on >> {site.go}/on; sleep 0.05; done &"),
    )
    site.say("first")
    faultlab.until(lambda: ("path:held/a", first) in site.claims(), 60)
    assert not site.claims()["path:held/a", first]["automatic"], "its first write keeps others off"
    site.say("second")
    paused = site.until("lock.paused", name="path:held/a")
    assert paused["job"] == second and f"job {first}" in paused["data"]["holder"]
    faultlab.until(lambda: is_stopped(site, second))
    site.say("second-end")
    size = (site.go / "on").stat().st_size
    site.say("first-end")
    site.done(first)
    assert is_stopped(site, second) and (site.go / "on").stat().st_size == size, "its helpers stand still, too"
    assert site.shell("merge", str(first), cwd=site.repo).code == 0
    assert site.until("lock.continued", name="path:held/a")["data"]["why"] == "granted"
    site.has_said("second-over")
    assert ("path:held/a", second) in site.claims()


def test_a_circle_is_found_and_nobody_is_stopped_for_ever(site: Site) -> None:
    first = site.command(
        f"mkdir held; echo 1 > held/a; {site.wait_for('both')}; echo 1 > held/b; {site.wait_for('end')}"
    )
    late = f"{site.wait_for('late')}; echo 2 > held/a; {site.wait_for('end')}"
    second = site.command(f"mkdir held; echo 2 > held/b; {site.wait_for('both')}; {late}")
    faultlab.until(lambda: {("path:held/a", first), ("path:held/b", second)} <= site.claims().keys(), 60)
    site.say("both")
    faultlab.until(lambda: is_stopped(site, first), 60)
    site.say("late")
    assert site.until("lock.deadlock")["job"] == second
    assert not is_stopped(site, second)
    site.say("end")
    site.done(second)
    assert site.shell("rm", str(second)).code == 0
    assert site.done(first)["outcome"] == "succeeded"


def test_a_person_who_continues_it_has_the_last_word(site: Site) -> None:
    again = f"{site.wait_for('again')}; echo again > held/a; echo x > own;"
    first, second = writer(site, "held/a", "first"), writer(site, "held/a", "second", again)
    site.say("first")
    faultlab.until(lambda: ("path:held/a", first) in site.claims(), 60)
    site.say("second")
    faultlab.until(lambda: is_stopped(site, second), 60)
    site.until("lock.paused")
    site.shell.ok("kill", "-s", "CONT", str(second))
    assert "CONT" in site.until("lock.continued")["data"]["why"]
    site.say("again")
    faultlab.until(lambda: ("path:own", second) in site.claims(), 60)
    assert site.client.ask("lock.list")["waiting"] == [], "it is not stopped for this again"
    site.say("second-end")
    site.has_said("second-over")
    site.done(second)
    assert len(site.events("lock.paused")) == 1
    assert site.client.ask("lock.list")["waiting"] == []


def test_a_stopped_job_can_be_killed(site: Site) -> None:
    first, second = writer(site, "held/a", "first"), writer(site, "held/a", "second")
    site.say("first")
    faultlab.until(lambda: ("path:held/a", first) in site.claims(), 60)
    site.say("second")
    faultlab.until(lambda: is_stopped(site, second), 60)
    site.shell.ok("kill", str(second))
    assert site.done(second)["outcome"] == "killed"
    assert site.client.ask("lock.list")["waiting"] == []


@pytest.mark.parametrize("is_freed", [False, True], ids=["held still", "free meanwhile"])
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "told to stop"])
def test_the_next_daemon_knows_whom_the_last_one_stopped(site: Site, is_freed: bool, is_killed: bool) -> None:
    first, second = writer(site, "held/a", "first"), writer(site, "held/a", "second")
    site.say("first")
    faultlab.until(lambda: ("path:held/a", first) in site.claims(), 60)
    site.say("second")
    faultlab.until(lambda: is_stopped(site, second), 60)
    site.until("lock.paused")
    if is_killed:
        os.kill(int(site.client.ask("daemon.status")["pid"]), signal.SIGKILL)
    else:
        site.shell.ok("daemon", "stop")
        assert "Traceback" not in (site.shell.state / "daemon.log").read_text()
    site.say("second-end")
    if is_freed:
        site.say("first-end")
        site.has_said("first-over")
    else:
        faultlab.until(lambda: is_stopped(site, second))
        site.say("first-end")
    site.done(first)
    assert site.shell("rm", str(first)).code == 0
    site.has_said("second-over")
    assert site.done(second)["outcome"] == "succeeded"
