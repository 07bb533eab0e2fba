"""Files of a repository into a folder: in pieces, over several connections, read back and hashed.

Connections fetch pieces of whatever file is next; each piece is written, then noted in the journal.
Behind them one reader follows in the files' order, takes the bytes from the disk (not from the
cache) and hashes them, so a file is verified moments after its last byte has come. A kill costs the
pieces in flight, one a connection. Memory is one buffer a connection and one for the reader.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localcascade.digest import CHUNK_BYTES, Digest
from localcascade.download.journal import Journal, name_work
from localcascade.download.metadata import HubFile
from localcascade.download.ranges import Connections, RemoteFile
from localcascade.errors import DownloadError
from localcascade.names import check_file_paths

FILES_NAME = "files"
"""Folder in the staging folder that the files are in; complete and verified when it is done."""
JOURNAL_NAME = "journal"

Stage = Literal["kept", "fetched", "lost", "verified"]
OnBytes = Callable[[Stage, str, int], None]
"""(stage, path, bytes): kept from an earlier run, newly fetched, found wrong and to be fetched
again, verified. Called by any thread, one at a time."""


@dataclass(frozen=True)
class Layout:
    """How the work is cut."""

    piece_bytes: int = 16 << 20
    n_connections: int = 4
    """Each adds a piece to what a kill costs."""
    verify_bytes: int = 64 << 20
    """Bytes written between two visits of the reader, each of which syncs the disk."""


def fetch_files(
    connections: Connections,
    files: Sequence[HubFile],
    staging: Path,
    *,
    layout: Layout | None = None,
    on_bytes: OnBytes = lambda _stage, _path, _n_bytes: None,
) -> dict[str, Digest]:
    """Fetch files, going on where an earlier run of the same work stopped.

    Args:
        connections: What to fetch through; stopped if something fails.
        files: Their paths become files under `staging` / FILES_NAME.
        staging: A folder that nobody else writes to; JOURNAL_NAME in it goes when the files do.
        layout: How the work is cut.
        on_bytes: Told of every byte.

    Returns:
        What each file holds, by path; every file has the hash that the Hub announced, and it is
        what the disk answered after the bytes were written.

    Raises:
        DownloadError: Something cannot be fetched, does not have the announced hash, or does not
            fit the disk. What is there stays for the next run.
        UnsafeName: A path would leave the folder.
    """
    layout = layout or Layout()
    folder = staging / FILES_NAME
    check_file_paths(file.path for file in files)
    try:
        _prepare_folder(folder, files)
        _check_disk(folder, files)
        with Journal(staging / JOURNAL_NAME) as journal:
            return _Run(connections, folder, journal, layout, on_bytes).fetch(files)
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise DownloadError(
            f"{folder}: cannot be written: {problem}",
            "Free some space, or set LOCALCASCADE_HOME to another disk, then run it again.",
        ) from error


@dataclass(frozen=True)
class _Target:
    """A file under construction."""

    file: HubFile
    remote: RemoteFile
    descriptor: int
    work: str
    """Its name in the journal."""


@dataclass(frozen=True)
class _Piece:
    target: _Target
    index: int
    offset: int
    n_bytes: int
    is_last: bool


@dataclass
class _Run:
    """One run of `fetch_files`; its methods share these and change none of them."""

    connections: Connections
    folder: Path
    journal: Journal
    layout: Layout
    on_bytes: OnBytes

    def __post_init__(self) -> None:
        self._telling = threading.Lock()
        self._buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(self.layout.n_connections + 1):
            self._buffers.put(memoryview(bytearray(self.layout.piece_bytes)))

    def fetch(self, files: Sequence[HubFile]) -> dict[str, Digest]:
        """Fetch and verify; what arrives wrong is fetched once more, as lines do make mistakes."""
        first = self._pass(files)
        again = self._pass([file for file in files if first[file.path] is None])
        found = {path: digest for path, digest in (first | again).items() if digest}
        for file in files:
            if file.path not in found:
                raise DownloadError(
                    f"{file.url}: what arrived, twice, does not have the hash {file.etag}",
                    "The server or the line changes bytes: try another network, then run it again.",
                )
        return found

    def _pass(self, files: Sequence[HubFile]) -> dict[str, Digest | None]:
        """Go over files once; None is the digest of one that has another hash than announced."""
        digests: dict[str, Digest | None] = {}
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(self.layout.n_connections, thread_name_prefix="fetch")
            stack.callback(pool.shutdown, cancel_futures=True)
            stack.enter_context(_stop_on_error(self.connections))
            for target, written in self._schedule(files, pool, stack):
                digests[target.file.path] = self._verify(target, written)
        return digests

    def _schedule(
        self, files: Sequence[HubFile], pool: ThreadPoolExecutor, stack: ExitStack
    ) -> Iterator[tuple[_Target, Iterator[_Piece]]]:
        """Keep all connections busy; yield each file, and its pieces once they are written."""
        ahead: deque[tuple[_Piece, Future[None] | None]] = deque()
        source = self._cut(files, stack)

        def fill() -> None:
            while len(ahead) < 4 * self.layout.n_connections:
                piece = next(source, None)
                if piece is None:
                    return
                ahead.append((piece, self._begin(piece, pool)))

        def follow(target: _Target) -> Iterator[_Piece]:
            while ahead and ahead[0][0].target is target:
                piece, writing = ahead.popleft()
                if writing:
                    writing.result()
                fill()
                yield piece

        fill()
        while ahead:
            target = ahead[0][0].target
            yield target, follow(target)

    def _cut(self, files: Sequence[HubFile], stack: ExitStack) -> Iterator[_Piece]:
        size = self.layout.piece_bytes
        for file in files:
            remote = RemoteFile(self.connections, file.url, file.size_bytes, file.etag)
            descriptor = _open_file(self.folder / file.path, file.size_bytes)
            stack.callback(os.close, descriptor)
            target = _Target(file, remote, descriptor, name_work(file, size))
            n_pieces = max(1, -(-file.size_bytes // size))
            for index in range(n_pieces):
                n_bytes = min(size, file.size_bytes - index * size)
                yield _Piece(target, index, index * size, n_bytes, index == n_pieces - 1)

    def _begin(self, piece: _Piece, pool: ThreadPoolExecutor) -> Future[None] | None:
        """Let a piece be fetched, unless an earlier run has written it."""
        if self.journal.find_checksum(piece.target.work, piece.index) is None:
            return pool.submit(self._fetch, piece)
        self._tell("kept", piece, piece.n_bytes)
        return None

    def _fetch(self, piece: _Piece) -> None:
        with self._borrow_buffer() as buffer:
            view = buffer[: piece.n_bytes]
            piece.target.remote.read(
                piece.offset, view, lambda n_bytes: self._tell("fetched", piece, n_bytes)
            )
            _write(piece.target.descriptor, view, piece.offset)
            self.journal.record(piece.target.work, piece.index, zlib.crc32(view))

    def _verify(self, target: _Target, written: Iterator[_Piece]) -> Digest | None:
        """Read a file back behind those who write it; None if it is not the announced one."""
        reader = _Reader(target.file)
        waiting: list[_Piece] = []
        for piece in written:
            waiting.append(piece)
            if piece.is_last or piece.offset >= reader.n_read + self.layout.verify_bytes:
                self._forget_cached(target, waiting)
                for arrived in waiting:
                    self._read_back(arrived, reader)
                waiting.clear()
        digest = reader.finish()
        if digest is None:
            self.journal.forget(target.work)
            self._tell("lost", piece, target.file.size_bytes)
        return digest

    def _read_back(self, piece: _Piece, reader: _Reader) -> None:
        """Hash a piece as the disk has it; one that is not as it was written is fetched again."""
        with self._borrow_buffer() as buffer:
            view = buffer[: piece.n_bytes]
            for is_again in (False, True):
                _read(piece.target.descriptor, view, piece.offset)
                checksum = self.journal.find_checksum(piece.target.work, piece.index)
                if zlib.crc32(view) == checksum:
                    break
                if is_again:
                    raise DownloadError(
                        f"{self.folder / piece.target.file.path}: byte {piece.offset}: the disk "
                        "does not give back what was written",
                        "The disk may be failing: set LOCALCASCADE_HOME to another one.",
                    )
                self._tell("lost", piece, piece.n_bytes)
                self._fetch(piece)
                self._forget_cached(piece.target, [piece])
            reader.update(view)
        self._tell("verified", piece, piece.n_bytes)

    def _forget_cached(self, target: _Target, pieces: Sequence[_Piece]) -> None:
        """Make the disk, not the system's cache, answer for these pieces, where that can be."""
        if hasattr(os, "posix_fadvise"):
            start, stop = pieces[0].offset, pieces[-1].offset + pieces[-1].n_bytes
            os.fdatasync(target.descriptor)
            os.posix_fadvise(target.descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def _borrow_buffer(self) -> Iterator[memoryview]:
        buffer = self._buffers.get()
        try:
            yield buffer
        finally:
            self._buffers.put(buffer)

    def _tell(self, stage: Stage, piece: _Piece, n_bytes: int) -> None:
        with self._telling:
            self.on_bytes(stage, piece.target.file.path, n_bytes)


class _Reader:
    """Hashes a file in order: for the Hub's hash, for the store's, and for git's where it is."""

    def __init__(self, file: HubFile) -> None:
        self.n_read = 0
        self._file = file
        self._whole = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        self._chunk = hashlib.sha256()
        self._chunks: list[str] = []

    def update(self, view: memoryview) -> None:
        """Take the bytes that come next."""
        self._whole.update(view)
        if self._file.git_sha1:
            self._git.update(view)
        while view:
            room = CHUNK_BYTES - self.n_read % CHUNK_BYTES
            self._chunk.update(view[:room])
            self.n_read += len(view[:room])
            view = view[room:]
            if self.n_read % CHUNK_BYTES == 0 or self.n_read == self._file.size_bytes:
                self._chunks.append(self._chunk.hexdigest())
                self._chunk = hashlib.sha256()

    def finish(self) -> Digest | None:
        """Give the digest, or None if it is not the announced one."""
        found = self._git if self._file.git_sha1 else self._whole
        if found.hexdigest() != self._file.etag:
            return None
        return Digest(self.n_read, self._whole.hexdigest(), tuple(self._chunks))


@contextmanager
def _stop_on_error(connections: Connections) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connections.stop()
        raise


def _prepare_folder(folder: Path, files: Sequence[HubFile]) -> None:
    """Make the folder, and delete what is in it of another revision."""
    wanted = {folder / file.path for file in files}
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]:
        if path.is_symlink() or path not in wanted:
            path.unlink()
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)


def _check_disk(folder: Path, files: Sequence[HubFile]) -> None:
    """Refuse before the first byte if the rest does not fit the disk."""
    need_bytes = sum(file.size_bytes for file in files)
    for file in files:
        path = folder / file.path
        if path.exists():
            need_bytes -= min(file.size_bytes, path.stat().st_blocks * 512)
    free_bytes = shutil.disk_usage(folder).free
    if need_bytes > free_bytes:
        raise DownloadError(
            f"{folder}: needs {need_bytes / 2**30:.1f} GiB more, "
            f"the disk has {free_bytes / 2**30:.1f} GiB free",
            "Free some space, or set LOCALCASCADE_HOME to a larger disk.",
        )


def _open_file(path: Path, n_bytes: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.ftruncate(descriptor, n_bytes)
    return descriptor


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        n_written = os.pwrite(descriptor, view, offset)
        view, offset = view[n_written:], offset + n_written


def _read(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        n_read = os.preadv(descriptor, [view], offset)
        if n_read == 0:
            raise OSError(errno.EIO, f"the file ends at byte {offset}")
        view, offset = view[n_read:], offset + n_read
