"""Short loops of random kills; scripts/faults runs the long ones."""

from pathlib import Path

import pytest
import randomkills

ALL = (
    ("daemon",),
    ("keeper",),
    ("zygote",),
    ("daemon", "keeper"),
    ("keeper", "zygote"),
    ("daemon", "zygote"),
    ("daemon", "keeper", "zygote"),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", ALL, ids="+".join)
def test_nothing_is_lost_when_ours_are_killed_at_random(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    lab = randomkills.random_kills(tmp_path, kinds, count=30, seed=11)
    assert lab.kills >= 30


@pytest.mark.slow  # not steady beside other tests
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [("keeper",), ("daemon", "zygote"), ("daemon", "keeper", "zygote")], ids="+".join)
def test_nor_where_jobs_have_terminals(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    lab = randomkills.random_kills(tmp_path, ("pty", *kinds), count=30, seed=14)
    assert lab.kills >= 30


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [("keeper",), ("keeper", "zygote")], ids="+".join)
def test_the_same_where_the_kernel_tells_a_non_parent_nothing(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    lab = randomkills.random_kills(tmp_path, kinds, count=30, seed=12, without="pidfd-exit")
    assert lab.kills >= 30


@pytest.mark.timeout(300)
def test_the_same_without_control_groups(tmp_path: Path) -> None:
    lab = randomkills.random_kills(tmp_path, ("daemon", "keeper"), count=30, seed=13, without="cgroup")
    assert lab.kills >= 30
