"""agentd: hand a task to a background sub-agent, have the prompt back at once, be told when it is done.

Importing this package costs nothing: the keeper and the zygote import it too, and they must stay small.
``from agentd import Client`` loads the client on first use.
"""

TYPE_CHECKING = False  # what typing has by that name; to import it costs the command line 10 ms
if TYPE_CHECKING:
    from typing import Any

    from agentd.client import Client as Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> "Any":
    if name == "Client":
        from agentd.client import Client

        return Client
    raise AttributeError(f"module 'agentd' has no attribute {name!r}")
