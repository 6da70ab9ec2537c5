"""All that runs git: one scrubbed runner, and above it worktrees, snapshots and fingerprints.

What this package promises: the user's tree, index, stash, configuration and branches are never written
(settings travel by ``-c``, snapshots use a temporary index); a job's directory is addressed through the
admin directory we stored, never through a ``.git`` file that the job can rewrite; nothing is deleted that
this package did not make, unless it was first put where ``restore`` finds it.

What it does not: filters named in the repository's configuration run when git reads files, as they do for
the user's own ``git status`` (``fingerprint.command_keys`` and ``dangerous_config`` find one that a job
added; the check races with a writer). A foreign program that writes into a worktree while it is being
judged can be seen too late; the caller first makes sure that nothing of the job lives.

Every function is synchronous and may block on a disk, on git or on the repository's mutex.
"""
