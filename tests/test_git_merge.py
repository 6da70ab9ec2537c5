"""Bringing work home: every kind of target, tree and content, compared with what git merge itself does."""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from gitrepo import everything_below, make, make_repo, plan_for, run, write

from agentd.core.errors import AgentdError
from agentd.git import merge
from agentd.git.merge import Landed
from agentd.git.snapshot import Words, snapshot_calling_tree, snapshot_job
from agentd.git.worktree import Plan

OWN = Words("mend it\n\nAgentd-Job: 7\nAgentd-Agent: command\n", "fix", "job-7@agentd.invalid", 1_700_000_000.0)
MERGE = Words("Merge job 7 (fix): " + OWN.message, OWN.author, OWN.mail, OWN.at)


@pytest.fixture
def top(tmp_path: Path) -> str:
    return make_repo(tmp_path / "r")


@pytest.fixture
def plan(top: str, tmp_path: Path) -> Plan:
    return plan_for(top, tmp_path)


def ignore(old: str, new: str) -> None:
    """Nobody wants to know what is about to move."""


def bring(
    plan: Plan,
    admin: str,
    into: str | None = None,
    cwd: str | None = None,
    begin: Callable[[str, str], None] = ignore,
    begun: tuple[str, str] | None = None,
    last: tuple[str, str] | None = None,
) -> Landed | None:
    """As the daemon does it; None: there is no work."""
    repo, ref = merge.target(plan, cwd or plan.repo.top or plan.repo.common, into)
    work = merge.work(plan, admin, OWN)
    if work is None:
        return None
    is_replayed = merge.began_with_changes(plan)
    order = merge.Order(plan, repo, work, ref, is_replayed, last, OWN if is_replayed else MERGE)
    landed = merge.land(order, begin, begun)
    merge.follow(plan, admin, work)
    return landed


def refusal(plan: Plan, admin: str, **how: str) -> str:
    """What is said; and nothing may have changed by it."""
    before = state(plan)
    with pytest.raises(AgentdError) as refused:
        bring(plan, admin, **how)  # type: ignore[arg-type]
    assert state(plan) == before
    return f"{refused.value.code}: {refused.value.message}"


def state(plan: Plan) -> object:
    """All refs, the user's index, tree and configuration, and the job's own."""
    top = plan.repo.top or plan.repo.common
    index = Path(plan.repo.git_dir, "index")
    return (
        run(plan.repo.common, "for-each-ref"),
        index.read_bytes() if index.exists() else b"",
        {name: kept for name, kept in everything_below(top).items() if not name.startswith(".git/")},
        Path(plan.repo.git_dir, "HEAD").read_text(),
        Path(plan.repo.common, "config").read_text(),
        everything_below(plan.path) if os.path.isdir(plan.path) else None,
    )


def commit(cwd: str, path: str, text: str, message: str = "more") -> str:
    write(f"{cwd}/{path}", text)
    run(cwd, "add", "-A")
    run(cwd, "commit", "-q", "-m", message)
    return run(cwd, "rev-parse", "HEAD")


def status(cwd: str) -> str:
    return run(cwd, "status", "--porcelain", "--ignored")


# --- the ordinary ways ----------------------------------------------------------------------------------------


def test_loose_work_becomes_one_commit_with_author_and_trailer(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    os.unlink(f"{plan.path}/src/f1.txt")
    landed = bring(plan, admin)
    assert landed is not None and (landed.old, landed.new) == (plan.base, run(top, "rev-parse", "main"))
    assert run(top, "log", "-1", "--format=%an|%ae|%cn|%ce|%s|%P") == (
        f"fix|job-7@agentd.invalid|Test|test@example.invalid|mend it|{plan.base}"
    )
    assert run(top, "log", "-1", "--format=%(trailers:key=Agentd-Job,valueonly)") == "7"
    assert status(top) == "" and Path(top, "new.txt").read_text() == "new\n"
    assert run(top, "log", "-1", "--format=%gs", "-g", "main") == "agentd merge 7: Fast-forward"
    # the job's own branch has it too, with nothing loose: what comes next comes on top of it
    assert run(plan.path, "rev-parse", "HEAD") == landed.new and status(plan.path) == ""


def test_the_jobs_own_commits_are_merged_as_they_are(top: str, plan: Plan) -> None:
    admin = make(plan)
    one = commit(plan.path, "one.txt", "1\n", "one")
    two = commit(plan.path, "two.txt", "2\n", "two")
    landed = bring(plan, admin)
    assert landed is not None
    assert run(top, "log", "-1", "--format=%P") == f"{plan.base} {two}"
    assert run(top, "log", "-1", "--format=%s") == "Merge job 7 (fix): mend it"
    assert run(top, "rev-parse", f"{two}^") == one and status(top) == ""


def test_loose_ends_on_top_of_commits_are_by_the_commits_author(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/one.txt", "1\n")
    run(plan.path, "add", "-A")
    run(plan.path, "-c", "user.name=Robot", "-c", "user.email=robot@example.invalid", "commit", "-qm", "one")
    write(f"{plan.path}/loose.txt", "x\n")
    assert bring(plan, admin) is not None
    assert run(top, "log", "--format=%an %s", f"{plan.base}..main") == "Robot mend it\nRobot one"


def test_a_second_time_it_is_there_already(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    first = bring(plan, admin)
    before = state(plan)
    assert first is not None and bring(plan, admin) == Landed(first.new, first.new)
    assert state(plan) == before


def test_later_work_is_merged_on_top_of_the_earlier(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "line 0\nby the job\n")
    assert bring(plan, admin) is not None
    commit(top, "src/f0.txt", "line 0\nby the job, and by me\n")
    write(f"{plan.path}/later.txt", "later\n")
    landed = bring(plan, admin)
    assert landed is not None and landed.is_new
    assert Path(top, "src/f0.txt").read_text() == "line 0\nby the job, and by me\n"
    assert Path(top, "later.txt").read_text() == "later\n" and status(top) == ""


def test_no_work_is_no_merge(plan: Plan) -> None:
    admin = make(plan)
    before = state(plan)
    assert bring(plan, admin) is None and state(plan) == before


def test_a_worktree_that_is_gone_is_merged_from_its_snapshot(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    kept = snapshot_job(plan, admin, OWN)
    shutil.rmtree(plan.path)
    landed = bring(plan, admin)
    assert landed is not None and landed.new == kept and Path(top, "new.txt").read_text() == "new\n"


def test_what_began_with_uncommitted_changes_brings_home_only_what_came_after(top: str, tmp_path: Path) -> None:
    write(f"{top}/mine.txt", "not ready\n")
    repo = plan_for(top, tmp_path).repo
    base = snapshot_calling_tree(repo, 7)
    plan = plan_for(top, tmp_path, base=base)
    admin = make(plan)
    commit(plan.path, "one.txt", "1\n", "one")
    write(f"{plan.path}/two.txt", "2\n")
    landed = bring(plan, admin)
    assert landed is not None
    assert run(top, "show", "--format=%P", "--name-only", "main") == f"{landed.old}\n\none.txt\ntwo.txt"
    assert run(top, "log", "-1", "--format=%b").splitlines()[:2] == ["* one", "* mend it"]
    assert status(top) == "?? mine.txt"
    assert bring(plan, admin) == Landed(landed.new, landed.new)
    run(top, "branch", "release", landed.old)
    last = run(plan.path, "rev-parse", "HEAD"), landed.new
    write(f"{plan.path}/three.txt", "3\n")
    write(f"{top}/one.txt", "1, changed by me\n")
    run(top, "commit", "-qm", "mine", "one.txt")
    assert bring(plan, admin, last=last) is not None
    assert run(top, "show", "--format=", "--name-only", "main") == "three.txt"
    # another branch has nothing of it yet, and a branch that was taken back has lost it
    assert bring(plan, admin, into="release", last=last) is not None
    assert run(top, "diff", "--name-only", landed.old, "release").splitlines() == ["one.txt", "three.txt", "two.txt"]
    run(top, "update-ref", "refs/heads/release", landed.old)
    assert bring(plan, admin, into="release", last=last) is not None
    assert run(top, "show", "release:two.txt") == "2"


# --- targets --------------------------------------------------------------------------------------------------


def test_a_branch_in_no_tree_moves_and_the_tree_stays(top: str, plan: Plan) -> None:
    run(top, "branch", "release")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    landed = bring(plan, admin, into="release")
    assert landed is not None and run(top, "rev-parse", "release") == landed.new
    assert run(top, "rev-parse", "main") == plan.base and status(top) == ""
    assert run(top, "log", "-1", "-g", "--format=%gs|%gn", "release") == "agentd merge 7|Test"


def test_a_branch_in_another_worktree_is_followed_there(top: str, plan: Plan, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    run(top, "worktree", "add", "-q", "-b", "release", other)
    write(f"{other}/mine.txt", "mine\n")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    assert bring(plan, admin, into="refs/heads/release") is not None
    assert Path(other, "new.txt").read_text() == "new\n" and status(other) == "?? mine.txt"
    assert status(top) == ""


def test_called_from_a_linked_worktree_its_branch_is_the_target(top: str, plan: Plan, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    run(top, "worktree", "add", "-q", "-b", "release", other)
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    landed = bring(plan, admin, cwd=f"{other}/src")
    assert landed is not None and run(top, "rev-parse", "release") == landed.new != run(top, "rev-parse", "main")


def test_a_bare_repository(top: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    run(tmp_path, "clone", "-q", "--bare", top, str(bare))
    plan = plan_for(str(bare), tmp_path)
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    landed = bring(plan, admin)
    assert landed is not None and run(bare, "rev-parse", "main") == landed.new


def test_a_repository_whose_git_directory_is_elsewhere(top: str, tmp_path: Path) -> None:
    run(top, "init", "-q", "--separate-git-dir", str(tmp_path / "away.git"))
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    assert bring(plan, admin) is not None
    assert status(top) == "" and Path(top, "new.txt").exists()


@pytest.mark.parametrize(
    ("into", "said"),
    [
        ("nosuch", 'unknown_branch: there is no branch "nosuch"; to make it where the job began: git branch nosuch'),
        ("agentd/7/fix-login", "own_branch: agentd/7/fix-login is the branch of job 7 itself"),
        ("alias", "unknown_branch: alias is only another name of a branch"),
        ("-x", 'bad_branch: "-x" cannot be the name of a branch'),
        ("a..b", 'bad_branch: "a..b" cannot be the name of a branch'),
        ("main^{tree}", 'bad_branch: "main^{tree}" cannot be the name of a branch'),
        ("", 'bad_branch: "" cannot be the name of a branch'),
    ],
)
def test_targets_that_are_none(top: str, plan: Plan, into: str, said: str) -> None:
    run(top, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    assert refusal(plan, admin, into=into).startswith(said)


def test_the_branch_that_is_to_be_made_can_be_made_as_it_says(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    command = refusal(plan, admin, into="rel/1").partition("began: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=top)
    assert bring(plan, admin, into="rel/1") is not None


def test_a_detached_head_and_an_unborn_branch_are_refused(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    run(top, "checkout", "-q", "--detach")
    assert refusal(plan, admin).startswith("detached: your tree is on no branch (detached HEAD); check one out")
    run(top, "checkout", "-q", "--orphan", "fresh")
    assert refusal(plan, admin).startswith("no_commit: no commit yet in")
    assert bring(plan, admin, into="main") is not None


def test_from_another_repository_it_wants_a_name(plan: Plan, tmp_path: Path) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    other = make_repo(tmp_path / "other")
    assert refusal(plan, admin, cwd=other).startswith("other_repository: job 7 works on")
    assert bring(plan, admin, cwd=other, into="main") is not None


def test_a_branch_that_is_being_rebased_or_bisected_is_refused(top: str, plan: Plan, tmp_path: Path) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    run(top, "branch", "side")
    commit(top, "src/f0.txt", "mine\n")
    run(top, "checkout", "-q", "side")
    commit(top, "src/f0.txt", "theirs\n")
    with pytest.raises(AssertionError):
        run(top, "rebase", "main")
    assert refusal(plan, admin, into="side") == f"branch_busy: side is being rebased in {top}; finish that first"
    run(top, "rebase", "--abort")
    run(top, "bisect", "start", "-q", "side", "side~1")
    assert refusal(plan, admin, into="side") == f"branch_busy: side is being bisected in {top}; finish that first"


def test_a_merge_that_is_not_finished_is_refused_on_either_side(top: str, plan: Plan) -> None:
    admin = make(plan)
    commit(plan.path, "src/f0.txt", "job\n")
    commit(top, "src/f0.txt", "mine\n")
    with pytest.raises(AssertionError):
        run(plan.path, "merge", "main")
    assert refusal(plan, admin) == (
        f"unmerged: a merge or a rebase is not finished in the worktree of job 7; finish it there: {plan.path}"
    )
    run(plan.path, "merge", "--abort")
    with pytest.raises(AssertionError):
        run(top, "merge", plan.branch)
    assert refusal(plan, admin).startswith(f"branch_busy: a merge is not finished in {top}; end it there first")


def test_a_tree_that_is_not_there_is_not_left_behind(top: str, plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(top, "worktree", "add", "-q", "-b", "release", str(other))
    os.rename(other, tmp_path / "unplugged")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    assert refusal(plan, admin, into="release").startswith("branch_busy: release is checked out in a tree that is not")


def test_two_trees_on_one_branch_are_refused(top: str, plan: Plan, tmp_path: Path) -> None:
    run(top, "worktree", "add", "-q", "--force", str(tmp_path / "other"), "main")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    assert "only one tree could follow it" in refusal(plan, admin)


# --- the user's tree ------------------------------------------------------------------------------------------


def test_other_changes_of_the_user_stay_as_they_are(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "job\n")
    write(f"{top}/src/f1.txt", "modified\n")
    write(f"{top}/src/f2.txt", "staged\n")
    run(top, "add", "src/f2.txt")
    write(f"{top}/loose.txt", "untracked\n")
    write(f"{top}/.env", "ignored\n")
    before = run(top, "status", "--porcelain", "--ignored")
    assert bring(plan, admin) is not None
    assert run(top, "status", "--porcelain", "--ignored") == before
    assert [Path(top, "src", f"f{n}.txt").read_text() for n in range(3)] == ["job\n", "modified\n", "staged\n"]


@pytest.mark.parametrize("is_staged", [False, True])
def test_a_dirty_file_that_would_change_is_named(top: str, plan: Plan, is_staged: bool) -> None:
    admin = make(plan)
    for n in range(3):
        write(f"{plan.path}/src/f{n}.txt", "job\n")
    write(f"{top}/src/f1.txt", "mine\n")
    write(f"{top}/src/f2.txt", "mine\n")
    if is_staged:
        run(top, "add", "-A")
    assert refusal(plan, admin) == (
        f"dirty: cannot merge job 7: your tree {top} has changes in src/f1.txt, src/f2.txt;"
        " commit or stash them, then repeat; nothing was changed"
    )


@pytest.mark.parametrize(
    "name", ["loose.txt", ".env", "d"], ids=["untracked", "ignored", "a file where a folder comes"]
)
def test_a_file_in_the_way_is_not_overwritten(top: str, plan: Plan, name: str) -> None:
    admin = make(plan)
    target = "d/deep.txt" if name == "d" else name
    write(f"{plan.path}/{target}", "job\n")
    run(plan.path, "add", "-f", target)
    run(plan.path, "commit", "-qm", "all")
    write(f"{top}/{name}", "mine\n")
    said = refusal(plan, admin)
    assert said.startswith("dirty: ") and name in said and "move them away" in said
    assert Path(top, name).read_text() == "mine\n"


def test_a_folder_with_loose_files_is_not_replaced(top: str, plan: Plan) -> None:
    admin = make(plan)
    shutil.rmtree(f"{plan.path}/src")
    write(f"{plan.path}/src", "now a file\n")
    write(f"{top}/src/loose.txt", "mine\n")
    assert refusal(plan, admin).startswith("dirty: ")
    assert Path(top, "src/loose.txt").read_text() == "mine\n"


def test_the_users_settings_cannot_bend_it(top: str, plan: Plan) -> None:
    settings = {"merge.autoStash": "true", "branch.main.mergeOptions": "--squash --no-ff", "merge.ff": "false"}
    for key, value in {**settings, "merge.verifySignatures": "true", "pull.rebase": "true"}.items():
        run(top, "config", key, value)
    admin = make(plan)
    write(f"{plan.path}/src/f0.txt", "job\n")
    write(f"{top}/src/f0.txt", "mine\n")
    assert refusal(plan, admin).startswith("dirty: ") and run(top, "stash", "list") == ""
    run(top, "checkout", "-q", "src/f0.txt")
    landed = bring(plan, admin)
    assert landed is not None and run(top, "rev-parse", "main") == landed.new and status(top) == ""


def test_no_hook_runs(top: str, plan: Plan, tmp_path: Path) -> None:
    names = [
        "post-merge",
        "pre-merge-commit",
        "post-checkout",
        "reference-transaction",
        "pre-commit",
        "post-index-change",
    ]
    admin = make(plan)
    for name in names:
        hook = Path(top, ".git", "hooks", name)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n")
        hook.chmod(0o755)
    write(f"{plan.path}/new.txt", "new\n")
    assert bring(plan, admin) is not None
    assert list(tmp_path.glob("ran-*")) == []


def test_an_index_lock_of_another_git_is_not_now(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    write(f"{top}/.git/index.lock", "")
    assert refusal(plan, admin).startswith("tree_locked: cannot merge now: another git is at work")


def test_an_orphaned_lock_in_the_jobs_worktree_is_no_obstacle(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    write(f"{top}/.git/worktrees/{admin}/index.lock", "")
    assert bring(plan, admin) is not None and Path(top, "new.txt").exists()


# --- contents -------------------------------------------------------------------------------------------------


def test_renames_modes_links_binaries_and_odd_names(top: str, plan: Plan) -> None:
    admin = make(plan)
    os.rename(f"{plan.path}/src/f0.txt", f"{plan.path}/src/renamed.txt")
    os.chmod(f"{plan.path}/src/f1.txt", 0o755)
    Path(plan.path, "blob.bin").write_bytes(bytes(range(256)) * 10)
    os.symlink("src/f1.txt", f"{plan.path}/link")
    odd = os.fsdecode(b"tab\tnew\nline \xff")
    Path(plan.path, odd).write_text("odd\n")
    commit(top, "src/f0.txt", "line 0\nchanged meanwhile\n")
    assert bring(plan, admin) is not None
    assert not Path(top, "src/f0.txt").exists()
    assert Path(top, "src/renamed.txt").read_text() == "line 0\nchanged meanwhile\n"
    assert os.access(f"{top}/src/f1.txt", os.X_OK) and os.readlink(f"{top}/link") == "src/f1.txt"
    assert Path(top, "blob.bin").read_bytes() == bytes(range(256)) * 10 and Path(top, odd).read_text() == "odd\n"
    assert status(top) == ""


def test_a_submodules_new_commit(top: str, tmp_path: Path) -> None:
    lib = make_repo(tmp_path / "lib")
    allow = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}
    run(top, "submodule", "add", "-q", lib, "lib", env=allow)
    run(top, "commit", "-qm", "with lib")
    newer = commit(lib, "more.txt", "more\n")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    run(plan.path, "update-index", "--cacheinfo", f"160000,{newer},lib")
    run(plan.path, "commit", "-qm", "newer lib")
    assert bring(plan, admin) is not None
    assert run(top, "ls-tree", "main", "lib").split()[2] == newer
    assert Path(top, "lib/src/f0.txt").exists()


def test_merge_attributes_count_wherever_the_branch_is(top: str, tmp_path: Path) -> None:
    commit(top, ".gitattributes", "*.log merge=union\n")
    commit(top, "x.log", "a\n")
    run(top, "branch", "release")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    commit(plan.path, "x.log", "a\njob\n")
    commit(top, "x.log", "a\nmine\n")
    run(top, "checkout", "-q", "release")
    commit(top, "x.log", "a\nreleased\n")
    assert bring(plan, admin, into="main") is not None  # in no tree
    assert run(top, "show", "main:x.log") == "a\nmine\njob"
    assert bring(plan, admin) is not None  # in the user's tree
    assert Path(top, "x.log").read_text() == "a\nreleased\njob\n"


def test_a_conflict_is_refused_with_the_names(top: str, plan: Plan) -> None:
    admin = make(plan)
    for n in range(3):
        commit(plan.path, f"src/f{n}.txt", "job\n")
    commit(top, "src/f0.txt", "mine\n")
    os.unlink(f"{top}/src/f2.txt")
    run(top, "commit", "-qam", "gone")
    said = refusal(plan, admin)
    assert said.startswith("conflict: cannot merge job 7 into main: conflict in src/f0.txt, src/f2.txt; nothing was")
    assert plan.path in said
    # the way out that is named
    with pytest.raises(AssertionError):
        run(plan.path, "merge", "-q", "main")
    write(f"{plan.path}/src/f0.txt", "both\n")
    run(plan.path, "add", "-A")
    run(plan.path, "commit", "-qm", "settled")
    assert bring(plan, admin) is not None and Path(top, "src/f0.txt").read_text() == "both\n"


def test_unrelated_histories_are_refused(top: str, plan: Plan) -> None:
    admin = make(plan)
    run(plan.path, "checkout", "-q", "--orphan", "other")
    run(plan.path, "commit", "-qm", "from nothing")
    assert refusal(plan, admin).startswith(
        "unrelated: cannot merge: the job's work and the branch have no commit in common"
    )


# --- beside others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["main", "release"])
def test_a_target_that_moves_meanwhile_is_merged_anew(top: str, plan: Plan, into: str) -> None:
    run(top, "branch", "release")
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    tips: list[str] = []

    def move_first(old: str, new: str) -> None:
        if len(tips) < 2:
            tips.append(run(top, "commit-tree", "-p", old, "-m", f"mine {len(tips)}", f"{old}^{{tree}}"))
            run(top, "update-ref", f"refs/heads/{into}", tips[-1], old)

    landed = bring(plan, admin, into=into, begin=move_first)
    assert landed is not None and landed.old == tips[-1]
    assert run(top, "log", "--first-parent", "--format=%s", into) == (
        "Merge job 7 (fix): mend it\nmine 1\nmine 0\nfirst"
    )


def test_a_target_that_moves_all_the_time_is_not_now(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")

    def move(old: str, new: str) -> None:
        run(top, "commit", "-q", "--allow-empty", "-m", "mine")

    with pytest.raises(AgentdError) as refused:
        bring(plan, admin, begin=move)
    assert (refused.value.code, refused.value.exit) == ("branch_moves", 75)
    assert status(top) == "" and not Path(top, "new.txt").exists()


def test_a_tree_that_changes_branch_meanwhile(top: str, plan: Plan) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    landed = bring(plan, admin, begin=lambda old, new: run(top, "checkout", "-q", "-B", "elsewhere") and None)
    assert landed is not None and run(top, "rev-parse", "main") == landed.new
    assert run(top, "rev-parse", "elsewhere") == plan.base and status(top) == ""


def test_eight_merges_at_once(top: str, tmp_path: Path) -> None:
    plans = [plan_for(top, tmp_path, job=n, name="fix") for n in range(10, 18)]
    admins = [make(plan) for plan in plans]
    for plan in plans:
        write(f"{plan.path}/by-{plan.job}.txt", "x\n")
    failures: list[BaseException] = []

    def merge_one(plan: Plan, admin: str) -> None:
        try:
            bring(plan, admin)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=merge_one, args=pair) for pair in zip(plans, admins, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and status(top) == ""
    assert sorted(p.name for p in Path(top).glob("by-*")) == [f"by-{n}.txt" for n in range(10, 18)]


def test_an_admin_directory_that_was_rewritten_is_not_trusted(top: str, plan: Plan, tmp_path: Path) -> None:
    admin = make(plan)
    write(f"{plan.path}/new.txt", "new\n")
    other = make_repo(tmp_path / "other")
    write(f"{top}/.git/worktrees/{admin}/commondir", f"{other}/.git\n")
    assert "was rewritten" in refusal(plan, admin)


# --- beside git merge itself ----------------------------------------------------------------------------------


def scramble(dice: random.Random, cwd: str, side: str) -> None:
    """A few edits, of every kind."""
    for turn in range(dice.randint(1, 4)):
        names = [n for n in run(cwd, "ls-files").splitlines() if n.startswith("src/") and os.path.exists(f"{cwd}/{n}")]
        name = dice.choice(names) if names else "src/fresh.txt"
        match dice.choice(["edit", "edit", "edit", "insert", "rename", "delete", "add", "mode", "binary"]):
            case "edit" if names:
                lines = Path(cwd, name).read_bytes().split(b"\n")
                lines[dice.randrange(len(lines))] = f"{side} {turn}".encode()
                Path(cwd, name).write_bytes(b"\n".join(lines))
            case "insert" if names:
                Path(cwd, name).write_bytes(f"{side} above\n".encode() + Path(cwd, name).read_bytes())
            case "rename" if names:
                os.rename(f"{cwd}/{name}", f"{cwd}/src/{dice.choice('xyz')}-{side if dice.random() < 0.5 else 'both'}")
            case "delete" if names:
                os.unlink(f"{cwd}/{name}")
            case "mode" if names:
                os.chmod(f"{cwd}/{name}", 0o755)
            case "binary":
                Path(cwd, "src", f"b{dice.randrange(2)}.bin").write_bytes(dice.randbytes(50) + b"\0")
            case _:
                write(f"{cwd}/src/n{dice.randrange(3)}.txt", f"{dice.choice([side, 'same'])}\n")
    if dice.random() < 0.7:
        run(cwd, "add", "-A")
        run(cwd, "commit", "-q", "--allow-empty", "-m", f"by {side}")


@pytest.mark.parametrize("seed", range(50))
def test_the_result_is_that_of_git_merge(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    top = make_repo(tmp_path / "r", files=0)
    for n in range(4):
        write(f"{top}/src/f{n}.txt", "".join(f"{n} line {k}\n" for k in range(dice.randint(2, 12))))
    run(top, "add", "-A")
    run(top, "commit", "-qm", "files")
    plan = plan_for(top, tmp_path)
    admin = make(plan)
    scramble(dice, plan.path, "job")
    scramble(dice, top, "mine")
    run(top, "add", "-A")
    run(top, "commit", "-q", "--allow-empty", "-m", "all of mine")
    work = merge.work(plan, admin, OWN)
    clone = str(tmp_path / "clone")
    run(tmp_path, "clone", "-q", top, clone)
    if work is None:
        assert bring(plan, admin) is None
        return
    run(clone, "fetch", "-q", top, f"{work}")
    real = subprocess.run(["git", "merge", "-q", "--no-edit", work], cwd=clone, capture_output=True)
    if real.returncode == 0:
        assert bring(plan, admin) is not None
        assert run(top, "rev-parse", "main^{tree}") == run(clone, "rev-parse", "HEAD^{tree}")
        assert status(top) == ""
    else:
        names = sorted(set(run(clone, "diff", "--name-only", "--diff-filter=U").splitlines()))
        said = refusal(plan, admin)
        assert said.startswith("conflict: ")
        assert sorted(said.partition("conflict in ")[2].partition("; nothing")[0].split(", ")) == names
