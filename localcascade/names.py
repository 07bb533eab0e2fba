"""Names from strangers: which of them may become a folder or a file of ours.

A repository, a manifest or a person gives a name; only what passes here is joined to a path. What
one system forbids is refused on all, so that a store can be carried from one to another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from localcascade.errors import UnsafeName

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REPO_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
"""A repository of the Hub, OWNER/NAME."""
MAX_NAME_CHARACTERS = 96
MAX_PART_BYTES = 200
"""Of a file's or folder's name: file systems hold 255, and endings are added while it is made."""
MAX_PATH_BYTES = 800

_PORTS = tuple(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")
_RESERVED = frozenset(("con", "prn", "aux", "nul", "conin$", "conout$", "clock$", *_PORTS))
"""Devices of Windows, whatever ending follows."""
_FORBIDDEN = frozenset('\\:<>"|?*')
_DATA_SUFFIXES = frozenset((".gguf", ".safetensors", ".json", ".jinja", ".model", ".txt", ".md"))
_DATA_NAMES = frozenset(("license", "licence", "notice", "readme"))


def check_name(name: str) -> str:
    """Refuse what must not become the name of a model.

    Args:
        name: For example "nemotron-cascade-2" or "tiny-Q4_K_M".

    Returns:
        The name as it was given.

    Raises:
        UnsafeName: It holds other characters than letters, digits, dots, hyphens and underscores,
            is too long, would be taken for a file, or names a device of Windows.
    """
    problem = _find_name_problem(name)
    if problem:
        hint = "Use letters, digits, dots, hyphens and underscores, for example my-model."
        raise UnsafeName(f"{name!a:.120} cannot be the name of a model: {problem}", hint)
    return name


def check_file_path(path: str) -> str:
    """Refuse a path that would leave the model's folder, or mean something else elsewhere.

    Args:
        path: Relative, parts divided by "/", as the Hub and our manifests write it.

    Returns:
        The path as it was given; joined to a folder it lies inside that folder.

    Raises:
        UnsafeName: It is absolute, climbs, or holds what a file's name cannot hold everywhere.
    """
    problem = find_path_problem(path)
    if problem:
        raise UnsafeName(
            f"{path!a:.120} cannot be a file of a model: {problem}",
            "Nothing was written; whoever made that list of files made a mistake, or means harm.",
        )
    return path


def check_file_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Refuse paths that are unsafe, or of which two would be one file on some systems.

    Args:
        paths: As for `check_file_path`.

    Returns:
        The same, in their order.

    Raises:
        UnsafeName: Names the path, or the two that collide.
    """
    given = tuple(check_file_path(path) for path in paths)
    collision = find_collision(given)
    if collision:
        raise UnsafeName(
            f"{collision[0]!a} and {collision[1]!a} cannot lie in one folder on every system",
            "Choose one of them with --file.",
        )
    return given


def find_path_problem(path: str) -> str:
    """Say why `check_file_path` would refuse a path; empty if it would not."""
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        return f"it has more than {MAX_PATH_BYTES} bytes"
    if not path.isprintable():
        return "it holds control characters"
    if path.startswith("/"):
        return "it is absolute"
    return next(filter(None, map(_find_part_problem, path.split("/"))), "")


def find_collision(paths: Iterable[str]) -> tuple[str, str] | None:
    """Find two paths that differ only in case or accents, or of which one needs a folder where
    the other has its file."""
    seen: dict[str, str] = {}
    for path in sorted(paths, key=len):
        key = fold_name(path)
        folders = [str(folder) for folder in PurePosixPath(key).parents]
        for taken in (key, *folders):
            if taken in seen:
                return seen[taken], path
        seen[key] = path
    return None


def fold_name(name: str) -> str:
    """Bring a name into the form in which a system that ignores case and accents compares it."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)


def is_data_file(path: str) -> bool:
    """Tell weights, settings and texts from code and pickles, which are never fetched or kept."""
    name = PurePosixPath(path).name.lower()
    return PurePosixPath(name).suffix in _DATA_SUFFIXES or name in _DATA_NAMES


def _find_name_problem(name: str) -> str:
    if not NAME_PATTERN.fullmatch(name):
        return "it holds other characters than letters, digits and . - _, or begins with one"
    if len(name) > MAX_NAME_CHARACTERS:
        return f"it has more than {MAX_NAME_CHARACTERS} characters"
    if name.lower().endswith(".gguf"):
        return "it would be taken for a file"
    return _find_part_problem(name)


def _find_part_problem(part: str) -> str:
    if part in ("", ".", ".."):
        return "it climbs, or a part of it is empty"
    if _FORBIDDEN & set(part):
        return 'it holds one of \\ : < > " | ? *'
    if part != part.strip() or part.endswith("."):
        return "a part of it begins or ends with a blank, or ends with a dot"
    if len(part.encode("utf-8", "surrogatepass")) > MAX_PART_BYTES:
        return f"a part of it has more than {MAX_PART_BYTES} bytes"
    if part.split(".")[0].rstrip().lower() in _RESERVED:
        return "it names a device of Windows"
    return ""
