"""What the weights of a block can be, by its scales, and which of that is nearest.

The scales are asked of ggml's decoder, by decoding a block with one code everywhere; so are the
grids of iq2 and iq3, by decoding each of their entries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quantize.codes import PLANES, U32Array, write_codes
from quantize.ggml import F32Array, U8Array, decode_rows, type_named
from quantize.gguf import BlockType

TINY = np.finfo(np.float32).tiny
"""A smaller step has no inverse; a block of zeros can have one."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
UNEVEN: Mapping[str, tuple[int, ...]] = {
    "iq4_nl": _IQ4, "iq4_xs": _IQ4, "mxfp4": _E2M1, "nvfp4": _E2M1
}  # fmt: skip
"""What a code stands for, in steps, where that is not its number."""


class Choice(Protocol):
    """What some blocks can hold; columns that share a code are chosen together."""

    span: int
    """Columns of a code."""

    def choose(
        self, first: int, values: F32Array, weights: F32Array, /
    ) -> tuple[U32Array, F32Array]:
        """Choose the nearest that can be had.

        Args:
            first: The first of the columns of one code.
            values: float32 [span, n_blocks].
            weights: How each column's squared error counts, float32 [span].

        Returns:
            The codes, [n_blocks], and what they decode to, [span, n_blocks].
        """


def list_choices(blocks: U8Array, block_type: BlockType) -> Choice:
    """See what blocks can hold by their scales.

    Args:
        blocks: uint8 [n_blocks, bytes of a block].
        block_type: One of PLANES.
    """
    name = block_type.name
    return Grid(blocks, block_type) if name in GRIDS else Levels(blocks, block_type)


class Levels:
    """Of a type in which each weight has a code."""

    span = 1

    def __init__(self, blocks: U8Array, block_type: BlockType) -> None:
        n_levels = 1 << sum(plane.n_bits for plane in PLANES[block_type.name])
        self._is_even = block_type.name not in UNEVEN
        self._steps = np.array(UNEVEN.get(block_type.name, range(n_levels)), np.float32)
        self._order = self._steps.argsort()
        ranked = self._steps[self._order]
        self._middles = (ranked[1:, None] + ranked[:-1, None]) / 2
        first, last = self._order[[0, -1]]
        low, high = (_decode_with(blocks, block_type, code) for code in (first, last))
        self._step = (high - low) / (ranked[-1] - ranked[0])
        self._zero = low - self._step * ranked[0]
        self._per_step = _invert(self._step)

    def choose(self, first: int, values: F32Array, _: F32Array, /) -> tuple[U32Array, F32Array]:
        """As Choice; one column has no use for its weight."""
        step, zero = self._step[first], self._zero[first]
        scaled = (values[0] - zero) * self._per_step[first]
        if self._is_even:
            codes = np.rint(scaled).clip(0, len(self._steps) - 1).astype(np.uint32)
        else:
            ranks = np.add.reduce(self._middles < scaled, axis=0, dtype=np.uint32)
            codes = self._order[ranks].astype(np.uint32)
        return codes, (self._steps[codes] * step + zero)[None]


@dataclass(frozen=True, slots=True)
class GridLayout:
    """How a code is made of entries and signs, from its lowest bit on."""

    span: int
    n_entries: int
    """As many entries lie side by side in a code."""
    entry_bits: int
    has_all_signs: bool = True
    """Or the last sign is what makes an even number of them negative."""


GRIDS: Mapping[str, GridLayout] = {
    "iq2_xxs": GridLayout(8, 1, 8, has_all_signs=False),
    "iq2_xs": GridLayout(8, 1, 9, has_all_signs=False),
    "iq2_s": GridLayout(8, 1, 10),
    "iq3_xxs": GridLayout(8, 2, 8, has_all_signs=False),
    "iq3_s": GridLayout(4, 1, 9),
}


class Grid:
    """Of a type in which weights share the number of an entry: a step, an entry, signs."""

    def __init__(self, blocks: U8Array, block_type: BlockType) -> None:
        self._layout = GRIDS[block_type.name]
        self.span = self._layout.span
        self._entries = _decode_grid(block_type.name)
        self._step = _decode_with(blocks, block_type, 0) / self._entries[0, 0]
        self._per_step = _invert(self._step)

    def choose(
        self, first: int, values: F32Array, weights: F32Array, /
    ) -> tuple[U32Array, F32Array]:
        """As Choice; all entries are tried, with the signs that the values have."""
        scaled = values * self._per_step[first]
        is_negative = self._choose_signs(scaled, weights)
        sizes = np.where(is_negative, -scaled, scaled)
        width, decoded = self._entries.shape[1], np.empty_like(sizes)
        codes = np.zeros(sizes.shape[1], np.uint32)
        for k in range(self._layout.n_entries):
            own = slice(k * width, (k + 1) * width)
            chosen = _find_nearest(self._entries, sizes[own], weights[own])
            decoded[own] = self._entries.T[:, chosen]
            codes |= chosen << (k * self._layout.entry_bits)
        n_signs = self.span - (not self._layout.has_all_signs)
        first_sign = self._layout.n_entries * self._layout.entry_bits
        for k in range(n_signs):
            codes |= is_negative[k].astype(np.uint32) << (first_sign + k)
        np.negative(decoded, out=decoded, where=is_negative)
        return codes, decoded * self._step[first]

    def _choose_signs(self, scaled: F32Array, weights: F32Array) -> npt.NDArray[np.bool_]:
        is_negative = scaled < 0
        if not self._layout.has_all_signs:
            odd = np.flatnonzero(np.logical_xor.reduce(is_negative))
            # A sign costs 4|x|e, and where x is small the nearest entry e is the least there is.
            costs = weights[:, None] * np.abs(scaled[:, odd])
            is_negative[costs.argmin(axis=0), odd] ^= True
        return is_negative


def _find_nearest(entries: F32Array, sizes: F32Array, weights: F32Array) -> U32Array:
    """The entries with the least weighted squared error, [n]; sizes [width, n].

    Of (s - e)², s² is the same for all entries, and -2 s e + e² is one product of matrices.
    """
    weighed = entries * weights
    halves = (weighed * entries).sum(axis=1) / 2
    n, chosen = sizes.shape[1], np.empty(sizes.shape[1], np.uint32)
    rows = np.ascontiguousarray(sizes.T)
    step = max(1, (1 << 17) // len(entries))
    for at in range(0, n, step):
        scores = rows[at : at + step] @ weighed.T
        scores -= halves
        chosen[at : at + step] = scores.argmax(axis=1)
    return chosen


@functools.cache
def _decode_grid(name: str) -> F32Array:
    """The entries of a type's grid in multiples of its smallest step, [n, weights of an entry]."""
    block_type, layout = type_named(name), GRIDS[name]
    n_codes = 1 << layout.entry_bits
    blocks = np.zeros((n_codes, block_type.block_bytes), np.uint8)
    blocks[:, :2] = np.array([1], "<f2").view(np.uint8)  # these types begin with the scale
    n_groups = block_type.block_weights // layout.span
    codes = np.repeat(np.arange(n_codes, dtype=np.uint32)[:, None], n_groups, axis=1)
    write_codes(blocks, block_type, codes)
    decoded = decode_rows(blocks.reshape(-1), block_type, block_type.block_weights)
    entries = decoded[:, : layout.span // layout.n_entries]
    return np.ascontiguousarray(entries)


def _decode_with(blocks: U8Array, block_type: BlockType, code: int) -> F32Array:
    """What all weights would be with one code, [weights of a block, n_blocks]."""
    changed, width = blocks.copy(), block_type.block_weights
    layout = GRIDS.get(block_type.name)
    n_codes = width // (layout.span if layout else 1)
    write_codes(changed, block_type, np.full((len(blocks), n_codes), code, np.uint32))
    return np.ascontiguousarray(decode_rows(changed.reshape(-1), block_type, width).T)


def _invert(steps: F32Array) -> F32Array:
    inverse = np.zeros_like(steps)
    np.divide(1, steps, out=inverse, where=np.abs(steps) > TINY)
    return inverse
