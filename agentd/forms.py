"""How a shell words things: bash's forms of a job's line. Pure."""

import signal

WORDS = {9: "Killed", 15: "Terminated", 1: "Hangup", 2: "Interrupt", 6: "Aborted", 11: "Segmentation fault"}


def state_word(state: str, outcome: str | None, exit_code: int | None, number: int | None) -> str:
    """``Running``, ``Done``, ``Exit 3``, ``Terminated``; ``number``: of the signal that ended it."""
    if state != "done":
        return state.capitalize()
    if number is not None:
        return WORDS.get(number) or signal_word(number)
    if exit_code is None or outcome in ("killed", "timed_out", "limited"):
        return str(outcome).replace("_", " ").capitalize()
    return "Done" if exit_code == 0 else f"Exit {exit_code}"


def signal_word(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def job_line(number: int, mark: str, state: str, words: str, pid: int | None = None) -> str:
    """``[1]-  Running                 sleep 3 &``"""
    return f"[{number}]{mark or ' '}{f' {pid} ' if pid else '  '}{state:<24}{words}"


def counts(running: int, asking: int) -> str:
    """``2& 1?``: so many run in the background, so many ask; empty if there are none."""
    return " ".join([*([f"{running}&"] if running else []), *([f"{asking}?"] if asking else [])])
