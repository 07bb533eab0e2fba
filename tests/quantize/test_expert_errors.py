"""Errors of experts: measured as the gguf package decodes, kept in metadata, read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from quantize.encoders import encode_rows
from quantize.errors import GGUFError
from quantize.expert_errors import (
    ERRORS_KEY,
    SAMPLES_KEY,
    Distortion,
    ExpertError,
    describe_experts,
    fill_errors,
    measure_distortion,
    read_experts,
)
from quantize.ggml import F32Array, U8Array, type_named
from quantize.gguf import MetadataEntry, TensorSpec, open_gguf, plan_file

STACKS = {
    "blk.10.ffn_up_exps.weight": 3,
    "blk.2.ffn_up_exps.weight": 3,
    "blk.2.ffn_down_exps.weight": 3,
    "blk.10.ffn_down_exps.weight": 3,
}


def encode(rows: F32Array, type_name: str, weights: F32Array | None) -> U8Array:
    block_type = type_named(type_name)
    out = np.empty(len(rows) * block_type.row_bytes(rows.shape[1]), np.uint8)
    encode_rows(rows, block_type, out, weights)
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "iq4_nl", "q4_k", "iq3_s", "iq2_s", "mxfp4"])
def test_the_distortion_is_what_the_gguf_package_decodes(name: str, weighted: bool) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((21, 512), dtype=np.float32)
    weights = np.exp(rng.standard_normal(512, dtype=np.float32)) if weighted else None
    encoded = encode(rows, name, weights)
    found = measure_distortion(rows, encoded, type_named(name), weights)
    kind = gguf.GGMLQuantizationType[name.upper()]
    decoded = dequantize(encoded.reshape(21, -1), kind).astype(np.float64)
    factor = np.ones(512) if weights is None else weights.astype(np.float64)
    sample = [0, 16]
    error = (factor * (decoded - rows)[sample] ** 2).sum()
    energy = (factor * rows[sample].astype(np.float64) ** 2).sum()
    assert found.error == pytest.approx(error, rel=1e-5)
    assert found.energy == pytest.approx(energy, rel=1e-5)
    assert found.relative == pytest.approx(error / energy, rel=1e-5)


def test_second_moments_weigh_the_errors_of_results() -> None:
    """As measured on the inputs themselves; a diagonal weighs like a vector."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((32, 64), dtype=np.float32)
    inputs = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 64))
    encoded, block_type = encode(rows, "q4_0", None), type_named("q4_0")
    factor = np.linalg.qr(inputs, "r").T.astype(np.float32)
    found = measure_distortion(rows, encoded, block_type, factor)
    decoded = dequantize(encoded.reshape(32, -1), gguf.GGMLQuantizationType.Q4_0)
    results = inputs @ (decoded - rows)[::16].T
    assert found.error == pytest.approx(np.square(results).sum(), rel=1e-4)
    assert found.energy == pytest.approx(np.square(inputs @ rows[::16].T).sum(), rel=1e-4)
    squares = np.square(rng.standard_normal(64, dtype=np.float32))
    plain, diagonal = (
        measure_distortion(rows, encoded, block_type, weights)
        for weights in (squares, np.diag(np.sqrt(squares)))
    )
    assert diagonal.relative == pytest.approx(plain.relative, rel=1e-5)


def test_a_sample_of_rows_tells_what_all_rows_would(tmp_path: Path) -> None:
    """Of a matrix of an expert's size the sample's error is within 1 % of the whole."""
    rows = np.random.default_rng(3).standard_normal((464, 1856), dtype=np.float32)
    encoded = encode(rows, "q4_0", None)
    found = measure_distortion(rows, encoded, type_named("q4_0"), None)
    decoded = dequantize(encoded.reshape(464, -1), gguf.GGMLQuantizationType.Q4_0)
    whole = np.square(decoded - rows).sum() / np.square(rows).sum()
    assert found.relative == pytest.approx(float(whole), rel=0.01)


def test_the_bits_do_not_depend_on_where_the_arrays_lie() -> None:
    """Else a resumed conversion would not end byte-identical."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((40, 256), dtype=np.float32)
    weights = np.exp(rng.standard_normal(256, dtype=np.float32))
    encoded = encode(rows, "q4_0", weights)
    found = set()
    for shift in range(16):
        room = np.empty(rows.size + 16, np.float32)
        moved = room[shift : shift + rows.size].reshape(rows.shape)
        moved[:] = rows
        spare = np.empty(weights.size + 16, np.float32)
        moved_weights = spare[shift : shift + weights.size]
        moved_weights[:] = weights
        found.add(measure_distortion(moved, encoded, type_named("q4_0"), moved_weights))
    assert len(found) == 1


def test_distortions_add_up_and_zero_is_exact() -> None:
    total = Distortion(1.0, 8.0) + Distortion(0.5, 4.0)
    assert total.relative == 0.125
    assert Distortion().relative == 0.0
    assert Distortion(0.5, 0.0).relative == math.inf


@pytest.mark.parametrize("value", [0.0, 0.1, 3e38, 1e300, 1e-45])
def test_a_journal_keeps_a_distortion_to_float32(value: float) -> None:
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
        pieces = {"17": 5} | Distortion(value, 2.5).to_pieces("17")
    assert pieces["17"] == 5
    assert all(0 <= number < 1 << 32 for number in pieces.values())
    assert Distortion.from_pieces("17", pieces) == Distortion(rounded, 2.5)
    assert Distortion.from_pieces("18", pieces) == Distortion()


def write_table(path: Path, metadata: tuple[MetadataEntry, ...], n_experts: int = 3) -> None:
    plan = plan_file(
        [("general.architecture", "test", "str"), *metadata],
        [
            TensorSpec(name, (n_experts, 4, 32), 2 if "down" in name else 8)
            for name in sorted(STACKS)
        ],
    )
    path.write_bytes(plan.header.ljust(plan.file_bytes, b"\0"))


def read(path: Path) -> tuple[ExpertError, ...]:
    with open_gguf(path) as file:
        return read_experts(file)


def test_the_table_comes_back_in_the_order_of_layers(tmp_path: Path) -> None:
    errors = {name: [i + e / 8 for e in range(3)] for i, name in enumerate(STACKS)}
    samples = {name: [10.0 * i + e for e in range(3)] for i, name in enumerate(STACKS)}
    entries = describe_experts({"output.weight": 1, **STACKS}, samples, errors)
    write_table(tmp_path / "a.gguf", entries)
    table = read(tmp_path / "a.gguf")
    assert [(t.projection, t.layer, t.expert) for t in table] == [
        (projection, layer, expert)
        for projection in ("down", "up")
        for layer in (2, 10)
        for expert in range(3)
    ]
    # blk.10 up comes first in STACKS, blk.2 down third.
    assert table[0] == ExpertError(2, 0, "down", 20, 2.0, "q4_0")
    assert table[-1] == ExpertError(10, 2, "up", 2, 0.25, "q8_0")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    up = fields[ERRORS_KEY + "up"].contents()
    assert up == [1.0, 1.125, 1.25, 0.0, 0.125, 0.25]
    assert fields[SAMPLES_KEY + "up"].contents() == [10, 11, 12, 0, 1, 2]


def test_room_for_errors_takes_the_same_bytes_as_errors(tmp_path: Path) -> None:
    samples: dict[str, Any] = {"blk.2.ffn_up_exps.weight": [5, 0, 7]}
    empty = describe_experts(STACKS, samples, {})
    full = describe_experts(STACKS, samples, {name: [0.5] * 3 for name in STACKS})
    write_table(tmp_path / "empty.gguf", empty)
    write_table(tmp_path / "full.gguf", full)
    before = (tmp_path / "empty.gguf").read_bytes()
    after = (tmp_path / "full.gguf").read_bytes()
    assert len(before) == len(after)
    assert before != after
    assert {t.error for t in read(tmp_path / "empty.gguf")} == {None}
    assert {t.error for t in read(tmp_path / "full.gguf")} == {0.5}
    # Tensors that the importance matrix lacks have no samples, which is said.
    assert [t.samples for t in read(tmp_path / "full.gguf")[6:]] == [5, 0, 7, 0, 0, 0]


def test_errors_are_filled_in_among_other_entries(tmp_path: Path) -> None:
    samples = {name: [5.0] * 3 for name in STACKS}
    errors = {name: [0.5] * 3 for name in STACKS}
    first, last = ("general.name", "x", "str"), ("general.file_type", 2, "u32")
    room = (first, *describe_experts(STACKS, samples, {}), last)
    filled = fill_errors(room, STACKS, errors)
    assert filled == (first, *describe_experts(STACKS, samples, errors), last)


def test_without_importance_there_are_no_samples(tmp_path: Path) -> None:
    write_table(tmp_path / "a.gguf", describe_experts(STACKS, {}, {}))
    assert {t.samples for t in read(tmp_path / "a.gguf")} == {None}


def test_a_file_without_table_is_refused_with_advice(tmp_path: Path) -> None:
    write_table(tmp_path / "a.gguf", ())
    with pytest.raises(GGUFError, match=r"no localcascade\.expert_errors\.down") as raised:
        read(tmp_path / "a.gguf")
    assert "localcascade quantize" in raised.value.hint


def test_a_file_without_experts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(plan_file([], []).header)
    with pytest.raises(GGUFError, match="no experts"):
        read(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "entry",
    [
        (ERRORS_KEY + "down", [0.5] * 5, "arr:f32"),
        (ERRORS_KEY + "down", [0.5] * 6, "arr:f64"),
        (ERRORS_KEY + "down", 0.5, "f32"),
        (SAMPLES_KEY + "down", [1.0] * 6, "arr:f32"),
    ],
)
def test_a_table_that_does_not_match_the_tensors_is_refused(
    tmp_path: Path, entry: MetadataEntry
) -> None:
    rest = [e for e in describe_experts(STACKS, {}, {}) if e[0] != entry[0]]
    write_table(tmp_path / "a.gguf", (*rest, entry))
    with pytest.raises(GGUFError, match=rf"{entry[0]} is not an array of 6"):
        read(tmp_path / "a.gguf")
