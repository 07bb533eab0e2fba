"""Put a model into the store, take one out, and note that one was used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from localcascade.digest import Digest, digest_file
from localcascade.errors import ModelFileError, ModelNotFound, StoreError
from localcascade.names import check_file_paths, check_name, fold_name
from localcascade.store.installed import InstalledModel
from localcascade.store.manifest import (
    MANIFEST_NAME,
    OWN_NAMES,
    USED_NAME,
    Kind,
    Manifest,
    StoredFile,
    make_stored_file,
)
from localcascade.store.staging import find_kind_folder, trash
from localcascade.store.weights import read_weights
from quantize.part import sync_folder

OnProgress = Callable[[str, int, int], None]
"""Called with stage, bytes done and bytes in all."""


def make_manifest(
    folder: Path,
    name: str,
    kind: Kind,
    *,
    repo: str = "",
    commit: str = "",
    notes: Iterable[str] = (),
    digests: Mapping[str, Digest] | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Describe a complete model that lies in a staging folder; every file in it belongs to it.

    Args:
        folder: Where it lies.
        name: What it shall be called.
        kind: A GGUF model (one file or all its splits), or a checkpoint.
        repo: Where it came from, OWNER/NAME.
        commit: Of that repository.
        notes: Lines for people: licence, recipe, source.
        digests: By path, of files that the caller has verified from the disk; the others are
            read here.
        on_progress: Stage "verify", in bytes.

    Returns:
        The manifest, for `install_model`.

    Raises:
        UnsafeName: The name, or a file's path, cannot be used.
        ModelFileError: It is no whole model.
        QuantizeError: A header is damaged.
        OSError: A file cannot be read.
    """
    check_name(name)
    files = check_file_paths(_list_paths(folder))
    weights = read_weights(folder, kind, files)
    known = dict(digests or {})
    sizes = {file: (folder / file).stat().st_size for file in files if file not in known}
    done, total = 0, sum(sizes.values())

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if on_progress:
            on_progress("verify", done, total)

    for file in sizes:
        known[file] = digest_file(folder / file, on_bytes=count)
    stored = tuple(make_stored_file(file, known[file]) for file in files)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(name, kind, stored, weights, created, repo, commit, tuple(notes))


def install_model(folder: Path, manifest: Manifest) -> InstalledModel:
    """Let a complete, verified model appear in the store, in one step.

    Args:
        folder: As `open_staging` gave it; it becomes the model's folder.
        manifest: As `make_manifest` made it of this folder.

    Returns:
        The model.

    Raises:
        StoreError: The name is taken, or the folder cannot be put in place.
        ModelFileError: The folder does not hold the manifest's files, in those sizes.
    """
    _compare_sizes(folder, manifest.files)
    check_name_free(manifest.name, manifest.kind)
    place = find_kind_folder(manifest.kind) / manifest.name
    try:
        write_manifest(folder, manifest)
        for at in _list_folders(folder, manifest.files):
            sync_folder(at)
        folder.rename(place)
        sync_folder(place.parent)
        sync_folder(folder.parent)
    except OSError as error:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        raise StoreError(
            f"{place}: {error.strerror}", "Check the permissions and the disk of that folder."
        ) from error
    return InstalledModel(manifest.name, manifest.kind, place, manifest)


def check_name_free(name: str, kind: Kind) -> None:
    """Refuse a name that is taken, on this system or on one that ignores case.

    Raises:
        UnsafeName: It cannot be a name at all.
        StoreError: It is taken.
    """
    check_name(name)
    folder = find_kind_folder(kind)
    taken = folder.iterdir() if folder.is_dir() else ()
    for other in taken:
        if fold_name(other.name) in (fold_name(name), fold_name(f"{name}.gguf")):
            command = f"localcascade rm {other.name.removesuffix('.gguf')}"
            hint = f"Remove it with `{command}`, or choose another name."
            raise StoreError(f"{name} is installed already: {other}", hint)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json into a staging folder, and to the disk."""
    import json

    text = json.dumps(manifest.to_json(), ensure_ascii=False, indent=1)
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def remove_model(model: InstalledModel) -> None:
    """Take a model out of the store: gone in one step, then deleted.

    Raises:
        ModelNotFound: Another process was faster.
        StoreError: It cannot be moved or deleted.
    """
    try:
        trash(model.place)
    except FileNotFoundError as error:
        raise ModelNotFound(f"{model.name} is gone already") from error


def mark_used(path: Path) -> None:
    """Note that an installed model was used now.

    Args:
        path: A file or folder, as `find_model` or `find_checkpoint` gave it; one that is not in
            the store, or a store that cannot be written, is passed over.
    """
    for folder in (path, *path.parents):
        if (folder / MANIFEST_NAME).is_file():
            with suppress(OSError):
                (folder / USED_NAME).touch()
            return


def _list_paths(folder: Path) -> list[str]:
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    paths = sorted(path.relative_to(folder).as_posix() for path in found)
    return [path for path in paths if path not in OWN_NAMES]


def _compare_sizes(folder: Path, files: Iterable[StoredFile]) -> None:
    expected = {file.path: file.size for file in files}
    found = {path: (folder / path).lstat().st_size for path in _list_paths(folder)}
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise ModelFileError(
                folder / path,
                f"{found.get(path, 'no')} bytes where the manifest says "
                f"{expected.get(path, 'that there is no such file')}",
                hint="Install the model again.",
            )


def _list_folders(folder: Path, files: Iterable[StoredFile]) -> list[Path]:
    """The folder and those inside it that hold files, the deepest first."""
    found = {at for file in files for at in (folder / file.path).parents if at != folder.parent}
    inside = {at for at in found if at.is_relative_to(folder)}
    return sorted(inside, key=lambda at: -len(at.parts))
