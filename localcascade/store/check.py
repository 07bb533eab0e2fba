"""Compare an installed model with its manifest, and mend it: only what is damaged is fetched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from localcascade.digest import CHUNK_BYTES, Digest, digest_file
from localcascade.errors import DownloadError, ModelFileError, StoreError
from localcascade.store.install import OnProgress
from localcascade.store.installed import InstalledModel
from localcascade.store.manifest import Manifest, StoredFile
from quantize.part import sync_folder


class Source(Protocol):
    """Where the bytes of one file can be had again."""

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from an offset on."""


@dataclass(frozen=True)
class FileCheck:
    """One file held against the manifest."""

    file: StoredFile
    found_bytes: int | None
    """Size of what is there; None if nothing is."""
    damaged: tuple[tuple[int, int], ...]
    """First byte and the byte after the last of each damaged part, in whole chunks."""

    @property
    def is_sound(self) -> bool:
        """True if it is what was installed, byte for byte."""
        return self.found_bytes == self.file.size and not self.damaged

    @property
    def damaged_bytes(self) -> int:
        """Bytes to fetch in order to mend it."""
        return sum(stop - start for start, stop in self.damaged)


def check_model(
    model: InstalledModel, on_progress: OnProgress | None = None
) -> tuple[FileCheck, ...]:
    """Read a model from the disk and compare sizes and hashes with its manifest.

    Args:
        model: As installed.
        on_progress: Stage "verify", in bytes.

    Returns:
        A check for each file of the manifest.

    Raises:
        ModelFileError: The manifest is damaged.
        StoreError: There is none, so there is nothing to compare with.
        OSError: A file cannot be read.
    """
    return _check_files(model.place, require_manifest(model).files, on_progress)


def require_manifest(model: InstalledModel) -> Manifest:
    """Give the manifest of a model, or say why it has none; raises as `check_model`."""
    if model.manifest:
        return model.manifest
    if model.problem:
        hint = f"Run `localcascade rm {model.name}` and install it again."
        raise ModelFileError(model.place, model.problem, hint=hint)
    raise StoreError(
        f"{model.place} has no manifest, so there is nothing to compare it with",
        "Move it elsewhere, then give it to `localcascade import`, which makes one.",
    )


def find_damage(file: StoredFile, found: Digest) -> tuple[tuple[int, int], ...]:
    """Place the damage of a file, by the hashes of its chunks; pure.

    Args:
        file: As it was installed.
        found: What is there now.

    Returns:
        First byte and the byte after the last of each damaged part; neighbours are joined. What
        is longer than it was only needs to be cut.
    """
    wanted, now = file.chunk_sha256, found.chunk_sha256
    bad = [i for i, chunk in enumerate(wanted) if i >= len(now) or now[i] != chunk]
    if not bad and found.size_bytes == file.size and found.sha256 != file.sha256:
        bad = list(range(len(wanted)))
    ranges: list[tuple[int, int]] = []
    for i in bad:
        start, stop = i * CHUNK_BYTES, min((i + 1) * CHUNK_BYTES, file.size)
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    return tuple(ranges)


def repair_model(
    model: InstalledModel,
    checks: Iterable[FileCheck],
    open_source: Callable[[StoredFile], Source],
    on_progress: OnProgress | None = None,
) -> tuple[FileCheck, ...]:
    """Fetch what is damaged, and nothing else; bytes that are not the installed ones stay out.

    Args:
        model: As installed.
        checks: Of `check_model`.
        open_source: Where the bytes of a file can be had.
        on_progress: Stages "repair" and "verify", in bytes.

    Returns:
        The mended files, checked again from the disk.

    Raises:
        DownloadError: They cannot be had, or are others than those that were installed.
        StoreError: A file cannot be written, or lies outside the store.
    """
    broken = [check for check in checks if not check.is_sound]
    done, total = 0, sum(check.damaged_bytes for check in broken)
    for check in broken:
        path = _check_place(model.place, check.file)
        try:
            for n_bytes in _mend_file(path, check, open_source):
                done += n_bytes
                if on_progress:
                    on_progress("repair", done, total)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be mended: {error.strerror}", "Check permissions and disk space."
            ) from error
    return _check_files(model.place, [check.file for check in broken], on_progress)


def find_url(manifest: Manifest, file: StoredFile, endpoint: str) -> str:
    """Find the address that a file of a manifest came from; its path there is its path here."""
    return f"{endpoint}/{manifest.repo}/resolve/{manifest.commit}/{quote(file.path)}"


def _check_files(
    place: Path, files: Sequence[StoredFile], on_progress: OnProgress | None
) -> tuple[FileCheck, ...]:
    done, total = 0, sum(file.size for file in files)

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if on_progress:
            on_progress("verify", min(done, total), total)

    checks = []
    for file in files:
        try:
            found = digest_file(place / file.path, on_bytes=count)
            checks.append(FileCheck(file, found.size_bytes, find_damage(file, found)))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            whole = ((0, file.size),) if file.size else ()
            checks.append(FileCheck(file, None, whole))
    return tuple(checks)


def _check_place(folder: Path, file: StoredFile) -> Path:
    """Refuse to write through a link that leads out of the model's folder."""
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        raise StoreError(
            f"{path} is a link, and what it leads to is not the store's",
            "Replace the link by the file, then run it again.",
        )
    return path


def _mend_file(
    path: Path, check: FileCheck, open_source: Callable[[StoredFile], Source]
) -> Iterable[int]:
    """Write the damaged chunks anew; yields the bytes of each."""
    file = check.file
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        buffer = memoryview(bytearray(min(CHUNK_BYTES, check.damaged_bytes)))
        source = open_source(file) if check.damaged else None
        for start, stop in check.damaged:
            for offset in range(start, stop, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, stop - offset)]
                assert source is not None
                source.read(offset, chunk)
                _check_chunk(path, file, offset, chunk)
                _write_exactly(descriptor, chunk, offset)
                yield len(chunk)
        os.ftruncate(descriptor, file.size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def _check_chunk(path: Path, file: StoredFile, offset: int, chunk: memoryview) -> None:
    if hashlib.sha256(chunk).hexdigest() != file.chunk_sha256[offset // CHUNK_BYTES]:
        raise DownloadError(
            f"{path}: bytes {offset} to {offset + len(chunk)} were fetched, but are not those "
            "that were installed",
            "Nothing of them was written. Remove the model and pull it again.",
        )


def _write_exactly(descriptor: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        n_written = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[n_written:], offset + n_written
