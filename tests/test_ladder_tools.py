"""The built-in agent's tools ask before they write."""

from collections.abc import Iterator
from pathlib import Path

import clishell
import faultlab
import pytest
from ladderlab import Site, bash, write


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for shell in clishell.serve(tmp_path, monkeypatch):
        site = Site(shell, tmp_path, monkeypatch)
        yield site
        site.close()


def test_a_write_to_what_another_claims_is_refused_with_all_there_is_to_know(site: Site) -> None:
    site.serve(
        {
            "task": "both files",
            "turns": [
                {"calls": [write("src/f0.txt", "mine\n"), write("other.txt", "mine\n")]},
                {"calls": [bash("agentd lock src/f0.txt --wait 60s && echo got it")]},
                {"calls": [write("src/f0.txt", "mine\n")]},
                {"say": "done"},
            ],
        }
    )
    holder = site.command(site.wait_for("end"), name="holder", claims=[{"name": "src/f0*"}])
    faultlab.until(lambda: ("path:src/f0*", holder) in site.claims())
    agent = site.agent("both files")
    site.until("lock.queued", names=["path:src/f0.txt"])
    faultlab.until(lambda: len(site.results(agent)) >= 2, 60)
    refused, other = site.results(agent)[:2]
    assert f'[agentd:locked] src/f0.txt is claimed by job {holder} "holder" (path:src/f0*, exclusive)' in refused
    assert "coordination, not a fault" in refused and "you would be 1st" in refused and "through the shell" in refused
    assert other.startswith("made: other.txt")
    site.say("end")
    site.done(agent)
    assert site.results(agent)[3].startswith("overwritten: src/f0.txt")
