"""Every command that a message about locks names is typed as it stands there, and does what is said of it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clishell
import gitrepo
import pytest
from clishell import Said, Shell

PRELUDE = f'agentd() {{ "{sys.executable}" -m agentd "$@"; }}\n'


@pytest.fixture
def agentd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("AGENTD_OWNER", "me")
    for agentd in clishell.serve(tmp_path, monkeypatch):
        agentd.cwd = Path(gitrepo.make_repo(tmp_path / "repo"))
        gitrepo.write(f"{agentd.cwd}/src/it's $a.py", "a\n")
        gitrepo.write(f"{agentd.cwd}/src/b.py", "b\n")
        gitrepo.write(f"{agentd.cwd}/src/[id].py", "c\n")
        gitrepo.run(agentd.cwd, "add", ".")
        gitrepo.run(agentd.cwd, "commit", "-qm", "more")
        yield agentd


def hints(said: str) -> list[str]:
    """The commands in it: from ``agentd`` to what is said of them, or to the end of the line."""
    text = re.sub(r"\[agentd:\w+\]", "", said)
    found = re.findall(r"(?<![/\w])agentd [a-z].*?(?=\s{2,}| first, or|[;,)]|$)", text, re.MULTILINE)
    return [hint.rstrip(" .") for hint in found]


def typed(agentd: Shell, command: str, owner: str = "me", below: str = "src") -> Said:
    done = subprocess.run(
        ["bash", "-c", f"export AGENTD_OWNER={owner}\n{PRELUDE}{command}"],
        cwd=agentd.cwd / below,
        capture_output=True,
        timeout=60,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("'src/it'\"'\"'s $a.py'", ""),
        ("'src/[id].py'", " --shared"),
        ("--res db", " --append"),
        ("--broad '**'", ""),
        ("'src/*.py'", " --shared"),
    ],
)
def test_what_a_busy_lock_names(agentd: Shell, name: str, mode: str) -> None:
    assert typed(agentd, f"agentd lock {name}", below="").code == 0
    busy = typed(agentd, f"agentd lock {name}{mode} --wait 0s", owner="you", below="")
    assert busy.code == 75
    lock, keep, why, *breaks = hints(busy.err)
    assert "--wait 60s" in lock and "--wait 1s" in keep
    kept = typed(agentd, keep, owner="you")
    assert (kept.code, "ticket" in kept.err) == (75, True), kept
    explained = typed(agentd, why, owner="you")
    assert "holds" in explained.out and "ticket" in explained.out, explained
    for break_ in breaks:
        broken = typed(agentd, break_, owner="you")
        assert (broken.code, "was taken from" in broken.err) == (0, True), broken
    taken = typed(agentd, lock, owner="you")
    assert taken.code == 0, taken
    foreign = typed(agentd, f"agentd unlock {name.replace('--broad ', '')}", below="")
    (take_away,) = hints(foreign.err)
    assert foreign.code == 1
    assert typed(agentd, take_away).code == 0


def test_what_a_deadlock_names(agentd: Shell) -> None:
    typed(agentd, "agentd lock --res a", owner="me")
    typed(agentd, "agentd lock --res b", owner="you")
    typed(agentd, "agentd lock --res b --wait 0.1s", owner="me")
    refused = typed(agentd, "agentd lock --res a", owner="you")
    assert refused.code == 76
    (unlock,) = hints(refused.err)
    freed = typed(agentd, unlock.split("   ")[0], owner="you")
    assert (freed.code, freed.err) == (0, "agentd: released res:b\n")


def test_what_pending_work_names(agentd: Shell) -> None:
    def delegated() -> str:
        done = typed(agentd, "agentd delegate --claim b.py -- sh -c 'echo more >>b.py'")
        id = str(re.findall(r"\d+", done.out)[0])
        typed(agentd, f"agentd wait {id}; agentd result {id}")
        return id

    job = delegated()
    busy = typed(agentd, "agentd lock path:src/b.py --wait 0s")
    assert busy.code == 75
    merge = next(hint for hint in hints(busy.err) if "merge" in hint)
    remove = next(hint for hint in hints(busy.err) if hint.startswith("agentd rm"))
    other = typed(agentd, "agentd delegate -- sh -c 'echo other >>b.py'").out.split()[-1].strip("[]")
    other = re.findall(r"\d+", other)[0]
    typed(agentd, f"agentd wait {other}; agentd result {other}")
    contested = typed(agentd, f"agentd merge {other}")
    assert contested.code == 1
    assert hints(contested.err) == [merge, hints(contested.err)[1]]
    assert f"job {job}" in typed(agentd, hints(contested.err)[1]).out
    assert typed(agentd, merge).code == 0
    typed(agentd, f"agentd rm {other}")  # what it wrote there was seen
    assert typed(agentd, "agentd locks").out == "no locks\n"
    second = delegated()
    assert remove.replace(job, second) == f"agentd rm {second}"
    assert typed(agentd, f"agentd rm {second}").code == 0
    assert typed(agentd, "agentd locks").out == "no locks\n"


def test_what_refused_words_name(agentd: Shell) -> None:
    for words, then in (
        ("agentd lock", "agentd lock src/a.py"),
        ("agentd lock '**'", "agentd lock --broad '**'"),
        ("agentd lock /etc/passwd", "agentd lock file:/etc/passwd"),
        ("agentd lock .", "agentd lock '**' --broad"),
    ):
        refused = typed(agentd, words, below="")
        assert refused.code == 2, words
        assert refused.err.count("\n") == 1, refused.err
        assert typed(agentd, then, below="").code == 0, then
        assert typed(agentd, "agentd unlock --all").code == 0


def test_a_lock_may_be_the_first_thing_that_is_asked(agentd: Shell) -> None:
    assert not agentd.state.exists()
    assert typed(agentd, "umask 022; agentd lock --res db -- echo ran") == Said(0, "ran\n", "")
    assert typed(agentd, "agentd locks").out == "no locks\n"
