"""Where the bytes of a checkpoint's shards come from.

`LocalShards` reads files of a folder. Whoever has them elsewhere, on a server say, offers the same
methods, and every check of headers and weights works on them too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantize.errors import CheckpointError
from quantize.safetensors.documents import DAMAGED

READ_BYTES = 1 << 30
"""One system call reads no more: Linux stops at 2 GiB - 4 KiB, macOS fails above 2 GiB."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a shard."""

    path: Path
    """The shard."""
    offset: int
    n_bytes: int


class Shards(Protocol):
    """A source of shards. Any number of threads may read at once."""

    @property
    def verified(self) -> frozenset[Path]:
        """Shards that were read whole and have the hash that their publisher names."""

    def exists(self, path: Path) -> bool:
        """Say whether there is such a shard."""

    def open(self, path: Path) -> int:
        """Make a shard readable.

        Returns:
            Its size in bytes.

        Raises:
            CheckpointError: It is missing, or no file.
        """

    def read_into(self, path: Path, offset: int, room: memoryview) -> None:
        """Fill `room` with the bytes of an open shard that begin at `offset`.

        Raises:
            OSError: They cannot be read.
            EOFError: The shard ends before.
            ValueError: The shard is not open.
        """

    def identify(self, path: Path) -> str:
        """Name the content of an open shard: another content has another name, on one line."""

    def read_ahead(
        self, stretches: Sequence[Stretch], begun: Set[Path]
    ) -> AbstractContextManager[None]:
        """Expect each of these stretches to be read once, about in this order.

        Args:
            stretches: Sorted shard by shard and by offset; until the context ends, nothing else
                is read.
            begun: Shards of which other parts were read by an earlier run.

        Returns:
            A context. When its body has ended well, every shard that could be verified has been.
        """

    def close(self) -> None:
        """Give everything back; twice is no error."""


class LocalShards:
    """Shards that are files."""

    verified: frozenset[Path] = frozenset()

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def exists(self, path: Path) -> bool:
        """Say whether there is such a file."""
        return path.exists()

    def open(self, path: Path) -> int:
        """Open a file; its size in bytes."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError(path, "not a file", hint=DAMAGED)
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise CheckpointError(
                path, "shard not found", hint="Download the missing file into the folder."
            ) from error
        except OSError as error:
            raise CheckpointError(path, f"cannot be opened: {error.strerror or error}") from error
        self._descriptors[path] = descriptor
        return os.fstat(descriptor).st_size

    def read_into(self, path: Path, offset: int, room: memoryview) -> None:
        """Read from any position; the position of other readers does not move."""
        if path not in self._descriptors:
            raise ValueError(f"{path.parent}: the checkpoint is closed")
        while room:
            n_read = os.preadv(self._descriptors[path], [room[:READ_BYTES]], offset)
            if n_read == 0:
                raise EOFError(f"the file ends at byte {offset}")
            room, offset = room[n_read:], offset + n_read

    def identify(self, path: Path) -> str:
        """Name the content by size and time, which is what a file offers without reading it."""
        status = os.fstat(self._descriptors[path])
        return f"{status.st_size} {status.st_mtime_ns}"

    def read_ahead(
        self,
        stretches: Sequence[Stretch],  # noqa: ARG002  (the kernel reads ahead)
        begun: Set[Path],  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Leave it to the kernel."""
        return nullcontext()

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
