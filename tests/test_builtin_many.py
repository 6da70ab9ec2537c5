"""Many agents at once, through one daemon. AGENTD_LONG=1: a hundred."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from agentlab import Record, Scene, bash, scene_of, write

AGENTS = 100 if faultlab.is_long else 10


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield from scene_of(tmp_path, monkeypatch)


def memory(pids: list[int]) -> dict[str, int]:
    """Bytes of each kind of process of ours: what it shares counts in part (PSS)."""
    found: Counter[str] = Counter()
    for pid in pids:
        kind = Path(f"/proc/{pid}/cmdline").read_text().split()[0].rstrip("\0").removeprefix("agentd-")
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found[kind] += next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
    return found


def turns(n: int, meet: Path) -> list[Record]:
    meeting = f"touch {meet}/{n}; while [ ! -e {meet}/go ]; do sleep 0.2; done"
    return [
        {"say": f"I am {n}.", "calls": [write("mine.txt", f"{n}\n"), bash("cat src/f0.txt >> mine.txt")]},
        {"calls": [bash(meeting)]},
        {"calls": [bash("cat mine.txt; git status --short")]},
        {"say": f"Task {n} is done."},
    ]


def states(scene: Scene) -> list[str]:
    return [job["state"] for job in scene.client.jobs(all=True)]


@pytest.mark.timeout(600)
def test_many_agents_at_once(scene: Scene, tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    meet.mkdir()
    scene.configure(f"[limits]\nrunning = {AGENTS}\n")
    scene.serve({"scripts": [{"task": f"task {n}.", "turns": turns(n, meet)} for n in range(AGENTS)]})
    ids = [scene.delegate(f"Do task {n}.", in_place=False, cwd=scene.repo, name=f"t{n}") for n in range(AGENTS)]
    faultlab.until(lambda: len(list(meet.iterdir())) == AGENTS, 300, lambda: str(Counter(states(scene))))
    used = memory(scene.ours())
    print(f"{AGENTS} agents: " + ", ".join(f"{kind} {size / (1 << 20):.0f} MiB" for kind, size in sorted(used.items())))
    each = (used["builtin"] + used["keeper"]) / AGENTS
    assert each < 20 << 20, used
    assert used["daemon"] < 200 << 20, used
    (meet / "go").touch()
    for n, id in enumerate(ids):
        job = scene.wait(id, timeout=400)
        assert (job["outcome"], job["attempt"], job["progress"]["words"]) == ("succeeded", 1, f"Task {n} is done.")
        assert (Path(job["worktree"]) / "mine.txt").read_text() == f"{n}\nline 0\n"
        assert [record["type"] for record in scene.records(id)].count("assistant") == 4
    assert len(scene.requests()) == 4 * AGENTS, "none was asked twice"
