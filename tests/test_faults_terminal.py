"""F26: whoever of ours is killed, the agent at a PTY is not hung up, and no byte of it is lost."""

import base64
import itertools
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import faultlab
import pytest
from faultlab import Scene, until

from agentd import jobdir

KINDS = ("keeper", "zygote", "daemon")
TYPED = r"""
trap 'echo hung up; exit 77' HUP
stty -echo; ready
i=0
while read line; do
  [ "$line" = end ] && exit 5
  seq "$line"
done
"""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path) as scene:
        yield scene


def type_in(scene: Scene, id: int, text: bytes) -> None:
    """Through its keeper, as attach does; asked again of the next one until one lets us in."""

    def is_typed() -> bool:
        try:
            with jobdir.connect(f"{scene.attempt(id)}/keeper.sock") as link:
                link.settimeout(20)
                link.sendall(b'{"attach": {"type": true, "steal": true}}\n')
                if b"attached" not in link.recv(4096):
                    return False
                link.sendall(json.dumps({"keys": base64.b64encode(text).decode()}).encode() + b"\n")
                link.shutdown(socket.SHUT_WR)
                return link.recv(4096) == b""
        except OSError:
            return False

    until(is_typed, 60.0)


def lines(scene: Scene, id: int) -> list[bytes]:
    return scene.log(id).split(b"\r\n")[:-1]


def until_lines(scene: Scene, id: int, wanted: list[bytes]) -> None:
    until(lambda: lines(scene, id)[-1:] == wanted[-1:], 60.0, lambda: f"ends with {lines(scene, id)[-3:]}")


def kill(scene: Scene, id: int, victims: tuple[str, ...]) -> None:
    until(lambda: faultlab.state_of(scene.zygote()) not in ("", "Z"))  # the last one's successor is there
    pids = {"keeper": scene.keeper(id), "zygote": scene.zygote(), "daemon": scene.daemon()}
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    scene.daemon()  # who asks has a dead one replaced


ALL = [victims for n in (1, 2, 3) for victims in itertools.combinations(KINDS, n)]


@pytest.mark.slow  # not steady beside other tests
@pytest.mark.parametrize("victims", ALL, ids="+".join)
def test_f26_nobody_hangs_up_the_agent(scene: Scene, victims: tuple[str, ...]) -> None:
    id = scene.running(TYPED, tty=[24, 80])
    wanted: list[bytes] = []
    for count in (300, 50_000, 400):
        type_in(scene, id, b"%d\n" % count)
        wanted += [b"%d" % n for n in range(1, count + 1)]
        kill(scene, id, victims)  # also while it writes
        until_lines(scene, id, wanted)
    type_in(scene, id, b"end\n")
    (job,) = scene.wait(id)
    assert (job["exit_code"], job["log_whole"]) == (5, True)
    assert lines(scene, id) == wanted
    scene.check({id: 5})


@pytest.mark.slow  # not steady beside other tests
def test_f26_one_after_the_other(tmp_path: Path) -> None:
    """What is lost of the copies is made good before the next ones die, and none is taken back from the tree."""
    pairs = (("zygote", "daemon"), ("keeper", "zygote"), ("keeper", "daemon"), ("zygote", "daemon"), ("keeper",))
    with Scene(tmp_path, without="pidfd-getfd") as scene:
        id = scene.running(TYPED, tty=[24, 80])
        for victims in pairs:
            kill(scene, id, victims)
            until(lambda: held(scene, id) == 3, 60.0, lambda: f"is in {held(scene, id)} hands")
        type_in(scene, id, b"3\n")
        until_lines(scene, id, [b"1", b"2", b"3"])
        type_in(scene, id, b"end\n")
        assert scene.wait(id)[0]["exit_code"] == 5
        scene.check({id: 5})


def held(scene: Scene, id: int) -> int:
    """In how many hands of ours its master is: keeper, zygote, daemon."""
    count = 0
    for pid in {scene.keeper(id), scene.zygote(), scene.daemon()}:
        folder = f"/proc/{pid}/fd"
        try:
            count += any(os.readlink(f"{folder}/{fd}").endswith("/ptmx") for fd in os.listdir(folder))
        except OSError:
            return -1
    return count


def test_f26_all_are_killed_where_no_copy_can_be_taken_back(tmp_path: Path) -> None:
    """The agent is told as by a terminal that goes; and that the end of its log may be missing is told, too."""
    with Scene(tmp_path, without="pidfd-getfd") as scene:
        id = scene.running(TYPED, tty=[24, 80])
        kill(scene, id, KINDS)
        (job,) = scene.wait(id)
        assert (job["exit_code"], job["log_whole"]) == (77, False)
        scene.check({id: 77})


def test_f29_a_viewer_that_never_reads_slows_nobody(scene: Scene) -> None:
    id = scene.running("stty raw; ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; seq 1000000", tty=[24, 80])
    links = [jobdir.connect(f"{scene.attempt(id)}/keeper.sock") for _ in range(20)]
    for link in links:
        link.sendall(b'{"attach": {"type": true}}\n')
        for _ in range(200):
            link.sendall(b'{"follow": [0, 0]}\n')
    (scene.proof / "go").touch()
    assert scene.wait(id)[0]["exit_code"] == 0
    assert scene.log(id) == b"".join(b"%d\n" % n for n in range(1, 1_000_001))
    for link in links:
        link.close()
    scene.check({id: 0})


def test_a_full_disk_makes_it_wait(scene: Scene) -> None:
    """As a full FIFO does: a log that cannot be written holds up the agent, and loses nothing."""
    id = scene.running("stty raw; ready; while [ ! -e $PROOF/go ]; do sleep 0.05; done; seq 300000", tty=[24, 80])
    log = Path(scene.attempt(id)) / "log.out.0"
    until(log.parent.exists)
    keeper = scene.keeper(id)
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    (scene.proof / "go").touch()
    until(lambda: bool(scene.events("job.log_blocked")), 60.0)
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert scene.wait(id)[0]["exit_code"] == 0
    assert scene.log(id) == b"".join(b"%d\n" % n for n in range(1, 300_001))
    scene.check({id: 0})


def test_f52_it_has_its_terminal_and_anchors_and_nothing_else(scene: Scene) -> None:
    id = scene.running(faultlab.WAITS, tty=[24, 80])
    folder = f"/proc/{scene.leader(id)}/fd"
    found = {int(fd): os.readlink(f"{folder}/{fd}").rpartition("/")[2] for fd in os.listdir(folder)}
    assert {found.pop(0), found.pop(1), found.pop(2)} <= set(map(str, range(1 << 12)))
    assert sorted(found.values()) == ["err.fifo", "life.lock", "out.fifo", "ptmx"]
    (scene.proof / "go").touch()
    assert scene.wait(id)[0]["exit_code"] == 5
