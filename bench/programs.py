"""The programs that are run: compiled where there is a C compiler, else the same in Python."""

import shutil
import subprocess
import sys
from pathlib import Path

STAMP_C = r"""
/* stamp FILE         write the monotonic clock, read first thing, to FILE, and end
   stamp FILE FIFO    wait for a byte in FIFO, then 20 ms, then read the clock, write it, and end at once */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec now, pause = {0, 20000000};
    char text[64], byte;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int out = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (argc > 2) {
        int go = open(argv[2], O_RDONLY);
        if (read(go, &byte, 1) != 1) return 1;
        nanosleep(&pause, 0);
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
    int size = snprintf(text, sizeof text, "%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
    if (write(out, text, size) != size) return 1;
    _exit(0);
}
"""
SPEW_C = r"""
/* spew FILE BYTES SIZE    write BYTES to stdout in pieces of SIZE; the seconds it took, from first to last, to FILE */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    long long left = atoll(argv[2]);
    long size = atol(argv[3]);
    struct timespec began, ended;
    char *piece = malloc(size);
    for (long n = 0; n < size; n++) piece[n] = n % 64 == 63 ? '\n' : 'a' + n % 26;
    clock_gettime(CLOCK_MONOTONIC, &began);
    while (left > 0) {
        ssize_t wrote = write(1, piece, left < size ? left : size);
        if (wrote <= 0) return 1;
        left -= wrote;
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    dprintf(open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600), "%.9f",
            ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9);
    return 0;
}
"""
STAMP_PY = """
import os, sys, time
now = time.monotonic()
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
if len(sys.argv) > 2:
    os.read(os.open(sys.argv[2], os.O_RDONLY), 1)
    time.sleep(0.02)
    now = time.monotonic()
os.write(out, b"%.9f" % now)
os._exit(0)
"""
SPEW_PY = """
import os, sys, time
left, size = int(sys.argv[2]), int(sys.argv[3])
piece = bytes(10 if n % 64 == 63 else 97 + n % 26 for n in range(size))
began = time.monotonic()
while left > 0:
    left -= os.write(1, piece[:left])
took = time.monotonic() - began
with open(sys.argv[1], "w") as file:
    file.write("%.9f" % took)
"""


def build(folder: Path) -> tuple[list[str], list[str]]:
    """The commands of ``stamp`` and ``spew``."""
    folder.mkdir()
    return one(folder, "stamp", STAMP_C, STAMP_PY), one(folder, "spew", SPEW_C, SPEW_PY)


def one(folder: Path, name: str, in_c: str, in_python: str) -> list[str]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is not None:
        (folder / f"{name}.c").write_text(in_c)
        made = subprocess.run([compiler, "-O2", "-o", folder / name, folder / f"{name}.c"], capture_output=True)
        if made.returncode == 0:
            return [str(folder / name)]
    (folder / f"{name}.py").write_text(in_python)
    return [sys.executable, "-I", "-S", str(folder / f"{name}.py")]


def is_compiled(command: list[str]) -> bool:
    return len(command) == 1
