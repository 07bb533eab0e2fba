"""Hostile names: what may become a folder or file of ours, held against the file system itself."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localcascade.errors import UnsafeName
from localcascade.names import (
    check_file_path,
    check_file_paths,
    check_name,
    find_collision,
    find_path_problem,
    is_data_file,
)

HOSTILE_PATHS = [
    "", ".", "..", "/", "//", "a/", "/a", "a//b", "./a", "a/.", "../a", "a/../b", "a/..",
    "/etc/passwd", "//server/share", "~/../../a/..",
    "C:", "C:a", "C:/a", "C:\\a", "a\\b", "..\\a", "\\\\server\\share", "\\a", "a:stream",
    "a\0b", "a\nb", "a\rb", "a\tb", "a\x1b[2Jb", "a\x7fb", "\u202egpj.exe", "a\u2028b",
    "a\u200fb", "\ud800", "a\x85b",
    "con", "CON", "nul.json", "Aux.gguf", "com1", "LPT9.txt", "sub/prn/a", "COM¹.a", "nul .txt",
    " a", "a ", "a.", "sub /a", "sub./a", "a\u3000", "...",
    "a<b", "a>b", 'a"b', "a|b", "a?b", "a*b",
    "x" * 201, "é" * 101, "/".join(["abcdefg"] * 150),
]  # fmt: skip
GOOD_PATHS = [
    "config.json", "model-00001-of-00013.safetensors", "sub/folder/model.gguf", ".gitattributes",
    "Nemotron Cascade (Q4_K_M).gguf", "..a", "a..b", "模型.gguf", "été.md", "console.txt",
    "com10.json", "a" * 200, "-rf",
]  # fmt: skip
HOSTILE_NAMES = [
    *[path for path in HOSTILE_PATHS if path], "", "a/b", "-a", ".a", "_a", "a b", "é", "a.gguf",
    "A.GGUF", "a" * 97, "a\n", "modèle", "a@import", ".staging",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=ascii)
def test_a_hostile_path_is_refused_and_shown_harmlessly(path: str) -> None:
    with pytest.raises(UnsafeName) as caught:
        check_file_path(path)
    assert caught.value.message.isprintable() and caught.value.message.isascii()
    assert len(caught.value.message) < 300 and caught.value.hint


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_an_honest_path_is_kept_as_it_is(path: str, tmp_path: Path) -> None:
    assert check_file_path(path) == path
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(UnsafeName):
        check_name(name)


@pytest.mark.parametrize("name", ["tiny", "nemotron-cascade-2", "a.b_c-D", "7B", "a" * 96])
def test_an_honest_name_is_kept(name: str) -> None:
    assert check_name(name) == name


PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "a", "B", " ", "C:", "nul", "\0", "\n", "~", "com1", "é", "*", "\u202e"]
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.lists(PIECES, max_size=7).map("".join) | st.text(max_size=30))
def test_what_passes_stays_inside_on_both_kinds_of_system(path: str, tmp_path: Path) -> None:
    if find_path_problem(path):
        return
    joined = tmp_path / path
    assert Path(os.path.normpath(joined)) == joined != tmp_path
    assert joined.is_relative_to(tmp_path)
    windows = PureWindowsPath("D:\\store") / path
    assert windows.drive == "D:" and len(windows.parts) == 2 + len(path.split("/"))
    assert ".." not in windows.parts and not windows.is_reserved()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Config.json", "config.json"),
        ("sub/A", "SUB/a"),
        ("stra\u00dfe", "STRASSE"),
        ("e\u0301", "\u00e9"),
        ("\u2126", "\u03a9"),
        ("a", "a/b"),
        ("x/y", "X"),
        ("same", "same"),
        ("fi", "\ufb01"),
    ],
)
def test_two_paths_that_are_one_on_some_systems_collide(first: str, second: str) -> None:
    for paths in ([first, second], [second, "other", first]):
        assert set(find_collision(paths) or ()) == {first, second}
        with pytest.raises(UnsafeName):
            check_file_paths(paths)


def test_paths_that_differ_do_not_collide() -> None:
    paths = ["a/b", "a/c", "ab", "a.b", "b/a"]
    assert find_collision(paths) is None
    assert check_file_paths(paths) == tuple(paths)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("model.safetensors", True),
        ("sub/Model.GGUF", True),
        ("LICENSE", True),
        ("tokenizer.model", True),
        ("modeling.py", False),
        ("pytorch_model.bin", False),
        ("model.pt", False),
        ("a.pkl", False),
        ("json", False),
        ("model.safetensors.exe", False),
        ("run.sh", False),
        ("a.npz", False),
    ],
)
def test_code_and_pickles_are_no_data(path: str, kept: bool) -> None:
    assert is_data_file(path) is kept
