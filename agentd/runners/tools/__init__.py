"""The tools: what each is called, what the model is told of it, and the function that does it. A literal table.

A description says only what the name and the parameters do not.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from . import files, search
from .results import Result, ToolError
from .world import World

Run = Callable[[World, dict[str, Any]], Awaitable[Result]]
TIMEOUT, MAX_TIMEOUT = 120, 3600


@dataclass(frozen=True)
class Tool:
    description: str
    parameters: dict[str, dict[str, Any]]
    required: tuple[str, ...]
    run: Run


def of(kind: str, description: str) -> dict[str, Any]:
    return {"type": kind, "description": description} if description else {"type": kind}


def text(description: str = "") -> dict[str, Any]:
    return of("string", description)


def number(description: str) -> dict[str, Any]:
    return of("integer", description)


def flag(description: str = "") -> dict[str, Any]:
    return of("boolean", description)


async def bash(world: World, input: dict[str, Any]) -> Result:
    timeout = min(max(0, input.get("timeout", TIMEOUT)), MAX_TIMEOUT)
    command, id = input.get("command"), input.get("id")
    if (command is None) == (id is None):
        raise ToolError("give either `command`, or the `id` of a command in the background")
    if id is not None:
        return await world.shell.more(id, timeout, bool(input.get("kill")))
    assert command is not None
    return await world.shell.run(command, timeout, bool(input.get("background")))


async def ask(world: World, input: dict[str, Any]) -> Result:
    options = input.get("options", [])
    if not all(isinstance(option, str) for option in options):
        raise ToolError("`options` must be texts")
    return Result(await world.ask(input["question"], options))


async def note(world: World, input: dict[str, Any]) -> Result:
    world.note(input["text"])
    return Result("noted")


TOOLS = {
    "bash": Tool(
        "Run a command. Folder, variables and functions last from one to the next. Standard input is empty.",
        {
            "command": text(),
            "timeout": number(f"seconds, {TIMEOUT} if not given; then it goes on in the background"),
            "background": flag("return at once"),
            "id": text("instead of a command: wait for the next output of this one in the background"),
            "kill": flag("with id: end it"),
        },
        (),
        bash,
    ),
    "read": Tool(
        "Read a file of the worktree.",
        {"path": text(), "offset": number("first line, from 1"), "limit": number("number of lines")},
        ("path",),
        files.read,
    ),
    "write": Tool(
        "Write a whole file; folders are made. For a change, edit is better.",
        {"path": text(), "content": text()},
        ("path", "content"),
        files.write,
    ),
    "edit": Tool(
        "Replace a piece of a file, exactly as it stands there, once.",
        {"path": text(), "old": text(), "new": text(), "all": flag("replace it everywhere")},
        ("path", "old", "new"),
        files.edit,
    ),
    "glob": Tool(
        "Find files by name, such as src/**/*.py.",
        {"pattern": text()},
        ("pattern",),
        search.glob,
    ),
    "grep": Tool(
        "Find lines by regular expression.",
        {
            "pattern": text(),
            "path": text("file or folder"),
            "glob": text("only in files with such names"),
            "ignore_case": flag(),
        },
        ("pattern",),
        search.grep,
    ),
    "ask": Tool(
        "Ask your user, and wait for the answer.",
        {"question": text(), "options": {"type": "array", "items": {"type": "string"}}},
        ("question",),
        ask,
    ),
    "note": Tool(
        "Write down your plan or progress.",
        {"text": text()},
        ("text",),
        note,
    ),
}
KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "boolean": bool, "array": list}
NAMED = {"string": "a text", "integer": "a whole number", "boolean": "true or false", "array": "a list"}


def schema(names: list[str] | None) -> list[dict[str, Any]]:
    """What the model is told of the tools it may use, always in the same order."""
    return [
        {
            "name": name,
            "description": tool.description,
            "input_schema": {
                "type": "object",
                "properties": tool.parameters,
                "required": list(tool.required),
            },
        }
        for name, tool in TOOLS.items()
        if names is None or name in names
    ]


async def run(world: World, allowed: list[str], name: str, input: dict[str, Any]) -> Result:
    """Never raises but for cancellation: what goes wrong is a result, told in a sentence."""
    if name not in allowed:
        return Result(f"there is no tool {name}; there are: {', '.join(allowed)}", True)
    tool = TOOLS[name]
    try:
        check(tool, input)
        return await tool.run(world, input)
    except ToolError as error:
        return Result(str(error), True)
    except OSError as error:
        return Result(f"cannot {name}: {error.strerror or error}", True)


def check(tool: Tool, input: dict[str, Any]) -> None:
    for name in tool.required:
        if name not in input:
            raise ToolError(f"`{name}` is missing; it takes: {', '.join(tool.parameters)}")
    for name, value in input.items():
        if name not in tool.parameters:
            raise ToolError(f"there is no parameter `{name}`; it takes: {', '.join(tool.parameters)}")
        kind = tool.parameters[name]["type"]
        if not isinstance(value, KINDS[kind]) or (kind == "integer" and isinstance(value, bool)):
            raise ToolError(f"`{name}` must be {NAMED[kind]}, not {value!r}"[:300])
