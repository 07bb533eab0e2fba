"""Files in pieces: resumed, read back, never more than asked for."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcascade.digest import CHUNK_BYTES, Digest, digest_file
from localcascade.download import transfer
from localcascade.download.journal import Journal, name_work
from localcascade.download.metadata import HubFile, read_repo
from localcascade.download.patience import Patience
from localcascade.download.ranges import Connections
from localcascade.download.transfer import FILES_NAME, JOURNAL_NAME, Layout, fetch_files
from localcascade.errors import DownloadError, UnsafeName
from tests.hub import Fault, Hub, serve_hub

HASTY = Patience(connect_s=120, read_s=120, n_retries=2, first_wait_s=0.001, longest_wait_s=0.01)
LAYOUT = Layout(piece_bytes=4096, n_connections=3, verify_bytes=8192)
FILES = {
    "config.json": b'{"a": 1}',
    "empty.json": b"",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(50_000),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(4096 * 5),
}
TOTAL_BYTES = sum(map(len, FILES.values()))


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them takes longer than a test, and nothing here speaks TLS."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.push("org/model", FILES)
        yield running


def fetch(
    hub: Hub, staging: Path, layout: Layout = LAYOUT
) -> tuple[dict[str, Digest], Counter[str]]:
    """Fetch the head of main; the digests, and the bytes of each stage."""
    files = read_repo("org/model", endpoint=hub.endpoint).files
    return fetch_list(files, staging, layout)


def fetch_list(
    files: tuple[HubFile, ...], staging: Path, layout: Layout = LAYOUT
) -> tuple[dict[str, Digest], Counter[str]]:
    told: Counter[str] = Counter()

    def tell(stage: str, _path: str, n_bytes: int) -> None:
        told[stage] += n_bytes

    with Connections(None, HASTY) as connections:
        return fetch_files(connections, files, staging, layout=layout, on_bytes=tell), told


def check(staging: Path, digests: dict[str, Digest], files: dict[str, bytes] = FILES) -> None:
    """Every file is there, nothing else is, and the digests are those of an independent reading."""
    folder = staging / FILES_NAME
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == files.keys() == digests.keys()
    for path, data in files.items():
        assert (folder / path).read_bytes() == data
        assert digests[path] == digest_file(folder / path)


def test_files_arrive_and_every_byte_is_told_once(hub: Hub, tmp_path: Path) -> None:
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    assert told == {"fetched": TOTAL_BYTES, "verified": TOTAL_BYTES}
    assert hub.count_bytes() == TOTAL_BYTES


def test_chunks_are_hashed_across_pieces(hub: Hub, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(CHUNK_BYTES + 1_000_000)
    hub.push("org/model", {"model.safetensors": data})
    layout = Layout(piece_bytes=3_000_000, n_connections=2, verify_bytes=5_000_000)
    digests, _ = fetch(hub, tmp_path, layout)
    check(tmp_path, digests, {"model.safetensors": data})
    assert digests["model.safetensors"].chunk_sha256 == tuple(
        hashlib.sha256(part).hexdigest() for part in (data[:CHUNK_BYTES], data[CHUNK_BYTES:])
    )


def test_a_finished_transfer_is_only_read_again(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.served.clear()
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    assert told == {"kept": TOTAL_BYTES, "verified": TOTAL_BYTES} and hub.served == []


def test_a_failure_leaves_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("404", path="*00002-of-00002*", at_byte=0, n_times=-1))
    with pytest.raises(DownloadError, match="00002"):
        fetch(hub, tmp_path)
    hub.faults.clear()
    before = hub.count_bytes()
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    assert told["kept"] >= 50_000 - 3 * 4096
    assert hub.count_bytes() - before == told["fetched"] == TOTAL_BYTES - told["kept"]


@pytest.mark.parametrize("place", [0, 20_000, 49_999])
def test_rot_between_runs_costs_one_piece(place: int, hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    path = tmp_path / FILES_NAME / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([FILES[path.name][place] ^ 1]))
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    assert told["lost"] == told["fetched"] == min(4096, 50_000 - place // 4096 * 4096)


def test_a_file_cut_or_deleted_between_runs_is_made_whole(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    folder = tmp_path / FILES_NAME
    os.truncate(folder / "model-00001-of-00002.safetensors", 30_000)
    (folder / "model-00002-of-00002.safetensors").unlink()
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    first_lost = 30_000 // 4096 * 4096
    assert told["fetched"] == 50_000 - first_lost + 4096 * 5


def test_bytes_that_rot_on_the_way_twice_are_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("corrupt", path="*00001-of*", at_byte=9000, n_times=2))
    with pytest.raises(DownloadError, match="does not have the hash"):
        fetch(hub, tmp_path)
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests)
    assert told["fetched"] == 50_000 and told["kept"] == TOTAL_BYTES - 50_000


def test_a_revision_that_moves_meanwhile_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    planned = read_repo("org/model", endpoint=hub.endpoint).files
    hub.push("org/model", {path: data[::-1] + b"new" for path, data in FILES.items()})
    digests, _ = fetch_list(planned, tmp_path)
    check(tmp_path, digests)


def test_the_next_revision_takes_over_what_is_the_same(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    newer = {path: data for path, data in FILES.items() if path != "empty.json"}
    newer |= {"config.json": b'{"a": 2}', "tokenizer.json": b"[]"}
    hub.push("org/model", newer)
    digests, told = fetch(hub, tmp_path)
    check(tmp_path, digests, newer)
    assert told["fetched"] == 10


def test_a_disk_that_is_too_small_is_noticed_first(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=TOTAL_BYTES - 1)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="GiB free") as caught:
        fetch(hub, tmp_path)
    assert "LOCALCASCADE_HOME" in caught.value.hint
    assert hub.served == []


def test_a_disk_that_fails_is_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.os, "pwrite", fail)
    with pytest.raises(DownloadError, match="No space left on device") as caught:
        fetch(hub, tmp_path)
    assert str(tmp_path) in caught.value.message
    monkeypatch.undo()
    check(tmp_path, fetch(hub, tmp_path)[0])


def test_a_path_that_climbs_writes_nothing(hub: Hub, tmp_path: Path) -> None:
    evil = HubFile("../evil.json", 2, "", "0" * 40, f"{hub.endpoint}/x")
    with pytest.raises(UnsafeName):
        fetch_list((evil,), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_staging_folder_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "staging" / FILES_NAME).mkdir(parents=True)
    (tmp_path / "staging" / FILES_NAME / "config.json").symlink_to(victim)
    digests, _ = fetch(hub, tmp_path / "staging")
    check(tmp_path / "staging", digests)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("n_bytes", [0, 1, 33, 40, 45, 46])
def test_a_journal_cut_anywhere_still_counts_its_whole_lines(n_bytes: int, tmp_path: Path) -> None:
    work = name_work(HubFile("a", 5, "", "0" * 40, ""), 4096)
    path = tmp_path / JOURNAL_NAME
    with Journal(path) as journal:
        journal.record(work, 0, 7)
        journal.record(work, 1, 8)
    lines = path.read_bytes()
    second = lines.index(b" 1 ") - len(work)
    path.write_bytes(lines[: second + min(n_bytes, len(lines) - second)])
    with Journal(path) as journal:
        assert journal.find_checksum(work, 0) == 7
        assert journal.find_checksum(work, 1) in (None, 8)
        assert (journal.find_checksum(work, 1) == 8) == (n_bytes >= len(lines) - second - 1)
        journal.record(work, 2, 9)
    with Journal(path) as journal:
        assert (journal.find_checksum(work, 0), journal.find_checksum(work, 2)) == (7, 9)
        journal.forget(work)
        journal.record(work, 1, 1)
    with Journal(path) as journal:
        assert [journal.find_checksum(work, piece) for piece in range(3)] == [None, 1, None]


def test_what_a_file_is_decides_whose_pieces_are_taken_over() -> None:
    file = HubFile("a", 5, "", "0" * 40, "http://hub/commit-1/a")
    same = HubFile("a", 5, "", "0" * 40, "http://hub/commit-2/a")
    others = [
        HubFile("b", 5, "", "0" * 40, file.url), HubFile("a", 6, "", "0" * 40, file.url),
        HubFile("a", 5, "", "1" * 40, file.url), HubFile("a", 5, "0" * 64, "", file.url),
    ]  # fmt: skip
    assert name_work(file, 4096) == name_work(same, 4096)
    names = {name_work(file, 4096), name_work(file, 8192), *(name_work(f, 4096) for f in others)}
    assert len(names) == 6
