"""What a file holds, in a few numbers: its SHA-256, and one for each 16 MiB of it.

The whole file's is what the Hub tells; those of the chunks say later which part is damaged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 16 << 20
"""Part of the manifest's format."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were done since the last call."""


@dataclass(frozen=True)
class Digest:
    """What a file holds."""

    size_bytes: int
    sha256: str
    """Of the whole file, 64 hexadecimal digits in lower case."""
    chunk_sha256: tuple[str, ...]
    """Of every `CHUNK_BYTES` of it, the last chunk shorter; none for an empty file."""


def digest_file(path: Path, *, from_disk: bool = True, on_bytes: OnBytes | None = None) -> Digest:
    """Read a file to its end and digest it.

    Args:
        path: The file.
        from_disk: Write back and forget what the system has cached of it, so that the disk is
            what answers.
        on_bytes: Told of each chunk.

    Raises:
        OSError: It cannot be read.
    """
    whole, chunks, size_bytes = hashlib.sha256(), [], 0
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
        if from_disk:
            forget_cached(file.fileno())
        for chunk in _read_chunks(file.fileno()):
            # The two run at once, as hashlib lets go of the interpreter.
            other = beside.submit(whole.update, chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            other.result()
            size_bytes += len(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return Digest(size_bytes, whole.hexdigest(), tuple(chunks))


def forget_cached(descriptor: int) -> None:
    """Write a file's pages to the disk and drop them, where the system can be told to."""
    if hasattr(os, "posix_fadvise"):
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_chunks(descriptor: int) -> Iterator[memoryview]:
    """Read chunk by chunk into one buffer; what was yielded is overwritten by the next."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        n_bytes = 0
        while n_bytes < CHUNK_BYTES:
            n_read = os.readv(descriptor, [buffer[n_bytes:]])
            if n_read == 0:
                break
            n_bytes += n_read
        if n_bytes:
            yield buffer[:n_bytes]
        if n_bytes < CHUNK_BYTES:
            return
