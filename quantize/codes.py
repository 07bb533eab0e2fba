"""The codes of a block: which bits say for each weight which of its scale's levels it has.

Where they lie, and how far apart levels are in steps, is all that this file knows of a type; the
step itself is asked of ggml's decoder, by decoding the block with one code everywhere.

Source: the block structures in ggml/src/ggml-common.h of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from quantize.ggml import F32Array, U8Array, decode_rows
from quantize.gguf import BlockType


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of all codes of a block, the lowest plane first."""

    first_byte: int
    n_bits: int
    chunk: int
    """So many weights share consecutive bytes: the first ones have the lowest bits of each."""

    def locate(self, n_weights: int) -> Iterator[tuple[slice, slice, int]]:
        """Where the codes are: (weights, bytes, shift), byte by byte for weight by weight."""
        n_bytes = self.chunk * self.n_bits // 8
        for first in range(0, n_weights, self.chunk):
            start = self.first_byte + first // self.chunk * n_bytes
            for k in range(8 // self.n_bits):
                at = first + k * n_bytes
                yield slice(at, at + n_bytes), slice(start, start + n_bytes), k * self.n_bits


PLANES: Mapping[str, tuple[Plane, ...]] = {
    "q2_0": (Plane(2, 2, 4),),
    "q4_0": (Plane(2, 4, 32),),
    "q4_1": (Plane(4, 4, 32),),
    "q5_0": (Plane(6, 4, 32), Plane(2, 1, 8)),
    "q5_1": (Plane(8, 4, 32), Plane(4, 1, 8)),
    "iq4_nl": (Plane(2, 4, 32),),
    "mxfp4": (Plane(1, 4, 32),),
    "nvfp4": (Plane(4, 4, 16),),
    "q2_k": (Plane(16, 2, 128),),
    "q3_k": (Plane(32, 2, 128), Plane(0, 1, 256)),
    "q4_k": (Plane(16, 4, 64),),
    "q5_k": (Plane(48, 4, 64), Plane(16, 1, 256)),
    "q6_k": (Plane(0, 4, 128), Plane(128, 2, 128)),
    "iq4_xs": (Plane(8, 4, 32),),
}
"""Types in which each weight has a code of its own."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
UNEVEN: Mapping[str, tuple[int, ...]] = {
    "iq4_nl": _IQ4, "iq4_xs": _IQ4, "mxfp4": _E2M1, "nvfp4": _E2M1
}  # fmt: skip
"""What a code stands for, in steps, where that is not its number."""

TINY = np.finfo(np.float32).tiny
"""A smaller step has no inverse; a block of zeros can have one."""


def write_codes(blocks: U8Array, block_type: BlockType, codes: U8Array) -> None:
    """Give the weights of blocks these levels; scales stay as they are.

    Args:
        blocks: uint8 [n_blocks, bytes of a block], changed.
        block_type: One of PLANES.
        codes: uint8 [n_blocks, weights of a block].
    """
    low = 0
    for plane in PLANES[block_type.name]:
        mask = (1 << plane.n_bits) - 1
        part = codes >> low & mask
        for weights, places, shift in plane.locate(block_type.block_weights):
            blocks[:, places] &= ~(mask << shift) & 0xFF
            blocks[:, places] |= part[:, weights] << shift
        low += plane.n_bits


class Levels:
    """What each weight of some blocks can be, by the scales of its block.

    Args:
        blocks: uint8 [n_blocks, bytes of a block].
        block_type: One of PLANES.
    """

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
        self._per_step = np.zeros_like(self._step)
        np.divide(1, self._step, out=self._per_step, where=np.abs(self._step) > TINY)

    def choose(self, column: int, values: F32Array) -> tuple[U8Array, F32Array]:
        """Choose the nearest levels.

        Args:
            column: Place in the block.
            values: float32 [n_blocks], one for each block.

        Returns:
            The codes, and what they decode to, [n_blocks].
        """
        step, zero = self._step[column], self._zero[column]
        scaled = (values - zero) * self._per_step[column]
        codes: U8Array
        if self._is_even:
            codes = np.rint(scaled).clip(0, len(self._steps) - 1).astype(np.uint8)
        else:
            ranks = np.add.reduce(self._middles < scaled, axis=0, dtype=np.uint8)
            codes = self._order[ranks].astype(np.uint8)
        return codes, self._steps[codes] * step + zero


def _decode_with(blocks: U8Array, block_type: BlockType, code: int) -> F32Array:
    """What all weights would be with one code, [weights of a block, n_blocks]."""
    changed, width = blocks.copy(), block_type.block_weights
    write_codes(changed, block_type, np.full((len(blocks), width), code, np.uint8))
    return np.ascontiguousarray(decode_rows(changed.reshape(-1), block_type, width).T)
