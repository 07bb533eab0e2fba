"""Codes of blocks: written where ggml's own decoder reads them, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants

from quantize.codes import PLANES, write_codes
from quantize.encoders import encode_rows
from quantize.ggml import decode_rows, type_named
from quantize.levels import GRIDS, UNEVEN, list_choices

N_BLOCKS = 37
SINGLE = sorted(PLANES.keys() - GRIDS)
"""Types in which each weight has a code of its own."""


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


def read_grid(kind: str) -> np.ndarray:
    """The entries of a grid as the gguf package has them, [n, weights of an entry]."""
    table = getattr(quants, kind.upper())
    table.init_grid()
    entries: np.ndarray = table.grid.reshape(table.grid.shape[-2:])
    return entries


@pytest.mark.parametrize("kind", SINGLE)
def test_every_code_is_decoded_on_its_own(kind: str) -> None:
    """Any mixture of codes decodes to what blocks of one code do, place by place."""
    blocks, rng = make_blocks(kind), np.random.default_rng(1)
    n_bits = sum(plane.n_bits for plane in PLANES[kind])
    shape = N_BLOCKS, type_named(kind).block_weights
    levels = []
    for code in range(1 << n_bits):
        write_codes(blocks, type_named(kind), np.full(shape, code, np.uint32))
        levels.append(decode(blocks, kind))
    codes = rng.integers(0, 1 << n_bits, shape, np.uint32)
    write_codes(blocks, type_named(kind), codes)
    expected = np.take_along_axis(np.stack(levels), codes[None].astype(np.int64), 0)[0]
    np.testing.assert_array_equal(decode(blocks, kind), expected)


@pytest.mark.parametrize("kind", GRIDS)
def test_every_code_is_an_entry_and_signs(kind: str) -> None:
    layout, rng = GRIDS[kind], np.random.default_rng(1)
    n_codes = type_named(kind).block_weights // layout.span
    n_bits = sum(plane.n_bits for plane in PLANES[kind])
    codes = rng.integers(0, 1 << n_bits, (N_BLOCKS, n_codes), np.uint32)
    blocks = make_blocks(kind)
    write_codes(blocks, type_named(kind), np.zeros_like(codes))
    grid, width = read_grid(kind), layout.span // layout.n_entries
    steps = decode(blocks, kind) / np.tile(grid[0], 256 // width)
    write_codes(blocks, type_named(kind), codes)
    mask = (1 << layout.entry_bits) - 1
    entries = [grid[codes >> k * layout.entry_bits & mask] for k in range(layout.n_entries)]
    signs = codes >> layout.n_entries * layout.entry_bits
    bits = signs[..., None] >> np.arange(layout.span) & 1
    if not layout.has_all_signs:
        bits[..., -1] = bits[..., :-1].sum(axis=-1) & 1
    expected = np.concatenate(entries, axis=-1) * np.where(bits, -1, 1)
    np.testing.assert_allclose(decode(blocks, kind), expected.reshape(steps.shape) * steps, 1e-6)


@pytest.mark.parametrize("kind", PLANES)
def test_what_a_block_decodes_to_is_the_nearest_it_can_hold(kind: str) -> None:
    """So the codes come back, but for those that decode to the same number."""
    blocks = make_blocks(kind)
    before = decode(blocks, kind)
    choices, values = list_choices(blocks, type_named(kind)), before.T.copy()
    span, weights = choices.span, np.ones(choices.span, np.float32)
    starts = range(0, len(values), span)
    chosen = [choices.choose(j, values[j : j + span], weights) for j in starts]
    np.testing.assert_allclose(np.concatenate([d for _, d in chosen]), values, atol=1e-6)
    write_codes(blocks, type_named(kind), np.stack([c for c, _ in chosen], 1))
    np.testing.assert_array_equal(decode(blocks, kind), before)


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_values_beyond_the_levels_get_the_outermost(kind: str, value: float) -> None:
    choices = list_choices(make_blocks(kind), type_named(kind))
    codes, _ = choices.choose(3, np.full((1, N_BLOCKS), value, np.float32), np.ones(1, np.float32))
    ends = UNEVEN.get(kind, range(1 << sum(plane.n_bits for plane in PLANES[kind])))
    outermost = {ends.index(min(ends)), ends.index(max(ends))}
    assert set(codes[1:].tolist()) <= outermost


@pytest.mark.parametrize("kind", GRIDS)
def test_no_entry_with_no_signs_is_nearer(kind: str) -> None:
    """All entries with all signs, of the gguf package's grid; where the last sign is not free, the
    one that is given up need not be the best one, and the sum of errors is near the least."""
    blocks, layout, rng = make_blocks(kind), GRIDS[kind], np.random.default_rng(2)
    span, values = layout.span, rng.standard_normal((layout.span, N_BLOCKS)).astype(np.float32)
    weights = rng.uniform(0.2, 5, span).astype(np.float32)
    _, decoded = list_choices(blocks, type_named(kind)).choose(16, values, weights)
    found = weights @ np.square(values - decoded)
    write_codes(blocks, type_named(kind), np.zeros((N_BLOCKS, 256 // span), np.uint32))
    grid = read_grid(kind)
    steps = decode(blocks, kind)[:, 16] / grid[0, 0]
    signs = 1 - 2 * (np.arange(1 << span)[:, None] >> np.arange(span) & 1)
    if not layout.has_all_signs:
        signs = signs[signs.prod(axis=1) > 0]
    least = np.zeros((len(signs), N_BLOCKS))
    for part in np.split(np.arange(span), layout.n_entries):
        levels = grid[:, None] * steps[:, None]
        for i, sign in enumerate(signs[:, part]):
            errors = np.square(levels - (values[part] * sign[:, None]).T)
            least[i] += (errors @ weights[part]).min(axis=0)
    best = least.min(axis=0)
    assert (found >= best * (1 - 1e-4)).all()
    limit = 1 + 1e-4 if layout.has_all_signs else 1.001
    assert found.sum() <= limit * best.sum()
