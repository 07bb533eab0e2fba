"""The codes of a block: which bits say what each of its weights is, but for the scales.

In most types a weight has a code of its own; in iq2 and iq3 some weights together have one, the
number of an entry of ggml's grid, and a sign each. Where the bits lie is all that this file knows
of a type.

Source: the block structures in ggml/src/ggml-common.h of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from quantize.ggml import U8Array
from quantize.gguf import BlockType

U32Array = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of every code of a block. The lowest plane of a type stands first."""

    first_bit: int
    n_bits: int
    """They lie in one byte."""
    axes: tuple[tuple[int, int], ...]
    """How codes follow each other: (how many, bits from one to the next), slowest first."""

    def locate(self) -> Iterator[tuple[slice, slice, int]]:
        """Where the bits are: (codes, bytes, shift); an axis of whole bytes is one slice."""
        whole = max((n, i) for i, (n, step) in enumerate(self.axes) if step % 8 == 0)[1]
        counts = [1 if i == whole else n for i, (n, _) in enumerate(self.axes)]
        strides = [1] * len(self.axes)
        for i in reversed(range(len(self.axes) - 1)):
            strides[i] = strides[i + 1] * self.axes[i + 1][0]
        (n, step), stride = self.axes[whole], strides[whole]
        for places in product(*map(range, counts)):
            code = sum(k * s for k, s in zip(places, strides, strict=True))
            bit = self.first_bit + sum(
                k * axis[1] for k, axis in zip(places, self.axes, strict=True)
            )
            codes = slice(code, code + (n - 1) * stride + 1, stride)
            yield codes, slice(bit // 8, bit // 8 + (n - 1) * step // 8 + 1, step // 8), bit % 8


def _sign_planes(first_bit: int, step: int) -> tuple[Plane, ...]:
    """Seven signs of each of 32 codes, those of four in a word; they cross bytes."""
    return tuple(Plane(first_bit + k, 1, ((8, step), (4, 7))) for k in range(7))


PLANES: Mapping[str, tuple[Plane, ...]] = {
    "q2_0": (Plane(8 * 2, 2, ((16, 8), (4, 2))),),
    "q4_0": (Plane(8 * 2, 4, ((2, 4), (16, 8))),),
    "q4_1": (Plane(8 * 4, 4, ((2, 4), (16, 8))),),
    "q5_0": (Plane(8 * 6, 4, ((2, 4), (16, 8))), Plane(8 * 2, 1, ((4, 8), (8, 1)))),
    "q5_1": (Plane(8 * 8, 4, ((2, 4), (16, 8))), Plane(8 * 4, 1, ((4, 8), (8, 1)))),
    "iq4_nl": (Plane(8 * 2, 4, ((2, 4), (16, 8))),),
    "mxfp4": (Plane(8 * 1, 4, ((2, 4), (16, 8))),),
    "nvfp4": (Plane(8 * 4, 4, ((4, 64), (2, 4), (8, 8))),),
    "q2_k": (Plane(8 * 16, 2, ((2, 256), (4, 2), (32, 8))),),
    "q3_k": (Plane(8 * 32, 2, ((2, 256), (4, 2), (32, 8))), Plane(0, 1, ((8, 1), (32, 8)))),
    "q4_k": (Plane(8 * 16, 4, ((4, 256), (2, 4), (32, 8))),),
    "q5_k": (Plane(8 * 48, 4, ((4, 256), (2, 4), (32, 8))), Plane(8 * 16, 1, ((8, 1), (32, 8)))),
    "q6_k": (
        Plane(0, 4, ((2, 512), (2, 4), (64, 8))), Plane(8 * 128, 2, ((2, 256), (4, 2), (32, 8)))
    ),
    "iq4_xs": (Plane(8 * 8, 4, ((8, 128), (2, 4), (16, 8))),),
    "iq2_xxs": (Plane(8 * 2, 8, ((8, 64), (4, 8))), *_sign_planes(8 * 6, 64)),
    "iq2_xs": (Plane(8 * 2, 8, ((32, 16),)), Plane(8 * 3, 8, ((32, 16),))),
    "iq2_s": (
        Plane(8 * 2, 8, ((32, 8),)), Plane(8 * 66, 2, ((8, 8), (4, 2))),
        Plane(8 * 34, 8, ((32, 8),)),
    ),
    "iq3_xxs": (
        Plane(8 * 2, 8, ((32, 16),)), Plane(8 * 3, 8, ((32, 16),)), *_sign_planes(8 * 66, 32)
    ),
    "iq3_s": (
        Plane(8 * 2, 8, ((64, 8),)), Plane(8 * 66, 1, ((8, 8), (8, 1))),
        Plane(8 * 74, 4, ((32, 8), (2, 4))),
    ),
}  # fmt: skip
"""Types whose codes can be chosen anew."""


def write_codes(blocks: U8Array, block_type: BlockType, codes: U32Array) -> None:
    """Give the weights of blocks these codes; scales stay as they are.

    Args:
        blocks: uint8 [n_blocks, bytes of a block], changed.
        block_type: One of PLANES.
        codes: uint32 [n_blocks, codes of a block].
    """
    low = 0
    for plane in PLANES[block_type.name]:
        mask = (1 << plane.n_bits) - 1
        part = (codes >> low & mask).astype(np.uint8)
        for which, places, shift in plane.locate():
            blocks[:, places] &= ~(mask << shift) & 0xFF
            blocks[:, places] |= part[:, which] << shift
        low += plane.n_bits
