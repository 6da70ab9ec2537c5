"""JSON that holds any word a program can be given.

A word that is no UTF-8 (a file's name, say) is in Python a string with lone surrogates. msgspec writes and reads none,
the standard library does, as an escape; it is slower, so it is asked only then.
"""

import json
from typing import Any

import msgspec


def encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value)).encode()


def decode(data: bytes, type: Any = Any) -> Any:
    """The value of :func:`encode`'s bytes; ValueError if they are damaged."""
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.DecodeError as error:
        if b"\\u" not in data or isinstance(error, msgspec.ValidationError):
            raise
        return msgspec.convert(json.loads(data), type)
