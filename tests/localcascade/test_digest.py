"""Digests of files, against hashlib over the same bytes."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from localcascade.digest import CHUNK_BYTES, digest_file


@pytest.mark.parametrize("from_disk", [True, False])
@pytest.mark.parametrize(
    "n_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 12345]
)
def test_a_digest_is_that_of_hashlib(n_bytes: int, from_disk: bool, tmp_path: Path) -> None:
    data = random.Random(n_bytes).randbytes(n_bytes)
    (tmp_path / "file").write_bytes(data)
    steps: list[int] = []
    digest = digest_file(tmp_path / "file", from_disk=from_disk, on_bytes=steps.append)
    assert digest.size_bytes == n_bytes == sum(steps)
    assert digest.sha256 == hashlib.sha256(data).hexdigest()
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, n_bytes, CHUNK_BYTES)]
    assert digest.chunk_sha256 == tuple(hashlib.sha256(chunk).hexdigest() for chunk in chunks)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        digest_file(tmp_path / "missing")
