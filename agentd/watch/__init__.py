"""The worktree watcher: a process of its own that sees every write in the worktrees it is told of.

It knows nothing of jobs, locks or the store: it gets orders and gives facts (``wire``), and ends with the socket that
carries them. It never writes where it watches, follows no link, and reads nothing but folders; git reads the rest.

* ``kernel``: the one inotify instance for all worktrees, through watchdog.
* ``folders``: the folders of one worktree that are watched, and what the kernel's events say of its files.
* ``look``: what git says: which files differ from the base, what is ignored.
* ``worktree``: one worktree from its first scan to its end.
* ``watcher``: orders in, facts out.

An event is a hint; git has the last word. The folders are watched first, and then git is asked what differs, so nothing
falls between. Whatever is in doubt (a lost event, a flood, a changed ``.gitignore``) ends in the same two steps again.
What git ignores is neither watched nor told, and a repository inside is one name, as it is to git. A write through a
hard link or a bind mount from outside the worktree is seen by the next look only.
"""
