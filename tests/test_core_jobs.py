"""What all jobs are asked for often is the same as a walk over them would say."""

from hypothesis import given
from hypothesis import strategies as some

from agentd.core.job import Done, Ended, InPlace, Job, Kept, Queued, Running, Stopping, Trashed, Waiting
from agentd.core.jobs import Jobs

STATES = (
    Queued(1.0),
    Waiting(1.0, ("K",)),
    Running(1.0, 40),
    Stopping(2.0, 1.0, 40, "exited"),
    Done(2.0, 1.0, 40, Ended("succeeded", exit_code=0)),
)

changes = some.lists(
    some.builds(
        lambda id, state, shelf: Job(
            id, f"j{id % 3}", "command", "", ("x",), "me", id, 1.0, InPlace("/"), state, key=f"k{id}", shelf=shelf
        ),
        some.integers(1, 6),
        some.sampled_from(STATES),
        some.sampled_from([Kept(), Kept(), Trashed(3.0, {})]),
    ),
    max_size=40,
)


@given(changes)
def test_the_look_ups_are_those_of_a_walk(seen: list[Job]) -> None:
    jobs, newest = Jobs(), dict[int, Job]()
    for job in seen:
        if any(o.name == job.name and o.id != job.id and isinstance(o.shelf, Kept) for o in newest.values()):
            continue  # names are unique among the kept
        jobs.remember(job)
        newest[job.id] = job
        assert dict(jobs) == newest
        assert jobs.live == {id: one for id, one in newest.items() if not one.is_done}
        assert jobs.queued == {id for id, one in newest.items() if isinstance(one.state, Queued)}
        assert jobs.waiting == {id for id, one in newest.items() if isinstance(one.state, Waiting)}
        assert jobs.active == sum(one.is_active for one in newest.values())
        for name in ("j0", "j1", "j2"):
            kept = [one for one in newest.values() if one.name == name and isinstance(one.shelf, Kept)]
            assert [jobs.named(name)] == (kept or [None])
        assert jobs.by_key == {one.key: one.id for one in newest.values()}
