"""Reading sound checkpoints: every weight, exactly, from any thread and any part of a file."""

from __future__ import annotations

import json
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.errors import CheckpointError, NotFinite
from quantize.safetensors import check_finite, open_checkpoint
from quantize.safetensors.checkpoint import BLOCK_WEIGHTS
from tests.quantize.checkpoints import (
    encode_tensor,
    pack_shard,
    round_to_bf16,
    widen_bf16,
    write_checkpoint,
    write_safetensors,
)

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def test_every_bf16_widens_to_the_float_with_the_same_upper_half(folder: Path) -> None:
    write_checkpoint(folder, {}, {"w": ("BF16", EVERY_16_BITS)})
    with open_checkpoint(folder) as checkpoint:
        bits = checkpoint.read_f32("w").view(np.uint32)
    expected = [struct.unpack("<I", b"\0\0" + struct.pack("<H", n))[0] for n in range(1 << 16)]
    assert bits.tolist() == expected


def test_every_f16_widens_as_python_unpacks_it(folder: Path) -> None:
    write_checkpoint(folder, {}, {"w": ("F16", EVERY_16_BITS.view(np.float16))})
    with open_checkpoint(folder) as checkpoint:
        weights = checkpoint.read_f32("w")
    expected = struct.unpack(f"<{1 << 16}e", EVERY_16_BITS.tobytes())
    for weight, reference in zip(weights.tolist(), expected, strict=True):
        same_sign = math.copysign(1, weight) == math.copysign(1, reference)
        assert (weight == reference and same_sign) or (math.isnan(weight) and math.isnan(reference))


def test_f32_is_read_bit_for_bit(folder: Path) -> None:
    weights = np.random.default_rng(1).integers(0, 1 << 32, (7, 5), np.uint32).view(np.float32)
    write_checkpoint(folder, {}, {"w": ("F32", weights)})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read_f32("w").tobytes() == weights.tobytes()


def test_rounding_to_bf16_ties_to_even() -> None:
    # 1 + 1/256 lies halfway between the bfloat16 numbers 1 and 1 + 1/128; 1 is even.
    weights = np.array([1 + 1 / 256, 1 + 3 / 256, 1 + 1 / 256 + 2**-20, -0.0, np.nan, np.inf])
    bits = round_to_bf16(weights.astype(np.float32))
    expected = np.array([1, 1 + 1 / 64, 1 + 1 / 128, -0.0, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(widen_bf16(bits), expected)


def test_config_is_given_as_it_is_with_the_infinity_that_python_writes(folder: Path) -> None:
    config = {"hidden_size": 224, "time_step_limit": [0.0, math.inf], "auto_map": {"a": "b.C"}}
    write_checkpoint(folder, config, {"w": ("F32", np.ones(3))})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.folder == folder


def test_shards_give_the_same_weights_as_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors = {f"layer.{i}": ("BF16", rng.standard_normal((i + 1, 4))) for i in range(7)}
    write_checkpoint(tmp_path / "one", {}, tensors)
    write_checkpoint(tmp_path / "three", {}, tensors, n_shards=3)
    with open_checkpoint(tmp_path / "one") as one, open_checkpoint(tmp_path / "three") as three:
        assert list(three.tensors) == list(one.tensors) == list(tensors)
        assert {tensor.path.name for tensor in three.tensors.values()} == {
            f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
        }
        for name, (_, weights) in tensors.items():
            expected = widen_bf16(round_to_bf16(weights))
            np.testing.assert_array_equal(one.read_f32(name), expected)
            np.testing.assert_array_equal(three.read_f32(name), expected)


def test_shards_may_be_links_into_a_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    write_safetensors(tmp_path / "blobs" / "0123", {"w": ("F32", np.arange(4.0))})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../blobs/0123")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.read_f32("w").tolist() == [0, 1, 2, 3]


dtypes = st.sampled_from(["BF16", "F16", "F32"])
shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(dtype=dtypes, shape=shapes, start=st.integers(-7, 7), stop=st.integers(-7, 7))
@settings(max_examples=100, deadline=None)
def test_rows_are_what_numpy_slices(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, ...],
    start: int,
    stop: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    # Up to 250, whole numbers are exact in all three types.
    weights = (np.arange(math.prod(shape), dtype=np.float32) % 251).reshape(shape)
    write_checkpoint(folder, {}, {"a": ("F32", np.ones(3)), "w": (dtype, weights)})
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read_f32("w"), weights)
        if not shape:
            with pytest.raises(ValueError, match="cannot take rows"):
                checkpoint.read_f32("w", slice(start, stop))
            return
        rows = checkpoint.read_f32("w", slice(start, stop))
        raw = checkpoint.read_raw("w", slice(start, stop))
    np.testing.assert_array_equal(rows, weights[start:stop])
    assert rows.flags.c_contiguous
    assert rows.shape == weights[start:stop].shape
    assert raw.tobytes() == encode_tensor(dtype, weights[start:stop])


def test_a_tensor_larger_than_a_block_is_read_whole(folder: Path) -> None:
    bits = np.random.default_rng(3).integers(0, 0x7F80, 2 * BLOCK_WEIGHTS + 3, np.uint16)
    write_checkpoint(folder, {}, {"w": ("BF16", bits)})
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read_f32("w"), widen_bf16(bits))
        assert checkpoint.read_raw("w").tobytes() == bits.tobytes()


def test_rows_beyond_4_gib_are_read_without_reading_the_rest(folder: Path) -> None:
    n_rows, width = 5 << 18, 1 << 12  # 5 Gi weights of 2 bytes
    n_bytes = 2 * n_rows * width
    entry = {"dtype": "BF16", "shape": [n_rows, width], "data_offsets": [0, n_bytes]}
    head = pack_shard({"w": entry}, b"")
    last = np.arange(width, dtype=np.uint16)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(head)
        stream.seek(len(head) + n_bytes - last.nbytes)  # a hole: no disk is used
        stream.write(last.tobytes())
    with open_checkpoint(folder) as checkpoint:
        rows = checkpoint.read_f32("w", slice(n_rows - 2, None))
    np.testing.assert_array_equal(rows, [np.zeros(width), widen_bf16(last)])


def test_out_is_filled_and_returned(folder: Path) -> None:
    weights = np.arange(6.0).reshape(2, 3)
    write_checkpoint(folder, {}, {"w": ("F16", weights)})
    out = np.full((2, 3), np.nan, np.float32)
    raw = np.empty(12, np.uint8)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read_f32("w", out=out) is out
        assert checkpoint.read_raw("w", out=raw) is raw
    np.testing.assert_array_equal(out, weights)
    assert raw.tobytes() == weights.astype("<f2").tobytes()


@pytest.mark.parametrize(
    "out",
    [np.empty((3, 2), np.float32), np.empty((2, 3)), np.empty((2, 6), np.float32)[:, ::2]],
    ids=["shape", "dtype", "stride"],
)
def test_an_unfit_out_is_refused(folder: Path, out: npt.NDArray[np.float32]) -> None:
    write_checkpoint(folder, {}, {"w": ("F16", np.ones((2, 3)))})
    with open_checkpoint(folder) as checkpoint, pytest.raises(ValueError, match="out is not"):
        checkpoint.read_f32("w", out=out)


def test_many_threads_read_at_once(folder: Path) -> None:
    rng = np.random.default_rng(4)
    tensors = {f"w{i}": ("BF16", rng.standard_normal((64, 512))) for i in range(32)}
    write_checkpoint(folder, {}, tensors, n_shards=2)
    with open_checkpoint(folder) as checkpoint, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(checkpoint.read_f32, [*tensors, *tensors]))
    for weights, (_, expected) in zip(read, [*tensors.values()] * 2, strict=True):
        np.testing.assert_array_equal(weights, widen_bf16(round_to_bf16(expected)))


def test_a_closed_checkpoint_says_so(folder: Path) -> None:
    write_checkpoint(folder, {}, {"w": ("F32", np.ones(3))})
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read_f32("w")


def test_a_shard_cut_after_opening_is_an_error_not_garbage(folder: Path) -> None:
    write_checkpoint(folder, {}, {"w": ("F32", np.ones(1000))})
    with open_checkpoint(folder) as checkpoint:
        shard = checkpoint.tensors["w"].path
        with shard.open("r+b") as stream:
            stream.truncate(shard.stat().st_size - 8)
        with pytest.raises(CheckpointError, match=r"tensor w: .* ends at byte"):
            checkpoint.read_f32("w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (699, 499), (524, 144), (300, 7)])
def test_a_weight_that_is_not_finite_is_named(value: float, position: tuple[int, int]) -> None:
    weights = np.full((700, 500), 3e38, np.float32)  # more than a block; a sum would overflow
    check_finite(Path("shard"), "w", weights)
    weights[position] = value
    weights[699, 499] = value  # a later one is not the one to name
    with pytest.raises(NotFinite) as caught:
        check_finite(Path("shard"), "w", weights)
    assert caught.value.position == position
    assert caught.value.tensor == "w"
    assert str(list(position)) in str(caught.value)


def test_the_row_of_a_part_counts_from_the_tensors_first(folder: Path) -> None:
    weights = np.zeros((4, 3), np.float32)
    weights[2, 1] = np.nan
    with pytest.raises(NotFinite) as caught:
        check_finite(folder, "w", weights, first_row=100)
    assert caught.value.position == (102, 1)
    with pytest.raises(NotFinite) as scalar:
        check_finite(folder, "w", np.float32(np.inf).reshape(()))
    assert scalar.value.position == ()


def test_the_writer_of_the_tests_writes_the_documented_layout(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w", {"a": ("F32", np.array([1.0, -2.0]))})
    content = (tmp_path / "w").read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    assert json.loads(content[8 : 8 + n])["a"] == {
        "dtype": "F32", "shape": [2], "data_offsets": [0, 8],
    }  # fmt: skip
    assert content[8 + n :] == bytes.fromhex("0000803f 000000c0")
