"""Checkpoints of named sessions on disk, so that a chat reopened tomorrow starts at once.

One file for each session and model: a head, a table of its checkpoints, then tokens and state of
each. Nothing in a file is believed before it was checked: sizes must add up to the file's own, and
one SHA-256 covers all of it. What cannot be used is ignored with a reason; a chat then reads its
prompt again, which is slow but never wrong. Files may be used only by those who wrote them: they
hold what was said.

```
head   magic 8 | version u32 | n_checkpoints u32 | identity 32 | sha256 32 of all but itself
table  n_tokens u64 | state_bytes u64 | is_full u32, for each
data   tokens u32 each, state; for each
```
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from localcascade.engine.checkpoints import TOKEN_BYTES, Checkpoint
from localcascade.errors import OutOfBudget, StoreError
from quantize.part import sync_folder

DEFAULT_BUDGET_BYTES = 4 << 30
VERSION = 1
MAX_CHECKPOINTS = 256
"""Of one session; a table is read before its checksum is known."""

_MAGIC = b"LCSTATE\n"
_HEAD = struct.Struct("<8sII32s")
_ENTRY = struct.Struct("<QQI")
_DIGEST_BYTES = hashlib.sha256().digest_size
_SUFFIX = ".state"

Reason = Literal["missing", "damaged", "foreign", "version"]


@dataclass(frozen=True, slots=True)
class Ignored:
    """Why there is nothing to go on from."""

    reason: Reason
    """missing: nothing was saved, or it had to make room; damaged: it is not what was written, or
    is larger than the folder may be; foreign: of another model or build; version: written by
    another version of this program."""
    detail: str
    """One sentence for the log, naming the file."""


class Archive:
    """A folder of sessions' states; several processes may use it at once.

    Args:
        folder: Made when something is saved.
        model_key: Names the model file and the build of llama.cpp; states of another are foreign.
        budget_bytes: Most that all sessions of the folder may take; those not used for longest go
            first.
    """

    def __init__(
        self, folder: Path, model_key: str, budget_bytes: int = DEFAULT_BUDGET_BYTES
    ) -> None:
        self._folder, self._key, self._budget_bytes = folder, model_key, budget_bytes

    @property
    def n_bytes(self) -> int:
        """What the sessions in the folder take."""
        return sum(size for _, size, _ in self._list_files())

    def save(self, name: str, checkpoints: Sequence[Checkpoint]) -> None:
        """Write a session's checkpoints in place of what was saved before.

        Hashing and writing hundreds of megabytes takes its time: not for a thread that decodes.

        Args:
            name: The session, any text.
            checkpoints: At most MAX_CHECKPOINTS. A recurrent one is of use later only with a full
                one that shares its prefix.

        Raises:
            OutOfBudget: They are larger than the folder may be.
            StoreError: They cannot be written. The old state is still there then.
            ValueError: There are none, or too many.
        """
        if not 0 < len(checkpoints) <= MAX_CHECKPOINTS:
            raise ValueError(f"{len(checkpoints)} checkpoints, but must be 1 to {MAX_CHECKPOINTS}")
        pieces = _write_pieces(self._identify(name), checkpoints)
        n_bytes, path = sum(map(len, pieces)), self._locate(name)
        if n_bytes > self._budget_bytes:
            raise OutOfBudget(
                f"{path}: the session's state takes {n_bytes} bytes, "
                f"all sessions may take {self._budget_bytes}",
                need_bytes=n_bytes, have_bytes=self._budget_bytes,
                hint="Allow more disk space for saved sessions, or save none.",
            )  # fmt: skip
        try:
            with self._lock():
                self._make_room(n_bytes, path)
                _write_file(path, pieces)
        except OSError as error:
            problem = f"{path}: the session's state cannot be written: {error.strerror}"
            raise StoreError(
                problem, "Check the permissions and the disk of that folder."
            ) from error

    def load(self, name: str) -> tuple[Checkpoint, ...] | Ignored:
        """Read what was last saved of a session by this model and build.

        Args:
            name: As for `save`.

        Returns:
            The checkpoints in their order, each byte verified; or why there are none.
        """
        path = self._locate(name)
        try:
            with _open_regular(path, self._budget_bytes) as file:
                found = _read_checkpoints(file, self._identify(name))
                with suppress(OSError):  # a folder that can only be read still serves
                    os.utime(file.fileno())
                return found
        except FileNotFoundError:
            return Ignored("missing", f"{path}: no state was saved")
        except _Refusal as refusal:
            return Ignored(refusal.reason, f"{path}: {refusal}")
        except OSError as error:
            return Ignored("damaged", f"{path}: cannot be read: {error.strerror}")

    def drop(self, name: str) -> None:
        """Delete what was saved of a session by this model; StoreError if that is impossible."""
        path = self._locate(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be deleted: {error.strerror}") from error

    def _identify(self, name: str) -> bytes:
        return hashlib.sha256(repr((self._key, name)).encode()).digest()

    def _locate(self, name: str) -> Path:
        return self._folder / f"{self._identify(name).hex()[:32]}{_SUFFIX}"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Be the only one who writes into the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._folder / ".lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, n_bytes: int, path: Path) -> None:
        """Delete the least recently used, and what killed runs left; under the lock."""
        for part in self._folder.glob("*.part"):
            part.unlink(missing_ok=True)
        others = sorted(file for file in self._list_files() if file[2] != path)
        excess = sum(size for _, size, _ in others) + n_bytes - self._budget_bytes
        for _, size, other in others:
            if excess <= 0:
                break
            other.unlink(missing_ok=True)
            excess -= size

    def _list_files(self) -> Iterator[tuple[int, int, Path]]:
        """List last use (ns), size and path of each session's file."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.lstat()
                yield status.st_mtime_ns, status.st_size, path


class _Refusal(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _write_pieces(identity: bytes, checkpoints: Sequence[Checkpoint]) -> list[bytes]:
    """Lay a file out; the states themselves are not copied."""
    head = _HEAD.pack(_MAGIC, VERSION, len(checkpoints), identity)
    table = b"".join(_ENTRY.pack(one.n_tokens, len(one.state), one.is_full) for one in checkpoints)
    data = [piece for one in checkpoints for piece in (one.prefix, one.state)]
    digest = hashlib.sha256(head)
    for piece in (table, *data):
        digest.update(piece)
    return [head, digest.digest(), table, *data]


def _write_file(path: Path, pieces: Sequence[bytes]) -> None:
    """Write a file beside its place, bring it to the disk, put it in place."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for piece in pieces:
                _write_all(file, piece)
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _open_regular(path: Path, most_bytes: int) -> Iterator[BinaryIO]:
    """Open a file without following a link, waiting for a pipe or believing an absurd size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Refusal("damaged", "it is not a file")
        if status.st_size > most_bytes:
            raise _Refusal("damaged", f"it is larger than the {most_bytes} bytes of all sessions")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _read_checkpoints(file: BinaryIO, identity: bytes) -> tuple[Checkpoint, ...]:
    reader = _Reader(file)
    head = reader.read(_HEAD.size)
    n_checkpoints = _check_head(head, identity)
    wanted = reader.read(_DIGEST_BYTES, hashed=False)
    entries = list(_ENTRY.iter_unpack(reader.read(n_checkpoints * _ENTRY.size)))
    n_bytes = sum(n_tokens * TOKEN_BYTES + state_bytes for n_tokens, state_bytes, _ in entries)
    if n_bytes != reader.n_left or not all(n_tokens for n_tokens, _, _ in entries):
        raise _Refusal("damaged", f"its table tells of {n_bytes} bytes, {reader.n_left} are there")
    found = tuple(
        Checkpoint(reader.read(n_tokens * TOKEN_BYTES), reader.read(state_bytes), bool(is_full))
        for n_tokens, state_bytes, is_full in entries
    )
    if reader.digest.digest() != wanted:
        raise _Refusal("damaged", "its checksum is wrong")
    return found


def _check_head(head: bytes, identity: bytes) -> int:
    """Refuse what is not ours; returns the number of checkpoints."""
    magic, version, n_checkpoints, owner = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise _Refusal("damaged", "it does not begin as a saved state does")
    if version != VERSION:
        raise _Refusal("version", f"it has version {version}, this program reads {VERSION}")
    if owner != identity:
        raise _Refusal("foreign", "it was saved by another model or build")
    if not 0 < n_checkpoints <= MAX_CHECKPOINTS:
        raise _Refusal("damaged", f"it tells of {n_checkpoints} checkpoints")
    return int(n_checkpoints)


class _Reader:
    """Reads a file of known length, hashing; a length is compared before it is allocated."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.n_left = os.fstat(file.fileno()).st_size
        self.digest = hashlib.sha256()

    def read(self, n_bytes: int, *, hashed: bool = True) -> bytes:
        data = self._file.read(n_bytes) if n_bytes <= self.n_left else b""
        if len(data) != n_bytes:
            raise _Refusal("damaged", f"it ends {self.n_left} bytes on, where {n_bytes} should be")
        self.n_left -= n_bytes
        if hashed:
            self.digest.update(data)
        return data
