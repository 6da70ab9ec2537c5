"""All jobs in memory, and what is asked of them for every request: answered without a walk over those that ended."""

from collections import Counter

from agentd.core.job import Job, Kept, Queued, Stopped, Waiting, shown_state


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
        self.tallies: Counter[tuple[str, str]] = Counter()
        """By owner (empty: of all) and word of :meth:`tally`, and how many are live."""
        self.by_key: dict[str, int] = {}
        self.by_name: dict[str, int] = {}
        """Only those that are kept: the name of one in the trash is free."""

    def remember(self, job: Job) -> None:
        was = self.get(job.id)
        self[job.id] = job
        if was is not None:
            self._count(was, -1)
        self._count(job, 1)
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

    @staticmethod
    def tally(job: Job) -> str:
        """As what a prompt counts it: ``asking``, ``running``, or not at all."""
        if shown_state(job) == "waiting":
            return "asking"
        return "running" if job.is_active and not isinstance(job.state, Stopped) else ""

    def _count(self, job: Job, by: int) -> None:
        if job.is_done:
            return
        for word in filter(None, (self.tally(job), "live")):
            for owner in ("", job.owner):
                self.tallies[owner, word] += by
                if not self.tallies[owner, word]:
                    del self.tallies[owner, word]

    def named(self, name: str) -> Job | None:
        """The job that has this name now."""
        id = self.by_name.get(name)
        return None if id is None else self[id]


def _put(ids: set[int], id: int, is_in: bool) -> None:
    (ids.add if is_in else ids.discard)(id)
