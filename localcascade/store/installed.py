"""Which models are installed: folders with a manifest, and files put there by hand."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from localcascade import __version__, paths
from localcascade.errors import ModelFileError, ModelNotFound
from localcascade.names import NAME_PATTERN
from localcascade.store.manifest import (
    KINDS,
    OWN_NAMES,
    USED_NAME,
    Kind,
    Manifest,
    read_manifest,
)
from localcascade.store.staging import find_kind_folder
from localcascade.store.weights import order_ggufs

_BUNDLED_SUFFIX = f"-{__version__}-q8_0.gguf"


@dataclass(frozen=True)
class InstalledModel:
    """One model in the store."""

    name: str
    kind: Kind
    place: Path
    """Its folder; of a GGUF file put there by hand, the file."""
    manifest: Manifest | None
    """None for what was put there by hand, and where the manifest is damaged."""
    problem: str = ""
    """What is wrong with the manifest."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its files: those of the manifest, or those that are there."""
        if self.manifest:
            return self.manifest.size_bytes
        return sum(path.lstat().st_size for path in self.list_files())

    @property
    def disk_bytes(self) -> int:
        """Bytes that it takes on the disk, the manifest included."""
        return measure_disk(self.place)

    @property
    def last_used_s(self) -> float | None:
        """When it was last run or quantized, in seconds since 1970; None if it never was."""
        try:
            return (self.place / USED_NAME).stat().st_mtime
        except OSError:
            return None

    def list_files(self) -> list[Path]:
        """List the files that are there, ours not among them; links are not followed."""
        if not self.place.is_dir():
            return [self.place]
        found = (Path(at, name) for at, _, names in os.walk(self.place) for name in names)
        return sorted(path for path in found if path.name not in OWN_NAMES)

    def find_gguf(self) -> Path:
        """Find the file that llama.cpp is given; of a split model, the first.

        Raises:
            ModelFileError: The folder holds no GGUF file, or those of several models.
        """
        if not self.place.is_dir():
            return self.place
        names = [path.relative_to(self.place).as_posix() for path in self.list_files()]
        if self.manifest:
            names = [file.path for file in self.manifest.files]
        return self.place / order_ggufs(self.place, names)[0]


def list_models() -> list[InstalledModel]:
    """List what is installed, sorted by name; a damaged manifest hides nothing else."""
    found = {(model.name, model.kind): model for model in _list_bundled()}
    found |= {(model.name, model.kind): model for kind in KINDS for model in _list_kind(kind)}
    return [found[key] for key in sorted(found)]


def find_installed(name: str, kind: Kind | None = None) -> InstalledModel:
    """Find a model of the store by its name; it need not be sound.

    Args:
        name: As `list_models` gives it; never a path.
        kind: To choose with where a GGUF and a checkpoint have the same name.

    Raises:
        ModelNotFound: There is none, or there are two.
    """
    found = [model for model in (read_model(name, k) for k in KINDS) if model]
    chosen = [model for model in found if kind in (None, model.kind)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise ModelNotFound(
            f"{name} is a GGUF and a checkpoint", "Say which with --kind gguf or --kind checkpoint."
        )
    names = [model.name for model in list_models() if kind in (None, model.kind)]
    nearest = get_close_matches(name, names, n=2)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ModelNotFound(
        f"no installed {kind or 'model'} is called {name}",
        f"{hint}`localcascade ls` lists what there is.",
    )


def read_model(name: str, kind: Kind) -> InstalledModel | None:
    """Look a name up in one of the store's folders; None if it is not there."""
    if not NAME_PATTERN.fullmatch(name):
        return None
    folder = find_kind_folder(kind)
    if kind == "gguf" and (folder / f"{name}.gguf").is_file():
        return InstalledModel(name, kind, folder / f"{name}.gguf", None)
    if (folder / name).is_dir():
        return _read_folder(folder / name, kind)
    bundled = bundled_model_path(name)
    found = kind == "gguf" and bundled.is_file()
    return InstalledModel(name, kind, bundled, None) if found else None


def bundled_model_path(name: str) -> Path:
    """Path in the cache where a bundled checkpoint is quantized to, by this version of ours."""
    return paths.find_cache_folder() / "models" / f"{name}{_BUNDLED_SUFFIX}"


def measure_disk(place: Path) -> int:
    """Measure what a file or folder takes on the disk, in bytes; what vanishes counts nothing."""
    total = 0
    for path in (place, *place.rglob("*")):
        try:
            status = path.lstat()
        except OSError:
            continue
        total += 512 * status.st_blocks if stat.S_ISREG(status.st_mode) else 0
    return total


def _list_bundled() -> Iterator[InstalledModel]:
    for path in bundled_model_path("").parent.glob(f"*{_BUNDLED_SUFFIX}"):
        yield InstalledModel(path.name.removesuffix(_BUNDLED_SUFFIX), "gguf", path, None)


def _list_kind(kind: Kind) -> Iterator[InstalledModel]:
    try:
        names = [path.name for path in find_kind_folder(kind).iterdir()]
    except OSError:
        return
    stems = {name.removesuffix(".gguf") if kind == "gguf" else name for name in names}
    for stem in stems:
        model = read_model(stem, kind)
        if model:
            yield model


def _read_folder(place: Path, kind: Kind) -> InstalledModel | None:
    try:
        manifest = read_manifest(place)
    except FileNotFoundError:
        model = InstalledModel(place.name, kind, place, None)
        return model if _holds_model(model) else None
    except ModelFileError as error:
        return InstalledModel(place.name, kind, place, None, error.message)
    if manifest.kind != kind:
        problem = f"{place / 'manifest.json'}: kind: it is of a {manifest.kind}, not a {kind}"
        return InstalledModel(place.name, kind, place, None, problem)
    return InstalledModel(place.name, kind, place, manifest)


def _holds_model(model: InstalledModel) -> bool:
    """Whether a folder made by hand holds what its place promises."""
    if model.kind == "checkpoint":
        return (model.place / "config.json").is_file()
    return any(path.suffix == ".gguf" for path in model.place.iterdir())
