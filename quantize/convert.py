"""Carry out a recipe in one pass: read, encode in parallel, write, verify; resumed if killed.

The unit of work is one expert, or as many rows of a larger matrix. Each thread owns the buffers
of one unit, so memory does not grow with the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from quantize.errors import OutputError
from quantize.families import describe_model
from quantize.ggml import U8Array, encode_rows, prepare_type, type_named, widen
from quantize.gguf import FilePlan, TensorSpec, open_gguf, plan_file
from quantize.part import Part, open_part
from quantize.recipe import PlannedTensor, Recipe, plan_recipe
from quantize.safetensors import DTYPE_BYTES, Checkpoint, check_finite, open_checkpoint
from quantize.tokenizer import read_tokenizer

OnProgress = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all); stages are "write" and "verify"."""

_UNIT_WEIGHTS = 6 << 20  # an expert of the 30 B model has 5.0 M weights
_SLAB_WEIGHTS = 1 << 18  # 1 MiB of float32: widened and encoded while it is still in the L2 cache


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion made."""

    output: Path
    file_bytes: int
    n_tensors: int
    elapsed_s: float
    peak_rss_bytes: int
    """Of the whole process."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Some rows of one source and the bytes of the output they become."""

    tensor: PlannedTensor
    source: str
    first_row: int
    n_rows: int
    offset: int
    """Of the first encoded byte in the output file."""
    ends_tensor: bool

    @property
    def width(self) -> int:
        return self.tensor.spec.shape[-1]

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.tensor.type.row_bytes(self.width)


def quantize_checkpoint(
    source: Path,
    output: Path,
    type_name: str,
    *,
    fallback: str | None = None,
    name: str | None = None,
    n_threads: int | None = None,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Result:
    """Turn a Hugging Face checkpoint into one GGUF file.

    Args:
        source: Folder with config.json, safetensors and tokenizer.json.
        output: The file to make; replaced only by a complete, verified one.
        type_name: ggml type of the large matrices, such as "q8_0".
        fallback: Type for matrices that `type_name` does not fit; None refuses them.
        name: The model's name in the file; None takes the folder's.
        n_threads: None takes one a core.
        on_progress: Called from this thread with (stage, bytes done, bytes in all).

    Raises:
        QuantizeError: Any of its kinds; then `output` is as it was before.
        ValueError: No such type.
    """
    wanted = type_named(type_name)
    spare = type_named(fallback) if fallback else None
    with open_checkpoint(source) as checkpoint:
        model = describe_model(checkpoint)
        vocabulary = read_tokenizer(source, model.n_embeddings, checkpoint.config)
        recipe = plan_recipe(
            checkpoint,
            model,
            vocabulary,
            wanted,
            fallback=spare,
            name=name or source.resolve().name,
        )
        return execute_recipe(
            checkpoint, recipe, output, n_threads=n_threads, on_progress=on_progress
        )


def execute_recipe(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    *,
    n_threads: int | None = None,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Result:
    """Write the file that `recipe` describes; arguments and errors as `quantize_checkpoint`."""
    started = time.monotonic()
    infos = [TensorSpec(t.spec.name, t.spec.shape, t.type.id) for t in recipe.tensors]
    plan = plan_file(recipe.metadata, infos)
    units = list(_cut_units(recipe, plan))
    with open_part(output, plan.file_bytes, _identify(checkpoint, plan)) as part:
        os.pwrite(part.descriptor, plan.header, 0)
        checksums = _run_units(checkpoint, units, part, n_threads or _count_cores(), on_progress)
        os.fsync(part.descriptor)
        _verify(part.path, plan, units, checksums, on_progress)
    return Result(
        output=output,
        file_bytes=plan.file_bytes,
        n_tensors=len(recipe.tensors),
        elapsed_s=time.monotonic() - started,
        peak_rss_bytes=_measure_peak_rss_bytes(),
        notes=recipe.notes,
    )


def _cut_units(recipe: Recipe, plan: FilePlan) -> Iterator[_Unit]:
    for tensor, placed in zip(recipe.tensors, plan.tensors, strict=True):
        offset = placed.offset
        width = tensor.spec.shape[-1]
        n_rows = math.prod(tensor.spec.shape[:-1]) // len(tensor.spec.sources)
        step = max(1, _UNIT_WEIGHTS // width)
        for source in tensor.spec.sources:
            for first in range(0, n_rows, step):
                n = min(step, n_rows - first)
                last = source == tensor.spec.sources[-1] and first + n == n_rows
                unit = _Unit(tensor, source, first, n, offset, last)
                yield unit
                offset += unit.n_bytes


def _identify(checkpoint: Checkpoint, plan: FilePlan) -> str:
    """Name the work: the same line means that an interrupted run can be continued."""
    digest = hashlib.sha256(plan.header)
    for path in sorted({tensor.path for tensor in checkpoint.tensors.values()}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    # Another version may encode otherwise or cut other units.
    made_by = [f"{name} {version(name)}" for name in ("localcascade", "llama-cpp-python")]
    return f"{', '.join(made_by)}, {digest.hexdigest()}"


def _run_units(
    checkpoint: Checkpoint, units: list[_Unit], part: Part, n_threads: int, on_progress: OnProgress
) -> list[int]:
    """Encode and write what is not finished; returns the CRC-32 of every unit as it was meant."""
    for block_type in {unit.tensor.type for unit in units}:
        prepare_type(block_type)
    buffers = threading.local()
    total = sum(unit.n_bytes for unit in units)
    checksums = list(part.finished)
    n_recorded = len(checksums)
    done = sum(unit.n_bytes for unit in units[:n_recorded])
    rest = units[n_recorded:]
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="encode")
    try:
        run = pool.map(lambda unit: _run_unit(checkpoint, unit, part.descriptor, buffers), rest)
        for unit, checksum in zip(rest, run, strict=True):
            checksums.append(checksum)
            done += unit.n_bytes
            if unit.ends_tensor:
                part.record(checksums[n_recorded:])
                n_recorded = len(checksums)
            on_progress("write", done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    return checksums


def _run_unit(checkpoint: Checkpoint, unit: _Unit, file: int, buffers: threading.local) -> int:
    stored = checkpoint.tensors[unit.source]
    item = DTYPE_BYTES[stored.dtype]
    raw = _take_buffer(buffers, "raw", unit.n_rows * unit.width * item)
    whole = raw.nbytes == stored.n_bytes
    read = None if whole else slice(unit.first_row, unit.first_row + unit.n_rows)
    checkpoint.read_raw(unit.source, read, out=raw)
    encoded = _take_buffer(buffers, "encoded", unit.n_bytes)
    row_bytes = unit.n_bytes // unit.n_rows
    step = max(1, _SLAB_WEIGHTS // unit.width)
    slab = _take_buffer(buffers, "slab", step * unit.width * 4).view(np.float32)
    for first in range(0, unit.n_rows, step):
        last = min(first + step, unit.n_rows)
        rows = slab[: (last - first) * unit.width].reshape(last - first, unit.width)
        widen(raw[first * unit.width * item : last * unit.width * item], stored.dtype, rows)
        check_finite(stored.path, stored.name, rows, first_row=unit.first_row + first)
        if unit.tensor.spec.change == "negative_exp":
            np.negative(np.exp(rows, out=rows), out=rows)
        encode_rows(rows, unit.tensor.type, encoded[first * row_bytes : last * row_bytes])
    _write_all(file, encoded, unit.offset)
    return zlib.crc32(encoded.data)


def _take_buffer(buffers: threading.local, name: str, n_bytes: int) -> U8Array:
    """Return a thread's buffer of at least `n_bytes`, cut to them; grown, never shrunk."""
    buffer = getattr(buffers, name, None)
    if buffer is None or buffer.size < n_bytes:
        buffer = np.empty(n_bytes, dtype=np.uint8)
        setattr(buffers, name, buffer)
    return buffer[:n_bytes]


def _write_all(file: int, data: U8Array, offset: int) -> None:
    view = data.data
    while view:
        n_written = os.pwrite(file, view, offset)
        view, offset = view[n_written:], offset + n_written


def _verify(
    part: Path, plan: FilePlan, units: list[_Unit], checksums: list[int], on_progress: OnProgress
) -> None:
    """Read the file back and compare header, tensor table and every unit with what was meant."""
    total = sum(unit.n_bytes for unit in units)
    done = 0
    with open_gguf(part) as written, part.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # forget cached pages, so that the disk is what answers
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if file.read(len(plan.header)) != plan.header:
            raise OutputError(f"{part}: byte 0: the header does not read back as written")
        if tuple(written.tensors.values()) != plan.tensors:
            raise OutputError(f"{part}: the tensor table does not read back as written")
        for unit, checksum in zip(units, checksums, strict=True):
            if zlib.crc32(os.pread(file.fileno(), unit.n_bytes, unit.offset)) != checksum:
                raise OutputError(
                    f"{part}: byte {unit.offset}: tensor {unit.tensor.spec.name} "
                    "does not read back as written",
                    "The disk may be failing; try another one.",
                )
            done += unit.n_bytes
            on_progress("verify", done, total)


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure_peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
