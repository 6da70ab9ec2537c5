"""The worktree watcher by itself, at the other end of its socket: every write is seen, and nothing else is done."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import faultlab
import gitrepo
import pytest
from watchlab import Lab, Tree, many_files, trees

from agentd import process
from agentd.watch import wire
from agentd.watch.folders import Folders
from agentd.watch.kernel import Kernel
from agentd.watch.look import Look


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(gitrepo.make_repo(tmp_path / "repo"), tmp_path)


needs_inotify = pytest.mark.skipif(process.without("inotify"), reason="AGENTD_WITHOUT=inotify")


# --- what is seen -------------------------------------------------------------------------------------------------


def test_what_differed_before_is_told_first(tree: Tree) -> None:
    """Modified, removed, new, staged and committed."""
    tree.sh("echo x >> src/f0.txt; rm src/f1.txt; mkdir -p new/er; echo x > new/er/file; echo x > secret.db")
    tree.sh("echo x > committed; git add committed; git commit -qm two; echo x > staged; git add staged")
    with Lab() as lab:
        lab.watch(tree)
        assert set(lab.wrote["1"]) == {"src/f0.txt", "src/f1.txt", "new/er/file", "committed", "staged"}
        assert lab.removed["1"] == {"src/f1.txt"}
        assert [mode.how for mode in lab.modes["1"]] == ["polling" if process.without("inotify") else "inotify"]


# A script, and what it is told to have written.
WRITES = {
    "echo x > src/f0.txt": "src/f0.txt",
    "echo x > new": "new",
    "echo x > aside; mv aside src/f0.txt; rm src/f1.txt": "src/f0.txt src/f1.txt",
    "mv src/f0.txt f9.txt": "src/f0.txt f9.txt",
    "chmod +x src/f0.txt": "src/f0.txt",
    "ln -s f0.txt src/link": "src/link",
    'python3 -c \'import mmap; f=open("src/f0.txt","r+b"); mmap.mmap(f.fileno(), 0)[0]=65\'': "src/f0.txt",
    "mkdir -p a/b/c/d && echo x > a/b/c/d/e": "a/b/c/d/e",
    "mkdir a; echo x > a/b; mv a c; echo x > c/d": "c/b c/d",
    "mv src lib": "src/f0.txt src/f1.txt src/f2.txt lib/f0.txt lib/f1.txt lib/f2.txt",
    "mv src ../away": "src/f0.txt src/f1.txt src/f2.txt",
    "git mv src lib; git commit -qam x": "src/f0.txt src/f1.txt src/f2.txt lib/f0.txt lib/f1.txt lib/f2.txt",
    "rm -r src": "src/f0.txt src/f1.txt src/f2.txt",
    "rm -r src; echo x > src": "src src/f0.txt src/f1.txt src/f2.txt",
    "echo x > tmp; rm tmp; mkfifo pipe": "",
    "echo x > a.db; mkdir -p node_modules/deep; echo x > node_modules/deep/file; touch .env": "",
    "mkdir -p pkg/node_modules/x pkg/lib; echo x > pkg/node_modules/x/y; echo x > pkg/lib/z": "pkg/lib/z",
    "echo x > x.db; git add -f x.db; echo y > x.db": "x.db",
}


@needs_inotify
def test_every_kind_of_write_is_told(tmp_path: Path) -> None:
    top = gitrepo.make_repo(tmp_path / "repo")
    by_key = {str(tree.plan.job): tree for tree in trees(top, tmp_path, len(WRITES))}
    with Lab() as lab:
        for key, tree in by_key.items():
            lab.watch(tree, key, is_awaited=False)
        lab.until(lambda: len(lab.ready) == len(WRITES))
        for tree, script in zip(by_key.values(), WRITES, strict=True):
            tree.sh(script)
        for (key, tree), (script, told) in zip(by_key.items(), WRITES.items(), strict=True):
            assert sorted(lab.told(tree, key)) == sorted(told.split()), script
            assert tree.differing() <= set(told.split()), script
            gone = {path for path in told.split() if not os.path.lexists(tree.path / path)}
            assert lab.removed.get(key, set()) == gone, script


@needs_inotify
def test_new_folders_by_the_hundred_are_seen_whole(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        tree.sh("for n in $(seq 150); do mkdir -p $n/a/b/c && echo x > $n/a/b/c/file && echo x > $n/a/file; done")
        assert lab.told(tree) == tree.differing()
        tree.sh("for n in $(seq 150); do echo y >> $n/a/b/c/file; done; mv 1 $PWD/2/moved; rm -r 3")
        before = len(lab.wrote["1"])
        lab.told(tree)
        assert {f"{n}/a/b/c/file" for n in range(4, 151)} <= set(lab.wrote["1"][before:])
        assert {"2/moved/a/file", "2/moved/a/b/c/file", "3/a/file"} <= set(lab.wrote["1"][before:])


@needs_inotify
def test_a_checkout_of_another_commit_is_seen_whole(tree: Tree) -> None:
    tree.sh("git rm -rq src; mkdir -p other/place; for n in $(seq 300); do echo $n > other/place/$n; done")
    tree.sh("git add -A; git commit -qm other; git branch other; git reset -q --hard HEAD^")
    with Lab() as lab:
        lab.watch(tree)
        assert "1" not in lab.wrote
        tree.sh("git checkout -q other")
        assert lab.told(tree) == tree.differing()
        assert len(tree.differing()) == 303


@needs_inotify
def test_names_that_no_line_can_hold(tree: Tree) -> None:
    assert Look(tree.order()).ignored([":x", ":!x.db", "*", "*.db", "new\nline"]) == {":!x.db", "*.db"}
    names = [b"new\nline", b"caf\xe9", b":x", b"*", b'"quoted"', b" ", b"-n", b"a\\b", b"\xff\xfe/\x80\n"]
    with Lab() as lab:
        lab.watch(tree)
        for name in names:
            path = os.path.join(os.fsencode(tree.path), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(os.fsdecode(path)).write_text("x")
        assert {os.fsencode(path) for path in lab.told(tree)} == set(names)
        assert {os.fsencode(path) for path in lab.rescan()} - {b"mark-1"} == set(names)


# --- what is ignored ----------------------------------------------------------------------------------------------


@needs_inotify
def test_what_git_ignores_is_not_watched(tree: Tree) -> None:
    """Whether it was there before, or comes later; and rules may change."""
    tree.sh("mkdir -p node_modules/a/b; echo x > node_modules/a/b/c")
    with Lab() as lab:
        lab.watch(tree)
        watched = lab.watches()
        tree.sh("rm -r node_modules; mkdir -p node_modules/x/y lib/node_modules/z; echo x > node_modules/x/y/z")
        assert lab.told(tree) == set()
        assert lab.watches() == watched + 1  # lib
        tree.sh("echo '*.db' > .gitignore; echo x > a.db")
        lab.until(lambda: "node_modules/x/y/z" in lab.wrote["1"])
        tree.sh("echo y > node_modules/x/y/z; echo lib > .gitignore")
        before = len(lab.wrote["1"])
        lab.until(lambda: ".gitignore" in lab.wrote["1"][before:])
        tree.sh("echo x > lib/node_modules/w; echo x > seen")
        lab.until(lambda: "seen" in lab.wrote["1"])
        assert not {path for path in lab.wrote["1"] if path.startswith("lib")}


@needs_inotify
def test_churn_in_an_ignored_folder_costs_nothing(tree: Tree) -> None:
    tree.sh("mkdir node_modules")
    with Lab() as lab:
        lab.watch(tree)
        before = lab.cpu()
        tree.sh("cd node_modules; seq 10000 | xargs touch; rm -r $PWD/*")
        assert lab.told(tree) == set()
        spent = lab.cpu() - before
        print(f"10,000 files made and removed in an ignored folder: {spent:.2f} s of CPU")
        assert spent < 0.5


# --- repositories inside, links, pipes ----------------------------------------------------------------------------


@needs_inotify
def test_a_repository_inside_is_one_name(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        tree.sh("git init -q inside; mkdir -p inside/deep; echo x > inside/deep/file; echo x > inside/top")
        assert lab.told(tree) == {"inside"} == tree.differing()
        watched = lab.watches()
        tree.sh("mkdir inside/more")
        assert lab.told(tree) == {"inside"} and lab.watches() == watched
        tree.sh("rm -rf inside/.git")
        assert lab.told(tree) == {"inside", "inside/deep/file", "inside/top"}


@needs_inotify
def test_a_submodule_is_one_name(tmp_path: Path) -> None:
    gitrepo.make_repo(tmp_path / "library")
    top = gitrepo.make_repo(tmp_path / "repo")
    gitrepo.run(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tmp_path / "library"), "sub")
    gitrepo.run(top, "commit", "-qm", "sub")
    tree = Tree(top, tmp_path)
    with Lab() as lab:
        lab.watch(tree)
        tree.sh("git -c protocol.file.allow=always submodule update --init -q; echo x > sub/file")
        assert lab.told(tree) == {"sub"}


@needs_inotify
def test_no_link_leads_out(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    with Lab() as lab:
        lab.watch(tree)
        watched = lab.watches()
        tree.sh(f"ln -s {outside} link; ln -s {outside} src/link; mv src aside; ln -s {outside} src")
        lab.told(tree)
        (outside / "deep" / "file").write_text("x")
        told = lab.told(tree) | lab.rescan()
        assert {"link", "src", "src/f0.txt", "aside/link"} <= told
        assert not {path for path in told if "deep" in path}
        assert lab.watches() == watched


@needs_inotify
def test_a_folder_is_opened_by_no_way_through_a_link(tree: Tree, tmp_path: Path) -> None:
    """Whatever an event says: a folder above it may be a link by now."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    tree.sh(f"ln -s {tmp_path}/outside link; mkdir -p inside/deep")

    async def watch(path: str) -> bool:
        folders = Folders(str(tree.path), Kernel(), asyncio.Event())
        try:
            return folders.watch(path) is not None
        finally:
            folders.close()

    seen = {path: asyncio.run(watch(path)) for path in ("inside/deep", "inside", "link", "link/deep", "src/f0.txt")}
    assert [path for path, is_watched in seen.items() if is_watched] == ["inside/deep", "inside"]


@pytest.mark.parametrize("without", ["", "inotify"])
def test_a_pipe_in_place_of_rules_does_not_hold_it_up(tree: Tree, without: str) -> None:
    """git would wait there for ever. Another worktree is served meanwhile, and this one again when it is gone."""
    other = Tree(tree.plan.repo.top or "", tree.path.parent.parent, 8)
    with Lab(AGENTD_WITHOUT=faultlab.also_without(without)) as lab:
        lab.watch(tree)
        tree.sh("rm .gitignore; mkfifo .gitignore; echo x > new")
        lab.until(lambda: lab.modes["1"][-1].how == "off")
        assert ".gitignore is a named pipe" in lab.modes["1"][-1].why
        lab.watch(other, "2")
        tree.sh("rm .gitignore")
        lab.rescan()
        assert {".gitignore", "new"} <= set(lab.wrote["1"])


@pytest.mark.parametrize("without", ["", "inotify"])
def test_git_is_not_run_where_its_configuration_was_changed(tree: Tree, tmp_path: Path, without: str) -> None:
    with Lab(AGENTD_WITHOUT=faultlab.also_without(without)) as lab:
        lab.watch(tree)
        tree.sh(f"git config filter.evil.clean 'touch {tmp_path}/ran; cat'; echo '* filter=evil' > .gitattributes")
        tree.sh("echo changed > src/f0.txt")
        lab.until(lambda: lab.modes["1"][-1].how == "off")
        assert "filter.evil.clean" in lab.modes["1"][-1].why
        assert not (tmp_path / "ran").exists()
        tree.sh("git config --unset filter.evil.clean")
        assert ".gitattributes" in lab.rescan()


# --- what happens to the worktree itself --------------------------------------------------------------------------


@needs_inotify
@pytest.mark.parametrize("script", ["rm -r {}", "mv {} {}-moved", "mv {} {}-moved; echo x > {}"])
def test_a_worktree_that_goes_away_is_told(tree: Tree, script: str) -> None:
    with Lab() as lab:
        lab.watch(tree)
        subprocess.run(["/bin/sh", "-ec", script.replace("{}", str(tree.path))], check=True)
        lab.until(lambda: "1" in lab.gone)
        assert lab.watches() == 0


@needs_inotify
def test_a_worktree_that_was_exchanged_for_its_copy_is_watched_on(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        path = str(tree.path)
        subprocess.run(
            ["/bin/sh", "-ec", 'cp -a "$0" "$0.copy"; mv "$0" "$0.old"; mv "$0.copy" "$0"', path], check=True
        )
        tree.sh("echo x > new")
        assert lab.told(tree) == {"new"}
        Path(f"{path}.old", "other").write_text("x")
        assert lab.told(tree) == {"new"}


@needs_inotify
def test_a_folder_that_may_not_be_read_is_seen_again_when_it_may(tree: Tree) -> None:
    tree.sh("mkdir closed; echo x > closed/file; chmod 0 closed")
    with Lab() as lab:
        lab.watch(tree)
        tree.sh("chmod 700 closed; echo x > closed/more")
        assert {"closed/file", "closed/more"} <= lab.told(tree)


def test_let_go_of_it_tells_the_rest_first_and_is_out_of_it_then(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        tree.sh("echo x > last")
        lab.order(wire.Unwatch("1"))
        lab.until(lambda: "1" in lab.gone)
        assert lab.wrote["1"] == ["last"]
        assert lab.watches() == 0 and process.using(str(tree.path)) == []
        tree.sh("echo x > unseen")
        lab.order(wire.Unwatch("2"))
        lab.until(lambda: "2" in lab.gone)
        lab.watch(tree, "3")
        assert lab.wrote == {"1": ["last"], "3": ["last", "unseen"]}


def test_nothing_is_touched_that_is_watched(tree: Tree) -> None:
    """Not the index either, which git would like to refresh."""
    tree.sh("touch -d @1 src/*; echo x > new; mkdir node_modules; echo x > node_modules/x")

    def marks() -> dict[str, tuple[int, int, int]]:
        tops = (tree.path, Path(tree.plan.repo.common))
        paths = [path for top in tops for path in (top, *top.rglob("*"))]
        return {str(p): (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for p in paths for s in [p.lstat()]}

    before = marks()
    with Lab() as lab:
        lab.watch(tree)
        assert lab.rescan() == {"new"}
        lab.order(wire.Unwatch("1"))
        lab.until(lambda: "1" in lab.gone)
    assert marks() == before


# --- the limits of the kernel -------------------------------------------------------------------------------------


def limited(**limits: int) -> list[str]:
    """In a user namespace of its own, in which the kernel gives so few."""
    script = "".join(f"echo {value} > /proc/sys/user/{name} && " for name, value in limits.items())
    words = ["unshare", "--user", "--map-root-user", "/bin/sh", "-c", f'{script}exec "$@"', "sh"]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace can be had here, so the kernel's limits cannot be lowered for one process")
    return words


@needs_inotify
@pytest.mark.parametrize("limits", [{"max_inotify_watches": 12}, {"max_inotify_instances": 0}])
def test_out_of_watches_it_asks_git_and_says_so(tree: Tree, limits: dict[str, int]) -> None:
    """The large one alone: the small one keeps its watches. When there are more, it watches again."""
    prefix = limited(**limits)
    small = Tree(tree.plan.repo.top or "", tree.path.parent.parent, 8)
    tree.sh("for n in $(seq 20); do mkdir -p d/$n; echo x > d/$n/file; done")
    with Lab(prefix) as lab:
        lab.watch(small, "2")
        lab.watch(tree)
        assert lab.modes["1"][-1].how == "polling" and "inotify" in lab.modes["1"][-1].why
        assert lab.modes["2"][-1].how == ("inotify" if "max_inotify_watches" in limits else "polling")
        tree.sh("mkdir -p a/b; echo x > a/b/c; rm src/f0.txt; echo y > d/1/file; git add a; git commit -qm a")
        lab.until(lambda: {"a/b/c", "src/f0.txt"} <= set(lab.wrote["1"]) and lab.wrote["1"].count("d/1/file") == 2)
        small.sh("mkdir -p $(seq 20); echo x > 19/new")
        lab.until(lambda: "19/new" in lab.wrote["2"])
        assert lab.modes["2"][-1].how == "polling"
        (name,) = limits
        enter = ["nsenter", "--user", "--preserve-credentials", "--target", str(lab.process.pid)]
        subprocess.run([*enter, "/bin/sh", "-c", f"echo 5000 > /proc/sys/user/{name}"], check=True)
        lab.rescan()
        assert [mode.how for mode in lab.modes["1"]] == ["polling", "inotify"]
        assert tree.differing() <= lab.told(tree)


def test_with_inotify_switched_off_nothing_is_missed(tree: Tree) -> None:
    with Lab(AGENTD_WITHOUT="inotify") as lab:
        lab.watch(tree)
        assert lab.modes["1"] == [wire.Mode("1", "polling", "inotify is switched off (AGENTD_WITHOUT)")]
        tree.sh("mkdir -p a/b; echo x > a/b/c; mv src/f0.txt f9; git init -q inside; mkdir node_modules; echo >b.db")
        assert lab.told(tree) == tree.differing() == {"a/b/c", "src/f0.txt", "f9", "inside"}
        tree.sh("rm a/b/c")
        lab.until(lambda: "a/b/c" in lab.removed["1"])


@needs_inotify
@pytest.mark.timeout(600)
def test_a_flood_becomes_one_look_and_misses_nothing(tree: Tree) -> None:
    """The watcher is stopped meanwhile, so the kernel's queue of events overflows for sure."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with Lab() as lab:
        lab.watch(tree)
        os.kill(lab.process.pid, signal.SIGSTOP)
        count = 200_000 if faultlab.is_long else queue // 2 + 1000
        tree.sh(f"mkdir flood; echo x > flood/before; seq {count} | (cd src; xargs touch); mkdir -p flood/late/er")
        os.kill(lab.process.pid, signal.SIGCONT)
        lab.until(lambda: len(set(lab.wrote["1"])) > count)
        tree.sh("echo x > flood/late/er/file; echo y > flood/before")
        assert lab.told(tree) == tree.differing()
        print(f"{count:,} new files at once: {lab.memory() >> 20} MiB and {lab.cpu():.1f} s of CPU when all are told")


# --- the process --------------------------------------------------------------------------------------------------


@needs_inotify
def test_at_rest_it_takes_no_cpu_and_has_one_instance(tmp_path: Path) -> None:
    top = gitrepo.make_repo(tmp_path / "repo", 30)
    with Lab() as lab:
        for number, tree in enumerate(trees(top, tmp_path, 20), 1):
            lab.watch(tree, str(number), is_awaited=False)
        lab.until(lambda: len(lab.ready) == 20)
        links = [os.readlink(f"/proc/{lab.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{lab.process.pid}/fd")]
        assert links.count("anon_inode:inotify") == 1
        lab.quiet(0.5)
        assert lab.quiet(10.0 if faultlab.is_long else 1.0) == 0


def test_it_ends_with_its_socket_whatever_it_does(tree: Tree) -> None:
    """Also in the middle of a git that waits at a pipe."""
    gate = tree.path.parent / "gate"
    os.mkfifo(gate)
    gitrepo.run(tree.path, "config", "filter.slow.clean", f"cat {gate}")
    tree.sh("echo 'src/* filter=slow' > .gitattributes; rm src/f0.txt; echo 'line 9' > src/f0.txt; touch -d @1 src/*")
    lab = Lab()
    lab.watch(tree, is_awaited=False)
    faultlab.until(
        lambda: any("cat" in str(process.describe(p)["command"]) for p in process.descendants(lab.process.pid))
    )
    gits = process.descendants(lab.process.pid)
    lab.link.close()
    assert lab.process.wait(30) == 0
    faultlab.until(lambda: all(process.is_zombie(pid) for pid in gits))


def test_it_is_named_and_survives_the_terminal(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        for number in (signal.SIGINT, signal.SIGHUP):
            lab.process.send_signal(number)
        assert process.describe(lab.process.pid)["command"] == "agentd-watcher"
        assert Path(f"/proc/{lab.process.pid}/comm").read_text() == "agentd-watcher\n"
        lab.rescan()


@pytest.mark.slow  # not steady beside other tests
def test_a_daemon_that_does_not_read_for_a_while_gets_all_later(tree: Tree) -> None:
    with Lab() as lab:
        lab.watch(tree)
        lab.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(3):
            tree.sh(
                "mkdir -p far; cd far; seq 9000 | sed 's/$/-with-a-rather-long-name-that-fills-pipes/' | xargs touch"
            )
        tree.sh("echo x > far/last")
        assert lab.told(tree) == tree.differing()
        shutil.rmtree(tree.path / "far")


# --- at length ----------------------------------------------------------------------------------------------------

WORK = """
for n in $(seq 60); do
    d=$((RANDOM % 8))/$((RANDOM % 8))/$((RANDOM % 8)); mkdir -p w/$d node_modules/$d v/node_modules/$d
    echo $n > w/$d/new-$n; echo $n > node_modules/$d/$n; echo $n > v/node_modules/$d/$n; echo $n > $n.db
    f=$(find many -type f 2>/dev/null | shuf -n 1)
    case $((RANDOM % 6)) in
        0) echo $n >> "$f" ;;
        1) rm "$f" ;;
        2) mv "$f" w/$d/moved-$n ;;
        3) cp "$f" aside && mv aside "$f" && chmod +x "$f" ;;
        4) mv w/$((RANDOM % 8)) w/$d-$n ;;
        5) rm -rf w/$((RANDOM % 8)) ;;
    esac 2>/dev/null || true
done
git add -A w && git commit -qm "$1" && git checkout -q HEAD~1 && git checkout -q - && git rm -rq --cached w
"""


@needs_inotify
@pytest.mark.timeout(1500)
def test_nothing_is_missed_in_many_worktrees_at_once(tmp_path: Path) -> None:
    """Generated work in all of them at the same time, compared with what the user's own git says, and with a scan."""
    count, small, large = (20, 5000, 50_000) if faultlab.is_long else (3, 100, 600)
    by_key = {str(t.plan.job): t for t in trees(many_files(tmp_path / "small", small), tmp_path / "places", count)}
    by_key["large"] = Tree(many_files(tmp_path / "large", large), tmp_path / "large-place")
    with Lab() as lab:
        for key, tree in by_key.items():
            lab.watch(tree, key, is_awaited=False)
        lab.until(lambda: len(lab.ready) == len(by_key), patience=300)
        took, memory, watches = time.monotonic() - lab.began, lab.memory() >> 20, lab.watches()
        print(f"{count} worktrees of {small:,} files and one of {large:,}: all watched {took:.2f} s after the start of")
        print(
            f"the process, with {watches:,} watches, {memory} MiB and {lab.cpu():.2f} s of CPU, those of git included"
        )
        lab.quiet(0.5)
        seconds = 10.0 if faultlab.is_long else 1.0
        at_rest = lab.quiet(seconds)
        print(f"at rest: {at_rest} ticks of CPU in {seconds:g} s")
        assert at_rest == 0
        works = [subprocess.Popen(["bash", "-c", WORK, "sh", key], cwd=by_key[key].path) for key in by_key]
        assert [work.wait() for work in works] == [0] * len(works)
        for key, tree in by_key.items():
            told, differing = lab.told(tree, key), tree.differing()
            assert differing <= told, (key, sorted(differing - told)[:5])
            assert not {path for path in told if "node_modules" in path or path.endswith(".db")}
            scanned = {path for path in lab.rescan(key) if not path.startswith("mark-")}
            assert scanned == differing
        told = sum(map(len, lab.wrote.values()))
        print(f"{told:,} names told of the work; {lab.memory() >> 20} MiB after it; no mode but inotify")
        assert {mode.how for modes in lab.modes.values() for mode in modes} == {"inotify"}
