"""Counting under a lock while everybody is killed: the worker, and what must be true of what it left.

    python lockslab.py STATE_DIR FOLDER NAME COUNT

A worker says what it is about to write, writes it, and says that it has. So each number that was said to be written
was written by one worker only, and the counter stands at exactly the highest one, or one above it if a worker died in
between.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentd.client import Client

COUNTER, LOCK = "counter", "file:./counter"


def work(state_dir: str, folder: str, name: str, count: int) -> None:
    client = Client() if "AGENTD_SOCKET" in os.environ else Client(state_dir, owner=name)
    said = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    counter = os.open(f"{folder}/{COUNTER}", os.O_RDWR)
    for _ in range(count):
        with held(client, folder):
            number = int(os.pread(counter, 32, 0) or b"0") + 1
            os.write(said, b"about %d\n" % number)
            os.pwrite(counter, b"%-20d\n" % number, 0)
            os.write(said, b"wrote %d\n" % number)
    client.close()


@contextmanager
def held(client: Client, folder: str) -> Iterator[Any]:
    """A job's own claim in a job, a process's elsewhere."""
    if not client.narrow:
        with client.locked(LOCK, cwd=folder) as answer:
            yield answer
        return
    yield client.lock([LOCK], wait=None, cwd=folder)
    client.unlock([LOCK], cwd=folder)


def violations(folder: Path) -> list[str]:
    about: list[int] = []
    wrote: list[int] = []
    for log in folder.glob("*.log"):
        for line in log.read_text().splitlines():
            word, number = line.split()
            (about if word == "about" else wrote).append(int(number))
    found = [f"{number} was written twice" for number, times in Counter(wrote).items() if times > 1]
    stands = int((folder / COUNTER).read_text() or 0)
    found += [] if stands == max(about, default=0) or stands == max(wrote, default=0) else [f"it stands at {stands}"]
    missing = set(range(1, stands + 1)) - set(about)
    return found + ([f"nobody said of {sorted(missing)[:5]}"] if missing else [])


def acknowledged(folder: Path) -> int:
    return sum(line.startswith("wrote") for log in folder.glob("*.log") for line in log.read_text().splitlines())


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print(json.dumps({"done": int(sys.argv[4])}))
