"""The vendors' command lines: how each is driven against a model server on loopback, and nothing else of the network.

They are looked for in the folder that ``--clis`` or BENCH_CLIS names (filled by ``npm install --prefix``), else in
PATH. Each has a home of its own for the whole run, so all but its first start is a warm one. Proxies lead back to the
model server, which refuses: what a program tries to reach elsewhere is in the record.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PACKAGES = {
    "claude": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
    "opencode": "opencode-ai",
    "gemini": "@google/gemini-cli",
}


class Run(NamedTuple):
    """One start: the command, its environment, what stands on its standard input."""

    argv: list[str]
    environment: dict[str, str]
    stdin: str = ""


class Vendor(NamedTuple):
    name: str
    command: str
    """As its users call it."""
    prepare: Callable[[Path, str, Path], None]
    """Write its configuration: into a home, for a server, for a repository."""
    run: Callable[[str, Path, str, str], Run]
    """The start of its program with a home, for a server and a prompt."""


def sdk_is_missing() -> bool:
    return importlib.util.find_spec("anthropic") is None


def program(folder: str | None, name: str) -> str | None:
    if folder is not None:
        path = os.path.join(folder, "node_modules", ".bin", name)
        return path if os.access(path, os.X_OK) else None
    return shutil.which(name)


def environment(home: Path, url: str, **more: str) -> dict[str, str]:
    proxies = {name: url for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")}
    local = {name: "127.0.0.1,localhost,::1" for name in ("NO_PROXY", "no_proxy")}
    own = {"HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm-256color", "SHELL": "/bin/bash"}
    kept = {name: os.environ[name] for name in ("PATH", "BENCH_MARK") if name in os.environ}
    return {**kept, **own, **proxies, **local, **more}


def no_preparation(home: Path, url: str, repository: Path) -> None:
    pass


# --- Claude Code ----------------------------------------------------------------------------------------------


def claude(path: str, home: Path, url: str, prompt: str) -> Run:
    more = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-ant-bench",
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",
    }
    argv = [path, "-p", prompt, "--model", "claude-sonnet-4-5", "--output-format", "stream-json", "--verbose"]
    return Run([*argv, "--dangerously-skip-permissions"], environment(home, url, **more))


# --- Codex ----------------------------------------------------------------------------------------------------

CODEX = """\
model = "gpt-5.5"
model_provider = "stub"
check_for_update_on_startup = false
analytics.enabled = false
features.daemon_auto_start = false
[model_providers.stub]
name = "stub"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "STUB_KEY"
request_max_retries = 2
stream_max_retries = 2
[projects."{repository}"]
trust_level = "trusted"
"""


def prepare_codex(home: Path, url: str, repository: Path) -> None:
    (home / ".codex").mkdir(exist_ok=True)
    (home / ".codex" / "config.toml").write_text(CODEX.format(url=url, repository=repository))


def codex(path: str, home: Path, url: str, prompt: str) -> Run:
    argv = [path, "exec", "--json", "--dangerously-bypass-approvals-and-sandbox", prompt]
    return Run(argv, environment(home, url, CODEX_HOME=str(home / ".codex"), STUB_KEY="x"))


# --- opencode -------------------------------------------------------------------------------------------------

OPENCODE = """\
{{"model": "stub/stub-model", "small_model": "stub/stub-model", "autoupdate": false, "share": "disabled",
 "provider": {{"stub": {{"npm": "@ai-sdk/openai-compatible", "options": {{"baseURL": "{url}/v1", "apiKey": "x"}},
   "models": {{"stub-model": {{"name": "S", "limit": {{"context": 200000, "output": 8000}}}}}}}}}}}}
"""
OPENCODE_WITHOUT = ("MODELS_FETCH", "AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD", "SHARE", "CLAUDE_CODE")


def prepare_opencode(home: Path, url: str, repository: Path) -> None:
    (home / "opencode.json").write_text(OPENCODE.format(url=url))


def opencode(path: str, home: Path, url: str, prompt: str) -> Run:
    without = {f"OPENCODE_DISABLE_{what}": "1" for what in OPENCODE_WITHOUT}
    more = {"OPENCODE_CONFIG": str(home / "opencode.json"), **without}
    return Run([path, "run", "--title", "t", "--format", "json", "--auto"], environment(home, url, **more), prompt)


# --- Gemini ---------------------------------------------------------------------------------------------------

GEMINI = """\
{"security": {"auth": {"selectedType": "gemini-api-key"}},
 "general": {"enableAutoUpdate": false, "enableAutoUpdateNotification": false},
 "privacy": {"usageStatisticsEnabled": false}, "telemetry": {"enabled": false}}
"""


def prepare_gemini(home: Path, url: str, repository: Path) -> None:
    (home / ".gemini").mkdir(exist_ok=True)
    (home / ".gemini" / "settings.json").write_text(GEMINI)


def gemini(path: str, home: Path, url: str, prompt: str) -> Run:
    more = {"GEMINI_API_KEY": "x", "GOOGLE_GEMINI_BASE_URL": url}
    more |= {"GEMINI_CLI_TRUST_WORKSPACE": "true", "GEMINI_CLI_NO_RELAUNCH": "true"}
    argv = [path, "-m", "gemini-2.5-pro", "--approval-mode", "yolo", "--output-format", "stream-json", "-p", prompt]
    return Run(argv, environment(home, url, **more))


VENDORS = (
    Vendor("codex", "codex exec", prepare_codex, codex),
    Vendor("claude", "claude -p", no_preparation, claude),
    Vendor("gemini", "gemini -p", prepare_gemini, gemini),
    Vendor("opencode", "opencode run", prepare_opencode, opencode),
)
