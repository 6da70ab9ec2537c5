"""A git that was killed while it moved a tree forward: what it wrote half is taken back, so that it can be done again.

git writes the files first and moves the branch last. Killed between, it leaves an old branch, an old index, locks,
and some of the new files, the last of them perhaps cut short. The caller holds the repository's mutex, which that git
held too: so it is dead. But a git of the user's may live, and then nothing is touched. Else touched is only a file
whose bytes are the head of what the new commit has there, so nothing is lost that is not in that commit.
"""

import contextlib
import os
import stat

from agentd import process
from agentd.git.run import Tree, git, zsplit

GITLINK, LINK, EXECUTABLE, PLAIN = "160000", "120000", "100755", "100644"


def mend(tree: Tree, old: str, new: str) -> None:
    if os.path.lexists(os.path.join(tree.git_dir, "index.lock")):
        return  # some git is at work there
    words = zsplit(git(["diff-tree", "-r", "-z", "--no-renames", old, new], at=tree))
    staged = zsplit(git(["diff-index", "--cached", "--name-only", "-z", "--no-renames", old], at=tree))
    if set(words[1::2]) & set(staged):
        return  # it got as far as the new index: only the branch is left to be moved
    back = []
    for head, path in zip(words[::2], words[1::2], strict=True):
        old_mode, new_mode, old_blob, new_blob, _ = head.lstrip(":").split(" ")
        if GITLINK in (old_mode, new_mode) or _is_clean(tree, path, old_mode, old_blob):
            continue
        if _is_halfway(tree, path, new_mode, new_blob):
            back.append((path, old_mode))
    _take_back(tree, back)


def _take_back(tree: Tree, paths: list[tuple[str, str]]) -> None:
    for path, old_mode in paths:
        full = os.path.join(tree.path, path)
        if old_mode == "000000" and os.path.lexists(full):
            os.unlink(full)
    restored = [path for path, old_mode in paths if old_mode != "000000"]
    if restored:
        asked = "\0".join(restored) + "\0"
        git(["checkout-index", "-f", "-u", "-z", "--stdin"], at=tree, write=True, input=asked, timeout=600)


def _is_clean(tree: Tree, path: str, mode: str, blob: str) -> bool:
    if mode == "000000" or not _exists(tree, path):
        return (mode != "000000") == _exists(tree, path)
    found = os.lstat(os.path.join(tree.path, path)).st_mode
    kind = LINK if stat.S_ISLNK(found) else EXECUTABLE if found & stat.S_IXUSR else PLAIN
    return kind == mode and _hash(tree, path) == blob


def _is_halfway(tree: Tree, path: str, mode: str, blob: str) -> bool:
    """Gone, or the head of what the new commit has there."""
    if not _exists(tree, path):
        return True
    if mode == "000000":
        return False
    if _hash(tree, path) == blob:
        return True
    full = os.path.join(tree.path, path)
    if os.path.islink(full) or not os.path.isfile(full):
        return False
    with open(full, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return _smudged(tree, path, blob).startswith(file.read())


def _smudged(tree: Tree, path: str, blob: str) -> str:
    return git(["cat-file", "--filters", f"--path={path}", blob], at=tree)


def _exists(tree: Tree, path: str) -> bool:
    """Not through a link: what lies behind one is not the tree's."""
    here = tree.path
    *folders, name = path.split("/")
    for folder in folders:
        here = os.path.join(here, folder)
        if os.path.islink(here):
            return False
    return os.path.lexists(os.path.join(here, name))


def _hash(tree: Tree, path: str) -> str:
    full = os.path.join(tree.path, path)
    if os.path.islink(full):
        return git(["hash-object", "--stdin"], at=tree, input=os.readlink(full)).strip()
    if not stat.S_ISREG(os.lstat(full).st_mode):
        return ""
    return git(["hash-object", f"--path={path}", "--", full], at=tree).strip()


# --- locks --------------------------------------------------------------------------------------------------


def clear_locks(tree: Tree, ref: str) -> None:
    """Take away the locks on index, HEAD and ``ref`` that a killed git left there, if no git is at work."""
    names = [os.path.join(tree.git_dir, name) for name in ("index.lock", "HEAD.lock", "ORIG_HEAD.lock")]
    found = [path for path in (*names, os.path.join(tree.common, f"{ref}.lock")) if os.path.lexists(path)]
    if not found or _is_git_at_work(tree) or any(map(_is_open_somewhere, found)):
        return
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _is_git_at_work(tree: Tree) -> bool:
    """git goes to the top of its tree; and it closes a lock a moment before it is done with it."""
    pids = {pid for place in (tree.path, tree.git_dir, tree.common) for pid in process.working_in(place)}
    return any(_name_of(pid) == "git" for pid in pids)


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _is_open_somewhere(path: str) -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                        return True
    return False
