"""glob and grep: files by name, lines by content. Neither follows a link out of the worktree."""

import asyncio
import os
import re
import shutil
import subprocess
from typing import Any

from .program import Program
from .results import LIMIT, Bounded, Result, ToolError
from .worktree import FOLDER
from .world import World

MOST_FILES = 200
SEARCH_SECONDS = 60.0
SKIPPED = {".git", "node_modules", "__pycache__", ".venv"}
LESS = "narrow the pattern or the path"


async def glob(world: World, input: dict[str, Any]) -> Result:
    """Files whose path matches; those that git ignores are left out. The newest first."""
    pattern = input["pattern"].removeprefix(world.worktree.path + "/").removeprefix("./")
    matches = re.compile(translated(pattern)).fullmatch
    names = [name for name in await files(world) if matches(name)]
    if not names:
        return Result(f"no file matches {pattern}")
    names.sort(key=lambda name: -modified(world, name))
    told = names[:MOST_FILES]
    if len(names) > len(told):
        told.append(f"[agentd: {len(names) - MOST_FILES} more; {LESS}]")
    return Result("\n".join(told))


async def files(world: World) -> list[str]:
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "-z"]
    output = await output_of(world, argv, world.worktree.root, limit=64 << 20)
    if output is None:
        return await walked(world)
    names = output.data().decode("utf-8", "surrogateescape").split("\0")
    return [name for name in names if name and exists(world, name)]


def exists(world: World, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=world.worktree.root)
    except OSError:
        return False
    return True


async def walked(world: World) -> list[str]:
    found = []
    for folder, folders, names, _ in os.fwalk(".", dir_fd=world.worktree.root, follow_symlinks=False):
        folders[:] = [name for name in folders if name not in SKIPPED]
        found += [f"{folder}/{name}".removeprefix("./") for name in names]
        await asyncio.sleep(0)  # a large tree must not keep an interrupt from being noticed
    return found


def modified(world: World, name: str) -> float:
    try:
        return os.lstat(name, dir_fd=world.worktree.root).st_mtime
    except OSError:
        return 0.0


def translated(pattern: str) -> str:
    """``**`` crosses folders, ``*`` and ``?`` do not, ``{a,b}`` is either. Without a slash it matches in any folder."""
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|\{[^{}]*\})", pattern)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for token in tokens:
        if token in wild:
            out.append(wild[token])
        elif token.startswith("[") and token.endswith("]") and len(token) > 2:
            out.append("[" + token[1:].replace("\\", "\\\\").replace("!", "^", token[1] == "!"))
        elif token.startswith("{") and token.endswith("}"):
            out.append("(?:" + "|".join(re.escape(part) for part in token[1:-1].split(",")) + ")")
        else:
            out.append(re.escape(token))
    return "".join(out)


async def grep(world: World, input: dict[str, Any]) -> Result:
    """ripgrep where there is one, else grep, in a folder that was opened without leaving the worktree."""
    path = input.get("path") or "."
    with world.worktree.place(path) as (parent, name):
        try:
            fd = os.open(name, FOLDER, dir_fd=parent)
        except NotADirectoryError:
            return await grep_file(world, input, path)
        try:
            output = await output_of(world, command(input, "."), fd, answers=(0, 1))
        finally:
            os.close(fd)
    if output is None:
        raise ToolError(f"cannot search for {input['pattern']!r}: {await complaint(world, input)}")
    prefix = "" if path == "." else path.rstrip("/") + "/"
    lines = [prefix + line.removeprefix("./") for line in output.text(LESS).splitlines()]
    return Result("\n".join(lines) or "no match")


async def grep_file(world: World, input: dict[str, Any], path: str) -> Result:
    with world.worktree.open_file(path) as fd:
        output = await output_of(world, command(input, "-"), world.worktree.root, stdin=fd, answers=(0, 1))
    if output is None:
        raise ToolError(f"cannot search for {input['pattern']!r}: {await complaint(world, input)}")
    return Result(output.text(LESS).rstrip("\n") or "no match")


async def complaint(world: World, input: dict[str, Any]) -> str:
    """What the program says of the pattern, asked with nothing to search."""
    program = Program(command(input, "-"), world.shell.environment, world.worktree.path)
    await program.exited.wait()
    return program.taken("").strip() or "it took too long; " + LESS


def command(input: dict[str, Any], where: str) -> list[str]:
    ignore_case = ["-i"] if input.get("ignore_case") else []
    only = input.get("glob")
    if shutil.which("rg"):
        named = ["--glob", only] if only else []
        return ["rg", "-n", "--no-heading", "--color=never", "--hidden", "--glob=!.git", "-M", "500", *ignore_case,
                *named, "-e", input["pattern"], "--", where]  # fmt: skip
    named = [f"--include={only}"] if only else []
    skipped = [f"--exclude-dir={name}" for name in sorted(SKIPPED)]
    return ["grep", "-rnIE" if where != "-" else "-nIE", *ignore_case, *named, *skipped, "-e", input["pattern"], "--",
            where]  # fmt: skip


async def output_of(
    world: World,
    argv: list[str],
    folder: int,
    stdin: int = subprocess.DEVNULL,
    limit: int = LIMIT,
    answers: tuple[int, ...] = (0,),
) -> Bounded | None:
    """What a program writes, run in an opened folder; None if it fails or takes too long."""
    try:
        program = Program(argv, world.shell.environment, f"/proc/self/fd/{folder}", stdin=stdin, limit=limit)
    except FileNotFoundError:
        return None
    try:
        async with asyncio.timeout(SEARCH_SECONDS):
            await program.exited.wait()
    except (TimeoutError, asyncio.CancelledError) as error:
        await program.kill()
        if isinstance(error, asyncio.CancelledError):
            raise
        return None
    return program.output if program.code in answers else None
