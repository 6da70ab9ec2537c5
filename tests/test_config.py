"""agentd.toml, and the words for times and sizes."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.config import (
    Config,
    Limits,
    Log,
    Secrets,
    TooMuch,
    Trash,
    Worktrees,
    load,
    parse_duration,
    parse_size,
    repository_setup,
)
from agentd.core.errors import Usage

WHOLE = """
[limits]
running = 3
queued = 20
[secrets]
names = ["LICENCE", "DSN"]
[log]
max = "64M"
[worktree]
setup = "npm ci"
branch_prefix = "bots"
max_snapshot = "0"
[trash]
days = 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agentd.toml"


def test_without_a_file_there_are_defaults(path: Path) -> None:
    assert load(str(path)) == Config(
        limits=Limits(running=64, queued=10_000),
        secrets=Secrets(()),
        log=Log("1G"),
        worktree=Worktrees(setup="", branch_prefix="agentd", max_snapshot="50M"),
        trash=Trash(14),
    )


def test_every_key(path: Path) -> None:
    path.write_text(WHOLE)
    assert load(str(path)) == Config(
        limits=Limits(3, 20),
        secrets=Secrets(("LICENCE", "DSN")),
        log=Log("64M"),
        worktree=Worktrees("npm ci", "bots", "0"),
        trash=Trash(3),
    )


def test_an_empty_file_says_nothing(path: Path) -> None:
    path.touch()
    assert load(str(path)) == Config()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[limits", "cannot read {}: Expected ']' at the end of a table declaration (at end of document)"),
        ("limits = 3", "cannot use {}, line 1: limits must be a table, not a whole number"),
        (
            "[limit]\nrunning = 1",
            'cannot use {}, line 1: there is no table "limit"; there is '
            "limits, secrets, log, worktree, trash, events, notify, locks, agent, profiles, prices",
        ),
        ("[limits]\nruning = 1", 'cannot use {}, line 2: [limits] has no key "runing"; there is running, queued'),
        (
            '[limits]\nrunning = "1"',
            "cannot use {}, line 2: limits.running must be a whole number, not a text in quotes",
        ),
        ("[limits]\nrunning = true", "cannot use {}, line 2: limits.running must be a whole number, not true or false"),
        ("[limits]\nrunning = 0", "cannot use {}, line 2: limits.running must be a whole number of at least 1"),
        ("[limits]\nqueued = -1", "cannot use {}, line 2: limits.queued must be a whole number of at least 0"),
        ("[trash]\ndays = -1", "cannot use {}, line 2: trash.days must be a whole number of at least 0"),
        (
            "[secrets]\nnames = [1]",
            "cannot use {}, line 2: secrets.names[0] must be a text in quotes, not a whole number",
        ),
        ('[log]\nmax = "lots"', 'cannot use {}, line 2: log.max: "lots" is not a size such as 64M or 1G'),
        (
            '[worktree]\nmax_snapshot = "-1"',
            'cannot use {}, line 2: worktree.max_snapshot: "-1" is not a size such as 64M or 1G',
        ),
    ],
    ids=range(12),
)
def test_what_is_wrong_is_named_with_its_place(path: Path, text: str, sentence: str) -> None:
    path.write_text(text)
    with pytest.raises(Usage) as refusal:
        load(str(path))
    assert refusal.value.message == sentence.format(path)
    assert (refusal.value.exit, refusal.value.code) == (2, "bad_config")


def test_a_file_that_is_no_text(path: Path) -> None:
    path.write_bytes(b"[limits]\nrunning = \xff")
    with pytest.raises(Usage, match=r"cannot read .*: 'utf-8' codec can't decode byte 0xff"):
        load(str(path))


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(Usage, match=f"cannot read {path}: Is a directory"):
        load(str(path))


def test_the_set_up_command_of_a_repository(path: Path) -> None:
    assert repository_setup(None) == repository_setup(str(path.parent)) == ""
    path.write_text('[worktree]\nsetup = "make deps"')
    assert repository_setup(str(path.parent)) == "make deps"
    os.unlink(path)
    path.mkdir()
    assert repository_setup(str(path.parent)) == ""


TIMES = {"90s": 90, "5m": 300, "1h30m": 5400, "2d": 172_800, "0.5": 0.5, ".5h": 1800, "7": 7, "1m0.5s": 60.5}


@pytest.mark.parametrize("text", TIMES)
def test_a_time(text: str) -> None:
    assert parse_duration(text) == TIMES[text]


NO_TIMES = [
    "",
    "s",
    "5x",
    "-5",
    "+5",
    "1h30",
    "30 s",
    "1e3",
    "1:30",
    "5M",
    "nan",
    "inf",
    "1..5",
    "9" * 33,
    "m5",
    "5m\n",
    "٣m",
]


@pytest.mark.parametrize("text", NO_TIMES)
def test_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as 90s, 5m or 1h30m"):
        parse_duration(text)


def test_more_than_ten_years() -> None:
    with pytest.raises(TooMuch, match='"4000d" is more than ten years'):
        parse_duration("4000d")


def test_more_than_any_disk() -> None:
    with pytest.raises(TooMuch, match='"9999999T" is more than 1 EiB'):
        parse_size("9999999T")


@given(some.text(max_size=40))
def test_any_word_is_a_time_or_none(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) < math.inf
    except ValueError:
        pass


SIZES = {"0": 0, "65536": 65536, "64M": 64 << 20, "1g": 1 << 30, "2KiB": 2048, "1kb": 1024, "3T": 3 << 40, " 1K ": 1024}


@pytest.mark.parametrize("text", SIZES)
def test_a_size(text: str) -> None:
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1 G", "1P", "9" * 16, "0x10", "lots", "1K1K", "٣M"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 64M or 1G"):
        parse_size(text)
