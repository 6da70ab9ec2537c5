"""JSON that holds any word a program can be given."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core.errors import Refused
from agentd.core.job import InPlace, Job, Queued
from agentd.core.text import decode, encode

words = some.text(some.characters())  # lone surrogates included: what os.fsdecode makes of bytes that are no UTF-8


@given(some.dictionaries(words, some.one_of(words, some.integers(-(1 << 63), (1 << 63) - 1), some.lists(words))))
def test_what_goes_in_comes_out(value: dict[str, object]) -> None:
    data = encode(value)
    data.decode("utf-8")
    assert b"\n" not in data
    assert decode(data) == value


@given(words, some.lists(words))
def test_a_job_of_any_words(task: str, argv: list[str]) -> None:
    job = Job(1, "x", "command", task, tuple(argv), "me", 1, 1.5, InPlace("/"), Queued(2.5))
    assert decode(encode(job), Job) == job


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": "\\u00', b'"\\ud800', b"\xff"])
def test_what_is_damaged_is_told(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_what_is_of_another_kind_is_told() -> None:
    with pytest.raises(ValueError):
        decode(b'{"\\ud800": 1}', Job)
    assert not issubclass(ValueError, Refused)
