"""Verbs that take several jobs: each one's answer is told, whatever the others'."""

from collections.abc import Callable, Mapping, Sequence

from agentd.cli import options, render
from agentd.core.errors import AgentdError, Usage

Answers = dict[str, render.View | AgentdError]
"""By the word that named the job: the job, or why not."""


def ask_each(refs: Sequence[str], act: Callable[[str], render.View]) -> Answers:
    """A job that is named twice is asked once. A wrong command line is wrong for all."""
    answers: Answers = {}
    for ref in dict.fromkeys(refs):
        try:
            answers[ref] = act(ref)
        except Usage:
            raise
        except AgentdError as error:
            answers[ref] = error
    return answers


def conclude(answers: Mapping[str, render.View | AgentdError], json: bool) -> int:
    """Tell what went wrong, each in a line, or all answers as one list; the exit code is the worst."""
    problems = [answer for answer in answers.values() if isinstance(answer, AgentdError)]
    if problems and len(answers) == 1:
        raise problems[0]
    if json:
        options.print_json([as_object(ref, answer) for ref, answer in answers.items()])
    else:
        for problem in problems:
            options.say(render.one_line(problem.message))
    return max((problem.exit for problem in problems), default=0)


def as_object(ref: str, answer: render.View | AgentdError) -> render.View:
    if isinstance(answer, AgentdError):
        id = int(ref) if ref.isascii() and ref.isdigit() else ref
        return {"id": id, "ok": False, "code": answer.code, "error": answer.message}
    return {**answer, "ok": True}
