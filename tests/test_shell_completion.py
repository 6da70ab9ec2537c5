"""TAB: what shells offer after ``agentd``, and that nothing of it is ever executed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import gitrepo
import pytest
from clishell import Shell
from terminal import EDITED, EVAL, PROMPT, Open, need
from test_shell import agentd, open_shell

from agentd.cli import verbs

__all__ = ["agentd", "open_shell"]
HOSTILE = "$(touch${IFS}pwned);`touch${IFS}pwned`"


def completed(agentd: Shell, line: str, cwd: Path | None = None, kind: int = 9) -> list[str]:
    """What bash would offer for the last word."""
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    script = (
        f'{EVAL["bash"]}; COMP_TYPE={kind}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' __agentd_complete agentd; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", script, "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or agentd.cwd, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(filter(None, done.stdout.split("\n")))


def test_bash_completes_verbs_options_and_values(agentd: Shell) -> None:
    assert completed(agentd, "agentd ins") == ["inspect"]
    assert completed(agentd, "agentd daemon st") == ["start", "status", "stop"]
    assert completed(agentd, "agentd delegate --max-") == ["--max-cost", "--max-tokens", "--max-turns"]
    assert completed(agentd, "agentd delegate --agent ") == ["builtin", "command"]
    assert completed(agentd, "agentd delegate --agent = b") == ["builtin"]
    assert completed(agentd, "agentd run --name x --time") == ["--timeout"]
    assert completed(agentd, "agentd shell z") == ["zsh"]
    assert completed(agentd, "agentd delegate -- --max") == []


def test_bash_completes_jobs_by_id_name_and_number(agentd: Shell) -> None:
    assert completed(agentd, "agentd logs ") == []
    assert not (agentd.state / "daemon.json").exists(), "a TAB starts no daemon"
    agentd.job("sleep", "600", flags=["--name", "alive"])
    agentd.job("true", flags=["--name", "over"])
    agentd.ok("wait", "over")
    assert completed(agentd, "agentd logs ") == ["alive", "over"]
    assert completed(agentd, "agentd kill ") == ["alive"]
    assert completed(agentd, "agentd rm ") == ["over"]
    assert completed(agentd, "agentd logs 2") == ["2"]
    assert completed(agentd, "agentd events --job a") == ["alive"]
    listed = completed(agentd, "agentd logs ", kind=63)
    assert listed == ["alive  (1, running: sleep 600)", "over  (2, succeeded: true)"]
    agentd.ok("run", "-d", "--name", "mine", "true", AGENTD_OWNER="me")
    said = agentd.ok("complete", "job", "%", AGENTD_OWNER="me")
    assert re.fullmatch(r"%1\tmine, \w+: true\n", said)


def test_nothing_is_told_where_something_is_wrong(agentd: Shell) -> None:
    assert agentd("complete", "nonsense", "\x1b") == (0, "", "")
    assert agentd("complete") == (0, "", "")


def test_completion_expands_nothing_and_shows_no_controls(agentd: Shell, tmp_path: Path) -> None:
    repo = Path(gitrepo.make_repo(tmp_path / "repo"))
    gitrepo.run(repo, "branch", HOSTILE)
    agentd.job("sh", "-c", "sleep 600 # \x1b[31m\n$(touch pwned)", flags=["--name", "evil"])
    offered = completed(agentd, "agentd delegate --base ", repo)
    assert len(offered) == 2 and "main" in offered
    words = next(word for word in offered if word != "main")
    echoed = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, text=True, cwd=repo, timeout=60)
    assert echoed.stdout == HOSTILE
    shown = agentd.ok("complete", "job", "")
    assert shown.startswith("evil\t1, ") and shown[:-1].replace("\t", " ").isprintable()
    if shutil.which("fish"):
        script = f"{EVAL['fish']}; complete -C 'agentd merge --into '; complete -C 'agentd logs e'"
        command = ["fish", "--no-config", "-c", script]
        said = subprocess.run(command, capture_output=True, text=True, cwd=repo, timeout=60).stdout
        assert [line.partition("\t")[0] for line in said.splitlines()] == [HOSTILE, "main", "evil"]
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name == "pwned"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_in_a_terminal(agentd: Shell, open_shell: Open, tmp_path: Path, shell: str) -> None:
    repo = Path(gitrepo.make_repo(tmp_path / "repo"))
    gitrepo.run(repo, "branch", HOSTILE)
    agentd.job("sleep", "600", flags=["--name", "alive"])
    one = open_shell(shell, EDITED[shell], TERM="xterm")
    one.type(f"cd {repo}; autoload -Uz compinit 2>/dev/null && compinit -u; {EVAL[shell]}; echo SET''UP\n")
    one.until("SETUP")
    one.until(PROMPT)
    for keys, offered in (
        ("agentd insp\t", "inspect"),
        ("agentd merge --in\t", "--into"),
        ("agentd kill al\t", "alive"),
        ("agentd merge --into \t\t", "pwned"),
    ):
        one.type(keys)
        one.until(offered)
        one.type("\x15\n")
        one.until(PROMPT)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name == "pwned"]


def test_fish_completes(agentd: Shell) -> None:
    need("fish")
    agentd.job("sleep", "600", flags=["--name", "alive"])

    def offered(line: str) -> list[str]:
        script = f"{EVAL['fish']}; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return sorted(row.partition("\t")[0] for row in done.stdout.splitlines())

    assert offered("agentd ins") == ["inspect"]
    assert offered("agentd locks ") == sorted(verbs.LOCKS_VERBS)
    assert offered("agentd delegate --max-") == ["--max-cost", "--max-tokens", "--max-turns"]
    assert offered("agentd delegate --agent=b") == ["--agent=builtin"]
    assert offered("agentd kill ") == ["alive"]
    assert offered("agentd shell ") == ["bash", "fish", "tmux", "zsh"]
