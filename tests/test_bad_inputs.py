"""docs/bad-inputs.md takes place: every input of its tables gets the answer and the code that stand beside it."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import clishell
import gitrepo
import pytest
from clishell import Shell

from agentd import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bad-inputs.md"
NOTHING = "–"


class Row(NamedTuple):
    input: str
    code: int
    answer: str


def rows(heading: str) -> list[Row]:
    """Those of all tables between this heading and the next of its level."""
    text = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| \n")) for line in text.splitlines() if line.startswith("| `")]
    return [Row(unquoted(input), int(code), unquoted(answer)) for input, code, answer in cells]


def unquoted(cell: str) -> str:
    return "" if cell == NOTHING else cell.removeprefix("`").removesuffix("`").replace("\\|", "|")


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """The jobs of the page, and its folders."""
    for agentd in clishell.serve(tmp_path, monkeypatch):
        agentd.cwd = Path(gitrepo.make_repo(tmp_path / "repo"))
        (tmp_path / "plain").mkdir()
        (tmp_path / "empty").mkdir()
        gitrepo.run(tmp_path / "empty", "init", "-q")
        agentd.job("true", flags=["--name", "first"])
        agentd.job("sleep", "1000", flags=["--name", "alpha"])
        agentd.job("sleep", "1000", flags=["--name", "alps"])
        agentd.job("cat", flags=["--name", "cat", "-i"])
        agentd.job("true", flags=["--name", "old"])
        agentd.job("nosuch-program", flags=["--name", "never"])
        agentd("wait", "first", "old", "never")
        agentd("wait", "--for", "running", "alpha", "alps", "cat")
        agentd.ok("rm", "old")
        yield agentd


def places(agentd: Shell) -> dict[str, str]:
    """What the page calls them."""
    return {"/repo": str(agentd.cwd), "/state": str(agentd.state)} | {
        name: str(agentd.cwd.parent / name[1:]) for name in ("/plain", "/empty")
    }


def as_on_the_page(agentd: Shell, text: str) -> str:
    for name, place in places(agentd).items():
        text = text.replace(place, name)
    return text.strip()


def words_of(inputs: list[str]) -> list[list[str]]:
    """The words that a shell would make of each."""
    script = "".join(f"printf '%s\\0' {input.removeprefix('agentd')}; printf '\\1\\0'\n" for input in inputs)
    done = subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    lists = done.stdout.decode().split("\1\0")[:-1]
    return [found.split("\0")[:-1] for found in lists]


def answered(words: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.guarded(words)
    return code, out.getvalue() + err.getvalue()


def test_wrong_words(agentd: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(agentd.cwd)
    before = agentd.ok("ps", "-a"), gitrepo.run(agentd.cwd, "for-each-ref")
    page = rows("Words")
    seen = [
        Row(row.input, code, as_on_the_page(agentd, said).replace("\n", " "))
        for row, words in zip(page, words_of([row.input for row in page]), strict=True)
        for code, said in [answered(words)]
    ]
    assert seen == page
    assert len(page) > 130
    assert ids(before[0]) == ids(agentd.ok("ps", "-a")), "a refused input left a job"
    assert before[1] == gitrepo.run(agentd.cwd, "for-each-ref")


def ids(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines()]


def test_odd_surroundings(agentd: Shell, tmp_path: Path) -> None:
    page = rows("Surroundings")
    seen = []
    for number, row in enumerate(page):
        place = tmp_path / f"row-{number}"
        place.mkdir()
        script = row.input
        for name, real in places(agentd).items():
            script = re.sub(rf"(?<![\w/]){name}\b", real, script)
        prelude = f'agentd() {{ "{sys.executable}" -m agentd "$@"; }}\ncd {place}\n'
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", prelude + script],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        seen.append(Row(row.input, done.returncode, as_on_the_page(agentd, said).replace("\n", " ")))
    assert seen == page
    assert len(page) > 25


REMEDY = re.compile(
    r"; |: a |: only |: choose |: name |agentd [a-z]+ |agentd --help|what\\?|did you mean|there (?:is|are):? |such as"
    r"|must |which|printable characters"
)
SAID_ALL = (
    "the wait timed out",
    "has ended without being",
    "it works in",
    "No such file",
    "whose acknowledgement",
    "it is running",
    "as in src/",
    "is no pool",
    "whose output it would be",
)
"""Where the answer is what was asked for, or names the option to be given."""


def test_every_refusal_says_what_to_do() -> None:
    refused = [row for heading in ("Words", "Surroundings") for row in rows(heading) if row.code and row.answer]
    silent = [
        row for row in refused if not REMEDY.search(row.answer) and not any(all in row.answer for all in SAID_ALL)
    ]
    assert silent == []
    assert len(refused) > 130


def test_what_is_tested_elsewhere_is_tested() -> None:
    text = PAGE.read_text().partition("\n## Tested elsewhere\n")[2]
    named = re.findall(r"`(test_\w+)`, `(test_\w+)`", text)
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (PAGE.parent.parent / "tests" / f"{file}.py").read_text(), test
