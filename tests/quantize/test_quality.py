"""Measured quality in a file's metadata: the gguf package reads what was recorded."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantize.errors import GGUFError
from quantize.gguf import MetadataEntry, TensorSpec, open_gguf, plan_file
from quantize.quality import Quality, read_quality, record_quality, reserve_quality

MEASURED = Quality(0.25, 1.5, 0.875, 4096, "nc2-bf16.gguf", "notes.txt")


def write_file(path: Path, metadata: list[MetadataEntry]) -> bytes:
    plan = plan_file(
        [("general.architecture", "test", "str"), *metadata], [TensorSpec("w", (2, 8), 0)]
    )
    data = plan.header + np.arange(16, dtype=np.float32).tobytes()
    path.write_bytes(data)
    return data


def read(path: Path) -> Quality | None:
    with open_gguf(path) as file:
        return read_quality(file)


def test_what_was_recorded_is_read_by_us_and_by_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    before = write_file(path, [*reserve_quality()])
    assert read(path) is None
    record_quality(path, MEASURED)
    assert read(path) == MEASURED
    fields = gguf.GGUFReader(path).fields
    assert fields["localcascade.quality.mean_kl"].contents() == 0.25
    assert fields["localcascade.quality.n_tokens"].contents() == 4096
    assert fields["localcascade.quality.reference"].contents().rstrip() == "nc2-bf16.gguf"
    assert path.stat().st_size == len(before)
    assert path.read_bytes()[-64:] == before[-64:]


def test_a_second_measurement_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_file(path, [*reserve_quality()])
    record_quality(path, MEASURED)
    other = Quality(0.5, 2.0, 0.75, 8, "f32.gguf", "t")
    record_quality(path, other)
    assert read(path) == other


@pytest.mark.parametrize("name", ["ü" * 60, "模" * 30 + ".gguf", "x" * 65])
def test_long_names_are_cut_between_characters(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    write_file(path, [*reserve_quality()])
    record_quality(path, Quality(0.25, 1.5, 0.875, 4096, name, "notes.txt"))
    found = read(path)
    assert found is not None
    assert found.text == "notes.txt"
    assert found.reference.endswith("…")
    assert name.startswith(found.reference[:-1])
    assert 62 <= len(found.reference.encode()) <= 64


def test_a_file_without_room_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    before = write_file(path, [])
    with pytest.raises(GGUFError, match=r"has no localcascade\.quality\.mean_kl"):
        record_quality(path, MEASURED)
    assert path.read_bytes() == before
    assert read(path) is None


def test_figures_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    entries = [
        (key, 5 if key.endswith("n_tokens") else value, kind)
        for key, value, kind in reserve_quality()
    ]
    write_file(path, entries)
    with pytest.raises(GGUFError, match=r"quality\.mean_kl is nan"):
        read(path)
