"""All jobs in memory, and what is asked of them for every request: answered without a walk over those that ended."""

from agentd.core.job import Job, Kept, Queued, Waiting


class Jobs(dict[int, Job]):
    """By id. Only :meth:`remember` changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Job] = {}
        """Those that are not done."""
        self.queued: set[int] = set()
        self.waiting: set[int] = set()
        self.active = 0
        """How many count against the limit of running jobs."""
        self.by_key: dict[str, int] = {}
        self.by_name: dict[str, int] = {}
        """Only those that are kept: the name of one in the trash is free."""

    def remember(self, job: Job) -> None:
        was = self.get(job.id)
        self[job.id] = job
        self.active += job.is_active - (was is not None and was.is_active)
        _put(self.queued, job.id, isinstance(job.state, Queued))
        _put(self.waiting, job.id, isinstance(job.state, Waiting))
        if job.is_done:
            self.live.pop(job.id, None)
        else:
            self.live[job.id] = job
        if job.key:
            self.by_key[job.key] = job.id
        if isinstance(job.shelf, Kept):
            self.by_name[job.name] = job.id
        elif self.by_name.get(job.name) == job.id:
            del self.by_name[job.name]

    def named(self, name: str) -> Job | None:
        """The job that has this name now."""
        id = self.by_name.get(name)
        return None if id is None else self[id]


def _put(ids: set[int], id: int, is_in: bool) -> None:
    (ids.add if is_in else ids.discard)(id)
