"""What a terminal is made to show: pure, bytes in, bytes out.

No emulator stands here: the one who looks has one, the terminal itself. What it must be given is the modes that the
program has set (:class:`Modes`, from the whole log), the output since the screen was last cleared
(:func:`beginning`), and then whatever comes. :class:`Filter` takes out what would do more than draw.
"""

import re
from collections.abc import Iterator

ALTERNATE = (47, 1047, 1049)
FROM_THE_START = {7, 25}
"""Private modes that are set in a terminal that nobody has touched."""
LEFT_ALONE = {3, 8, 12, 40, 45, 1007, 1034, 1035, 1036, 1039}
"""Set by the person, or of no consequence to them."""
MOST_HELD = 1 << 16

MODE = re.compile(
    rb"\x1b(?:\[\?(?P<private>[\d;]+)(?P<switch>[hl])"
    rb"|\[4(?P<insert>[hl])"
    rb"|(?P<keypad>[=>])"
    rb"|(?P<reset>c|\[!p)"
    rb"|\[(?P<cursor>\d*) q"
    rb"|\[>4(?:;(?P<keys>\d+))?m"
    rb"|\[(?P<region>\d*;?\d*)r"
    rb"|\((?P<charset>[0-9A-Z]))"
)
HOME = re.compile(rb"\x1b\[(?:1?(?:;1?)?)[Hf]")
FRESH = re.compile(rb"\x1b\[\?(?:1049|1047|47)[hl]|\x1b\[H\x1b\[0?J|\x1b\[[23]J|\x1bc")
BEGUN = re.compile(rb"\x1b[\[(]?[0-?]*[ -/]?\Z")


class Modes:
    """Which modes are set in a terminal that has been given some output."""

    def __init__(self) -> None:
        self.private: dict[int, bool] = {}
        self.other: dict[str, bytes] = {}
        self.rest = b""

    def feed(self, data: bytes) -> None:
        data = self.rest + data
        for found in MODE.finditer(data):
            self.note(found)
        begun = BEGUN.search(data, max(0, len(data) - 64))
        self.rest = begun[0] if begun else b""

    def note(self, found: re.Match[bytes]) -> None:
        kind, value = str(found.lastgroup), found[0]
        if kind == "switch":
            for number in found["private"].split(b";"):
                self.set(int(number[:8] or b"0"), found["switch"] == b"h")
        elif kind == "reset":
            self.private, self.other = {}, {}
        elif value in (b"\x1b>", b"\x1b[4l", b"\x1b(B", b"\x1b[r", b"\x1b[ q", b"\x1b[0 q", b"\x1b[>4m", b"\x1b[>4;0m"):
            self.other.pop(kind, None)
        else:
            self.other[kind] = value

    def set(self, number: int, is_on: bool) -> None:
        if number not in LEFT_ALONE:
            self.private[number] = is_on

    @property
    def is_alternate(self) -> bool:
        """A full-screen program has the screen."""
        return any(self.private.get(number) for number in ALTERNATE)

    def changed(self) -> list[int]:
        return [number for number, is_on in self.private.items() if is_on != (number in FROM_THE_START)]

    def enter(self) -> bytes:
        """Into a terminal that nobody has touched, but for the other screen, which is a program's to draw."""
        found = [switch(number, self.private[number]) for number in self.changed() if number not in ALTERNATE]
        return b"".join([*found, *(value for kind, value in self.other.items() if kind != "region")])

    def enter_alternate(self) -> bytes:
        return b"".join(switch(number, True) for number in ALTERNATE if self.private.get(number))

    def leave(self) -> bytes:
        """Back to such a terminal; to the other screen last, so that all else happens on the program's."""
        undo = {
            "insert": b"\x1b[4l",
            "keypad": b"\x1b>",
            "cursor": b"\x1b[0 q",
            "keys": b"\x1b[>4m",
            "region": b"\x1b7\x1b[r\x1b8",
            "charset": b"\x1b(B",
        }
        found = [switch(number, not self.private[number]) for number in self.changed() if number not in ALTERNATE]
        found += [undo[kind] for kind in self.other]
        found += [switch(number, False) for number in self.changed() if number in ALTERNATE]
        return b"".join(found) + b"\x1b[m\x1b[?25h"


def switch(number: int, is_on: bool) -> bytes:
    return b"\x1b[?%d%c" % (number, ord("h" if is_on else "l"))


def is_drawn(tail: bytes, rows: int) -> bool:
    """Does a program draw all over the screen, though it has not asked for the other one?"""
    home = max((found.end() for found in HOME.finditer(tail)), default=-1)
    return home >= 0 and tail.count(b"\n", home) < rows


def beginning(tail: bytes, is_drawn: bool, rows: int) -> int:
    """From where on the end of a log shows what the screen shows: where it was last cleared; else, if it is no
    full-screen program's, the last lines."""
    cleared = max((found.start() for found in FRESH.finditer(tail)), default=0)
    if is_drawn:
        return cleared
    start = len(tail)
    for _ in range(rows):
        start = tail.rfind(b"\n", 0, start)
        if start < 0:
            return cleared
    return max(cleared, start + 1)


# --- what only draws ----------------------------------------------------------------------------------------

STRING = rb"\x1b[\]PX^_][^\x07\x1b\x18\x1a]*"
TOKEN = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    rb"|" + STRING + rb"(?:\x07|\x1b\\|(?=\x1b[^\\]|\Z)|[\x18\x1a])"  # OSC DCS SOS PM APC, or one that is broken off
    rb"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    rb"|\xc2[\x80-\x9f]"  # C1
    rb"|[\x05\x1b]"
)
UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]*[ -/]*|[ -/]*)|" + STRING + rb"\x1b?|\xc2)\Z")
QUERY = re.compile(rb"\x1b(?:\[(?:[>=]?\d*c|\??[56]n|\?[\d;]*\$p|>\d*q|\?u|\d*x)|Z|\]1[0-2];\?(?:\x07|\x1b\\))")
LINK = re.compile(rb"\x1b\]8;[^\x00-\x1f]*(?:\x07|\x1b\\)")
PICTURE = re.compile(rb"\x1bP[\d;]*q")
STRING_ENDS = (b"\x07", b"\x1b\\")
END_OF_STRING = re.compile(rb"\x07|\x1b\\|\x18|\x1a")


class Filter:
    """Takes out titles, clipboard, notifications, window operations, what an emulator keeps for itself, and half
    sequences in which something could hide; and questions, unless they ``may_ask``: the answer would be typed."""

    def __init__(self) -> None:
        self.rest = b""
        self.is_dropping = False

    def feed(self, data: bytes, may_ask: bool) -> bytes:
        data = self.rest + data
        self.rest = b""
        if self.is_dropping:
            end = END_OF_STRING.search(data)
            if end is None:
                return b""
            self.is_dropping, data = False, data[end.end() :]
        unfinished = UNFINISHED.search(data, max(0, data.rfind(b"\x1b", 0, data.rfind(b"\x1b"))))
        if unfinished:
            data, self.rest = data[: unfinished.start()], unfinished[0]
            if len(self.rest) > MOST_HELD:
                self.rest, self.is_dropping = b"", True
        return TOKEN.sub(lambda found: found[0] if is_harmless(found[0], may_ask) else b"", data)


def is_harmless(token: bytes, may_ask: bool) -> bool:
    if QUERY.fullmatch(token):
        return may_ask
    if token.startswith(b"\x1b["):
        return not token.endswith(b"t")
    if token[1:2] in (b"]", b"P", b"X", b"^", b"_"):
        return token.endswith(STRING_ENDS) and bool(LINK.fullmatch(token) or PICTURE.match(token))
    return token not in (b"\x05", b"\x1b") and not token.startswith(b"\xc2")


# --- keys ---------------------------------------------------------------------------------------------------


WITH_CONTROL = frozenset("abcdefghijklmnopqrstuvwxyz@[\\]^_")


class Keys:
    """Finds sequences of keys in what is typed. ``actions``: what each sequence means."""

    def __init__(self, actions: dict[bytes, str]) -> None:
        self.actions = actions
        self.held = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, str]]:
        """``(bytes to pass on, action)``, the action last if there is one; what follows it is not passed on."""
        passed = b""
        for key in (data[at : at + 1] for at in range(len(data))):
            self.held += key
            while self.held and not any(keys.startswith(self.held) for keys in self.actions):
                passed, self.held = passed + self.held[:1], self.held[1:]
            if self.held in self.actions:
                action, self.held = self.actions[self.held], b""
                yield passed, action
                return
        yield passed, ""


def parse_keys(text: str) -> bytes | None:
    """``ctrl-p,ctrl-q`` as a terminal sends it; None if it is none."""
    found = b""
    for word in text.split(","):
        low = word.lower()
        if low.startswith("ctrl-") and len(low) == 6 and low[5] in WITH_CONTROL:
            found += bytes([ord(low[5].upper()) & 0x1F])
        elif len(word) == 1 and word.isascii() and word.isprintable():
            found += word.encode()
        else:
            return None
    return found
