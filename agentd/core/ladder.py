"""The ladder of signals by which ``kill`` ends a job: pure."""


def ladder(first: str | None, grace: float | None) -> tuple[tuple[str, float], ...]:
    """INT, 5 s, TERM, 10 s, KILL; ``grace`` is the time from the first signal to KILL."""
    if first == "KILL":
        return (("KILL", 0.0),)
    if first is not None:
        return ((first, 0.0), ("KILL", 10.0 if grace is None else grace))
    if grace is None:
        return (("INT", 0.0), ("TERM", 5.0), ("KILL", 15.0))
    return (("INT", 0.0), ("TERM", grace / 3), ("KILL", grace))
