"""What a GGUF file is made of: numbers of the format, value types, block types.

Source: docs/gguf.md of the ggml project; ggml/include/ggml.h and ggml/src/ggml-common.h of
llama.cpp 0c1e57098.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
"""Bytes; every tensor starts at a multiple of it."""
MAX_DIMS = 4
MAX_NAME_BYTES = 63
"""A tensor's name with its closing zero fills GGML_MAX_NAME, 64."""

VALUE_IDS: dict[str, int] = {
    "u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8,
    "u64": 10, "i64": 11, "f64": 12,
}  # fmt: skip
ARRAY_ID = 9
VALUE_NAMES = {number: name for name, number in VALUE_IDS.items()}
SCALARS: dict[str, struct.Struct] = {
    "u8": struct.Struct("<B"), "i8": struct.Struct("<b"), "u16": struct.Struct("<H"),
    "i16": struct.Struct("<h"), "u32": struct.Struct("<I"), "i32": struct.Struct("<i"),
    "f32": struct.Struct("<f"), "bool": struct.Struct("<?"), "u64": struct.Struct("<Q"),
    "i64": struct.Struct("<q"), "f64": struct.Struct("<d"),
}  # fmt: skip
U32, U64 = SCALARS["u32"], SCALARS["u64"]


@dataclass(frozen=True)
class BlockType:
    """How ggml stores weights of one type: whole blocks along a row."""

    id: int
    """Number in the file, as in enum ggml_type."""
    name: str
    """ggml's name in lower case."""
    block_weights: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes, its share of the block's scales included."""
        return 8 * self.block_bytes / self.block_weights

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights.

        Raises:
            ValueError: The block does not divide the row.
        """
        if width % self.block_weights:
            raise ValueError(f"rows of {width} are not whole {self.name} blocks")
        return width // self.block_weights * self.block_bytes


_TYPE_ROWS = (
    (0, "f32", 1, 4), (1, "f16", 1, 2), (2, "q4_0", 32, 18), (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22), (7, "q5_1", 32, 24), (8, "q8_0", 32, 34), (9, "q8_1", 32, 36),
    (10, "q2_k", 256, 84), (11, "q3_k", 256, 110), (12, "q4_k", 256, 144),
    (13, "q5_k", 256, 176), (14, "q6_k", 256, 210), (15, "q8_k", 256, 292),
    (16, "iq2_xxs", 256, 66), (17, "iq2_xs", 256, 74), (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50), (20, "iq4_nl", 32, 18), (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82), (23, "iq4_xs", 256, 136), (24, "i8", 1, 1), (25, "i16", 1, 2),
    (26, "i32", 1, 4), (27, "i64", 1, 8), (28, "f64", 1, 8), (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2), (34, "tq1_0", 256, 54), (35, "tq2_0", 256, 66), (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36), (41, "q1_0", 128, 18), (42, "q2_0", 64, 18),
)  # fmt: skip

TYPES: dict[int, BlockType] = {row[0]: BlockType(*row) for row in _TYPE_ROWS}
"""Every type of llama.cpp 0c1e57098 by number; the numbers in between were withdrawn."""


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies in a file."""

    name: str
    shape: tuple[int, ...]
    """Numpy order: the last axis runs along a row."""
    type_id: int
    offset: int
    """First byte, counted from the start of the file."""
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def type(self) -> BlockType:
        """The type its blocks have."""
        return TYPES[self.type_id]


def pad_bytes(n_bytes: int, alignment: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment
