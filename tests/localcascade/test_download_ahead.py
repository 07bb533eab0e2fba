"""Reading ahead: every byte fetched once and hashed in order, memory bounded, failures told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcascade.download.ahead import Chunk, ChunkMap, ReadAhead, Window
from localcascade.errors import DownloadError
from quantize.safetensors import Stretch

FILES = {Path(name): bytes((i * n + n) % 251 for i in range(97)) for n, name in enumerate("abc")}

spans = st.tuples(st.sampled_from(sorted(FILES)), st.integers(0, 96), st.integers(0, 97))
stretches = st.lists(
    spans.map(lambda s: Stretch(s[0], s[1], max(0, min(s[2], 97 - s[1])))), max_size=12
)


class Source:
    """Fetches from FILES, and notes what was fetched and hashed."""

    def __init__(self) -> None:
        self.fetched: list[Chunk] = []
        self.digested: list[tuple[Chunk, bytes]] = []

    def fetch(self, chunk: Chunk, room: memoryview) -> None:
        self.fetched.append(chunk)
        room[:] = FILES[chunk.path][chunk.start : chunk.stop]

    def digest(self, chunk: Chunk, data: memoryview) -> None:
        self.digested.append((chunk, bytes(data)))


def read(ahead: ReadAhead, stretch: Stretch) -> bytes:
    room = bytearray(stretch.n_bytes)
    ahead.read_into(stretch.path, stretch.offset, memoryview(room))
    return bytes(room)


def expect(stretch: Stretch) -> bytes:
    return FILES[stretch.path][stretch.offset : stretch.offset + stretch.n_bytes]


@given(wanted=stretches, chunk_bytes=st.integers(1, 40), whole=st.sets(st.sampled_from("ab")))
@settings(max_examples=150, deadline=None)
def test_chunks_cover_what_is_wanted_once(
    wanted: list[Stretch], chunk_bytes: int, whole: set[str]
) -> None:
    hashed = {Path(name): (0, 97) for name in whole}
    chunks = ChunkMap(wanted, hashed, chunk_bytes).chunks
    assert all(0 < chunk.n_bytes <= chunk_bytes for chunk in chunks)
    assert chunks == sorted(chunks, key=lambda c: (c.path, c.start))
    covered = [(c.path, i) for c in chunks for i in range(c.start, c.stop)]
    needed = {(s.path, i) for s in wanted for i in range(s.offset, s.offset + s.n_bytes)}
    needed |= {(path, i) for path in hashed for i in range(97) if path in {p for p, _ in needed}}
    assert len(covered) == len(set(covered)) and set(covered) == needed


@given(wanted=stretches, chunk_bytes=st.integers(1, 40), n_readers=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_readers_get_every_byte_and_the_hash_its_order(
    wanted: list[Stretch], chunk_bytes: int, n_readers: int
) -> None:
    wanted = sorted(wanted, key=lambda s: (s.path, s.offset))
    source, chunks = Source(), ChunkMap(wanted, {Path("a"): (0, 97)}, chunk_bytes)
    # What readers hold on to at a time is what the window must hold, or they would wait in vain.
    ahead = ReadAhead(chunks, wanted, source.fetch, source.digest, Window(chunk_bytes, 97 * 4))
    ahead.start()
    with ThreadPoolExecutor(n_readers) as pool:
        assert list(pool.map(lambda s: read(ahead, s), wanted)) == [expect(s) for s in wanted]
    ahead.finish()
    assert sorted(source.fetched, key=chunks.chunks.index) == chunks.chunks
    assert source.digested == [(c, FILES[c.path][c.start : c.stop]) for c in chunks.chunks]


@pytest.mark.parametrize("n_chunks", [1, 2, 5])
@pytest.mark.parametrize("n_connections", [1, 4])
def test_no_more_is_held_than_the_window_allows(n_chunks: int, n_connections: int) -> None:
    path = Path("a")
    wanted = [Stretch(path, i, 1) for i in range(97)]
    asked_for = 0
    beyond: list[int] = []

    class Watched(Source):
        def fetch(self, chunk: Chunk, room: memoryview) -> None:
            super().fetch(chunk, room)
            if chunk.stop > asked_for + 7 * n_chunks:
                beyond.append(chunk.stop)

    source = Watched()
    window = Window(7, 7 * n_chunks, n_connections)
    chunks = ChunkMap(wanted, {path: (0, 97)}, window.chunk_bytes)
    ahead = ReadAhead(chunks, wanted, source.fetch, source.digest, window)
    ahead.start()
    for stretch in wanted:
        asked_for = stretch.offset + 1
        assert read(ahead, stretch) == expect(stretch)
    ahead.finish()
    assert not beyond
    assert len(source.fetched) == 14


def run_failing(
    fetch: Callable[[Chunk, memoryview], None], digest: Callable[[Chunk, memoryview], None]
) -> tuple[ReadAhead, Sequence[Stretch]]:
    wanted = [Stretch(Path("a"), i, 10) for i in range(0, 90, 10)]
    ahead = ReadAhead(ChunkMap(wanted, {}, 10), wanted, fetch, digest, Window(10, 30, 2))
    ahead.start()
    return ahead, wanted


@pytest.mark.parametrize("stage", ["fetch", "digest"])
def test_a_failure_is_told_to_every_reader_and_at_the_end(stage: str) -> None:
    failure = DownloadError("the line is dead")
    source = Source()

    def fail(chunk: Chunk, _data: memoryview) -> None:
        if chunk.start >= 40:
            raise failure

    if stage == "fetch":
        ahead, wanted = run_failing(lambda c, m: fail(c, m) or source.fetch(c, m), source.digest)
    else:
        ahead, wanted = run_failing(source.fetch, fail)

    def try_read(stretch: Stretch) -> object:
        try:
            return read(ahead, stretch)
        except DownloadError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(try_read, wanted))
    assert found[-1] is failure
    # What was there before the failure may have been read; nothing wrong ever is.
    assert all(f is failure or f == expect(s) for f, s in zip(found, wanted, strict=True))
    with pytest.raises(DownloadError) as caught:
        ahead.finish()
    assert caught.value is failure


def test_stopping_wakes_those_who_wait() -> None:
    never, waiting = threading.Event(), threading.Event()

    def hang(_chunk: Chunk, _room: memoryview) -> None:
        waiting.set()
        never.wait()

    ahead, wanted = run_failing(hang, Source().digest)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, ahead, wanted[0])
        waiting.wait()
        ahead.stop()
        with pytest.raises(DownloadError, match="stopped"):
            reading.result()
    never.set()


def test_what_was_not_announced_is_refused_instead_of_awaited() -> None:
    ahead, wanted = run_failing(Source().fetch, Source().digest)
    assert read(ahead, wanted[0]) == expect(wanted[0])
    for stretch in (wanted[0], Stretch(Path("a"), 85, 10), Stretch(Path("b"), 0, 1)):
        with pytest.raises(ValueError, match="announced"):
            read(ahead, stretch)
    ahead.stop()
