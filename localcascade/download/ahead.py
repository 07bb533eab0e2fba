"""Read files of a server ahead of those who need them: in order, hashed on the way.

What is wanted is cut into chunks. A few connections fetch them in order, one thread hashes them in
order, and readers copy their parts as soon as a chunk is there. A chunk is let go when it is hashed
and its last wanted byte is copied, and only then another one is asked for: memory is bounded by the
window, whatever the sizes of the files.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localcascade.errors import DownloadError

if TYPE_CHECKING:
    from quantize.safetensors import Stretch

Span = tuple[int, int]
"""First byte, and the byte behind the last."""


@dataclass(frozen=True, slots=True)
class Window:
    """How far ahead is read."""

    chunk_bytes: int = 8 << 20
    """One request: long against the time that asking takes, short against the memory."""
    ahead_bytes: int = 64 << 20
    """Of all chunks together that are being fetched, or wait to be hashed and copied; at least
    one chunk."""
    n_connections: int = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive bytes of one file that are fetched together."""

    path: Path
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """How many."""
        return self.stop - self.start


class ChunkMap:
    """The chunks of one run in the order in which they are fetched; none overlaps another.

    Args:
        stretches: What readers want.
        whole: Files that are hashed, and the span of each that is not hashed yet: it is fetched
            to its end if anything of the file is wanted.
        chunk_bytes: Most bytes of a chunk.
    """

    def __init__(
        self, stretches: Iterable[Stretch], whole: Mapping[Path, Span], chunk_bytes: int
    ) -> None:
        self.chunks = [
            Chunk(path, start, min(start + chunk_bytes, stop))
            for path, spans in _collect_spans(stretches).items()
            for first, stop in ([whole[path]] if path in whole else spans)
            for start in range(first, stop, chunk_bytes)
        ]
        self._keys = [(chunk.path, chunk.start) for chunk in self.chunks]

    def find(self, path: Path, offset: int, n_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Find where bytes lie.

        Yields:
            Index of a chunk, position in it, and how many bytes from there on.

        Raises:
            ValueError: Some of the bytes are in no chunk.
        """
        i = bisect_right(self._keys, (path, offset)) - 1
        while n_bytes:
            chunk = self.chunks[i] if 0 <= i < len(self.chunks) else None
            if chunk is None or chunk.path != path or not chunk.start <= offset < chunk.stop:
                raise ValueError(f"{path}: byte {offset} was not announced")
            n = min(n_bytes, chunk.stop - offset)
            yield i, offset - chunk.start, n
            offset, n_bytes, i = offset + n, n_bytes - n, i + 1


def _collect_spans(stretches: Iterable[Stretch]) -> dict[Path, list[Span]]:
    """Sort stretches by file and join those that touch or overlap."""
    spans: dict[Path, list[Span]] = {}
    for stretch in sorted(stretches, key=lambda s: (s.path, s.offset)):
        if stretch.n_bytes:
            start, stop = stretch.offset, stretch.offset + stretch.n_bytes
            of_file = spans.setdefault(stretch.path, [(start, start)])
            if start > of_file[-1][1]:
                of_file.append((start, stop))
            else:
                of_file[-1] = of_file[-1][0], max(stop, of_file[-1][1])
    return spans


class ReadAhead:
    """Fetches, hashes and hands out what was announced; started by `start`, for any threads.

    Args:
        chunks: Where the bytes lie.
        stretches: What readers will copy; each byte is copied as often as it occurs here.
        fetch: Fills a buffer with one chunk; raises DownloadError.
        digest: Called for every chunk, one after another in their order; may refuse them.
        window: How far ahead.
    """

    def __init__(
        self,
        chunks: ChunkMap,
        stretches: Iterable[Stretch],
        fetch: Callable[[Chunk, memoryview], None],
        digest: Callable[[Chunk, memoryview], None],
        window: Window,
    ) -> None:
        self._map, self._fetch, self._digest = chunks, fetch, digest
        self._chunks = chunks.chunks
        self._n_wanted = [0] * len(self._chunks)
        for stretch in stretches:
            for i, _, n in chunks.find(stretch.path, stretch.offset, stretch.n_bytes):
                self._n_wanted[i] += n
        self._changed = threading.Condition()
        self._free_bytes = window.ahead_bytes
        self._n_taken = self._n_digested = 0
        self._held: dict[int, memoryview] = {}
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._guard, args=(self._digest_all,))]
        self._threads += [
            threading.Thread(target=self._guard, args=(self._fetch_all,))
            for _ in range(min(window.n_connections, len(self._chunks)))
        ]

    def start(self) -> None:
        """Begin to fetch."""
        for thread in self._threads:
            # A read that hangs in the network must not keep an interrupted process alive.
            thread.daemon = True
            thread.start()

    def read_into(self, path: Path, offset: int, room: memoryview) -> None:
        """Copy announced bytes, once they have arrived.

        Raises:
            Exception: What stopped the fetching, such as a DownloadError.
            ValueError: They were not announced, or have been read before.
        """
        parts = list(self._map.find(path, offset, len(room)))
        if any(self._n_wanted[i] < n for i, _, n in parts):
            raise ValueError(f"{path}: byte {offset}: more is read than was announced")
        for i, start, n in parts:
            room[:n] = self._await(i)[start : start + n]
            room = room[n:]
            with self._changed:
                self._n_wanted[i] -= n
                self._release(i)

    def finish(self) -> None:
        """Wait until all is fetched and digested.

        Raises:
            Exception: As `read_into`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._n_digested == len(self._chunks))
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """End everything; readers that still wait get a DownloadError."""
        self._fail(DownloadError("the download was stopped", "Run the same command again."))

    def _await(self, i: int) -> memoryview:
        """Wait for a chunk to arrive."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or i in self._held)
            if self._failure:
                raise self._failure
            return self._held[i]

    def _guard(self, work: Callable[[], None]) -> None:
        """Run one thread; what it cannot do, nobody waits for any longer."""
        try:
            work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _fetch_all(self) -> None:
        while (i := self._take()) is not None:
            self._fetch_one(i)

    def _fetch_one(self, i: int) -> None:
        room = memoryview(bytearray(self._chunks[i].n_bytes))
        self._fetch(self._chunks[i], room)
        with self._changed:
            self._held[i] = room
            self._changed.notify_all()

    def _take(self) -> int | None:
        """Choose the next chunk once there is memory for it; None if there is none left."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or self._is_all_taken() or self._has_room()
            )
            if self._failure or self._is_all_taken():
                return None
            self._free_bytes -= self._chunks[self._n_taken].n_bytes
            self._n_taken += 1
            return self._n_taken - 1

    def _is_all_taken(self) -> bool:
        return self._n_taken == len(self._chunks)

    def _has_room(self) -> bool:
        return self._chunks[self._n_taken].n_bytes <= self._free_bytes

    def _digest_all(self) -> None:
        for i, chunk in enumerate(self._chunks):
            self._digest(chunk, self._await(i))
            with self._changed:
                self._n_digested = i + 1
                self._release(i)
                self._changed.notify_all()

    def _release(self, i: int) -> None:
        """Let go of a chunk that nobody needs any more; called with the lock held."""
        if i < self._n_digested and not self._n_wanted[i] and i in self._held:
            self._free_bytes += len(self._held.pop(i))
            self._changed.notify_all()
