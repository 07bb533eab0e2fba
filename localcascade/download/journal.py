"""Which pieces of a download have been written: a line each, so that a killed run goes on.

A piece is named by what the file is (path, size, hash), not by when it was asked for: a file that
is the same in the next revision goes on where it was, and one that is not begins anew. Each line
carries the CRC-32 of the piece, which is compared with the disk before the piece is counted on, so
a line that reached the disk before its bytes did no harm.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from localcascade.download.metadata import HubFile
from quantize.closing import Closing

_LINE = re.compile(rb"([0-9a-f]{32}) (?:(\d{1,12}) ([0-9a-f]{8})|forgotten)")


def name_work(file: HubFile, piece_bytes: int) -> str:
    """Name a file's pieces: the same name means the same bytes, cut alike."""
    identity = f"{file.path} {file.size_bytes} {file.etag} {piece_bytes}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


class Journal(Closing):
    """An open journal; a context manager. Any thread may record."""

    def __init__(self, path: Path) -> None:
        self._checksums = _read_checksums(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        # The last line may have been cut off when the run died.
        os.write(self._descriptor, b"\n")

    def find_checksum(self, work: str, piece: int) -> int | None:
        """CRC-32 of a piece that was written; None if it was not."""
        return self._checksums.get((work, piece))

    def record(self, work: str, piece: int, checksum: int) -> None:
        """Note that a piece was written."""
        self._checksums[work, piece] = checksum
        os.write(self._descriptor, b"%s %d %08x\n" % (work.encode(), piece, checksum))

    def forget(self, work: str) -> None:
        """Note that nothing of a file is to be counted on."""
        for key in [key for key in self._checksums if key[0] == work]:
            del self._checksums[key]
        os.write(self._descriptor, b"%s forgotten\n" % work.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _read_checksums(path: Path) -> dict[tuple[str, int], int]:
    """Read what earlier runs wrote; a line that is not whole counts for nothing."""
    found: dict[tuple[str, int], int] = {}
    if not path.exists():
        return found
    for line in path.read_bytes().split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        work = match[1].decode()
        if match[2] is None:
            found = {key: value for key, value in found.items() if key[0] != work}
        else:
            found[work, int(match[2])] = int(match[3], 16)
    return found
