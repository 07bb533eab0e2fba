"""Files that could be attached: as git sees them, in the order one would wish, read with care."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcascade.chat.attachments import AttachmentRefused, estimate_tokens
from localcascade.tui.files import list_files, rank_files, read_attachment


def make_tree(folder: Path, *paths: str) -> None:
    """Make files, each holding its own path."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_a_repository_lists_what_git_does_not_ignore(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    make_tree(tmp_path, "a.py", "sub/b.py", "build/out.o", "sub/with space é.txt")
    (tmp_path / ".gitignore").write_text("build/\n")
    assert list_files(tmp_path) == [".gitignore", "a.py", "sub/b.py", "sub/with space é.txt"]
    assert list_files(tmp_path / "sub") == ["b.py", "with space é.txt"]


def test_a_repository_runs_nothing_of_its_own(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    subprocess.run(["git", "-C", str(tmp_path), "config", "core.fsmonitor", str(hook)], check=True)
    assert list_files(tmp_path) == ["hook.sh"]
    assert not (tmp_path / "ran").exists()


def test_a_plain_folder_is_walked(tmp_path: Path) -> None:
    make_tree(tmp_path, "z.txt", "a/b/c.txt", ".git-like/x", "node_modules/m.js", "a/.hidden")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list_files(tmp_path) == ["a/.hidden", "a/b/c.txt", "z.txt"]
    assert len(list_files(tmp_path, limit=2)) == 2


@pytest.mark.parametrize(
    ("typed", "best"),
    [
        ("enc", "quantize/encoders.py"),
        ("testchat", "tests/test_chat.py"),
        ("READ", "README.md"),
        ("qenc", "quantize/encoders.py"),
        ("chat.py", "tui/chat.py"),
        ("", "README.md"),
    ],
)
def test_the_file_one_means_is_first(typed: str, best: str) -> None:
    paths = [
        "docs/reference/canonical.md", "quantize/encoders.py", "tests/test_chat.py", "README.md",
        "tui/chat.py", "tui/charts.py", "a/thread/index.py",
    ]  # fmt: skip
    assert rank_files(paths, typed)[0] == best


@given(
    st.lists(st.text(st.sampled_from("abcß/._A"), min_size=1, max_size=12), unique=True),
    st.text(st.sampled_from("abcß. "), max_size=4),
)
def test_what_matches_has_the_letters_in_order(paths: list[str], typed: str) -> None:
    def holds(path: str) -> bool:
        rest = iter(path.lower())
        return all(letter in rest for letter in "".join(typed.split()).lower())

    assert sorted(rank_files(paths, typed, len(paths))) == sorted(filter(holds, paths))


def test_a_file_is_read(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/b.txt")
    taken = read_attachment(tmp_path, "a/b.txt", 100, estimate_tokens)
    assert (taken.path, taken.text, taken.n_bytes) == ("a/b.txt", "a/b.txt", 7)


@pytest.mark.timeout(120)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in (("pipe", "no plain file"), ("folder", "folder"), ("gone", "No such file")):
        with pytest.raises(AttachmentRefused, match=words):
            read_attachment(tmp_path, name, 100, estimate_tokens)
    with pytest.raises(AttachmentRefused):
        read_attachment(Path("/"), "dev/zero", 100, estimate_tokens)
