"""``tolddaemon.py STATE READY_FD``: a daemon that writes down what its worktree watcher tells it, a line each."""

import json
import sys

from agentd.daemon import main


class Told(main.Daemon):
    def on_wrote(self, job_id: int, paths: tuple[str, ...]) -> None:
        for path in paths:
            self.write(job_id, path)

    def on_mode(self, job_id: int, how: str, why: str) -> None:
        self.write(job_id, how, why)

    def write(self, *told: object) -> None:
        with open(f"{self.state_dir}/told", "a") as file:
            file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main.Daemon = Told  # type: ignore[misc]
    sys.exit(main.main())
