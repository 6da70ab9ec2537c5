"""The pre-commit guard of jobs: git is told by its environment to look for hooks in a folder of ours.

Nobody's configuration is touched. Each hook there hands on to the one that git would have run, wherever the repository
keeps it; ``pre-commit`` first asks whether others claim what is to be committed, while anybody claims anything at all.
It is a courtesy: ``--no-verify`` passes it by, and the merge has the last word.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping

from agentd import hook, paths

KEY = "core.hooksPath"
GOOD_COUNT = re.compile("0|[1-9][0-9]{0,3}")
HOOKS = (
    *("applypatch-msg", "pre-applypatch", "post-applypatch", "pre-commit", "pre-merge-commit", "prepare-commit-msg"),
    *("commit-msg", "post-commit", "pre-rebase", "post-checkout", "post-merge", "pre-push", "post-rewrite"),
    *("pre-auto-gc", "post-index-change", "reference-transaction", "sendemail-validate", "pre-receive", "update"),
    *("post-receive", "post-update", "p4-changelist", "p4-prepare-changelist", "p4-post-changelist", "p4-pre-submit"),
)
"""All but those whose mere presence changes what git does: fsmonitor-watchman, proc-receive, push-to-checkout."""

SCRIPT = """\
#!/bin/sh
# Of agentd: see agentd.toml(5), locks.commit_guard. Our entry in git's environment is the last one.
name=${{0##*/}}
if [ "$name" = pre-commit ] && [ -e {mark} ] && [ -x {python} ] && ! [ -e "$(git rev-parse --git-path MERGE_HEAD)" ]
then
    git diff --cached --name-only --no-renames --no-ext-diff -z | {python} -I -S {hook}
    [ $? -ne {refused} ] || exit 1
fi
theirs=$(GIT_CONFIG_COUNT=$((${{GIT_CONFIG_COUNT:-1}} - 1)) git rev-parse --git-path "hooks/$name")
case $theirs in
{here}/*) theirs=$(GIT_CONFIG_COUNT=0 git rev-parse --git-path "hooks/$name") ;;
esac
[ -x "$theirs" ] || exit 0
exec "$theirs" "$@"
"""


def folder(state_dir: str) -> str:
    return f"{os.path.dirname(paths.claimed_mark(state_dir))}/hooks"


def install(state_dir: str) -> None:
    """The folder of hooks, as this version has it. Who runs one meanwhile finds the old one or the new one."""
    here = folder(state_dir)
    os.makedirs(here, 0o700, exist_ok=True)
    text = SCRIPT.format(
        mark=shlex.quote(paths.claimed_mark(state_dir)),
        python=shlex.quote(sys.executable),
        hook=shlex.quote(os.path.abspath(hook.__file__)),
        refused=hook.REFUSED,
        here=shlex.quote(here),
    )
    for name in HOOKS:
        aside = f"{here}/.{name}"
        with open(aside, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o700)
        os.rename(aside, f"{here}/{name}")


def guarded(environment: Mapping[str, str], state_dir: str) -> dict[str, str]:
    """With our entry as the last of those that git's environment has; as it is, if git could not read them."""
    given = unguarded(environment, state_dir)
    count = given.get("GIT_CONFIG_COUNT", "0")
    if not GOOD_COUNT.fullmatch(count):
        return given
    mine = {f"GIT_CONFIG_KEY_{count}": KEY, f"GIT_CONFIG_VALUE_{count}": folder(state_dir)}
    return {**given, **mine, "GIT_CONFIG_COUNT": str(int(count) + 1)}


def unguarded(environment: Mapping[str, str], state_dir: str) -> dict[str, str]:
    """Without it: that of an earlier attempt, say."""
    given = dict(environment)
    count = given.get("GIT_CONFIG_COUNT", "0")
    last = int(count) - 1 if GOOD_COUNT.fullmatch(count) else -1
    names = (f"GIT_CONFIG_KEY_{last}", f"GIT_CONFIG_VALUE_{last}")
    if [given.get(name) for name in names] == [KEY, folder(state_dir)]:
        for name in (*names, "GIT_CONFIG_COUNT"):
            del given[name]
        if last:
            given["GIT_CONFIG_COUNT"] = str(last)
    return given
