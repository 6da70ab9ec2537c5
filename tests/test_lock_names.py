"""What words mean as names of locks, typed in folders of all kinds."""

import os
import unicodedata
from pathlib import Path

import pytest
from gitrepo import make_repo, write

from agentd.core.errors import Usage
from agentd.daemon.lock_names import Where, names
from agentd.git import repository


@pytest.fixture
def top(tmp_path: Path) -> str:
    top = make_repo(tmp_path / "repo")
    write(f"{top}/app/[id]/page.tsx", "page")
    write(f"{top}/src/deep/a.py", "a")
    os.symlink("src/deep", f"{top}/short")
    os.symlink("/etc/hostname", f"{top}/away")
    os.symlink(top, tmp_path / "link")
    return top


def said(cwd: str, word: str, is_isolated: bool = False) -> list[str]:
    return [str(name) for name in names(word, Where(os.path.realpath(cwd), repository.find(cwd), is_isolated))]


@pytest.mark.parametrize(
    ("folder", "word", "path"),
    [
        ("", "src/deep/a.py", "src/deep/a.py"),
        ("src", "deep/a.py", "src/deep/a.py"),
        ("src", "path:src/deep/a.py", "src/deep/a.py"),
        ("src/deep", "../new.py", "src/new.py"),
        ("src/deep", "./a.py", "src/deep/a.py"),
        ("src", "deep/", "src/deep/**"),
        ("src", "./", "src/**"),
        ("src", ".", "src/**"),
        ("src", "*.py", "src/*.py"),
        ("src", "deep/*/", "src/deep/*/**"),
        # one file, one name: whichever way leads to it
        ("", "short/a.py", "src/deep/a.py"),
        ("short", "a.py", "src/deep/a.py"),
        ("", "path:short/new.py", "src/deep/new.py"),
        ("", "short/", "src/deep/**"),
        ("", "away", "away"),
        # what is there is meant as it is spelt
        ("", "app/[id]/page.tsx", "app/[id]/page.tsx"),
        ("", "path:app/[id]/page.tsx", "app/[id]/page.tsx"),
        ("app/[id]", "page.tsx", "app/[id]/page.tsx"),
        ("app/[id]", "new.tsx", "app/[id]/new.tsx"),
        ("", "app/[id]/", "app/[id]/**"),
    ],
)
def test_a_word_is_a_path_from_the_top(top: str, folder: str, word: str, path: str) -> None:
    assert said(f"{top}/{folder}", word, is_isolated=True) == [f"path:{path}"]


def test_all_ways_to_a_file_have_one_name(top: str, tmp_path: Path) -> None:
    expected = ["path:src/deep/a.py", f"file:{top}/src/deep/a.py"]
    for cwd, word in (
        (top, "src/deep/a.py"),
        (f"{tmp_path}/link/src", "deep/a.py"),
        (f"{top}/src", f"{top}/src/deep/a.py"),
        (f"{top}/src", f"{tmp_path}/link/short/a.py"),
        (f"{top}/short", "a.py"),
    ):
        assert said(cwd, word) == expected


def test_composed_and_decomposed_spellings_are_one_path(top: str) -> None:
    word = "grüße.py"
    apart = unicodedata.normalize("NFD", word)
    assert apart != word
    assert said(top, word, is_isolated=True) == said(top, apart, is_isolated=True) == [f"path:{word}"]


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a\0b", "bad_character"),
        ("../x", "outside_repo"),
        ("../*", "outside_repo"),
        ("/etc/passwd", "outside_repo"),
        ("/etc/*", "outside_repo"),
        (".", "is_root"),
        ("/", "is_root"),
        ("path:", "empty"),
        ("path:../x", "outside_repo"),
        ("path:/etc/passwd", "outside_repo"),
        ("app/[new]/page.tsx", "bad_glob"),
        ("{a,b}", "bad_glob"),
        ("!a", "bad_glob"),
        ("a**b", "bad_glob"),
        ("a/" * 130 + "*", "too_long"),
        ("a" * 5000, "too_long"),
        ("res:", "empty"),
        ("res:UP", "bad_name"),
        ("res:a/b", "bad_name"),
        ("file:", "empty"),
        ("file:/", "is_root"),
        ("integrate:", "empty"),
        ("integrate:a b", "bad_character"),
    ],
)
def test_what_is_no_name_is_refused_with_its_reason(top: str, word: str, code: str) -> None:
    with pytest.raises(Usage) as refused:
        said(top, word)
    assert refused.value.code == code
