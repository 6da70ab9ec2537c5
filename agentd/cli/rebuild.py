"""``agentd doctor --rebuild``: the store is put aside, and the next daemon makes a new one from the jobs' files."""

import os
import signal

from agentd.cli import options
from agentd.cli.daemon import stop_daemon
from agentd.client import Client
from agentd.core.errors import NotNow


def rebuild_store(json: bool, quiet: bool) -> int:
    # Between the daemon's end and the start of the next one no interrupt may leave the store half put aside.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    state_dir = Client(start=False).state_dir
    if not os.path.isdir(state_dir):
        os.makedirs(state_dir, 0o700)
    stop_daemon(kill_jobs=False)
    aside = put_store_aside(state_dir)
    with Client() as client:
        status = client.ask("daemon.status")
    if json:
        options.print_json({"epoch": status["epoch"], "put_aside": aside})
    else:
        print(status["epoch"])
        if not quiet and aside:
            options.say(f"epoch {status['epoch']} begins; the old store is {aside}")
    return 0


def put_store_aside(state_dir: str) -> str | None:
    """Under the daemon's own lock, so that none starts meanwhile."""
    import filelock

    path = f"{state_dir}/agentd.db"
    lock = filelock.FileLock(f"{state_dir}/daemon.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=10)
    except filelock.Timeout:
        raise NotNow("cannot put the store aside: another daemon has started; try again", "daemon_running") from None
    try:
        if not os.path.exists(path):
            return None
        number = next(n for n in range(1, 1 << 20) if not os.path.exists(f"{path}.old-{n}"))
        for suffix in ("-wal", "-shm", ""):
            if os.path.exists(path + suffix):
                os.rename(path + suffix, f"{path}.old-{number}{suffix}")
        return f"{path}.old-{number}"
    finally:
        lock.release()
