"""Files that could be attached: listed as git sees them, ranked by what was typed, read."""

from __future__ import annotations

import heapq
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from localcascade.chat.attachments import (
    Attachment,
    AttachmentRefused,
    CountTokens,
    find_byte_limit,
    make_attachment,
)

MAX_FILES = 20_000
MAX_DEPTH = 12
_GIT_TIMEOUT_S = 5.0
_SKIPPED_FOLDERS = frozenset(("node_modules", "__pycache__", "venv"))
"""Beside hidden ones: what a tree without git is full of and nobody asks about."""


def list_files(folder: Path, limit: int = MAX_FILES) -> list[str]:
    """List the files of a folder, those that git ignores left out; may take a moment.

    Args:
        folder: Where to look.
        limit: Most files.

    Returns:
        Paths relative to the folder, "/" between their parts, sorted.
    """
    listed = _ask_git(folder)
    found = _walk(folder) if listed is None else listed
    return sorted({path for path, _ in zip(found, range(limit), strict=False)})


def _ask_git(folder: Path) -> list[str] | None:
    """Ask git for the files it knows or would take; None if it knows nothing of the folder."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others"]
    # No file watcher or hook of the repository runs for a mere list of names.
    command[1:1] = ["-c", "core.fsmonitor=false"]
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"],
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walk(folder: Path, depth: int = 0, prefix: str = "") -> Iterator[str]:
    """Walk a tree, files of a folder before those below it; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (f"{prefix}{entry.name}" for entry in entries if entry.is_file())
    for entry in entries if depth < MAX_DEPTH else ():
        if entry.is_dir(follow_symlinks=False) and not _is_skipped(entry.name):
            yield from _walk(folder / entry.name, depth + 1, f"{prefix}{entry.name}/")


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def rank_files(paths: Iterable[str], typed: str, limit: int = 50) -> list[str]:
    """Find the paths that hold the characters typed, in their order, the best ones first.

    Args:
        paths: Of all files.
        typed: What was typed; spaces do not count, nor does case.
        limit: Most paths.

    Returns:
        The best first: characters that follow each other, that begin words, or that are in the
        file's own name count for more, and a short path for more than a long one.
    """
    letters = "".join(typed.split()).lower()
    if not letters:
        return heapq.nsmallest(limit, paths, key=lambda path: (path.count("/"), path))
    pattern = re.compile(".*?".join(map(re.escape, letters)), re.IGNORECASE | re.DOTALL)
    matching = (path for path in paths if pattern.search(path))
    return heapq.nsmallest(limit, matching, key=lambda path: (-score_path(path, letters), path))


def score_path(path: str, letters: str) -> float:
    """Score how well a path matches; it has to hold the letters, in lower case, in order."""
    lower = path.lower()
    base = lower.rfind("/") + 1
    # Matched from its end, as the name of a file says more than that of its folder.
    whole = lower.rfind(letters)
    if whole >= 0:
        points = sum(_score_place(lower, whole + i, base) + 2 for i in range(len(letters)))
        return points - len(path) / 50
    points, end, after = 0.0, len(lower), -1
    for letter in reversed(letters):
        end = lower.rfind(letter, 0, end)
        points += _score_place(lower, end, base) + (2 if end + 1 == after else 0)
        after = end
    return points - len(path) / 50


def _score_place(lower: str, at: int, base: int) -> float:
    begins_word = at == 0 or not lower[at - 1].isalnum()
    return 1 + 2 * begins_word + (at >= base)


def read_attachment(
    folder: Path, path: str, limit_tokens: int, count_tokens: CountTokens
) -> Attachment:
    """Read a file that is to go along with a message; may take a moment.

    Args:
        folder: What the path is relative to.
        path: Of the file.
        limit_tokens: Most tokens.
        count_tokens: Counts those of a text.

    Raises:
        AttachmentRefused: It cannot be read, is no plain file, not text, or too large.
        CascadeError: Whatever counting raises.
    """
    try:
        data = _read_plain_file(folder / path, find_byte_limit(limit_tokens) + 1)
    except OSError as error:
        raise AttachmentRefused(f"{path}: {error.strerror or 'cannot be read'}") from error
    return make_attachment(path, data, limit_tokens, count_tokens)


def _read_plain_file(path: Path, n_bytes: int) -> bytes:
    """Read the beginning of a file; a pipe or a device would keep the reader waiting forever."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123  (of a descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AttachmentRefused(f"{path.name}: no plain file")
        return file.read(n_bytes)
