"""Carry out a recipe in one pass: read, encode in parallel, write, verify; resumed if killed.

Threads take units (unit.py) in the file's order; memory is their buffers and does not grow with
the checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from quantize.errors import OutputError
from quantize.families import describe_model
from quantize.ggml import prepare_type, type_named
from quantize.gguf import FilePlan, TensorSpec, open_gguf, plan_file
from quantize.part import Part, open_part
from quantize.recipe import Recipe, plan_recipe
from quantize.safetensors import Checkpoint, open_checkpoint
from quantize.tokenizer import read_tokenizer
from quantize.unit import Buffers, Unit, cut_units, run_unit

OnProgress = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all); stages are "write" and "verify"."""


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


def quantize_checkpoint(
    source: Path,
    output: Path,
    type_name: str,
    *,
    fallback: str | None = None,
    pad: bool = False,
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
        pad: Widen what may be widened with zeros, exactly, so that `type_name` fits.
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
        model = describe_model(checkpoint, wanted.block_weights if pad else 1)
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
    units = list(cut_units(recipe, plan))
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
    checkpoint: Checkpoint, units: list[Unit], part: Part, n_threads: int, on_progress: OnProgress
) -> list[int]:
    """Encode and write what is not finished; returns the CRC-32 of every unit as it was meant."""
    for block_type in {unit.tensor.type for unit in units}:
        prepare_type(block_type)
    buffers = Buffers()
    total = sum(unit.n_bytes for unit in units)
    checksums = list(part.finished)
    n_recorded = len(checksums)
    done = sum(unit.n_bytes for unit in units[:n_recorded])
    rest = units[n_recorded:]
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="encode")
    try:
        run = pool.map(lambda unit: run_unit(checkpoint, unit, part.descriptor, buffers), rest)
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


def _verify(
    part: Path, plan: FilePlan, units: list[Unit], checksums: list[int], on_progress: OnProgress
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
