"""Our own coding agent: driven by a model, run by :mod:`agentd.runners.builtin` in a fork of its zygote."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from agentd.core.errors import Usage
from agentd.core.names import escaped

RUNNER = "builtin"
ENDPOINT = "ANTHROPIC_BASE_URL"
ALLOWED = {
    *{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "COLORTERM", "NO_COLOR"},
    *{"EDITOR", "VIRTUAL_ENV", "CONDA_PREFIX", "JAVA_HOME", "GOPATH", "GOROOT", "CARGO_HOME", "RUSTUP_HOME", "NVM_DIR"},
    *{"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PYENV_ROOT", "PYTHONPATH"},
    *{ENDPOINT, "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"},
    *{"SSL_CERT_FILE", "SSL_CERT_DIR", "CI"},
}
PREFIXES = ("LC_",)
PRICES = Path(__file__).with_name("prices.json")


def environment(caller: dict[str, str], more: tuple[str, ...] = ()) -> dict[str, str]:
    """An allowlist: what a build needs, and what ``more`` names. An agent is driven by a text; it gets no secret that
    it was not granted."""
    allowed = ALLOWED | set(more)
    return {name: value for name, value in caller.items() if name in allowed or name.startswith(PREFIXES)}


def argv(task: str, command: tuple[str, ...]) -> tuple[str, ...]:
    if command:
        raise Usage('the agent "builtin" takes a task, no command; leave out --agent to run a command', "bad_command")
    if not task.strip():
        raise Usage('there is no task: say what is to be done, as in: agentd delegate "fix the build"', "no_task")
    if importlib.util.find_spec("anthropic") is None:
        raise Usage("the built-in agent needs the Anthropic SDK: pip install 'agentd[agent]'", "no_sdk")
    return (RUNNER, task)


def rates(model: str) -> dict[str, Any] | None:
    """Dollars per million tokens of a model, a dated snapshot of it included; None if its price is not known."""
    models: dict[str, dict[str, Any]] = json.loads(PRICES.read_text())["models"]
    known = [name for name in models if model == name or model.startswith(f"{name}-")]
    return models[max(known, key=len)] if known else None


def no_profile(name: str, there: list[str]) -> Usage:
    listed = ", ".join(there) or "none; agentd.toml(5) shows how to write one"
    return Usage(f'there is no profile "{escaped(name, 60)}"; there is: {listed}', "no_such_profile")
