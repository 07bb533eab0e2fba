"""Carry out a recipe in one pass: read, encode in parallel, write, verify; resumed if killed.

Threads take units (unit.py) in the order of the source, so that each shard is read once from front
to back; memory is their buffers and does not grow with the checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from quantize.choices import Choices
from quantize.errors import OutputError
from quantize.expert_errors import fill_errors
from quantize.families import describe_model
from quantize.ggml import type_named
from quantize.gguf import BlockType, FilePlan, MetadataEntry, TensorSpec, open_gguf, plan_file
from quantize.importance import read_importance
from quantize.part import open_part
from quantize.recipe import Recipe, choose_types, count_experts, plan_recipe, round_widths
from quantize.safetensors import Checkpoint, Shards, open_checkpoint
from quantize.survey import choose_norm_factors
from quantize.tokenizer import read_tokenizer
from quantize.transform import NONE, SecondMoments, Transforms
from quantize.unit import Unit, cut_units
from quantize.work import OnProgress, Work

MOST_FEEDBACK_THREADS = 16
"""With feedback each one holds 0.2 GB; with so many a conversion stays within 4 GiB."""


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
    verified: tuple[str, ...]
    """Names of the shards that were read whole and have the hash their publisher names."""
    unverified: tuple[str, ...]
    """The others: files of a folder, and what took several runs to read."""


def quantize_checkpoint(
    source: Path,
    output: Path,
    type_name: str | None = None,
    *,
    choices: Choices | None = None,
    fallback: str | None = None,
    pad: bool = False,
    importance: Path | None = None,
    moments: SecondMoments | None = None,
    transforms: Transforms | None = None,
    metadata: Sequence[MetadataEntry] = (),
    name: str | None = None,
    shards: Shards | None = None,
    n_threads: int | None = None,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Result:
    """Turn a Hugging Face checkpoint into one GGUF file.

    Args:
        source: Folder with config.json, tokenizer.json and, unless `shards` has them, safetensors.
        output: The file to make; replaced only by a complete, verified one.
        type_name: ggml type of the large matrices, such as "q8_0"; or None, and `choices`.
        choices: Width and type of everything.
        fallback: Type for matrices that `type_name` does not fit; None refuses them.
        pad: Widen what may be widened with zeros, exactly, so that `type_name` fits.
        importance: Importance matrix of the untransformed model, ours or llama-imatrix's; None
            counts every input the same.
        moments: Second moments of the untransformed model, for the refit after a trim and for error
            feedback.
        transforms: What may be changed besides the widths. None takes all of them for `choices`,
            and for `type_name` none but feedback if there are moments, so that without them its
            bytes are those of llama.cpp's own quantizer.
        metadata: What else the file is to say.
        name: The model's name in the file; None takes the folder's.
        shards: Where the weights come from, closed at the end; None reads files of the folder.
        n_threads: None takes one a core; with moments at most MOST_FEEDBACK_THREADS.
        on_progress: Called from this thread with (stage, bytes done, bytes in all).

    Raises:
        QuantizeError: Any of its kinds; then `output` is as it was before.
        ValueError: No such type, or not exactly one of `type_name` and `choices`.
    """
    if (type_name is None) == (choices is None):
        raise ValueError("give either a type for all matrices, or choices")
    wanted = type_named(type_name) if type_name else None
    spare = type_named(fallback) if fallback else None
    collected = read_importance(importance) if importance else None
    with open_checkpoint(source, shards) as checkpoint:
        notes: list[str] = []
        if wanted:
            choices, notes = choose_uniformly(checkpoint, wanted, fallback=spare, pad=pad)
        assert choices
        model = describe_model(checkpoint, choices)
        recipe = plan_recipe(
            checkpoint,
            model,
            read_tokenizer(source, model.n_embeddings, checkpoint.config),
            choices.types,
            importance=collected,
            moments=moments,
            transforms=transforms or _choose_transforms(wanted is not None, moments),
            notes=notes,
            metadata=metadata,
            name=name or source.resolve().name,
        )
        recipe = replace(recipe, norm_factors=choose_norm_factors(checkpoint, recipe))
        return execute_recipe(
            checkpoint, recipe, output, n_threads=n_threads, on_progress=on_progress
        )


def _choose_transforms(is_uniform: bool, moments: SecondMoments | None) -> Transforms:
    return replace(NONE, feedback=moments is not None) if is_uniform else Transforms()


def choose_uniformly(
    checkpoint: Checkpoint, wanted: BlockType, *, fallback: BlockType | None, pad: bool
) -> tuple[Choices, list[str]]:
    """Choose one type for all large matrices; arguments and errors as `quantize_checkpoint`.

    Returns:
        The choices, and notes on where the fallback was taken.
    """
    widths = describe_model(checkpoint).widths
    if pad:
        widths = round_widths(widths, wanted.block_weights)
    types, notes = choose_types(describe_model(checkpoint, widths), wanted, fallback)
    return replace(widths, types=types), notes


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
    with open_part(output, plan.file_bytes, _identify(checkpoint, recipe, plan)) as part:
        part.write(plan.header, 0)
        work = Work(checkpoint, recipe, units, part)
        checksums = work.run(n_threads or _count_threads(recipe), on_progress)
        stacks = count_experts(tensor.spec for tensor in recipe.tensors)
        known = fill_errors(recipe.metadata, stacks, work.list_errors())
        plan = plan_file(known, infos)  # as large as before: only NaN became numbers
        part.write(plan.header, 0)
        os.fsync(part.descriptor)
        _verify(part.path, plan, units, checksums, on_progress)
    verified = work.list_verified()
    return Result(
        output=output,
        file_bytes=plan.file_bytes,
        n_tensors=len(recipe.tensors),
        elapsed_s=time.monotonic() - started,
        peak_rss_bytes=_measure_peak_rss_bytes(),
        notes=recipe.notes,
        verified=verified,
        unverified=tuple(sorted(work.list_shards() - {*verified})),
    )


def _identify(checkpoint: Checkpoint, recipe: Recipe, plan: FilePlan) -> str:
    """Name the work: the same line means that an interrupted run can be continued."""
    digest = hashlib.sha256(plan.header)
    for path in sorted({tensor.path for tensor in checkpoint.tensors.values()}):
        digest.update(f"{path.name} {checkpoint.shards.identify(path)}\n".encode())
    digest.update(repr(recipe.transforms).encode())
    if recipe.moments:
        status = recipe.moments.path.stat()  # too large to be read for this
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    if recipe.importance:
        digest.update(recipe.importance.path.read_bytes())
    # Another version may encode otherwise or cut other units.
    made_by = [f"{name} {version(name)}" for name in ("localcascade", "llama-cpp-python")]
    return f"{', '.join(made_by)}, {digest.hexdigest()}"


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
            found = 0
            for output in unit.outputs:
                found = zlib.crc32(os.pread(file.fileno(), output.n_bytes, output.offset), found)
            if found != checksum:
                first = unit.outputs[0]
                raise OutputError(
                    f"{part}: byte {first.offset}: tensor {first.tensor.spec.name} "
                    "does not read back as written",
                    "The disk may be failing; try another one.",
                )
            done += unit.n_bytes
            on_progress("verify", done, total)


def _count_threads(recipe: Recipe) -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    n_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return n_cores if recipe.moments is None else min(n_cores, MOST_FEEDBACK_THREADS)


def _measure_peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
