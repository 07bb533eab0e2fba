"""The file under construction: locked, journalled, put in place only when it is complete.

`OUT.gguf.part` grows beside OUT.gguf, and `OUT.gguf.journal` beside both. The journal's first line
is the identity of the work; each further line is the CRC-32 and the name of one piece that has
reached the disk. A run that was killed, or whose source went away, leaves both, and the next run of
the same work goes on from there; a run that was refused leaves neither.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import OutputError, QuantizeError

_JOURNAL_LINE = re.compile(r"([0-9a-f]{8}) ([^\n]+)")


@dataclass(frozen=True, slots=True)
class Part:
    """An open file under construction."""

    path: Path
    descriptor: int
    """Open for reading and writing."""
    finished: Mapping[str, int]
    """CRC-32 of each piece that an earlier run has written, by its name."""
    _journal: int

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of some bytes at a place of the file; any thread may, at any time.

        Args:
            data: Contiguous, of any kind.
            offset: Where its first byte goes.

        Raises:
            OSError: The disk is full or failing.
        """
        view = memoryview(data).cast("B")
        while view:
            n_written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[n_written:], offset + n_written

    def record(self, pieces: Mapping[str, int]) -> None:
        """Note pieces as finished, once the disk has them.

        Args:
            pieces: CRC-32 of each, by a name that is one line.
        """
        os.fdatasync(self.descriptor) if hasattr(os, "fdatasync") else os.fsync(self.descriptor)
        lines = (f"{checksum:08x} {name}\n" for name, checksum in pieces.items())
        os.write(self._journal, "".join(lines).encode())


@contextmanager
def open_part(output: Path, file_bytes: int, identity: str) -> Iterator[Part]:
    """Open a file that takes the place of `output` if the body ends well.

    Args:
        output: Where the finished file goes; untouched until then.
        file_bytes: Its size.
        identity: What is being made of what, one line; a journal of other work is discarded.

    Yields:
        The part. If the body raises a QuantizeError or an OSError, part and journal vanish; if it
        raises anything else, or the process is killed, they stay for the next run.

    Raises:
        OutputError: It cannot be created, locked or put in place, or the disk is too small.
    """
    path = output.with_name(output.name + ".part")
    journal = output.with_name(output.name + ".journal")
    descriptor = _open_locked(path)
    try:
        finished = _read_journal(journal, identity) if _is_whole(descriptor, file_bytes) else {}
        if not finished:
            _begin(output, descriptor, journal, file_bytes, identity)
        with journal.open("ab", buffering=0) as log:
            yield Part(path, descriptor, finished, log.fileno())
        os.fsync(descriptor)
        path.replace(output)
        sync_folder(output.parent)
        journal.unlink()
    except (QuantizeError, OSError) as error:
        path.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        if isinstance(error, OSError):
            problem = f"{output}: cannot be written: {error.strerror}"
            raise OutputError(problem, "Free some space, or choose another place.") from error
        raise
    finally:
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be created: {error.strerror}", "Choose a folder you can write to."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError("the other run has just put it in place")
    except OSError as error:
        os.close(descriptor)
        raise OutputError(f"{path}: another run is writing it", "Wait for it to end.") from error
    return descriptor


def _is_whole(descriptor: int, file_bytes: int) -> bool:
    return os.fstat(descriptor).st_size == file_bytes


def _read_journal(journal: Path, identity: str) -> dict[str, int]:
    """Checksums of the finished pieces; none if the journal is of other work, or damaged."""
    try:
        whole, _, torn = journal.read_bytes().rpartition(b"\n")
        first, *lines = whole.decode().split("\n")
        if torn:  # it was being written when the machine died
            os.truncate(journal, len(whole) + 1)
    except (OSError, UnicodeDecodeError):
        return {}
    pieces = [_JOURNAL_LINE.fullmatch(line) for line in lines]
    if first != identity or not all(pieces):
        return {}
    return {match[2]: int(match[1], 16) for match in pieces if match}


def _begin(output: Path, descriptor: int, journal: Path, file_bytes: int, identity: str) -> None:
    os.ftruncate(descriptor, 0)
    free = shutil.disk_usage(output.parent).free
    if free < file_bytes:
        raise OutputError(
            f"{output}: needs {file_bytes / 2**30:.1f} GiB, "
            f"the disk has {free / 2**30:.1f} GiB free",
            "Free some space, or write to another disk.",
        )
    os.ftruncate(descriptor, file_bytes)
    journal.write_text(identity + "\n")


def replace_file(path: Path, data: bytes) -> None:
    """Put a small file in place: written beside it, brought to the disk, then renamed.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
