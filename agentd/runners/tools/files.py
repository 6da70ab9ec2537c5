"""read, write, edit: files of the worktree, as bytes."""

import os
from typing import Any

from .results import LIMIT, Result, ToolError, bounded
from .world import World

MAX_EDIT = 20 << 20
CHUNK = 1 << 16


async def read(world: World, input: dict[str, Any]) -> Result:
    """Lines from ``offset`` (the first is 1) on, as many as fit."""
    first, count = max(1, input.get("offset", 1)), input.get("limit") or None
    with world.worktree.open_file(input["path"]) as fd, os.fdopen(os.dup(fd), "rb") as file:
        size = os.fstat(fd).st_size
        if b"\0" in os.pread(fd, 8192, 0):
            raise ToolError(f"{input['path']} is binary ({size} bytes); look at it with a program, in bash")
        taken, number, is_whole = bytearray(), 0, True
        while line := file.readline(CHUNK):
            number += 1
            whole_line = line
            while not whole_line.endswith(b"\n") and (whole_line := file.readline(CHUNK)):
                line = line if len(line) > LIMIT else line + whole_line  # a line without end is not kept whole
            if number < first:
                continue
            if (count is not None and number >= first + count) or (taken and len(taken) + len(line) > LIMIT):
                is_whole = False
                break
            taken += line
    if not taken:
        raise (
            ToolError(f"{input['path']} has {number} lines: none from {first} on")
            if size
            else ToolError(f"{input['path']} is empty")
        )
    text = bounded(bytes(taken), "a very long line: cut it up in bash")
    if is_whole:
        return Result(text)
    return Result(f"{text}[agentd: lines {first} to {number - 1}; more follow, read on with offset {number}]")


async def write(world: World, input: dict[str, Any]) -> Result:
    data = encoded(input["content"])
    await world.may_write(input["path"])
    was_there = world.worktree.replace(input["path"], data)
    return Result(f"{'overwritten' if was_there else 'made'}: {input['path']}, {len(data)} bytes")


async def edit(world: World, input: dict[str, Any]) -> Result:
    """One exact piece of text, which must stand there once (or everywhere, with ``all``)."""
    path, old, new = input["path"], encoded(input["old"]), encoded(input["new"])
    if not old:
        raise ToolError("`old` is empty: name the text to replace, or use write for a new file")
    if old == new:
        raise ToolError("`old` and `new` are the same: nothing to change")
    await world.may_write(path)
    with world.worktree.open_file(path) as fd:
        if os.fstat(fd).st_size > MAX_EDIT:
            raise ToolError(f"{path} is larger than {MAX_EDIT >> 20} MB: change it with a program, in bash")
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read()
    if old not in data and b"\r\n" in data and b"\r" not in old:
        old, new = old.replace(b"\n", b"\r\n"), new.replace(b"\n", b"\r\n")
    found = data.count(old)
    if found == 0:
        raise ToolError(not_found(path, data, old))
    if found > 1 and not input.get("all"):
        lines = ", ".join(map(str, lines_of(data, old)[:10]))
        raise ToolError(
            f"`old` stands {found} times in {path} (lines {lines}): give more of the text around the right one, or set"
            " `all`"
        )
    world.worktree.replace(path, data.replace(old, new))
    place = data[: data.index(old)].count(b"\n") + 1
    return Result(f"changed: {path}, line {place}" if found == 1 else f"changed: {path}, {found} places")


def not_found(path: str, data: bytes, old: bytes) -> str:
    """Most often only the white space differs: then the lines as they are help more than a refusal."""
    wanted = [b" ".join(line.split()) for line in old.strip().splitlines()]
    lines = data.splitlines()
    squeezed = [b" ".join(line.split()) for line in lines]
    for start in range(len(lines) - len(wanted) + 1):
        if squeezed[start : start + len(wanted)] == wanted:
            there = b"\n".join(lines[start : start + len(wanted)]).decode("utf-8", "replace")
            return (
                f"`old` is not in {path}: it differs in white space from lines {start + 1} to {start + len(wanted)},"
                f" which are:\n{there}"
            )
    return f"`old` is not in {path}: read the file again and copy the text exactly, with its white space"


def lines_of(data: bytes, old: bytes) -> list[int]:
    places, at = [], data.find(old)
    while at >= 0:
        places.append(data[:at].count(b"\n") + 1)
        at = data.find(old, at + len(old))
    return places


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
