"""``agentd answer JOB [TEXT]``: to the question of an agent."""

import os
from typing import Annotated

import typer

from agentd.cli import options, render
from agentd.client import Client
from agentd.core.errors import Usage


def answer(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its id, its name, or %n, %+, %-.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Without it: standard input.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    no_color: options.NoColor = False,
) -> None:
    """Answer what an agent asks; agentd inbox lists the questions. Of listed options a number chooses one."""
    with Client() as client:
        view = client.job(job)["job"]
        question = (view["progress"] or {}).get("question")
        if question is None:
            client.answer(view["id"], text or "")  # the daemon says why not
            return
        if text is None and os.isatty(0):
            text = asked(view["id"], question)
        given = options.text_or_input(text, f"answer what? Give a TEXT: agentd answer {view['id']} TEXT")
        chosen = choice(given, question["options"])
        receipt = client.answer(view["id"], chosen, question["id"])
    if json:
        options.print_json({**receipt, "question": question["id"], "text": chosen})
    elif chosen != given and not quiet:
        options.say(f'job {view["id"]} is answered "{render.one_line(chosen, 200)}"')


def asked(id: int, question: render.View) -> str | None:
    """At a terminal: the question is shown, and a line read."""
    options.say(f"job {id} asks:")
    for line in render.question_lines(question, "  ", options.width()):
        options.tell(line)
    options.tell("> ", end="")
    try:
        return input()
    except EOFError:
        return ""


def choice(text: str, listed: list[str]) -> str:
    word = text.strip()
    if word in listed or not listed or not (word.isascii() and word.isdigit() and len(word) < 6):
        return text
    if not 1 <= int(word) <= len(listed):
        raise Usage(f"there is no option {word}: choose 1 to {len(listed)}, or write a text", "no_such_option")
    return listed[int(word) - 1]
