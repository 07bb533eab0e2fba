"""Take a model from elsewhere on this machine into the store: checked, copied, read back."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localcascade.digest import CHUNK_BYTES, Digest, digest_file
from localcascade.errors import ModelNotFound, StoreError, UnsafeName
from localcascade.names import check_file_paths, find_path_problem, is_data_file
from localcascade.store.install import (
    OnProgress,
    check_name_free,
    install_model,
    make_manifest,
)
from localcascade.store.installed import InstalledModel
from localcascade.store.manifest import OWN_NAMES, Kind
from localcascade.store.staging import delete_tree, find_kind_folder, open_staging
from localcascade.store.weights import SPLIT_PATTERN, read_weights

_FICLONE = 0x40049409
"""Share the blocks of another file, on Linux where the file system can (linux/fs.h)."""


@dataclass(frozen=True)
class LocalModel:
    """A model that lies somewhere on this machine."""

    kind: Kind
    name: str
    """What it would be called if nobody says otherwise."""
    folder: Path
    files: tuple[str, ...]
    """Names in the folder, of what belongs to the model and is no code."""
    left_out: tuple[str, ...]
    """Names in the folder of everything else."""


def find_local_model(path: Path) -> LocalModel:
    """Look at what a path holds, without reading any weights.

    Args:
        path: A GGUF file, any split of one, or a folder with a checkpoint or one GGUF model.

    Raises:
        ModelNotFound: There is no such file or folder, or no model in it.
        QuantizeError: A header of a checkpoint is damaged.
        ModelFileError: A split is missing, or the folder holds several models.
        UnsafeName: A file's name cannot be stored.
    """
    if path.is_file():
        return _find_gguf(path)
    if not path.is_dir():
        raise ModelNotFound(f"{path}: no such file or folder", "Check the path.")
    path = path.resolve()
    names = sorted(entry.name for entry in path.iterdir())
    if "config.json" in names:
        kept = _pick_checkpoint(path, names)
    else:
        kept = [name for name in names if name.lower().endswith(".gguf")]
        if not kept:
            hint = "Give a GGUF file, or the folder of a checkpoint."
            raise ModelNotFound(f"{path} holds neither a config.json nor a GGUF file", hint)
    kind: Kind = "checkpoint" if "config.json" in names else "gguf"
    left_out = tuple(name for name in names if name not in kept)
    return LocalModel(kind, path.name, path, check_file_paths(kept), left_out)


def import_model(
    source: LocalModel,
    name: str = "",
    *,
    move: bool = False,
    on_progress: OnProgress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> InstalledModel:
    """Copy a model into the store; it appears when the copy was read back and is the same.

    Args:
        source: Of `find_local_model`.
        name: What it shall be called; empty takes the source's.
        move: Delete the source once the model is installed; on one disk nothing is copied then.
        on_progress: Stages "copy" and "verify", in bytes.
        on_wait: Called once if another process is importing under that name.

    Raises:
        StoreError: The name is taken, the disk too small, or the copy does not read back.
        UnsafeName: The name cannot be used.
        ModelFileError: It is no whole model.
        QuantizeError: A header is damaged.
    """
    name = name or source.name
    check_name_free(name, source.kind)
    _check_outside(source.folder)
    read_weights(source.folder, source.kind, source.files)
    with open_staging(source.kind, f"{name}@import", on_wait=on_wait) as folder:
        check_name_free(name, source.kind)
        try:
            _empty(folder)
            digests = _Copy(source, folder, move, on_progress).run()
            note = f"imported from {source.folder}"
            manifest = make_manifest(folder, name, source.kind, notes=[note], digests=digests)
            model = install_model(folder, manifest)
        except OSError as error:
            _empty(folder)
            raise StoreError(
                f"{error.filename or folder}: {error.strerror}", "Check permissions and disk space."
            ) from error
        except BaseException:
            _empty(folder)
            raise
    if move:
        for file in source.files:
            (source.folder / file).unlink()
    return model


class _Copy:
    """One copying of a model's files, with its progress."""

    def __init__(
        self, source: LocalModel, target: Path, move: bool, on_progress: OnProgress | None
    ) -> None:
        self.source = source
        self.target = target
        self.move = move
        self.total = sum((source.folder / file).stat().st_size for file in source.files)
        self.done = {"copy": 0, "verify": 0}
        self.on_progress = on_progress

    def run(self) -> dict[str, Digest]:
        """Copy all files; the digests of what the disk then holds."""
        return {file: self._take(self.source.folder / file) for file in self.source.files}

    def _take(self, source: Path) -> Digest:
        target = self.target / source.name
        copied = None
        if not (self.move and _link_file(source, target)) and not _clone_file(source, target):
            _check_disk(target, source.stat().st_size)
            copied = _copy_file(source, target, lambda n_bytes: self._count("copy", n_bytes))
        digest = digest_file(target, on_bytes=lambda n_bytes: self._count("verify", n_bytes))
        if copied not in (None, digest.sha256):
            raise StoreError(
                f"{target}: does not read back as it was written",
                "The disk may be failing; try another one.",
            )
        return digest

    def _count(self, stage: str, n_bytes: int) -> None:
        self.done[stage] += n_bytes
        if self.on_progress:
            self.on_progress(stage, self.done[stage], self.total)


def _find_gguf(path: Path) -> LocalModel:
    match = SPLIT_PATTERN.fullmatch(path.name)
    files, name = [path.name], path.name.removesuffix(".gguf")
    if match:
        name = match["stem"]
        numbers = range(1, int(match["count"]) + 1)
        parts = [f"{name}-{number:05}-of-{match['count']}.gguf" for number in numbers]
        files = [part for part in parts if (path.parent / part).is_file()]
    if not path.name.endswith(".gguf"):
        raise UnsafeName(
            f"{path.name!a:.120} does not end in .gguf",
            "Rename it if it is a GGUF file; of a checkpoint, give the folder.",
        )
    return LocalModel("gguf", name, path.parent.resolve(), check_file_paths(files), ())


def _pick_checkpoint(folder: Path, names: list[str]) -> list[str]:
    """Pick weights, settings and texts; of the weights only those that the model consists of."""
    from quantize.safetensors import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        shards = {tensor.path.name for tensor in checkpoint.tensors.values()}
    return [
        name
        for name in names
        if name in shards
        or (
            is_data_file(name)
            and not name.lower().endswith((".safetensors", ".gguf"))
            and name not in OWN_NAMES
            and not find_path_problem(name)
            and (folder / name).is_file()
        )
    ]


def _check_outside(folder: Path) -> None:
    for kind in ("gguf", "checkpoint"):
        store = find_kind_folder(kind).resolve()
        if folder.resolve().is_relative_to(store):
            raise StoreError(
                f"{folder} lies in the store already", f"Move it out of {store}, then import it."
            )


def _check_disk(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise StoreError(
            f"{target}: needs {n_bytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free",
            "Free some space, or give --move, which needs none on the same disk.",
        )


def _link_file(source: Path, target: Path) -> bool:
    """Give a file a second name in the store, where that can be; never to a link."""
    if source.is_symlink():
        return False
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    return True


def _clone_file(source: Path, target: Path) -> bool:
    """Let a new file share the blocks of another, where the file system can."""
    with source.open("rb") as old, target.open("wb") as new, suppress(OSError):
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        os.fsync(new.fileno())
        return True
    return False


def _copy_file(source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    """Copy a file to the disk; the SHA-256 of what was read, as hexadecimal digits."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while n_bytes := old.readinto(buffer):
            digest.update(buffer[:n_bytes])
            written = 0
            while written < n_bytes:
                written += new.write(buffer[written:n_bytes])
            on_bytes(n_bytes)
        os.fsync(new.fileno())
    return digest.hexdigest()


def _empty(folder: Path) -> None:
    """Empty a staging folder; it may be in the store already."""
    if folder.exists():
        delete_tree(folder)
        folder.mkdir()
