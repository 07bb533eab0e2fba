"""The names and paths that people give, into files.

A name (letters, digits, dots, hyphens, underscores) is looked up in our own folders and never
leaves them. What holds a separator, or ends in .gguf, is a path first.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from localcascade import paths
from localcascade.catalog import Catalog, CatalogEntry, load_catalog
from localcascade.errors import CascadeError, ModelFileError, ModelNotFound
from localcascade.names import NAME_PATTERN
from localcascade.store.installed import list_models, read_model


def find_model(name: str) -> Path:
    """Find the GGUF file of a model.

    Args:
        name: Path of a GGUF file, an installed name, or a name or repository of the catalog.

    Returns:
        Path of a file that exists.

    Raises:
        ModelNotFound: There is none; the hint is the next command to give.
    """
    path = _expand(name)
    if _reads_as_path(name) and path.is_file():
        return path
    # The catalog, which costs more time than the rest, says nothing of a name that is installed.
    installed = _find_installed(name) if NAME_PATTERN.fullmatch(name) else None
    if installed:
        return installed
    catalog = load_catalog()
    own_name, entry = catalog.find_entry(name) or (name, None)
    installed = _find_installed(own_name) if own_name != name else None
    if installed:
        return installed
    if path.is_file():
        return path
    raise _explain_not_installed(own_name, entry) if entry else _explain_no_model(name, catalog)


def find_checkpoint(name: str) -> Path:
    """Find the folder of a Hugging Face checkpoint.

    Args:
        name: Path of a folder with a config.json, or a name or repository of the catalog.

    Returns:
        A folder that holds a config.json; nothing else of it is checked.

    Raises:
        ModelNotFound: There is none; the hint is the next command to give.
    """
    path = _expand(name)
    if _reads_as_path(name) and _is_checkpoint(path):
        return path
    catalog = load_catalog()
    own_name, entry = catalog.find_entry(name) or (name, None)
    for folder in (*_list_checkpoint_folders(own_name, entry), path):
        if _is_checkpoint(folder):
            return folder
    raise _explain_no_checkpoint(own_name, entry, catalog)


def list_installed() -> dict[str, Path]:
    """List the GGUF models that `find_model` finds by name.

    Returns:
        Name to GGUF file, the first of a split one, sorted by name; a folder with the files of
        several models is left out.
    """
    found: dict[str, Path] = {}
    for model in list_models():
        if model.kind == "gguf":
            with suppress(ModelFileError):
                found[model.name] = model.find_gguf()
    return found


def bundled_checkpoint_folder(name: str) -> Path:
    """Folder of a checkpoint that ships with the package."""
    return Path(__file__).parent.parent / "data" / name


def complete_model_name(incomplete: str) -> list[tuple[str, str]]:
    """Complete a name for the shell; an unreadable catalog completes nothing.

    Returns:
        Names with a line on each, of the catalog and of what is installed.
    """
    try:
        known = {name: entry.summary for name, entry in load_catalog().entries.items()}
        known |= {name: str(file) for name, file in list_installed().items() if name not in known}
    except CascadeError:
        return []
    return [(name, text) for name, text in known.items() if name.startswith(incomplete)]


def complete_installed_name(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a model in the store for the shell; each with its kind."""
    return [(m.name, m.kind) for m in list_models() if m.name.startswith(incomplete)]


def _expand(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # ~ and no such user, or a zero byte: a name like others
        return Path(name)


def _reads_as_path(name: str) -> bool:
    return os.sep in name or "/" in name or name.endswith(".gguf")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _find_installed(name: str) -> Path | None:
    model = read_model(name, "gguf")
    if model is None:
        return None
    try:
        return model.find_gguf()
    except ModelFileError as error:
        listed = ", ".join(path.name for path in model.list_files())
        raise ModelNotFound(f"{error.message}: {listed}", "Give the path of one.") from error


def _list_checkpoint_folders(name: str, entry: CatalogEntry | None) -> list[Path]:
    if not NAME_PATTERN.fullmatch(name):
        return []
    installed = paths.find_checkpoints_folder() / name
    return [bundled_checkpoint_folder(name), installed] if entry and entry.bundled else [installed]


def _explain_not_installed(name: str, entry: CatalogEntry) -> ModelNotFound:
    if entry.bundled:
        return ModelNotFound(
            f"{name} is bundled, but not quantized yet", "Run `localcascade demo`, which does it."
        )
    steps = f"`localcascade quantize {name} {name}.gguf --type q4_0` and run {name}.gguf."
    if any(_is_checkpoint(folder) for folder in _list_checkpoint_folders(name, entry)):
        return ModelNotFound(f"{name} is downloaded, but not quantized yet", f"Run {steps}")
    return ModelNotFound(
        f"{name} is not installed", f"{_advise_download(name, entry)}, then {steps}"
    )


def _advise_download(name: str, entry: CatalogEntry) -> str:
    size_gb = entry.checkpoint_bytes / 1e9
    return f"Download it ({size_gb:.0f} GB) with `localcascade pull {name}`"


def _explain_no_model(name: str, catalog: Catalog) -> ModelNotFound:
    path = _expand(name)
    if _is_checkpoint(path):
        out = f"{path.name}.gguf"
        command = f"localcascade quantize {shlex.quote(name)} {shlex.quote(out)} --type q4_0"
        return ModelNotFound(f"{name} is a checkpoint, not a GGUF file", f"Run `{command}` first.")
    if path.is_dir():
        return ModelNotFound(f"{name} is a folder", "Give the path of the GGUF file in it.")
    return _explain_unknown(name, {*catalog.entries, *list_installed()})


def _explain_no_checkpoint(
    name: str, entry: CatalogEntry | None, catalog: Catalog
) -> ModelNotFound:
    path = _expand(name)
    if entry and entry.repo:
        return ModelNotFound(
            f"the checkpoint of {name} is not on this machine", f"{_advise_download(name, entry)}."
        )
    if path.is_dir():
        return ModelNotFound(
            f"{name} holds no config.json", "Give the folder of a Hugging Face checkpoint."
        )
    if path.is_file():
        return ModelNotFound(
            f"{name} is a file", "Give the folder of the checkpoint, which holds a config.json."
        )
    return _explain_unknown(name, catalog.entries)


def _explain_unknown(name: str, known: Iterable[str]) -> ModelNotFound:
    if _reads_as_path(name):
        return ModelNotFound(f"{name}: no such file or folder", "Check the path.")
    nearest = get_close_matches(name, list(known), n=2)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return ModelNotFound(
        f"no model is called {name}", f"{hint}`localcascade models` lists the names."
    )


def list_parts(path: Path) -> list[Path]:
    """List the files of a model, of which the first is given: NAME-00001-of-00003.gguf."""
    first, _, n_parts = path.stem.rpartition("-of-")
    if not first.endswith("-00001") or not n_parts.isdecimal():
        return [path]
    stem = first.removesuffix("-00001")
    names = (f"{stem}-{i + 1:05}-of-{n_parts}{path.suffix}" for i in range(int(n_parts)))
    return [path.with_name(name) for name in names]
