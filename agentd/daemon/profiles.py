"""What the spec of a job of the built-in agent has more than that of a command: the profile, limits, prices."""

import hashlib
from typing import Any

import msgspec

from agentd import protocol
from agentd.agents import builtin
from agentd.config import Config, Profile
from agentd.core.errors import Refused, Usage
from agentd.core.names import escaped


def resolve(settings: Config, ask: protocol.Delegate) -> Profile:
    """The profile that is asked for, with what the request says itself put in. Usage, if it cannot be used."""
    profiles = settings.all_profiles()
    name = ask.profile or settings.agent.profile
    if name not in profiles:
        raise builtin.no_profile(name, sorted(profiles))
    asked = {"model": ask.model or None, "max_turns": ask.max_turns, "max_tokens": ask.max_tokens}
    given = {key: value for key, value in (asked | {"max_cost": ask.max_cost}).items() if value is not None}
    profile = msgspec.structs.replace(profiles[name], **given)
    if not profile.model:
        raise Usage(
            f'the profile "{escaped(name, 60)}" names no model; set it in agentd.toml, or give --model', "no_model"
        )
    if any(value < 0 for value in (profile.max_turns, profile.max_tokens, profile.max_cost)):
        raise Usage("a limit must be more than 0", "bad_limit")
    if profile.max_cost and rates_of(settings, profile.model) is None:
        raise Usage(
            f"cannot hold a limit of cost: the price of {escaped(profile.model, 60)} is not known; give it in"
            f' agentd.toml under [prices."{escaped(profile.model, 60)}"], or limit tokens',
            "no_price",
        )
    return profile


def refuse_without_key(profile: Profile, environment: dict[str, str]) -> None:
    """Told to whoever delegates, not to the log of a job that could only fail."""
    if not profile.key_file and not environment.get(profile.key_env):
        what = f"there is no key for the model: {escaped(profile.key_env, 60)} is not set here"
        raise Refused(
            f"{what}; set it, or name its place in a profile, see agentd.toml(5). A command, which needs none, stands"
            " after --",
            "no_key",
        )


def listed(settings: Config) -> list[dict[str, Any]]:
    """All profiles, as they can be asked for. A key is named by where it is looked for, and not looked at."""
    return [
        {
            "name": name,
            "is_default": name == settings.agent.profile,
            "model": profile.model or None,
            "endpoint": profile.endpoint or None,
            "effort": profile.effort or None,
            "tools": list(profile.tools) or None,
            "limits": {"turns": profile.max_turns, "tokens": profile.max_tokens, "cost": profile.max_cost},
            "key_env": None if profile.key_file else profile.key_env,
            "key_file": profile.key_file or None,
            "price_known": rates_of(settings, profile.model) is not None,
        }
        for name, profile in settings.all_profiles().items()
    ]


def rates_of(settings: Config, model: str) -> dict[str, Any] | None:
    own = settings.prices.get(model)
    return msgspec.to_builtins(own) if own is not None else builtin.rates(model)


def granted(settings: Config, profile: Profile) -> tuple[str, ...]:
    """Variables beyond the allowlist: those of agentd.toml, and the agent's own credential."""
    return (*settings.agent.environment, *(() if profile.key_file else (profile.key_env,)))


def spec_of(
    settings: Config, profile: Profile, ask: protocol.Delegate, state_dir: str, worktree: str, setup: str
) -> dict[str, Any]:
    credential = (
        f"{profile.endpoint or ask.environment.get('ANTHROPIC_BASE_URL', '')}\0{profile.key_file}\0{profile.key_env}"
    )
    parking = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {
        "runner": builtin.RUNNER,
        "task": ask.task,
        "worktree": worktree,
        "setup": setup,
        "profile": {
            "name": ask.profile or settings.agent.profile,
            "model": profile.model,
            "endpoint": profile.endpoint or None,
            "max_tokens": profile.answer_tokens,
            "effort": profile.effort or None,
            "thinking": profile.thinking or None,
            "system": profile.system or None,
            "tools": list(profile.tools) or None,
            "key_env": profile.key_env,
            "key_file": profile.key_file or None,
            "context": profile.context,
        },
        "budget": {"turns": profile.max_turns, "tokens": profile.max_tokens, "cost": profile.max_cost},
        "rates": rates_of(settings, profile.model),
        "parking": f"{state_dir}/parking-{parking}",
        "lock_policy": dict(settings.locks.policy),
    }
