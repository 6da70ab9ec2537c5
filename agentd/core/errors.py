"""The few errors a user can mend, each with its exit code.

An error is one sentence: what cannot be done, why, and what to do about it. ``code`` is the fine
distinction for programs (``--json``, JSON-RPC ``error.data.code``); ``exit`` is the process exit code.

=====  ===============================================================================
exit   meaning
=====  ===============================================================================
0      yes, done
1      the answer is no: job failed, wrong state, unknown id, not the holder, conflict
2      the command line itself is wrong
75     not now: lock busy, disk full, a limit is reached (EX_TEMPFAIL)
76     a deadlock was refused
124    ``wait`` timed out, or the job met its time limit
125    agentd itself failed, or the outcome is not known
126    the command was found but cannot be executed
127    the command was not found; ``wait`` on an unknown id
128+n  ended by signal n
=====  ===============================================================================
"""

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_ANOTHER = 3
"""Of the daemon's process alone: another one has the state folder."""
EXIT_NOT_NOW = 75
EXIT_DEADLOCK = 76
EXIT_TIMED_OUT = 124
EXIT_FAULT = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class AgentdError(Exception):
    """Base of all errors with a sentence for the user."""

    exit: int = EXIT_FAULT

    def __init__(self, message: str, code: str = "fault", exit: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        if exit is not None:
            self.exit = exit


class Refused(AgentdError):
    """The request is well formed, and the answer is no."""

    exit = EXIT_NO


class Usage(AgentdError):
    """The request itself is wrong."""

    exit = EXIT_USAGE


class NotNow(AgentdError):
    """It cannot be done at this moment; trying again later can work."""

    exit = EXIT_NOT_NOW


class Fault(AgentdError):
    """Our own failure, or an outcome nobody knows."""

    exit = EXIT_FAULT
