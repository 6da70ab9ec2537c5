"""``agentd profiles``: how the built-in agent can be run. A key is named by its place, and never shown."""

import os
from typing import Any

from agentd.cli import options, render
from agentd.client import Client

COLUMNS = ("NAME", "MODEL", "ENDPOINT", "LIMITS", "PRICE", "KEY")


def profiles(
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """List the profiles of the built-in agent, and whether each has its key here. * marks the default one."""
    with Client() as client:
        found = [with_key(profile) for profile in client.profiles()]
    if json:
        return options.print_json(found)
    if quiet:
        lines = [render.one_line(profile["name"]) for profile in found]
    else:
        lines = table(found, options.width())
    print("\n".join(lines))


def with_key(profile: dict[str, Any]) -> dict[str, Any]:
    """What only the caller can tell: its variables, which are those of the jobs it delegates."""
    name, file = profile.pop("key_env"), profile.pop("key_file")
    found = has_text(os.path.expanduser(file)) if file else bool(os.environ.get(name))
    endpoint = profile["endpoint"] or os.environ.get("ANTHROPIC_BASE_URL") or None
    return {**profile, "endpoint": endpoint, "key": {"env": name, "file": file, "found": found}}


def has_text(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(4096).strip())
    except OSError:
        return False


def table(found: list[dict[str, Any]], width: int | None) -> list[str]:
    """Where it is too wide for the terminal, the key has a line of its own: that it is missing is what matters."""
    rows = [row(profile) for profile in found]
    lines = render.table(COLUMNS, rows)
    if width is None or max(map(render.columns_of, lines)) <= width:
        return lines
    head, *short = render.table(COLUMNS[:-1], [cells[:-1] for cells in rows], width)
    return [head, *(line for one, cells in zip(short, rows, strict=True) for line in (one, f"    key: {cells[-1]}"))]


def row(profile: dict[str, Any]) -> list[str]:
    key = profile["key"]
    return [
        render.one_line(profile["name"], 40) + ("*" if profile["is_default"] else ""),
        render.one_line(profile["model"] or "-", 60),
        render.one_line(profile["endpoint"] or "-", 80),
        limits(profile["limits"]) or "-",
        "known" if profile["price_known"] else "unknown",
        f"{render.one_line(key['file'] or key['env'], 80)}, {'there' if key['found'] else 'not there'}",
    ]


def limits(most: dict[str, Any]) -> str:
    parts = [f"{most[name]:,} {name}" for name in ("turns", "tokens") if most[name]]
    return ", ".join(parts + ([render.money(most["cost"])] if most["cost"] else []))
