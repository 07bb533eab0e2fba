"""Damage is found where it is, and mended by fetching only that."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localcascade import store
from localcascade.digest import CHUNK_BYTES, Digest
from localcascade.errors import DownloadError, ModelFileError, StoreError
from localcascade.store import InstalledModel, StoredFile
from localcascade.store.check import check_model, find_damage, find_url, repair_model
from tests.localcascade.stored import MIB, install, write_gguf

N_WEIGHTS = 10 * MIB
"""Of the model here: 40 MiB, three chunks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("data") / "a.gguf", N_WEIGHTS).read_bytes()


@pytest.fixture
def model(home: Path, data: bytes) -> Iterator[InstalledModel]:
    yield install("mine", {"a.gguf": data, "README.md": b"read me"}, repo="o/r", commit="a" * 40)


class MemorySource:
    """Bytes that can be had again; notes which were asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, buffer: memoryview) -> None:
        self.asked.append((offset, offset + len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_sound_model_is_sound(model: InstalledModel) -> None:
    steps: list[tuple[str, int, int]] = []
    checks = check_model(model, lambda *step: steps.append(step))
    assert [check.file.path for check in checks] == ["README.md", "a.gguf"]
    assert all(check.is_sound and check.damaged_bytes == 0 for check in checks)
    assert steps[-1] == ("verify", model.size_bytes, model.size_bytes)


LAST = 2 * CHUNK_BYTES

DAMAGES: dict[str, tuple[Callable[[Path], object], list[int]]] = {
    "first byte": (lambda path: write_at(path, 0, b"X"), [0]),
    "last byte": (lambda path: write_at(path, path.stat().st_size - 1, b"\xff"), [2]),
    "one bit in the middle": (lambda path: write_at(path, CHUNK_BYTES + 7, b"\x00"), [1]),
    "across a border": (lambda path: write_at(path, CHUNK_BYTES - 1, b"XY"), [0, 1]),
    "first and last": (
        lambda path: (write_at(path, 5, b"X"), write_at(path, LAST + 5, b"X")),
        [0, 2],
    ),
    "cut": (lambda path: os.truncate(path, CHUNK_BYTES + 1), [1, 2]),
    "cut at a border": (lambda path: os.truncate(path, CHUNK_BYTES), [1, 2]),
    "cut by one": (lambda path: os.truncate(path, path.stat().st_size - 1), [2]),
    "emptied": (lambda path: os.truncate(path, 0), [0, 1, 2]),
    "deleted": (lambda path: path.unlink(), [0, 1, 2]),
    "grown": (lambda path: write_at(path, path.stat().st_size, b"more"), [2]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_found_and_only_that_is_fetched(
    case: str, model: InstalledModel, data: bytes
) -> None:
    path = model.place / "a.gguf"
    damage, chunks = DAMAGES[case]
    damage(path)
    readme, check = check_model(model)
    assert readme.is_sound and not check.is_sound
    wanted = [(i * CHUNK_BYTES, min((i + 1) * CHUNK_BYTES, len(data))) for i in chunks]
    covered = {i // CHUNK_BYTES for start, stop in check.damaged for i in (start, stop - 1)}
    assert covered <= set(chunks)
    assert check.damaged_bytes == sum(stop - start for start, stop in wanted)
    source = MemorySource(data)
    (mended,) = repair_model(model, [readme, check], lambda file: source)
    assert mended.is_sound
    assert source.asked == wanted
    assert path.read_bytes() == data


def test_what_was_only_lengthened_beyond_a_chunk_needs_no_fetching(home: Path) -> None:
    size = 2 * CHUNK_BYTES
    seed = write_gguf(home.parent / "work" / "a.gguf", N_WEIGHTS).read_bytes()
    model = install("mine", {"a.gguf": seed, "b.md": seed[:size]})
    write_at(model.place / "b.md", size, b"more")
    (check,) = [check for check in check_model(model) if not check.is_sound]
    assert (check.damaged, check.found_bytes) == ((), size + 4)
    (mended,) = repair_model(model, [check], lambda file: pytest.fail("fetched"))
    assert mended.is_sound and (model.place / "b.md").read_bytes() == seed[:size]


def test_wrong_bytes_from_the_network_are_not_written(model: InstalledModel, data: bytes) -> None:
    path = model.place / "a.gguf"
    write_at(path, CHUNK_BYTES + 9, b"damage")
    before = path.read_bytes()
    wrong = bytearray(data)
    wrong[CHUNK_BYTES + 10_000] ^= 1
    with pytest.raises(DownloadError, match=f"bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES}") as caught:
        repair_model(model, check_model(model), lambda file: MemorySource(bytes(wrong)))
    assert "Nothing of them was written" in caught.value.hint
    assert path.read_bytes() == before


def test_nothing_is_written_through_a_link(model: InstalledModel, data: bytes) -> None:
    outside = model.place.parent.parent.parent.parent / "work" / "precious"
    outside.write_bytes(b"mine")
    (model.place / "a.gguf").unlink()
    (model.place / "a.gguf").symlink_to(outside)
    with pytest.raises(StoreError, match="is a link"):
        repair_model(model, check_model(model), lambda file: MemorySource(data))
    assert outside.read_bytes() == b"mine"


def test_without_a_manifest_there_is_nothing_to_compare_with(home: Path) -> None:
    write_gguf(home / "data" / "models" / "hand.gguf")
    with pytest.raises(StoreError, match="no manifest") as caught:
        check_model(store.find_installed("hand"))
    assert "localcascade import" in caught.value.hint


def test_with_a_damaged_manifest_it_is_said_so(model: InstalledModel) -> None:
    (model.place / "manifest.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"manifest\.json"):
        check_model(store.find_installed("mine"))


def test_the_address_holds_the_commit_and_is_quoted(model: InstalledModel) -> None:
    assert model.manifest
    file = StoredFile("sub dir/a#b%.md", 0, hashlib.sha256().hexdigest(), ())
    url = find_url(model.manifest, file, "http://127.0.0.1:1")
    assert url == f"http://127.0.0.1:1/o/r/resolve/{'a' * 40}/sub%20dir/a%23b%25.md"


def digest_of(chunks: list[int], last_bytes: int) -> Digest:
    """A digest of chunks that are known by a number each."""
    size = max(0, len(chunks) - 1) * CHUNK_BYTES + (last_bytes if chunks else 0)
    hashes = tuple(f"{chunk:064x}" for chunk in chunks)
    return Digest(size, hashlib.sha256(repr((chunks, size)).encode()).hexdigest(), hashes)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), max_size=8), st.integers(1, CHUNK_BYTES), st.randoms())
def test_damage_covers_exactly_the_chunks_that_differ(
    chunks: list[int], last_bytes: int, rng: random.Random
) -> None:
    wanted = digest_of(chunks, last_bytes)
    file = StoredFile("a", wanted.size_bytes, wanted.sha256, wanted.chunk_sha256)
    assert find_damage(file, wanted) == ()
    now = [chunk + 4 * (rng.random() < 0.4) for chunk in chunks][: rng.randint(0, len(chunks))]
    ranges = find_damage(file, digest_of(now, last_bytes))
    bad = {i for i, chunk in enumerate(chunks) if i >= len(now) or now[i] != chunk}
    covered = {
        i for start, stop in ranges for i in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES))
    }
    if now != chunks:
        assert covered == bad
    assert all(start % CHUNK_BYTES == 0 for start, _ in ranges)
    assert all(earlier[1] < later[0] for earlier, later in pairwise(ranges))
    assert all(stop <= wanted.size_bytes for _, stop in ranges)
