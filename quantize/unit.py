"""The unit of conversion: some rows of a matrix, or an expert whose two matrices change together.

A thread owns the buffers of one unit. Of a plain unit the float32 weights exist only as a slab that
stays in the L2 cache: widened, checked, changed and encoded before the next slab is read. Where
neurons of an expert are chosen, moved or scaled, both its matrices are held whole.
"""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize.encoders import encode_rows
from quantize.families import OutputTensor
from quantize.ggml import F32Array, U8Array, widen
from quantize.gguf import FilePlan
from quantize.pairs import Pair, PlannedTensor
from quantize.recipe import Recipe
from quantize.safetensors import DTYPE_BYTES, Checkpoint, Stretch, check_finite
from quantize.transform import (
    Neurons,
    arrange_neurons,
    choose_expert_scale,
    choose_neurons,
    measure_contributions,
    refit_down,
)

UNIT_WEIGHTS = 6 << 20
"""An expert of the 30 B model has 5.0 M weights."""
SLAB_WEIGHTS = 1 << 18
"""1 MiB of float32."""

Rows = Callable[[int, int], F32Array]
"""(first, last) -> these rows of a piece, as they are to be encoded; float32, contiguous."""


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


class Buffers(threading.local):
    """A thread's scratch memory; grown, never shrunk."""

    def take(self, name: str, n_bytes: int) -> U8Array:
        """Return the buffer of that name, cut to `n_bytes`; its content is arbitrary."""
        buffer: U8Array | None = self.__dict__.get(name)
        if buffer is None or buffer.size < n_bytes:
            buffer = self.__dict__[name] = np.empty(n_bytes, dtype=np.uint8)
        return buffer[:n_bytes]


def cut_units(recipe: Recipe, plan: FilePlan) -> Iterator[Unit]:
    """Cut a conversion into units: the plain ones in the order of the file, then the experts."""
    offsets = {placed.name: placed.offset for placed in plan.tensors}
    paired = {tensor.spec.name for pair in recipe.pairs for tensor in pair.tensors}
    for tensor in recipe.tensors:
        if tensor.spec.name not in paired:
            yield from _cut_tensor(tensor, offsets[tensor.spec.name])
    for pair in recipe.pairs:
        for expert in range(len(pair.up.spec.sources)):
            yield _cut_expert(pair, expert, offsets)


def _cut_tensor(tensor: PlannedTensor, offset: int) -> Iterator[Unit]:
    n_rows = _count_rows(tensor.spec)
    step = max(1, UNIT_WEIGHTS // tensor.spec.shape[-1])
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


def run_unit(
    checkpoint: Checkpoint,
    unit: Unit,
    raws: Sequence[U8Array],
    recipe: Recipe,
    file: int,
    buffers: Buffers,
) -> int:
    """Encode and write one unit.

    Args:
        checkpoint: The source, open.
        unit: The work.
        raws: Of each piece, the stored bytes.
        recipe: What the unit is of.
        file: Descriptor of the output.
        buffers: Of this thread.

    Returns:
        CRC-32 of the bytes written, one output behind the other.

    Raises:
        CheckpointError: The source holds NaN or infinities.
        OSError: The output cannot be written.
    """
    worker = _Worker(checkpoint, recipe, file, buffers)
    if unit.pair:
        return worker.run_expert(unit, unit.pair, raws)
    return worker.run_plain(unit.pieces[0], raws[0])


@dataclass(frozen=True)
class _Worker:
    """What one thread needs for one unit."""

    checkpoint: Checkpoint
    recipe: Recipe
    file: int
    buffers: Buffers

    def run_plain(self, piece: Piece, raw: U8Array) -> int:
        """Encode a piece as it is read."""
        columns = self._multiply_columns(piece)
        weights = _pad(self._weigh_columns(piece), piece.width)
        return self._write(piece, lambda i, j: self._load(raw, piece, i, j, columns), weights)

    def run_expert(self, unit: Unit, pair: Pair, raws: Sequence[U8Array]) -> int:
        """Choose and change the neurons of an expert, then encode both matrices."""
        up, down = (self._load_whole(p, raw) for p, raw in zip(unit.pieces, raws, strict=True))
        squares = self._weigh_columns(unit.pieces[1])
        neurons, down = self._change_neurons(pair, unit.pieces[1], up, down, squares)
        up = neurons.change_up(up)
        weights = (
            self._weigh_columns(unit.pieces[0]),
            None if squares is None else neurons.change_mean_squares(squares),
        )
        checksum, factors = 0, []
        for k, matrix in enumerate((up, down)):
            scale = self._scale_expert(unit, k, matrix)
            factors += [scale] if unit.factors[k] else []
            piece = unit.pieces[k]
            rows = self._slice(matrix, piece)
            checksum = self._write(piece, rows, _pad(weights[k], piece.width), checksum)
        return self._write_factors(unit, factors, checksum)

    def _change_neurons(
        self, pair: Pair, piece: Piece, up: F32Array, down: F32Array, squares: F32Array | None
    ) -> tuple[Neurons, F32Array]:
        before, after = pair.n_neurons
        kept = np.arange(before)
        if after < before:
            kept = choose_neurons(measure_contributions(up, down, squares), after)
            moments = self.recipe.moments
            seen = moments.matrix(piece.tensor.spec.name, piece.expert) if moments else None
            down = refit_down(down, seen, kept) if seen is not None else down.take(kept, 1)
        is_scaled = self.recipe.transforms.scale_neurons
        return arrange_neurons(kept, down, squares, pair.group, is_scaled=is_scaled)

    def _scale_expert(self, unit: Unit, k: int, matrix: F32Array) -> float:
        """Divide a matrix by its factor, if it has one; the factor."""
        if not unit.factors[k]:
            return 1.0
        scale = choose_expert_scale(max(float(matrix.max()), -float(matrix.min())))
        np.divide(matrix, np.float32(scale), out=matrix)
        return scale

    def _write_factors(self, unit: Unit, factors: list[float], checksum: int) -> int:
        places = [place for place in unit.factors if place]
        for place, factor in zip(places, factors, strict=True):
            data = np.frombuffer(np.array([factor], "<f4").tobytes(), np.uint8)
            _write_all(self.file, data, place.offset)
            checksum = zlib.crc32(data.data, checksum)
        return checksum

    def _write(self, piece: Piece, rows: Rows, weights: F32Array | None, checksum: int = 0) -> int:
        """Encode a piece slab by slab and write it; the checksum goes on from `checksum`."""
        encoded = self.buffers.take("encoded", piece.n_bytes)
        step = max(1, SLAB_WEIGHTS // piece.width)
        for first in range(0, piece.n_rows, step):
            last = min(first + step, piece.n_rows)
            room = encoded[first * piece.row_bytes : last * piece.row_bytes]
            encode_rows(rows(first, last), piece.tensor.type, room, weights)
        _write_all(self.file, encoded, piece.offset)
        return zlib.crc32(encoded.data, checksum)

    def _load_whole(self, piece: Piece, raw: U8Array) -> F32Array:
        """The whole source as float32, changed as the family says, unpadded."""
        n_rows, width = piece.source_matrix
        matrix = np.empty((n_rows, width), np.float32)
        widen(raw, self.checkpoint.tensors[piece.source].dtype, matrix)
        self._check(piece, matrix, 0)
        _change_rows(matrix, piece.tensor.spec)
        columns = self._multiply_columns(piece)
        return matrix if columns is None else np.multiply(matrix, columns, out=matrix)

    def _slice(self, matrix: F32Array, piece: Piece) -> Rows:
        """Rows of a matrix, zeros where the output is wider or longer."""
        n_rows, width = matrix.shape

        def slice_rows(first: int, last: int) -> F32Array:
            if width == piece.width and last <= n_rows:
                return matrix[first:last]
            rows = self._take_rows(last - first, piece.width)
            stored = matrix[first:last]
            rows[: len(stored), :width] = stored
            rows[: len(stored), width:] = 0
            rows[len(stored) :] = 0
            return rows

        return slice_rows

    def _load(
        self, raw: U8Array, piece: Piece, first: int, last: int, columns: F32Array | None
    ) -> F32Array:
        """Make float32 rows of stored ones, zeros where the output is wider or longer."""
        width = piece.source_matrix[1]
        stored_as = self.checkpoint.tensors[piece.source]
        row_bytes = width * DTYPE_BYTES[stored_as.dtype]
        stored = raw[first * row_bytes : last * row_bytes]
        n_stored = stored.nbytes // row_bytes
        rows = self._take_rows(last - first, piece.width)
        if width == piece.width:
            widen(stored, stored_as.dtype, rows[:n_stored])
        else:
            narrow = self.buffers.take("narrow", 4 * n_stored * width).view(np.float32)
            widen(stored, stored_as.dtype, narrow)
            rows[:n_stored, :width] = narrow.reshape(n_stored, width)
            rows[:n_stored, width:] = 0
        rows[n_stored:] = 0
        self._check(piece, rows, first)
        _change_rows(rows, piece.tensor.spec)
        if columns is not None:
            start = piece.first_row + first
            part = columns[start : start + n_stored] if len(columns) > 1 else columns
            np.multiply(rows[:n_stored, :width], part, out=rows[:n_stored, :width])
        return rows

    def _take_rows(self, n_rows: int, width: int) -> F32Array:
        return self.buffers.take("rows", 4 * n_rows * width).view(np.float32).reshape(n_rows, width)

    def _check(self, piece: Piece, rows: F32Array, first: int) -> None:
        stored = self.checkpoint.tensors[piece.source]
        check_finite(stored.path, stored.name, rows, first_row=piece.first_row + first)

    def _multiply_columns(self, piece: Piece) -> F32Array | None:
        """What the stored weights are multiplied with because of a norm, or as one: [1 or rows of
        the norm, width]."""
        spec, factors = piece.tensor.spec, self.recipe.norm_factors
        if spec.name in factors:
            return factors[spec.name].reshape(piece.source_matrix)
        if spec.norm not in factors:
            return None
        return np.float32(1) / factors[spec.norm][None]

    def _weigh_columns(self, piece: Piece) -> F32Array | None:
        """Importance of each stored column, as the factor of a norm leaves it."""
        spec, importance = piece.tensor.spec, self.recipe.importance
        if not spec.matrix or not importance:
            return None
        vector = importance.vector(spec.name, piece.expert, piece.source_matrix[1])
        if vector is None or spec.norm not in self.recipe.norm_factors:
            return vector
        return vector * np.square(self.recipe.norm_factors[spec.norm])


def _count_rows(spec: OutputTensor) -> int:
    return math.prod(spec.shape[:-1]) // len(spec.sources)


def _shape_source(spec: OutputTensor) -> tuple[int, int]:
    n_rows, width = _count_rows(spec), spec.shape[-1]
    if not spec.matrix and math.prod(spec.source_shape) == n_rows * width:
        return n_rows, width
    return math.prod(spec.source_shape[:-1]), spec.source_shape[-1]


def _pad(vector: F32Array | None, width: int) -> F32Array | None:
    """Weigh the columns that padding adds: they are never fed, so they get the least."""
    if vector is None or len(vector) == width:
        return vector
    padding = np.full(width - len(vector), vector.min(), dtype=np.float32)
    return np.concatenate([vector, padding])


def _change_rows(rows: F32Array, spec: OutputTensor) -> None:
    if spec.change == "negative_exp":
        np.negative(np.exp(rows, out=rows), out=rows)
    if spec.scale != 1.0:
        np.multiply(rows, np.float32(spec.scale), out=rows)


def _write_all(file: int, data: U8Array, offset: int) -> None:
    view = data.data
    while view:
        n_written = os.pwrite(file, view, offset)
        view, offset = view[n_written:], offset + n_written
