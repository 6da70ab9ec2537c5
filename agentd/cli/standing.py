"""``agentd`` alone: where one stands. It starts no daemon."""

import os
import time

from agentd.cli import offline, options, standing_sheet
from agentd.client import Client
from agentd.core.errors import NotNow


def show() -> None:
    """Jobs here, who waits for you, and the three next things one can do."""
    cwd = options.here()
    with Client(start=False) as client:
        try:
            jobs, is_online = client.jobs(all=True), True
        except NotNow as error:
            if error.code != "no_daemon":
                raise
            jobs, is_online = offline.jobs(client.state_dir, all=True), False
        place = standing_sheet.Place(cwd, repository_of(cwd), client.owner)
    width, is_colored = options.width(), options.has_color(False)
    print("\n".join(standing_sheet.sheet(jobs, place, is_online, time.time(), width, is_colored)))


def repository_of(folder: str) -> str | None:
    """The top of the repository that the folder is in, of its main tree; found without running git."""
    while True:
        marker = os.path.join(folder, ".git")
        if os.path.isdir(marker):
            return os.path.realpath(folder)
        if os.path.isfile(marker):
            return main_tree(marker) or os.path.realpath(folder)
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def main_tree(marker: str) -> str | None:
    """Of a linked worktree, by its ``.git`` file: ``gitdir: /REPOSITORY/.git/worktrees/NAME``."""
    try:
        with open(marker, errors="surrogateescape") as file:
            path = file.read(8192).removeprefix("gitdir: ").rstrip("\n")
    except OSError:
        return None
    repository, found, _ = path.rpartition("/.git/worktrees/")
    return os.path.realpath(repository) if found else None
