"""The store's workshop: folders of models that are being made, and of those being removed.

Both lie beside the models, on the same disk, so that a model appears and vanishes in one rename.
Their names begin with a dot, which no model's name does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from localcascade import paths
from localcascade.errors import StoreError
from localcascade.names import check_name
from localcascade.store.manifest import KINDS, Kind
from quantize.part import sync_folder

STAGING_NAME = ".staging"
TRASH_NAME = ".trash"
_LOCK_SUFFIX = ".lock"


@dataclass(frozen=True)
class Leftover:
    """What a run that ended early has left behind, or what a run is making now."""

    path: Path
    in_use: bool
    """True while a process holds it."""


def find_kind_folder(kind: Kind) -> Path:
    """Folder whose subfolders are the models of one kind."""
    return paths.find_models_folder() if kind == "gguf" else paths.find_checkpoints_folder()


@contextmanager
def open_staging(
    kind: Kind, key: str, *, on_wait: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Hold the folder in which one model is made; nobody else gets it meanwhile.

    Args:
        kind: Of the model.
        key: The model's name; what follows an "@" tells other work on that model apart.
        on_wait: Called once if another process holds the folder; this one then waits.

    Yields:
        The folder, with whatever an earlier run left in it. It stays afterwards, for the next
        run, unless it was installed or is empty.

    Raises:
        UnsafeName: The name cannot be used.
        StoreError: It cannot be made.
    """
    check_name(key.partition("@")[0])
    folder = find_kind_folder(kind) / STAGING_NAME / key
    lock = folder.with_name(key + _LOCK_SUFFIX)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, on_wait)
    except OSError as error:
        raise _explain(folder, error) from error
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
        if not folder.exists():
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def trash(place: Path) -> None:
    """Take a file or folder of the store away in one step, then delete it.

    Args:
        place: Beside the models; if this process dies, `list_leftovers` finds the rest.

    Raises:
        StoreError: It cannot be moved or deleted.
        FileNotFoundError: It is not there: another process was faster.
    """
    try:
        bin_folder = place.parent / TRASH_NAME
        bin_folder.mkdir(exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{place.name}@", dir=bin_folder))
        try:
            place.rename(target / place.name)
            sync_folder(place.parent)
        finally:
            delete_tree(target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _explain(place, error) from error


def delete_tree(folder: Path) -> None:
    """Delete a folder and what is in it; links are deleted, never followed."""
    shutil.rmtree(folder)


def list_leftovers() -> list[Leftover]:
    """List what lies in the workshop, of both kinds, sorted by path."""
    found: list[Leftover] = []
    for kind in KINDS:
        folder = find_kind_folder(kind)
        staged = _list_folder(folder / STAGING_NAME)
        found += [
            Leftover(path, _is_locked(path.with_name(path.name + _LOCK_SUFFIX)))
            for path in staged
            if path.suffix != _LOCK_SUFFIX
        ]
        found += [Leftover(path, False) for path in _list_folder(folder / TRASH_NAME)]
    return sorted(found, key=lambda leftover: leftover.path)


def delete_leftover(leftover: Leftover) -> bool:
    """Delete one leftover, unless a process has taken it up again.

    Returns:
        False if it is in use.

    Raises:
        StoreError: It cannot be deleted.
    """
    path = leftover.path
    lock = path.with_name(path.name + _LOCK_SUFFIX)
    try:
        if path.parent.name == TRASH_NAME:
            delete_tree(path)
            return True
        descriptor = _lock(lock, None, wait=False)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _explain(path, error) from error
    try:
        delete_tree(path)
        lock.unlink()
    except OSError as error:
        raise _explain(path, error) from error
    finally:
        os.close(descriptor)
    return True


def _lock(lock: Path, on_wait: Callable[[], None] | None, *, wait: bool = True) -> int:
    """Hold a lock file; BlockingIOError if another process does and this one is not to wait."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if on_wait:
                    on_wait()
                    on_wait = None
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it may have deleted the file, and a third process made another.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _explain(place: Path, error: OSError) -> StoreError:
    reason = error.strerror or type(error).__name__
    return StoreError(f"{place}: {reason}", "Check the permissions and the disk of that folder.")
