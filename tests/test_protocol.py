"""The wire: what is a request, and what is said of a line that is none."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd import protocol
from agentd.core.errors import Fault, NotNow, Refused, Usage
from agentd.protocol import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    METHODS,
    PARSE_ERROR,
    GetJob,
    Malformed,
    Nothing,
    Request,
    Wait,
    decode,
)


def line(method: str = "daemon.status", id: object = 1, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


# What is a request


@pytest.mark.parametrize(
    ("said", "request_"),
    [
        (line(), Request(1, "daemon.status", Nothing())),
        (line(id="a"), Request("a", "daemon.status", Nothing())),
        (line(id=-(1 << 53)), Request(-(1 << 53), "daemon.status", Nothing())),
        (line("jobs.get", job=7), Request(1, "jobs.get", GetJob(job=7))),
        (line("jobs.get", job="%+", owner="me"), Request(1, "jobs.get", GetJob(job="%+", owner="me"))),
        (line("jobs.wait", timeout=1.5), Request(1, "jobs.wait", Wait(timeout=1.5))),
        (line("jobs.wait", timeout=2), Request(1, "jobs.wait", Wait(timeout=2.0))),
        (b'{"jsonrpc":"2.0","method":"daemon.status"}', Request(None, "daemon.status", Nothing())),
        (b' {"jsonrpc":"2.0","id":1,"method":"daemon.status"}\r', Request(1, "daemon.status", Nothing())),
        (line("jobs.get", job="\udcff"), Request(1, "jobs.get", GetJob(job="\udcff"))),
    ],
)
def test_a_request(said: bytes, request_: Request) -> None:
    assert decode(said) == request_


def test_every_method_is_listed_with_its_parameters() -> None:
    assert set(METHODS) >= {"hello", "jobs.delegate", "jobs.wait", "events.subscribe", "events.ack"}
    narrow = {name for name, method in METHODS.items() if method.is_narrow}
    looks = {"hello", "jobs.list", "jobs.get", "jobs.resolve", "jobs.wait", "jobs.diff", "jobs.result", "profiles.list"}
    locks = {name for name in METHODS if name.startswith("lock.")} - {"lock.break"}
    assert narrow == looks | locks | {"jobs.delegate", "jobs.send", "jobs.answer", "jobs.interrupt"}
    for method in METHODS.values():
        assert issubclass(method.params, protocol.Params)


# What is none (BAD_INPUTS 25)

LISTED = ", ".join(METHODS)
HEAD = b'{"jsonrpc":"2.0","id":1,"method":"jobs.get","params":'
BAD: dict[str, tuple[bytes, int, str, int | str | None]] = {
    "nothing": (b"", PARSE_ERROR, "not JSON: Expecting value", None),
    "not JSON": (b"hello", PARSE_ERROR, "not JSON: Expecting value", None),
    "half": (line()[:-1], PARSE_ERROR, "not JSON: Expecting ',' delimiter", None),
    "two on a line": (line() + line(), PARSE_ERROR, "not JSON: Extra data", None),
    "not UTF-8": (b'{"id":"\xff"}', PARSE_ERROR, "not UTF-8 (byte 7)", None),
    "UTF-16": (line().decode().encode("utf-16"), PARSE_ERROR, "not UTF-8 (byte 0)", None),
    "overlong": (b'"\xc0\xaf"', PARSE_ERROR, "not UTF-8 (byte 1)", None),
    "a byte order mark": (b"\xef\xbb\xbf{}", PARSE_ERROR, "not JSON: ", None),
    "an array": (b"[" + line() + b"]", INVALID_REQUEST, "one JSON object (batches are not taken)", None),
    "a number": (b"7", INVALID_REQUEST, "one JSON object", None),
    "depth 33": (HEAD + b"[" * 32 + b"7" + b"]" * 32 + b"}", PARSE_ERROR, "nested deeper than 32", None),
    "depth 10,000": (b"[" * 10_000 + b"]" * 10_000, PARSE_ERROR, "nested deeper than 32", None),
    "depth 500,000": (b'{"a":' * 170_000, PARSE_ERROR, "nested deeper than 32", None),
    "duplicate keys": (b'{"jsonrpc":"2.0","id":1,"id":2}', PARSE_ERROR, "duplicate key in an object", None),
    "duplicate keys, deep": (HEAD + b'{"job":1,"job":2}}', PARSE_ERROR, "duplicate key in an object", None),
    "unknown method": (line("jobs.frobnicate"), METHOD_NOT_FOUND, f"'jobs.frobnicate'; there are: {LISTED}", 1),
    "a method that drives a terminal": (line("\x1b[2J"), METHOD_NOT_FOUND, r"no method '\x1b[2J'; there are", 1),
    "method of 10,000": (line("x" * 10_000), METHOD_NOT_FOUND, "x" * 80 + "'; there are", 1),
    "method missing": (b'{"jsonrpc":"2.0","id":1}', INVALID_REQUEST, "method must be a string", 1),
    "method is a list": (b'{"jsonrpc":"2.0","id":1,"method":[]}', INVALID_REQUEST, "method must be a string", 1),
    "version missing": (b'{"id":"x","method":"hello"}', INVALID_REQUEST, 'jsonrpc must be "2.0"', "x"),
    "version 1": (b'{"jsonrpc":"1.0","id":1,"method":"hello"}', INVALID_REQUEST, 'jsonrpc must be "2.0"', 1),
    "field missing": (line("jobs.get"), INVALID_PARAMS, "jobs.get: Object missing required field `job`", 1),
    "wrong type": (line("jobs.get", job=[]), INVALID_PARAMS, "jobs.get: Expected `int | str`, got `array`", 1),
    "a field too many": (line("jobs.get", job=1, x=2), INVALID_PARAMS, "contains unknown field `x`", 1),
    "text for a number": (line("jobs.wait", timeout="5"), INVALID_PARAMS, "jobs.wait: Expected `float | null`", 1),
    "params a list": (HEAD + b"[1]}", INVALID_PARAMS, "jobs.get: Expected `object`, got `array`", 1),
    "params null": (HEAD + b"null}", INVALID_PARAMS, "jobs.get: Expected `object`, got `null`", 1),
    "id = 2^70": (line(id=1 << 70), PARSE_ERROR, "a number is out of bounds (2^63)", None),
    "id = 2^54": (line(id=1 << 54), INVALID_REQUEST, "id is out of bounds (2^53, or 200 characters)", None),
    "id of 5,000 digits": (HEAD[:-1] + b"1" * 5000 + b"}", PARSE_ERROR, "", None),
    "a number of 5,000 digits": (b'{"x":' + b"1" * 5000 + b"}", PARSE_ERROR, "out of bounds (2^63)", None),
    "id of 201 characters": (line(id="x" * 201), INVALID_REQUEST, "id is out of bounds", None),
    "id a fraction": (line(id=1.5), INVALID_REQUEST, "id must be a number, a string, or missing", None),
    "id true": (line(id=True), INVALID_REQUEST, "id must be a number", None),
    "id a list": (line(id=[1]), INVALID_REQUEST, "id must be a number", None),
    "NaN": (line("jobs.wait", timeout=math.nan), PARSE_ERROR, "not JSON: NaN", None),
    "Infinity": (line("jobs.wait", timeout=-math.inf), PARSE_ERROR, "not JSON: -Infinity", None),
    "1e999": (b'{"id":1e999}', PARSE_ERROR, "a number is out of bounds (1.8e308)", None),
}


@pytest.mark.parametrize("what", BAD)
def test_a_line_that_is_no_request(what: str) -> None:
    said, code, sentence, id = BAD[what]
    with pytest.raises(Malformed) as refusal:
        decode(said)
    assert sentence in str(refusal.value)
    assert (refusal.value.code, refusal.value.id) == (code, id)
    told = json.loads(protocol.malformed(refusal.value))
    assert told == {
        "jsonrpc": "2.0",
        "id": id,
        "error": {"code": code, "message": str(refusal.value), "data": {"code": "malformed", "exit": 2}},
    }


def test_depth_32_is_deep_enough() -> None:
    # Refused for what it says, no longer for how deep it is.
    with pytest.raises(Malformed, match=r"Expected `int \| str`, got `array`"):
        decode(HEAD + b'{"job":' + b"[" * 30 + b"]" * 30 + b"}}")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    with pytest.raises(Malformed, match=r"Expected `int \| str`, got `array`"):
        decode(HEAD + b'{"job":[' + b"[]," * 1000 + b"[]]}}")


# Anything at all

scalars = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.floats(),
    some.text(some.characters()),
    some.sampled_from(sorted(METHODS)),
)
trees = some.recursive(
    scalars,
    lambda inner: some.one_of(some.lists(inner), some.dictionaries(some.text(max_size=8), inner)),
    max_leaves=20,
)
fields = {
    name: field for method in METHODS.values() for name, field in dict.fromkeys(method.params.__struct_fields__).items()
}
almost = some.fixed_dictionaries(
    {"jsonrpc": some.just("2.0"), "method": some.sampled_from(sorted(METHODS))},
    optional={"id": scalars, "params": some.one_of(trees, some.dictionaries(some.sampled_from(sorted(fields)), trees))},
)


def taken_or_refused(said: bytes) -> None:
    try:
        request = decode(said)
    except Malformed as refusal:
        assert "\n" not in str(refusal)
        answer = protocol.malformed(refusal)
    else:
        assert isinstance(request.params, METHODS[request.method].params)
        answer = protocol.answer(request.id, None)
    assert answer.endswith(b"\n") and answer.count(b"\n") == 1
    assert json.loads(answer)["jsonrpc"] == "2.0"


@given(some.binary(max_size=200))
def test_any_bytes_are_refused_in_words(said: bytes) -> None:
    taken_or_refused(said)


@given(trees)
def test_any_json_is_refused_in_words(value: Any) -> None:
    taken_or_refused(json.dumps(value).encode())


@given(almost)
def test_almost_a_request_is_taken_or_refused_in_words(value: Any) -> None:
    taken_or_refused(json.dumps(value).encode())


@given(almost, some.data())
def test_a_request_with_a_byte_changed(value: Any, data: some.DataObject) -> None:
    said = bytearray(json.dumps(value).encode())
    said[data.draw(some.integers(0, len(said) - 1))] = data.draw(some.integers(0, 255))
    taken_or_refused(bytes(said))


# What is answered


def test_an_answer_a_refusal_a_notification() -> None:
    assert protocol.answer("x", {"a": 1}) == b'{"jsonrpc":"2.0","id":"x","result":{"a":1}}\n'
    assert protocol.notification("event", {"seq": 1}) == b'{"jsonrpc":"2.0","method":"event","params":{"seq":1}}\n'
    for error, exit in (
        (Refused("no", "c"), 1),
        (Usage("no", "c"), 2),
        (NotNow("no", "c"), 75),
        (Fault("no", "c"), 125),
    ):
        assert json.loads(protocol.refusal(3, error)) == {
            "jsonrpc": "2.0",
            "id": 3,
            "error": {"code": -32000, "message": "no", "data": {"code": "c", "exit": exit}},
        }


def test_words_that_are_no_utf8_come_back_as_they_went() -> None:
    assert json.loads(protocol.answer("\ud800", {"task": "caf\udce9"})) == {
        "jsonrpc": "2.0",
        "id": "\ud800",
        "result": {"task": "caf\udce9"},
    }
