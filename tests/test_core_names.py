"""Names of jobs: good ones, free ones, and which job a word means."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core.errors import Refused, Usage
from agentd.core.job import Done, Ended, InPlace, Job, Queued, Running, State, Stopped, Trashed
from agentd.core.jobs import Jobs
from agentd.core.names import GOOD_NAME, check_name, escaped, find, name_for, next_number

OK = Ended("succeeded", exit_code=0)


@pytest.mark.parametrize("name", ["a", "fix-login", "a1", "a-", "a--b", "x" * 40])
def test_a_good_name(name: str) -> None:
    check_name(name)


RULE = "only a-z 0-9 and -, 1-40 characters, must start with a letter"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", f'job name "": {RULE}'),
        ("x" * 41, f'job name "{"x" * 41}": {RULE}'),
        ("7", f'job name "7": {RULE}'),
        ("-x", f'job name "-x": {RULE}; did you mean --name=x?'),
        ("--name", f'job name "--name": {RULE}'),
        ("Fix", f'job name "Fix": {RULE}'),
        ("a b", f'job name "a b": {RULE}'),
        ("a/b", f'job name "a/b": {RULE}'),
        ("../x", f'job name "../x": {RULE}'),
        ("a\n", f'job name "a\\x0a": {RULE}'),
        ("a\0b", f'job name "a\\x00b": {RULE}'),
        ("a\x1b[2J", f'job name "a\\x1b[2J": {RULE}'),
        ("naïve", f'job name "naïve": {RULE} (U+00EF)'),
        ("a\u202eb", f'job name "a\\u202eb": {RULE} (U+202E)'),
        ("аpple", f'job name "аpple": {RULE} (U+0430)'),  # a Cyrillic letter
        ("a\udcff", f'job name "a\\udcff": {RULE} (U+DCFF)'),  # not UTF-8
        ("é" * 300, f'job name "{"é" * 200}…": {RULE} (U+00E9)'),
    ],
)
def test_a_bad_name_is_shown_with_what_is_odd(name: str, shown: str) -> None:
    with pytest.raises(Usage) as refusal:
        check_name(name)
    assert (refusal.value.message, refusal.value.code, refusal.value.exit) == (shown, "bad_name", 2)


@given(some.text())
def test_what_is_shown_drives_no_terminal(text: str) -> None:
    shown = escaped(text)
    assert shown.isprintable() and "\n" not in shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Fix the login bug", "fix-the-login-bug"),
        ("make", "make"),
        ("7 samurai", "samurai"),
        ("--- 3 ---", "job"),
        ("", "job"),
        ("日本語", "job"),
        ("a" * 100, "a" * 28),
        ("abcdefghijklmnopqrstuvwxyz a b", "abcdefghijklmnopqrstuvwxyz-a"),
        ("pytest -x tests/a.py", "pytest-x-tests-a-py"),
    ],
)
def test_a_name_is_made_of_a_task(text: str, name: str) -> None:
    assert name_for(text, [].__contains__) == name


@given(some.lists(some.text(max_size=60), max_size=30))
def test_made_names_are_good_and_unique(texts: list[str]) -> None:
    taken: list[str] = []
    for text in [*texts, *texts]:
        name = name_for(text, taken.__contains__)
        assert GOOD_NAME.fullmatch(name) and name not in taken
        taken.append(name)


def test_the_next_free_name() -> None:
    assert name_for("make", ["make"].__contains__) == "make-2"
    assert name_for("make", ["make", "make-2", "make-3"].__contains__) == "make-4"


def test_the_ten_thousandth_of_a_name_is_found_quickly() -> None:
    taken = {"make", *(f"make-{n}" for n in range(2, 10_000))}
    asked: list[str] = []

    def is_taken(name: str) -> bool:
        asked.append(name)
        return name in taken

    assert name_for("make", is_taken) == "make-10000"
    assert len(asked) < 40


# Which job does a word mean?


def job(id: int, name: str, argv: str, state: State, number: int = 1, owner: str = "me", **more: Any) -> Job:
    return Job(id, name, "command", "", tuple(argv.split()), owner, number, float(id), InPlace("/"), state, **more)


def done(at: float) -> Done:
    return Done(at + 1, at, 40, OK, is_settled=True)


def all_of(*jobs: Job) -> Jobs:
    known = Jobs()
    for one in jobs:
        known.remember(one)
    return known


JOBS = all_of(
    *[
        job(1, "build", "make all", done(1.0), 1),
        job(2, "tests", "pytest -x", Running(20.0, 42), 1),
        job(3, "tests-slow", "pytest -m slow", Running(10.0, 43), 2),
        job(4, "lint", "ruff check", Queued(4.0), 3),
        job(5, "theirs", "make theirs", Running(90.0, 45), 1, owner="you"),
        job(6, "old", "make old", done(6.0), 4, shelf=Trashed(7.0, {})),
        job(7, "buildx", "docker buildx", done(7.0), 5),
    ]
)


@pytest.mark.parametrize(
    ("ref", "id"),
    [
        (2, 2),  # as a number, as JSON has it
        ("3", 3),
        ("002", 2),
        (6, 6),  # an id reaches into the trash
        ("build", 1),  # the whole name, though "buildx" begins so too
        ("theirs", 5),  # names are everybody's
        ("l", 4),
        ("tests-", 3),
        ("%1", 2),  # two of mine had that number; the newer one
        ("%2", 3),
        ("%5", 7),
        ("%ruff", 4),
        ("%make", 1),  # of mine, not removed
        ("%?slow", 3),
        ("%?check", 4),
        ("%pytest -x", 2),
        ("%%", 2),
        ("%+", 2),
        ("%", 2),
        ("%-", 3),
    ],
)
def test_a_word_means_a_job(ref: int | str, id: int) -> None:
    assert find(ref, JOBS, "me").id == id


@pytest.mark.parametrize(
    ("ref", "sentence", "code"),
    [
        ("99", "no job 99; agentd ps --all lists them", "unknown_job"),
        (-1, 'no job "-1"; agentd ps --all lists them', "unknown_job"),
        ("old", 'no job "old"; agentd ps --all lists them', "unknown_job"),
        ("tsts", 'no job "tsts"; did you mean tests?', "unknown_job"),
        ("7;rm -rf ~", 'no job "7;rm -rf ~"; agentd ps --all lists them', "unknown_job"),
        ("", 'no job ""; agentd ps --all lists them', "unknown_job"),
        ("t", '"t" could be tests (2), tests-slow (3), theirs (5); say which', "ambiguous_job"),
        ("%9", "no job %9 of yours; agentd jobs --all lists them", "unknown_job"),
        ("%nosuch", 'no job of yours matches "%nosuch"; agentd jobs --all lists them', "unknown_job"),
        ("%?nosuch", 'no job of yours matches "%?nosuch"; agentd jobs --all lists them', "unknown_job"),
        ("%pytest", '"%pytest" could be tests (2), tests-slow (3); say which', "ambiguous_job"),
        ("a\x1b[31m", 'no job "a\\x1b[31m"; agentd ps --all lists them', "unknown_job"),
        ("9" * 20, f'no job "{"9" * 20}"; agentd ps --all lists them', "unknown_job"),
        ("%" + "9" * 5000, f'no job of yours matches "%{"9" * 199}…"; agentd jobs --all lists them', "unknown_job"),
        ("٣", 'no job "٣"; agentd ps --all lists them', "unknown_job"),  # a digit, but not ours
    ],
)
def test_a_word_that_means_none(ref: int | str, sentence: str, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        find(ref, JOBS, "me")
    assert (refusal.value.message, refusal.value.code, refusal.value.exit) == (sentence, code, 1)


def test_who_has_no_job_has_no_current_one() -> None:
    for ref, which in (("%+", "current"), ("%-", "previous")):
        with pytest.raises(Refused, match=f"no {which} job of yours; agentd ps --all shows everybody's"):
            find(ref, JOBS, "nobody")


def test_the_last_stopped_is_current() -> None:
    halted = job(3, "tests-slow", "pytest -m slow", Stopped(10.0, 43, 11.0), 2)
    assert find("%+", all_of(*JOBS.values(), halted), "me").id == 3
    assert find("%-", all_of(*JOBS.values(), halted), "me").id == 2


def test_to_end_a_job_its_name_must_be_whole() -> None:
    assert find("lint", JOBS, "me", exact=True).id == 4
    assert find("4", JOBS, "me", exact=True).id == 4
    with pytest.raises(Refused) as refusal:
        find("lin", JOBS, "me", exact=True)
    assert refusal.value.message == 'no job "lin": give its whole name or its id; there is lint (4)'


@given(some.one_of(some.text(max_size=20), some.text(max_size=20).map("%".__add__), some.integers()))
def test_any_word_means_a_job_or_is_refused(ref: int | str) -> None:
    try:
        assert find(ref, JOBS, "me").id in JOBS
    except Refused as refusal:
        assert refusal.message.isprintable()


def test_numbers_count_as_a_shell_counts() -> None:
    assert next_number([], "me") == 1
    assert next_number(JOBS.values(), "me") == 4  # 3 is the highest that lives
    assert next_number(JOBS.values(), "you") == 2
    assert next_number(JOBS.values(), "nobody") == 1
