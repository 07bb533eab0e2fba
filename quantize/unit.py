"""The unit of conversion: one expert, or as many rows of a larger matrix.

A thread owns the buffers of one unit. The float32 weights exist only as a slab that stays in the
L2 cache: widened, checked, changed and encoded before the next slab is read.
"""

from __future__ import annotations

import math
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantize.encoders import encode_rows
from quantize.families import OutputTensor
from quantize.ggml import F32Array, U8Array, widen
from quantize.gguf import FilePlan
from quantize.importance import Importance
from quantize.recipe import PlannedTensor, Recipe
from quantize.safetensors import DTYPE_BYTES, Checkpoint, Stretch, check_finite

UNIT_WEIGHTS = 6 << 20
"""An expert of the 30 B model has 5.0 M weights."""
SLAB_WEIGHTS = 1 << 18
"""1 MiB of float32."""


@dataclass(frozen=True)
class Unit:
    """Some output rows of one source, and the bytes they become."""

    tensor: PlannedTensor
    source: str
    first_row: int
    n_rows: int
    offset: int
    """Of the first encoded byte in the output file."""

    @property
    def width(self) -> int:
        """Weights in an output row."""
        return self.tensor.spec.shape[-1]

    @cached_property
    def row_bytes(self) -> int:
        """Encoded bytes of an output row."""
        return self.tensor.type.row_bytes(self.width)

    @property
    def n_bytes(self) -> int:
        """Encoded bytes of the unit."""
        return self.n_rows * self.row_bytes

    @cached_property
    def source_matrix(self) -> tuple[int, int]:
        """Rows and width of the source, laid out like the output but without its padding."""
        return _shape_source(self.tensor.spec)


class Buffers(threading.local):
    """A thread's scratch memory; grown, never shrunk."""

    def take(self, name: str, n_bytes: int) -> U8Array:
        """Return the buffer of that name, cut to `n_bytes`; its content is arbitrary."""
        buffer: U8Array | None = self.__dict__.get(name)
        if buffer is None or buffer.size < n_bytes:
            buffer = self.__dict__[name] = np.empty(n_bytes, dtype=np.uint8)
        return buffer[:n_bytes]


def cut_units(recipe: Recipe, plan: FilePlan) -> Iterator[Unit]:
    """Cut a conversion into units, in the order of the file."""
    for tensor, placed in zip(recipe.tensors, plan.tensors, strict=True):
        offset = placed.offset
        n_rows = _count_rows(tensor.spec)
        step = max(1, UNIT_WEIGHTS // tensor.spec.shape[-1])
        for source in tensor.spec.sources:
            for first in range(0, n_rows, step):
                n = min(step, n_rows - first)
                unit = Unit(tensor, source, first, n, offset)
                yield unit
                offset += unit.n_bytes


def locate_source(checkpoint: Checkpoint, unit: Unit) -> Stretch:
    """Find the stored bytes that a unit is made of; fewer where the output is padded, even none."""
    stored = checkpoint.tensors[unit.source]
    n_source_rows, width = unit.source_matrix
    row_bytes = width * DTYPE_BYTES[stored.dtype]
    first = min(unit.first_row, n_source_rows)
    n_rows = min(unit.n_rows, n_source_rows - first)
    return Stretch(stored.path, stored.offset + first * row_bytes, n_rows * row_bytes)


def run_unit(
    checkpoint: Checkpoint,
    unit: Unit,
    file: int,
    buffers: Buffers,
    importance: Importance | None,
) -> int:
    """Read, encode and write one unit.

    Args:
        checkpoint: The source, open.
        unit: The work.
        file: Descriptor of the output.
        buffers: Of this thread.
        importance: Weighs the columns' errors; None weighs all the same.

    Returns:
        CRC-32 of the bytes written.

    Raises:
        CheckpointError: The source cannot be read, or holds NaN or infinities.
        OSError: The output cannot be written.
    """
    raw = _read_source(checkpoint, unit, buffers)
    dtype = checkpoint.tensors[unit.source].dtype
    encoded = buffers.take("encoded", unit.n_bytes)
    weights = _weigh_columns(unit, importance) if importance else None
    step = max(1, SLAB_WEIGHTS // unit.width)
    for first in range(0, unit.n_rows, step):
        last = min(first + step, unit.n_rows)
        rows = _widen_rows(raw, dtype, unit, first, last, buffers)
        stored = checkpoint.tensors[unit.source]
        check_finite(stored.path, stored.name, rows, first_row=unit.first_row + first)
        _change_rows(rows, unit.tensor.spec)
        room = encoded[first * unit.row_bytes : last * unit.row_bytes]
        encode_rows(rows, unit.tensor.type, room, weights)
    _write_all(file, encoded, unit.offset)
    return zlib.crc32(encoded.data)


def _count_rows(spec: OutputTensor) -> int:
    return math.prod(spec.shape[:-1]) // len(spec.sources)


def _shape_source(spec: OutputTensor) -> tuple[int, int]:
    n_rows, width = _count_rows(spec), spec.shape[-1]
    if math.prod(spec.source_shape) == n_rows * width:
        return n_rows, width
    return math.prod(spec.source_shape[:-1]), spec.source_shape[-1]


def _read_source(checkpoint: Checkpoint, unit: Unit, buffers: Buffers) -> U8Array:
    """Read the stored bytes of a unit's rows."""
    raw = buffers.take("raw", locate_source(checkpoint, unit).n_bytes)
    if raw.nbytes == checkpoint.tensors[unit.source].n_bytes:
        return checkpoint.read_raw(unit.source, out=raw)
    rows = slice(unit.first_row, unit.first_row + unit.n_rows)
    return checkpoint.read_raw(unit.source, rows, out=raw)


def _widen_rows(
    raw: U8Array, dtype: str, unit: Unit, first: int, last: int, buffers: Buffers
) -> F32Array:
    """Make float32 rows of stored ones, zeros where the output is wider or longer."""
    width = unit.source_matrix[1]
    row_bytes = width * DTYPE_BYTES[dtype]
    stored = raw[first * row_bytes : last * row_bytes]
    n_stored = stored.nbytes // row_bytes
    shape = (last - first, unit.width)
    rows = buffers.take("rows", 4 * math.prod(shape)).view(np.float32).reshape(shape)
    if width == unit.width:
        widen(stored, dtype, rows[:n_stored])
    else:
        narrow = buffers.take("narrow", 4 * n_stored * width).view(np.float32)
        widen(stored, dtype, narrow)
        rows[:n_stored, :width] = narrow.reshape(n_stored, width)
        rows[:n_stored, width:] = 0
    rows[n_stored:] = 0
    return rows


def _weigh_columns(unit: Unit, importance: Importance) -> F32Array | None:
    """Importance of each output column; what padding adds is never fed, so it gets the least."""
    spec, width = unit.tensor.spec, unit.source_matrix[1]
    if not spec.matrix:
        return None
    vector = importance.vector(spec.name, spec.sources.index(unit.source), width)
    if vector is None or width == unit.width:
        return vector
    padding = np.full(unit.width - width, vector.min(), dtype=np.float32)
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
