"""The unit of conversion: some rows of a matrix, or an expert whose two matrices change together.

What a thread does with one is in encoding.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from quantize.families import OutputTensor
from quantize.ggml import U8Array
from quantize.gguf import FilePlan
from quantize.pairs import Pair, PlannedTensor
from quantize.recipe import Recipe
from quantize.safetensors import DTYPE_BYTES, Checkpoint, Stretch

UNIT_WEIGHTS = 1 << 20
"""Of a plain unit, at most: small, so that at the end no thread waits long for the others' last."""
FEEDBACK_UNIT_WEIGHTS = 6 << 20
"""With feedback, which is planned for each unit anew; an expert of the 30 B model has 5.0 M."""


@dataclass(frozen=True)
class Piece:
    """Some output rows of one source, and the bytes they become."""

    tensor: PlannedTensor
    expert: int
    """Index of the source; 0 for a plain matrix."""
    first_row: int
    n_rows: int
    offset: int
    """Of the first encoded byte in the output file."""

    @property
    def width(self) -> int:
        """Weights in an output row."""
        return self.tensor.spec.shape[-1]

    @property
    def source(self) -> str:
        """Name of the source; empty if it is made of others."""
        sources = self.tensor.spec.sources
        return sources[self.expert] if sources else ""

    @cached_property
    def row_bytes(self) -> int:
        """Encoded bytes of an output row."""
        return self.tensor.type.row_bytes(self.width)

    @property
    def n_bytes(self) -> int:
        """Encoded bytes of the piece."""
        return self.n_rows * self.row_bytes

    @cached_property
    def source_matrix(self) -> tuple[int, int]:
        """Rows and width of the source, laid out like the output but without its padding."""
        return _shape_source(self.tensor.spec)


@dataclass(frozen=True)
class Factor:
    """Where the factor of one expert goes."""

    tensor: PlannedTensor
    offset: int
    n_bytes: int = 4


@dataclass(frozen=True)
class Unit:
    """What is made at once: one piece, or those of one expert."""

    pieces: tuple[Piece, ...]
    """One; or all of `up` and all of `down` of an expert."""
    pair: Pair | None = None
    """Of the expert."""
    factors: tuple[Factor | None, ...] = ()
    """For each piece, where its factor goes; none if it has none."""

    @property
    def outputs(self) -> tuple[Piece | Factor, ...]:
        """Everything that is written, in this order."""
        return (*self.pieces, *(factor for factor in self.factors if factor))

    @property
    def n_bytes(self) -> int:
        """Bytes that are written."""
        return sum(output.n_bytes for output in self.outputs)


def cut_units(recipe: Recipe, plan: FilePlan) -> Iterator[Unit]:
    """Cut a conversion into units: the plain ones in the order of the file, then the experts."""
    offsets = {placed.name: placed.offset for placed in plan.tensors}
    paired = {tensor.spec.name for pair in recipe.pairs for tensor in pair.tensors}
    has_feedback = recipe.transforms.feedback and recipe.moments is not None
    n_weights = FEEDBACK_UNIT_WEIGHTS if has_feedback else UNIT_WEIGHTS
    for tensor in recipe.tensors:
        if tensor.spec.name not in paired:
            yield from _cut_tensor(tensor, offsets[tensor.spec.name], n_weights)
    for pair in recipe.pairs:
        for expert in range(len(pair.up.spec.sources)):
            yield _cut_expert(pair, expert, offsets)


def _cut_tensor(tensor: PlannedTensor, offset: int, n_weights: int) -> Iterator[Unit]:
    n_rows = _count_rows(tensor.spec)
    step = max(1, n_weights // tensor.spec.shape[-1])
    for expert in range(len(tensor.spec.sources)):
        for first in range(0, n_rows, step):
            piece = Piece(tensor, expert, first, min(step, n_rows - first), offset)
            yield Unit((piece,))
            offset += piece.n_bytes


def _cut_expert(pair: Pair, expert: int, offsets: dict[str, int]) -> Unit:
    pieces = []
    for tensor in (pair.up, pair.down):
        piece = Piece(tensor, expert, 0, _count_rows(tensor.spec), offsets[tensor.spec.name])
        moved = piece.offset + expert * piece.n_bytes
        pieces.append(Piece(tensor, expert, 0, piece.n_rows, moved))
    factors = tuple(
        Factor(scale, offsets[scale.spec.name] + 4 * expert) if scale else None
        for scale in pair.scales
    )
    return Unit(tuple(pieces), pair, factors)


def locate_sources(checkpoint: Checkpoint, unit: Unit) -> tuple[Stretch, ...]:
    """Find the stored bytes that each piece is made of; fewer where the output is padded."""
    return tuple(_locate_piece(checkpoint, piece, whole=bool(unit.pair)) for piece in unit.pieces)


def _locate_piece(checkpoint: Checkpoint, piece: Piece, whole: bool) -> Stretch:
    stored = checkpoint.tensors[piece.source]
    n_source_rows, width = piece.source_matrix
    row_bytes = width * DTYPE_BYTES[stored.dtype]
    first = 0 if whole else min(piece.first_row, n_source_rows)
    n_rows = n_source_rows if whole else min(piece.n_rows, n_source_rows - first)
    return Stretch(stored.path, stored.offset + first * row_bytes, n_rows * row_bytes)


def read_piece(checkpoint: Checkpoint, unit: Unit, k: int, room: U8Array) -> U8Array:
    """Read the stored bytes of a unit's k-th piece into `room`, which they fill.

    Raises:
        CheckpointError: The source cannot be read.
    """
    piece = unit.pieces[k]
    if room.nbytes == checkpoint.tensors[piece.source].n_bytes:
        return checkpoint.read_raw(piece.source, out=room)
    rows = slice(piece.first_row, piece.first_row + piece.n_rows)
    return checkpoint.read_raw(piece.source, rows, out=room)


def _count_rows(spec: OutputTensor) -> int:
    return math.prod(spec.shape[:-1]) // len(spec.sources)


def _shape_source(spec: OutputTensor) -> tuple[int, int]:
    n_rows, width = _count_rows(spec), spec.shape[-1]
    if not spec.matrix and math.prod(spec.source_shape) == n_rows * width:
        return n_rows, width
    return math.prod(spec.source_shape[:-1]), spec.source_shape[-1]
