"""Of the pre-commit guard: are paths that stand on standard input, NUL after each, claimed by somebody else?

    git diff --cached --name-only -z | python -I -S hook.py

Run inside a job, and only while anybody claims anything. Ends with 77, after it has said why on standard error, if the
commit is not to be made; with 0 if it is, also where nobody answers: the merge looks again. It imports nothing of
ours, and little else, as somebody waits for it at each commit.
"""

import json
import os
import socket
import sys

REFUSED = 77
ANSWER_S = 1.0
PATHS_AT_ONCE = 500
MOST_PATHS = 20_000
SHOWN = 3


def main() -> int:
    asked = [os.fsdecode(path) for path in sys.stdin.buffer.read().split(b"\0") if path][:MOST_PATHS]
    blocked: list[dict[str, str]] = []
    try:
        link = connect(os.environ["AGENTD_SOCKET"])
        with link, link.makefile("rb") as answers:
            for start in range(0, len(asked), PATHS_AT_ONCE):
                params = {"paths": asked[start : start + PATHS_AT_ONCE], "cwd": os.getcwd()}
                request = {"jsonrpc": "2.0", "id": 1, "method": "lock.check", "params": params}
                link.sendall(json.dumps(request).encode() + b"\n")
                blocked += json.loads(answers.readline()).get("result", {}).get("blocked", ())
    except (OSError, KeyError, ValueError):
        return 0
    if not blocked:
        return 0
    for one in blocked[:SHOWN]:
        print(one["text"], file=sys.stderr)
    rest = f" and {len(blocked) - SHOWN} more like these" if len(blocked) > SHOWN else ""
    paths = ", ".join(ascii(one["path"])[1:-1] for one in blocked[:SHOWN])
    print(f"[agentd] Not committed: take {paths}{rest} out of the commit, and go on with the others.", file=sys.stderr)
    return REFUSED


def connect(path: str) -> socket.socket:
    """A path that is too long for a socket's name is reached through its folder."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(ANSWER_S)
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH)
    try:
        link.connect(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
    return link


if __name__ == "__main__":
    sys.exit(main())
