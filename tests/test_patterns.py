"""Path patterns: good ones, what they match, and exactly when two of them meet."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agentd.core.errors import Usage
from agentd.core.locknames import name_of, path_name
from agentd.core.patterns import covered, ends, fixed_part, is_literal, literal, matches, normal, overlap

ROOT = "/home/me/project"


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("src/a.py", "src/a.py"),
        ("./src//a.py", "src/a.py"),
        ("src/", "src/**"),
        ("src/.", "src/**"),
        ("src", "src"),
        ("src/**/", "src/**"),
        ("a/**/**/b", "a/**/b"),
        ("**", "**"),
        ("**/", "**"),
        ("*", "*"),
        (f"{ROOT}/src/a.py", "src/a.py"),
        (f"{ROOT}//src/", "src/**"),
        ("cafe\u0301.py", "café.py"),
        ("a:b", "a:b"),
        ("wow!.txt", "wow!.txt"),
        ("a\nb", "a\nb"),
        ("x" * 4096, "x" * 4096),
        ("a" * 255 + "*", "a" * 255 + "*"),
        ("\udcff.py", "\udcff.py"),  # a name that is not UTF-8
    ],
)
def test_one_spelling(typed: str, pattern: str) -> None:
    assert normal(typed, ROOT) == pattern
    assert normal(pattern, ROOT) == pattern


NO_GLOB = "of patterns there are only *, ? and **; write ? for a character such as [ or !"
ALONE = "** stands alone between two /, as in src/**/*.py"
EMPTY = "the name of a lock is empty; name a path, such as src/a.py, or a resource, res:NAME"
WHOLE = "is the whole repository; name a path in it, or --broad '**' for all files"
ABOVE = "may lead outside the repository; name it from the root, without .."


@pytest.mark.parametrize(
    ("typed", "code", "sentence"),
    [
        ("", "empty", EMPTY),
        ("  ", "empty", EMPTY),
        ("\t\n", "empty", EMPTY),
        (".", "is_root", f'"." {WHOLE}'),
        ("./", "is_root", f'"./" {WHOLE}'),
        (ROOT, "is_root", f'"{ROOT}" {WHOLE}'),
        (f"{ROOT}/", "is_root", f'"{ROOT}/" {WHOLE}'),
        ("/", "is_root", '"/" is the root of the system; name a path in the repository'),
        ("..", "outside_repo", f'".." {ABOVE}'),
        ("../x", "outside_repo", f'"../x" {ABOVE}'),
        ("a/../b", "outside_repo", f'"a/../b" {ABOVE}'),
        (f"{ROOT}/../x", "outside_repo", f'"{ROOT}/../x" {ABOVE}'),
        (
            "/etc/passwd",
            "outside_repo",
            '"/etc/passwd" is outside the repository; for a file that git does not isolate, say file:/etc/passwd',
        ),
        (
            f"{ROOT}2/a",
            "outside_repo",
            f'"{ROOT}2/a" is outside the repository; for a file that git does not isolate, say file:{ROOT}2/a',
        ),
        ("a\0b", "bad_character", '"a\\x00b": a path has no NUL character'),
        ("src/[ab].py", "bad_glob", f'"src/[ab].py": {NO_GLOB}'),
        ("*.{c,h}", "bad_glob", f'"*.{{c,h}}": {NO_GLOB}'),
        ("!a.py", "bad_glob", f'"!a.py": {NO_GLOB}'),
        ("a\\*b", "bad_glob", f'"a\\*b": {NO_GLOB}'),
        ("\x1b[31mred", "bad_glob", f'"\\x1b[31mred": {NO_GLOB}'),
        ("src/**.py", "bad_glob", f'"src/**.py": {ALONE}'),
        ("***", "bad_glob", f'"***": {ALONE}'),
        ("a" * 256 + "*", "too_long", f'"{"a" * 40}…": a pattern has at most 256 characters'),
        ("x" * 4097, "too_long", f'"{"x" * 40}…": a path has at most 4096 characters'),
    ],
)
def test_a_bad_one_is_refused_with_its_reason(typed: str, code: str, sentence: str) -> None:
    with pytest.raises(Usage) as refusal:
        normal(typed, ROOT)
    assert (refusal.value.code, refusal.value.message, refusal.value.exit) == (code, sentence, 2)


def test_without_a_root_no_absolute_path_is_inside() -> None:
    with pytest.raises(Usage) as refusal:
        normal("/src/a.py")
    assert refusal.value.code == "outside_repo"


def test_case_is_folded_where_the_volume_folds_it() -> None:
    assert normal("Foo.py") != normal("foo.py")
    assert normal("Foo.py", fold=True) == normal("foo.PY", fold=True) == literal("FOO.py", fold=True)
    assert normal("STRASSE", fold=True) == normal("straße", fold=True)
    assert covered("src/*.py", ["Src/A.PY", "src/b.py"], fold=True) == 2


def test_what_is_on_the_disk_may_have_any_name() -> None:
    assert literal("pages/[id].tsx") == "pages/[id].tsx"
    assert overlap(literal("pages/[id].tsx"), normal("pages/?id?.tsx"))
    with pytest.raises(Usage):
        literal("/elsewhere/a", ROOT)


@given(some.text())
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = normal(text, ROOT, fold=True)
    except Usage as refusal:
        assert refusal.message.isprintable()
    else:
        assert normal(pattern, ROOT, fold=True) == pattern or pattern.startswith("!")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*.py", ["a.py", ".py"], ["src/a.py", "a.pyc"]),
        ("**/*.py", ["a.py", "src/a.py", "a/b/c.py"], ["a.pyc"]),
        ("src/**", ["src", "src/a", "src/a/b"], ["srcs", "a/src"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a", "ab", "a/x/bb"]),
        ("?", ["a", "é"], ["ab", "a/b"]),
        ("a?c", ["abc", "a\nc"], ["a/c", "ac"]),
        ("*", ["a", ".hidden"], ["a/b"]),
        ("**", ["a", "a/b/c"], []),
        ("a*b*c", ["abc", "axbxc", "abbcc"], ["ab", "acb"]),
        ("**/a/**/b", ["a/b", "x/a/a/y/b", "a/x/a/b"], ["b/a", "a/b/c"]),
        ("**/a/*/b/**", ["a/a/x/b", "q/a/b/b/c/d"], ["a/b", "a/x/y/b"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [path for path in (*inside, *outside) if matches(pattern, path)] == inside
    assert covered(pattern, [*inside, *outside]) == len(inside)


def test_no_pattern_takes_long_to_match() -> None:
    assert not matches("*a" * 127 + "*b", "a" * 4000)
    assert not matches("**/a/" * 40 + "b", "a/" * 1000 + "c")


@pytest.mark.parametrize(
    ("one", "other", "do_meet"),
    [
        ("src/*.py", "src/auth*", True),
        ("src/*/x.py", "src/a/*", True),
        ("a/*/c", "a/b/*", True),
        ("src/**/test_*.py", "src/api/**", True),
        ("src/**", "src", True),
        ("a*b", "*bab", True),  # both match "abab"
        ("a*b", "a*c", False),
        ("**/x", "**/y", False),
        ("a?", "a", False),
        ("a/**/b", "a/b", True),
        ("*", "a/b", False),
        ("**/a/*", "b/**/c/d", False),
        ("src/a.py", "src/a.py", True),
        ("src/a.py", "src/a.pyc", False),
    ],
)
def test_two_patterns_meet_if_one_path_is_in_both(one: str, other: str, do_meet: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is do_meet


SEGMENTS = ["".join(s) for n in (1, 2, 3) for s in product("ab*?", repeat=n) if "**" not in "".join(s)]
WORDS = ["".join(w) for n in range(1, 8) for w in product("abc", repeat=n)]


def plainly(pattern: str) -> re.Pattern[str]:
    """By a way of its own: the regular expression that says the same."""
    text = re.escape(pattern).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"/\*\*", "(?:/[^/]+)*")
    return re.compile(text.replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))


def test_all_pairs_of_short_segments_against_all_words() -> None:
    sets = {s: {w for w in WORDS if plainly(s).fullmatch(w)} for s in SEGMENTS}
    assert all({w for w in WORDS[:363] if matches(s, w)} == sets[s] & set(WORDS[:363]) for s in SEGMENTS)
    wrong = [(a, b) for a in SEGMENTS for b in SEGMENTS if overlap(a, b) != bool(sets[a] & sets[b])]
    assert not wrong


PATHS = ["/".join(p) for n in range(1, 7) for p in product(("a", "ab", "b"), repeat=n)]
parts = some.lists(some.sampled_from(["a", "b", "ab", "a*", "*b", "?", "*", "**"]), min_size=1, max_size=4)


@given(parts, parts)
def test_patterns_of_several_segments_against_all_paths(one: list[str], other: list[str]) -> None:
    a, b = normal("/".join(one)), normal("/".join(other))
    in_both = [path for path in PATHS if plainly(a).fullmatch(path) and plainly(b).fullmatch(path)]
    assert overlap(a, b) is overlap(b, a)
    assert overlap(a, b) or not in_both, in_both[0]
    # Every pair of these that meets does so in a path of at most six of these segments.
    assert not overlap(a, b) or in_both
    assert [path for path in PATHS[:363] if matches(a, path)] == [p for p in PATHS[:363] if plainly(a).fullmatch(p)]


@given(parts, parts)
def test_what_is_fixed_never_hides_that_two_meet(one: list[str], other: list[str]) -> None:
    a, b = normal("/".join(one)), normal("/".join(other))
    if overlap(a, b):
        assert all(x == y for x, y in zip(fixed_part(a), fixed_part(b), strict=False))
        (head, tail), (begins, stops) = ends(a), ends(b)
        assert head.startswith(begins) or begins.startswith(head)
        assert tail.endswith(stops) or stops.endswith(tail)
    assert is_literal(a) == ("/".join(fixed_part(a)) == a)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("src/a.py", "path:src/a.py"),
        ("path:src/", "path:src/**"),
        ("path:res:x", "path:res:x"),
        ("res:port-3000", "res:port-3000"),
        ("res:gpu:2", "res:gpu:2"),
        ("file:/etc//hosts", "file:/etc/hosts"),
        ("integrate:feature/x", "integrate:feature/x"),
    ],
)
def test_a_word_is_a_name_of_one_kind(typed: str, shown: str) -> None:
    name = name_of(typed, "repo")
    assert str(name) == shown
    assert name.scope == ("repo" if name.kind in ("path", "integrate") else "")


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("res:", "empty"),
        ("res:GPU", "bad_name"),
        ("res:-x", "bad_name"),
        ("res:" + "x" * 65, "bad_name"),
        ("res:gpu:0", "bad_name"),
        ("res:a b", "bad_name"),
        ("path:", "empty"),
        ("path:/", "is_root"),
        ("file:", "empty"),
        ("file:a", "bad_name"),
        ("file:/a/../b", "bad_name"),
        ("file:/", "is_root"),
        ("file:/a\0b", "bad_character"),
        ("integrate:", "empty"),
        ("integrate:a b", "bad_character"),
    ],
)
def test_a_word_that_is_no_name(typed: str, code: str) -> None:
    with pytest.raises(Usage) as refusal:
        name_of(typed, "repo")
    assert refusal.value.code == code and refusal.value.message.isprintable()


def test_a_written_file_and_a_typed_path_are_one_name() -> None:
    assert path_name(f"{ROOT}/src/a.py", "repo", ROOT) == name_of("src/a.py", "repo", ROOT)
