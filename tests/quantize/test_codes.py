"""Codes of blocks: written where ggml's own decoder reads them, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.codes import PLANES, UNEVEN, Levels, write_codes
from quantize.encoders import encode_rows
from quantize.ggml import decode_rows, type_named

N_BLOCKS = 37


def make_blocks(kind: str, seed: int = 0) -> np.ndarray:
    block_type, rng = type_named(kind), np.random.default_rng(seed)
    width = block_type.block_weights
    weights = rng.standard_t(3, (N_BLOCKS, width)).astype(np.float32)
    weights[0] = 0
    blocks = np.zeros((N_BLOCKS, block_type.block_bytes), np.uint8)
    encode_rows(weights, block_type, blocks.reshape(-1), np.ones(width, np.float32))
    return blocks


def decode(blocks: np.ndarray, kind: str) -> np.ndarray:
    return decode_rows(blocks.reshape(-1), type_named(kind), type_named(kind).block_weights)


@pytest.mark.parametrize("kind", PLANES)
def test_every_code_is_decoded_on_its_own(kind: str) -> None:
    """Any mixture of codes decodes to what blocks of one code do, place by place."""
    blocks, rng = make_blocks(kind), np.random.default_rng(1)
    n_bits = sum(plane.n_bits for plane in PLANES[kind])
    shape = N_BLOCKS, type_named(kind).block_weights
    levels = []
    for code in range(1 << n_bits):
        write_codes(blocks, type_named(kind), np.full(shape, code, np.uint8))
        levels.append(decode(blocks, kind))
    codes = rng.integers(0, 1 << n_bits, shape).astype(np.uint8)
    write_codes(blocks, type_named(kind), codes)
    expected = np.take_along_axis(np.stack(levels), codes[None].astype(np.int64), 0)[0]
    np.testing.assert_array_equal(decode(blocks, kind), expected)


@pytest.mark.parametrize("kind", PLANES)
def test_what_a_block_decodes_to_is_its_nearest_levels(kind: str) -> None:
    """So the codes come back, but for those that decode to the same number."""
    blocks = make_blocks(kind)
    before = decode(blocks, kind)
    levels, values = Levels(blocks, type_named(kind)), before.T.copy()
    chosen = [levels.choose(j, values[j]) for j in range(len(values))]
    np.testing.assert_allclose(np.stack([d for _, d in chosen]), values, atol=1e-6)
    write_codes(blocks, type_named(kind), np.stack([c for c, _ in chosen], 1).astype(np.uint8))
    np.testing.assert_array_equal(decode(blocks, kind), before)


@pytest.mark.parametrize("kind", PLANES)
@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_values_beyond_the_levels_get_the_outermost(kind: str, value: float) -> None:
    codes, _ = Levels(make_blocks(kind), type_named(kind)).choose(
        3, np.full(N_BLOCKS, value, np.float32)
    )
    ends = UNEVEN.get(kind, range(1 << sum(plane.n_bits for plane in PLANES[kind])))
    outermost = {ends.index(min(ends)), ends.index(max(ends))}
    assert set(codes[1:].tolist()) <= outermost
