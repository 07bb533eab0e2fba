"""States on disk: nothing damaged or foreign is believed, nothing is half written."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from localcascade.engine.archive import VERSION, Archive, Ignored
from localcascade.engine.checkpoints import Checkpoint, pack_tokens
from localcascade.errors import OutOfBudget, StoreError
from tests.soak import sample

KEY = "tiny.gguf 123 b1"
N_HEAD = 8 + 4 + 4 + 32


def make_checkpoints(seed: int = 0) -> tuple[Checkpoint, ...]:
    rng = random.Random(seed)
    return (
        Checkpoint(pack_tokens([1, 2, 131071]), rng.randbytes(300), False),
        Checkpoint(pack_tokens(rng.choices(range(9), k=40)), rng.randbytes(700), True),
    )


def show(found: tuple[Checkpoint, ...] | Ignored) -> list[tuple[bytes, bytes, bool]]:
    assert not isinstance(found, Ignored), found
    return [(one.prefix, one.state, one.is_full) for one in found]


def find_file(folder: Path) -> Path:
    (path,) = folder.glob("*.state")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "sessions", KEY)


def test_what_was_saved_is_loaded(archive: Archive, tmp_path: Path) -> None:
    for name in ("plain", "../../Ünï codé\0", "x" * 5000):
        archive.save(name, make_checkpoints(len(name)))
    for name in ("plain", "../../Ünï codé\0", "x" * 5000):
        assert show(archive.load(name)) == show(make_checkpoints(len(name)))
    files = list((tmp_path / "sessions").iterdir())
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert list(tmp_path.iterdir()) == [tmp_path / "sessions"]
    archive.drop("plain")
    archive.drop("plain")
    assert archive.load("plain").reason == "missing"  # type: ignore[union-attr]


def test_the_file_is_laid_out_as_documented(archive: Archive, tmp_path: Path) -> None:
    archive.save("a", make_checkpoints())
    data = find_file(tmp_path / "sessions").read_bytes()
    magic, version, n_checkpoints = struct.unpack("<8sII", data[:16])
    assert (magic, version, n_checkpoints) == (b"LCSTATE\n", VERSION, 2)
    assert data[16:48] == hashlib.sha256(f"({KEY!r}, 'a')".encode()).digest()
    assert data[48:80] == hashlib.sha256(data[:48] + data[80:]).digest()
    assert struct.unpack("<QQIQQI", data[80:120]) == (3, 300, 0, 40, 700, 1)
    assert data[120:132] == pack_tokens([1, 2, 131071]) and len(data) == 120 + 12 + 300 + 160 + 700


def list_damages() -> list[tuple[str, int, int]]:
    size = 120 + 12 + 300 + 160 + 700
    flips = [("flip", at, 1 << (at % 8)) for at in range(size)]
    cuts = [("cut", at, 0) for at in range(0, size, 3)]
    return flips + cuts + [("grow", 1, 0), ("grow", 4096, 0)]


@pytest.mark.parametrize("damages", [list_damages()[start::8] for start in range(8)])
def test_no_damage_is_believed(
    archive: Archive, tmp_path: Path, damages: list[tuple[str, int, int]]
) -> None:
    archive.save("a", make_checkpoints())
    path = find_file(tmp_path / "sessions")
    whole = path.read_bytes()
    for kind, at, mask in sample(damages, 120):
        data = bytearray(whole + bytes(at) if kind == "grow" else whole)
        if kind == "flip":
            data[at] ^= mask
        elif kind == "cut":
            del data[at:]
        path.write_bytes(data)
        found = archive.load("a")
        assert isinstance(found, Ignored) and str(path) in found.detail, (kind, at)
        region = "version" if 8 <= at < 12 else "foreign" if 16 <= at < 48 else "damaged"
        assert found.reason == (region if kind == "flip" else "damaged"), (kind, at, found)
    path.write_bytes(whole)
    assert show(archive.load("a")) == show(make_checkpoints())


@pytest.mark.parametrize(
    "entries",
    [
        [(2**63, 300, 0), (40, 700, 1)],
        [(2**64 - 1, 2**64 - 1, 0), (40, 700, 1)],
        [(0, 312, 0), (40, 700, 1)],
        [(3, 301, 0), (40, 700, 1)],
    ],
)
def test_sizes_are_checked_before_they_are_used(
    archive: Archive, tmp_path: Path, entries: list[tuple[int, int, int]]
) -> None:
    """The checksum is right, the table is not: as a hostile file would have it."""
    archive.save("a", make_checkpoints())
    path = find_file(tmp_path / "sessions")
    data = path.read_bytes()
    rest = b"".join(struct.pack("<QQI", *entry) for entry in entries) + data[120:]
    path.write_bytes(data[:48] + hashlib.sha256(data[:48] + rest).digest() + rest)
    found = archive.load("a")
    assert isinstance(found, Ignored) and found.reason == "damaged" and "table" in found.detail


@pytest.mark.parametrize("n_checkpoints", [0, 257, 2**32 - 1])
def test_the_count_is_checked_too(archive: Archive, tmp_path: Path, n_checkpoints: int) -> None:
    archive.save("a", make_checkpoints())
    path = find_file(tmp_path / "sessions")
    data = path.read_bytes()
    head = data[:12] + struct.pack("<I", n_checkpoints) + data[16:48]
    path.write_bytes(head + hashlib.sha256(head + data[80:]).digest() + data[80:])
    found = archive.load("a")
    assert isinstance(found, Ignored) and f" {n_checkpoints} checkpoints" in found.detail


def test_an_absurd_size_is_not_allocated(archive: Archive, tmp_path: Path) -> None:
    archive.save("a", make_checkpoints())
    path = find_file(tmp_path / "sessions")
    data = path.read_bytes()
    table = struct.pack("<QQIQQI", 3, 300, 0, 40, (1 << 33) - 120 - 12 - 300 - 160, 1)
    path.write_bytes(data[:80] + table + data[120:])
    os.truncate(path, 1 << 33)  # sparse: the table is right about it
    found = archive.load("a")
    assert isinstance(found, Ignored) and "larger" in found.detail


def test_another_models_state_is_foreign(archive: Archive, tmp_path: Path) -> None:
    other = Archive(tmp_path / "sessions", "another build")
    archive.save("a", make_checkpoints(1))
    other.save("a", make_checkpoints(2))  # the two live side by side
    assert show(archive.load("a")) == show(make_checkpoints(1))
    mine, theirs = sorted((tmp_path / "sessions").glob("*.state"), key=lambda p: p.stat().st_mtime)
    first, second = mine.read_bytes(), theirs.read_bytes()
    mine.write_bytes(second)
    theirs.write_bytes(first)
    for found in (archive.load("a"), other.load("a")):
        assert isinstance(found, Ignored) and found.reason == "foreign"


def test_links_pipes_and_folders_are_ignored(archive: Archive, tmp_path: Path) -> None:
    archive.save("a", make_checkpoints())
    path = find_file(tmp_path / "sessions")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert isinstance(archive.load("a"), Ignored)
    path.unlink()
    os.mkfifo(path)
    assert isinstance(archive.load("a"), Ignored)
    path.unlink()
    path.mkdir()
    assert isinstance(archive.load("a"), Ignored)


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    size = 120 + 12 + 300 + 160 + 700
    archive = Archive(tmp_path, KEY, budget_bytes=3 * size)
    for step, name in enumerate("abc"):
        archive.save(name, make_checkpoints())
        for path in tmp_path.glob("*.state"):
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9 * (3 - step)))
    tmp_path.joinpath("killed.part").write_bytes(b"left by a run that died")
    assert show(archive.load("a"))  # used last now
    archive.save("d", make_checkpoints())
    assert archive.n_bytes == 3 * size and not list(tmp_path.glob("*.part"))
    assert [isinstance(archive.load(name), Ignored) for name in "abcd"] == [
        False,
        True,
        False,
        False,
    ]
    archive.save("d", make_checkpoints(7))  # in its own place: nobody has to go
    assert show(archive.load("c")) and show(archive.load("d")) == show(make_checkpoints(7))
    with pytest.raises(OutOfBudget) as caught:
        Archive(tmp_path, KEY, budget_bytes=size - 1).save("e", make_checkpoints())
    assert caught.value.need_bytes == size and archive.n_bytes == 3 * size


def test_a_failed_save_leaves_the_old_state(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.save("a", make_checkpoints(1))

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        archive.save("a", make_checkpoints(2))
    assert show(archive.load("a")) == show(make_checkpoints(1))
    assert not list((tmp_path / "sessions").glob("*.part"))


def test_two_processes_save_one_session_while_a_third_reads(
    archive: Archive, tmp_path: Path
) -> None:
    archive.save("a", make_checkpoints(0))
    children = {fork_writer(archive, [10 * writer + i % 2 for i in range(40)]) for writer in (1, 2)}
    wanted = [show(make_checkpoints(seed)) for seed in (0, 10, 11, 20, 21)]
    while children:
        assert show(archive.load("a")) in wanted
        ended = {child: status for child, status in map(poll, children) if child}
        assert set(ended.values()) <= {0}
        children -= ended.keys()
    assert show(archive.load("a")) in (wanted[2], wanted[4])  # the last of one or the other
    assert len(list((tmp_path / "sessions").iterdir())) == 2


def poll(child: int) -> tuple[int, int]:
    return os.waitpid(child, os.WNOHANG)


def fork_writer(archive: Archive, seeds: list[int]) -> int:
    """Save in a process of its own, once for each seed; it ends with 0 if all went well."""
    child = os.fork()
    if child == 0:
        try:
            for seed in seeds:
                archive.save("a", make_checkpoints(seed))
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_killed_writer_leaves_a_whole_state(archive: Archive, tmp_path: Path) -> None:
    archive.save("a", make_checkpoints(0))
    wanted = [show(make_checkpoints(seed)) for seed in range(50)]
    for delay_s in sample([0.001 * i for i in range(40)], 10):
        child = fork_writer(archive, [*range(50)] * 200)
        time.sleep(delay_s)
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert show(archive.load("a")) in wanted
    archive.save("a", make_checkpoints(3))
    assert show(archive.load("a")) == wanted[3]
    assert len(list((tmp_path / "sessions").iterdir())) == 2
