"""Encoding one unit: what a thread does with the stored bytes of some rows, or of an expert.

A thread owns the buffers of one unit. Of a plain unit the float32 weights exist only as a slab that
stays in the L2 cache: widened, checked, changed and encoded before the next slab is read. Where
neurons of an expert are chosen, moved or scaled, both its matrices are held whole.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantize.codes import PLANES
from quantize.encoders import encode_rows
from quantize.expert_errors import Distortion, measure_distortion
from quantize.families import OutputTensor
from quantize.feedback import Feedback, encode_with_feedback, plan_feedback
from quantize.ggml import F32Array, U8Array, widen
from quantize.pairs import Pair
from quantize.part import Part
from quantize.recipe import Recipe
from quantize.safetensors import DTYPE_BYTES, Checkpoint, check_finite
from quantize.transform import (
    F64Array,
    I64Array,
    Neurons,
    arrange_neurons,
    choose_expert_scale,
    choose_neurons,
    measure_contributions,
    refit_down,
)
from quantize.unit import Piece, Unit

SLAB_WEIGHTS = 1 << 18
"""1 MiB of float32."""
FEEDBACK_SLAB_WEIGHTS = 1 << 22
"""With feedback each column is a step of its own, so many rows take one together."""

_PLANNING = threading.BoundedSemaphore(4)
"""A plan of feedback takes 0.25 GB for rows of 2816 and a tenth of the time of what follows."""

Rows = Callable[[int, int], F32Array]
"""(first, last) -> these rows of a piece, as they are to be encoded; float32, contiguous."""


@dataclass(frozen=True)
class Outcome:
    """What one unit became."""

    checksum: int
    """CRC-32 of the bytes written, one output behind the other."""
    distortions: tuple[Distortion, ...]
    """What encoding cost each piece; nothing for what is not an expert's."""


@dataclass(frozen=True)
class Weighing:
    """How the errors of a piece's columns count."""

    importance: F32Array | None
    """[width]; None counts all the same."""
    feedback: Feedback | None
    """If later columns make up for errors of earlier ones."""

    def encode(self, rows: F32Array, piece: Piece, room: U8Array) -> Distortion:
        """Encode a slab of rows, and measure what that costs an expert."""
        block_type, weights = piece.tensor.type, self.importance
        if self.feedback:
            encode_with_feedback(rows, block_type, room, self.feedback)
            weights = self.feedback.factor
        else:
            encode_rows(rows, block_type, room, weights)
        is_expert = len(piece.tensor.spec.sources) > 1
        return measure_distortion(rows, room, block_type, weights) if is_expert else Distortion()


class Buffers(threading.local):
    """A thread's scratch memory; grown, never shrunk."""

    def take(self, name: str, n_bytes: int) -> U8Array:
        """Return the buffer of that name, cut to `n_bytes`; its content is arbitrary."""
        buffer: U8Array | None = self.__dict__.get(name)
        if buffer is None or buffer.size < n_bytes:
            buffer = self.__dict__[name] = np.empty(n_bytes, dtype=np.uint8)
        return buffer[:n_bytes]


def run_unit(
    checkpoint: Checkpoint,
    unit: Unit,
    raws: Sequence[U8Array],
    recipe: Recipe,
    part: Part,
    buffers: Buffers,
) -> Outcome:
    """Encode and write one unit.

    Args:
        checkpoint: The source, open.
        unit: The work.
        raws: Of each piece, the stored bytes.
        recipe: What the unit is of.
        part: The output.
        buffers: Of this thread.

    Returns:
        What was written.

    Raises:
        CheckpointError: The source holds NaN or infinities.
        GGUFError: The second moments are damaged.
        OSError: The output cannot be written.
    """
    worker = _Worker(checkpoint, recipe, part, buffers)
    if unit.pair:
        return worker.run_expert(unit, unit.pair, raws)
    return worker.run_plain(unit.pieces[0], raws[0])


@dataclass(frozen=True)
class _Worker:
    """What one thread needs for one unit."""

    checkpoint: Checkpoint
    recipe: Recipe
    part: Part
    buffers: Buffers

    def run_plain(self, piece: Piece, raw: U8Array) -> Outcome:
        """Encode a piece as it is read."""
        columns = self._multiply_columns(piece)
        weighing = self._weigh(piece, self._weigh_columns(piece))
        checksum, distortion = self._write(
            piece, lambda i, j: self._load(raw, piece, i, j, columns), weighing
        )
        return Outcome(checksum, (distortion,))

    def run_expert(self, unit: Unit, pair: Pair, raws: Sequence[U8Array]) -> Outcome:
        """Choose and change the neurons of an expert, then encode both matrices."""
        up, down = (self._load_whole(p, raw) for p, raw in zip(unit.pieces, raws, strict=True))
        squares = self._weigh_columns(unit.pieces[1])
        neurons, down = self._change_neurons(pair, unit.pieces[1], up, down, squares)
        if squares is not None:
            squares = neurons.change_mean_squares(squares)
        weights, orders = (self._weigh_columns(unit.pieces[0]), squares), (None, neurons.order)
        checksum, factors, distortions = 0, [], []
        for k, matrix in enumerate((neurons.change_up(up), down)):
            scale = self._scale_expert(unit, k, matrix)
            factors += [scale] if unit.factors[k] else []
            piece = unit.pieces[k]
            weighing = self._weigh(piece, weights[k], orders[k])
            checksum, cost = self._write(piece, self._slice(matrix, piece), weighing, checksum)
            distortions.append(cost)
        return Outcome(self._write_factors(unit, factors, checksum), tuple(distortions))

    def _change_neurons(
        self, pair: Pair, piece: Piece, up: F32Array, down: F32Array, squares: F32Array | None
    ) -> tuple[Neurons, F32Array]:
        before, after = pair.n_neurons
        kept = np.arange(before)
        if after < before:
            kept = choose_neurons(measure_contributions(up, down, squares), after)
            seen = self._read_moments(piece) if self.recipe.transforms.refit else None
            down = refit_down(down, seen, kept) if seen is not None else down.take(kept, 1)
        is_scaled = self.recipe.transforms.scale_neurons
        return arrange_neurons(kept, down, squares, pair.group, is_scaled=is_scaled)

    def _read_moments(self, piece: Piece) -> F64Array | None:
        moments = self.recipe.moments
        return moments.matrix(piece.tensor.spec.name, piece.expert) if moments else None

    def _weigh(
        self, piece: Piece, weights: F32Array | None, order: I64Array | None = None
    ) -> Weighing:
        """Plan how errors count; `weights` and the order of the columns as changed, unpadded.

        The second moments need not be scaled like the columns: the importance is, and only how
        the inputs go together is taken from them.
        """
        weights, name = _pad(weights, piece.width), piece.tensor.spec.name
        has_codes = piece.tensor.type.name in PLANES
        if weights is None or not (has_codes and self.recipe.transforms.feedback):
            return Weighing(weights, None)
        with _PLANNING:
            seen = self._read_moments(piece)
            if self.recipe.moments is None or seen is None:
                return Weighing(weights, None)
            if order is not None:
                seen = seen[np.ix_(order, order)]
            whole = np.zeros((piece.width, piece.width))
            whole[: len(seen), : len(seen)] = seen
            del seen
            n_samples = self.recipe.moments.count(name, piece.expert)
            return Weighing(weights, plan_feedback(whole, n_samples, weights, piece.tensor.type))

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
            data = np.array([factor], "<f4").tobytes()
            self.part.write(data, place.offset)
            checksum = zlib.crc32(data, checksum)
        return checksum

    def _write(
        self, piece: Piece, rows: Rows, weighing: Weighing, checksum: int = 0
    ) -> tuple[int, Distortion]:
        """Encode a piece slab by slab and write it; the checksum goes on from `checksum`."""
        encoded = self.buffers.take("encoded", piece.n_bytes)
        slab_weights = FEEDBACK_SLAB_WEIGHTS if weighing.feedback else SLAB_WEIGHTS
        step, distortion = max(1, slab_weights // piece.width), Distortion()
        for first in range(0, piece.n_rows, step):
            last = min(first + step, piece.n_rows)
            room = encoded[first * piece.row_bytes : last * piece.row_bytes]
            distortion += weighing.encode(rows(first, last), piece, room)
        self.part.write(encoded.data, piece.offset)
        return zlib.crc32(encoded.data, checksum), distortion

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
