"""The built-in agent as a process: ``main(path, spec)`` in a fork of the zygote, which has called ``warm()``.

    python -m agentd.runners.builtin ATTEMPT_FOLDER

tries it by itself, with the spec.json of that folder. stdout stays empty (the transcript has the conversation); stderr
gets a line for each thing that a person must know. The exit code: 0 the model ended its turn, or a limit was reached;
1 it could not go on; 2 the model refused.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from agentd import __version__, jobdir
from agentd.jobdir import Record

from . import prompt, tools, transcript
from .conversation import Conversation
from .gate import Gate
from .inbox import Inbox
from .loop import Ended, Loop
from .model import Model
from .parking import Parking
from .tools.claims import Claims
from .tools.results import Result
from .tools.shell import Shell, environment_for_tools
from .tools.worktree import Worktree
from .tools.world import World
from .transcript import Transcript

CANNOT = 1
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
KEY_ENV = "ANTHROPIC_API_KEY"


class Unable(Exception):
    """Why the run cannot begin: a sentence."""


def warm() -> None:
    """Once in the zygote, before any fork: what all its children then share."""
    from . import warmth

    warmth.warm()


def main(path: str, spec: Record) -> int:
    try:
        return asyncio.run(run(path, spec))
    except (Unable, transcript.Taken, OSError) as error:
        say(str(error))
        return CANNOT
    except Exception:
        traceback.print_exc()
        return CANNOT


async def run(path: str, spec: Record) -> int:
    task = asyncio.ensure_future(converse(path, spec))
    loop = asyncio.get_running_loop()
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not stopped_by:
            raise
    # Commands have been ended; now be ended by the signal, as who waits for us expects.
    loop.remove_signal_handler(stopped_by[0])
    signal.signal(stopped_by[0], signal.SIG_DFL)
    os.kill(os.getpid(), stopped_by[0])
    return 128 + stopped_by[0]


async def converse(path: str, spec: Record) -> int:
    profile = spec["profile"]
    own = f"{path}/{transcript.NAME}"
    record = Transcript(own)
    model: Model | None = None
    world: World | None = None
    inbox: Inbox | None = None
    try:
        if not profile.get("model"):
            raise Unable("cannot ask a model: the profile names none; set `model` in it, or give --model")
        files = [*transcript.chain(spec["resume"]), own] if spec.get("resume") else [own]
        state = Conversation()
        for fault in transcript.apply_all(files, state):
            say(fault)
        key, environment = take_key(profile, dict(os.environ))
        check_endpoint(profile)
        worktree = enter(spec["worktree"])
        inbox = Inbox(path, [os.path.dirname(file) for file in files])
        model = client(profile, key)
        gate = Gate(path, spec.get("limits_asked", True))
        loop = Loop(state, model, record, inbox, gate, Parking(spec.get("parking")), say, profile.get("context"))
        claims = claims_of(path, spec, worktree)
        world = World(worktree, Shell(worktree.path, environment), loop.ask, loop.note, claims)
        loop.tools = Toolbox(world, profile.get("tools"))
        loop.write("start", **start(spec, state, loop.tools.schema, worktree))
        return told(await loop.run())
    except Exception as error:
        is_ours = not isinstance(error, Unable | OSError)
        text = f"a fault of agentd's own: {error!r}" if is_ours else str(error)
        record.write("end", outcome="failed", code=CANNOT, text=text)
        raise
    finally:
        if world is not None:
            await world.close(ends_commands=not spec.get("kept", True))
        if inbox is not None:
            inbox.close()
        if model is not None:
            await model.close()
        record.close()


class Toolbox:
    def __init__(self, world: World, names: list[str] | None) -> None:
        self.world = world
        self.schema = tools.schema(names)
        self.allowed = [tool["name"] for tool in self.schema]

    def run(self, name: str, input: dict[str, Any]) -> Coroutine[Any, Any, Result]:
        return tools.run(self.world, self.allowed, name, input)


def start(spec: Record, state: Conversation, schema: list[dict[str, Any]], worktree: Worktree) -> Record:
    """The first record of an attempt. A resumed one keeps its system prompt, and with it its place in the cache."""
    profile = spec["profile"]
    system = state.system or prompt.system(profile.get("system"), lambda name: worktree.read(name, 1 << 20))
    return {
        "format": transcript.FORMAT,
        "version": __version__,
        "job": spec.get("job"),
        "attempt": spec.get("attempt"),
        "model": profile["model"],
        "task": state.task or prompt.first_message(spec["task"], worktree.path),
        "system": system,
        "tools": [tool["name"] for tool in schema],
        "schema": hashlib.sha256(json.dumps(schema).encode()).hexdigest()[:16],
        "resume": spec.get("resume"),
    }


def take_key(profile: dict[str, Any], environment: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The model's key, and the environment of tools, without it. It leaves our own environment too."""
    name = profile.get("key_env") or KEY_ENV
    if profile.get("key_file"):
        try:
            with open(os.path.expanduser(profile["key_file"]), encoding="utf-8") as file:
                key = file.read().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise Unable(f"cannot read the key from {profile['key_file']}: {reason}") from None
        where = profile["key_file"]
    else:
        key, where = environment.get(name, ""), f"the environment variable {name}"
    os.environ.pop(name, None)
    if not key or not key.isascii() or not key.isprintable():
        what = "no key" if not key else "a key with characters that no header can hold"
        raise Unable(f"cannot ask the model: there is {what} in {where}; set it, or name a file with `key_file`")
    return key, environment_for_tools(environment, name)


def check_endpoint(profile: dict[str, Any]) -> None:
    """A server that cannot be reached may come back; an address that is none never will."""
    endpoint = profile.get("endpoint") or os.environ.get("ANTHROPIC_BASE_URL")
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise Unable(f"cannot ask the model: its endpoint {endpoint!r} is no address such as https://host")


def claims_of(path: str, spec: Record, worktree: Worktree) -> Claims | None:
    if "state_dir" not in spec:
        return None  # it is tried by itself
    return Claims(f"{path}/agent.sock", spec["state_dir"], worktree.path, spec.get("lock_policy") or {})


def client(profile: dict[str, Any], key: str) -> Model:
    try:
        return Model(profile, key)
    except (ImportError, ValueError) as error:
        proxies = sorted(name for name in os.environ if name.lower() in PROXIES)
        if not proxies:
            raise
        raise Unable(f"cannot ask the model: the proxy in {', '.join(proxies)} cannot be used: {error}") from None


def enter(path: str) -> Worktree:
    try:
        return Worktree(path)
    except OSError as error:
        raise Unable(f"cannot work in {path}: {error.strerror}") from None


def told(ended: Ended) -> int:
    if ended.outcome != "done":
        say(f"{ended.outcome}: {ended}")
    return ended.code


def say(text: str) -> None:
    line = " ".join(text.split())
    print(f"agentd: {line}"[:2000], file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m agentd.runners.builtin ATTEMPT_FOLDER")
    folder = os.path.abspath(sys.argv[1])
    found = jobdir.read(folder, "spec.json")
    if found is None:
        sys.exit(f"cannot run the attempt: there is no readable spec.json in {folder}")
    os.chdir(found["worktree"])
    sys.exit(main(folder, {**found, "kept": False}))
