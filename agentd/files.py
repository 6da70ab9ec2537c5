"""Reading files that somebody else may have replaced: by a pipe that nobody writes to, a device, fifty gigabytes.

No open here blocks, nothing is read but regular files, and never more than the caller says. The kind is asked of what
was opened, so nothing can take its place in between.
"""

import errno
import io
import os
import stat

LIMIT = 64 << 20
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def kind(path: str, follow: bool = False) -> str:
    """What stands at ``path``, in a word; "nothing" if there is nothing. Opens nothing."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode), "unknown thing")
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"


def open_file(path: str, follow: bool = True) -> io.BufferedReader:
    """A regular file, open to be read. OSError if it is something else: EISDIR of a folder, ELOOP of a symlink that is
    not to be followed, EINVAL of a pipe, a socket or a device."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that nothing drives
            raise _no_file(kind(path, follow=True), path) from None
        raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return open(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise _no_file(KINDS.get(stat.S_IFMT(mode), "unknown thing"), path)


def _no_file(what: str, path: str) -> OSError:
    return OSError(errno.EINVAL, f"it is a {what}, not a file", path)


def read_file(path: str, limit: int = LIMIT, follow: bool = True) -> bytes:
    """All of a regular file; EFBIG if that is more than ``limit``."""
    with open_file(path, follow) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", path)
    return data


def write_over(path: str, data: bytes) -> None:
    """Write a file anew and sync it; what is no regular file is refused, and no symlink followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _no_file(kind(path), path)
        file.truncate()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_private(*folders: str) -> None:
    """Each of them, the outer one first: os.makedirs gives its mode to the last one only."""
    for path in folders:
        os.makedirs(path, 0o700, exist_ok=True)
