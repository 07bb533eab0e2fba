"""The plan of one conversion: every output tensor with its shape, type, bytes and sources.

Planning reads headers only; nothing is allocated and nothing is written, so that every refusal
comes before the first byte.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from quantize.errors import CheckpointError, TypeMismatch, UnsupportedModel
from quantize.families import ModelSpec, OutputTensor
from quantize.ggml import ENCODABLE, requires_importance, type_named
from quantize.gguf import BlockType, MetadataEntry
from quantize.importance import Importance
from quantize.safetensors import Checkpoint
from quantize.tokenizer import Vocabulary

FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23,
    "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "bf16": 32,
    "tq1_0": 36, "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
"""Type of most weights -> `general.file_type`. Source: enum llama_ftype in llama.h."""

_PLAIN = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output with the type it is written in."""

    spec: OutputTensor
    type: BlockType

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, alignment excluded."""
        return math.prod(self.spec.shape[:-1]) * self.type.row_bytes(self.spec.shape[-1])


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a conversion needs to know before it starts."""

    architecture: str
    metadata: tuple[MetadataEntry, ...]
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]
    """What the user should hear: tensors left out, a fallback taken."""
    importance: Importance | None = None
    """Weighs the errors of the columns, expert by expert."""


def plan_recipe(
    checkpoint: Checkpoint,
    model: ModelSpec,
    vocabulary: Vocabulary,
    wanted: BlockType,
    *,
    fallback: BlockType | None = None,
    importance: Importance | None = None,
    name: str,
) -> Recipe:
    """Decide the type of every tensor and check that the checkpoint holds what the model needs.

    Args:
        checkpoint: The source, open.
        model: What its family makes of it.
        vocabulary: Its tokenizer.
        wanted: Type of the large matrices; everything else is f32.
        fallback: Type for matrices whose width `wanted` does not divide; None refuses them.
        importance: Collected on this model, unpadded; None counts every input the same.
        name: Written as `general.name`.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
        UnsupportedModel: The checkpoint holds tensors that nobody would read.
        TypeMismatch: Neither type fits a tensor.
        GGUFError: The importance is another model's.
    """
    for spec in model.tensors:
        _check_sources(checkpoint, spec)
    left_out = _find_left_out(checkpoint, model)
    if importance:
        importance.check_shapes({t.name: _shape_unpadded(t) for t in model.tensors})
    tensors = tuple(
        PlannedTensor(
            spec, _choose_type(spec, wanted, fallback) if spec.matrix else type_named("f32")
        )
        for spec in model.tensors
    )
    return Recipe(
        architecture=model.architecture,
        metadata=(
            ("general.architecture", model.architecture, "str"),
            ("general.type", "model", "str"),
            ("general.name", name, "str"),
            ("general.file_type", FILE_TYPES[_find_main_type(tensors)], "u32"),
            ("general.quantization_version", 2, "u32"),
            *(_describe_importance(importance) if importance else ()),
            *model.metadata,
            *vocabulary.to_metadata(),
        ),
        tensors=tensors,
        notes=(
            *_note_left_out(left_out),
            *_note_padding(model),
            *_note_types(tensors, wanted),
            *_note_importance(tensors, importance),
        ),
        importance=importance,
    )


def _check_sources(checkpoint: Checkpoint, spec: OutputTensor) -> None:
    for source in spec.sources:
        stored = checkpoint.tensors.get(source)
        if stored is None:
            raise CheckpointError(
                checkpoint.folder,
                "is missing",
                tensor=source,
                hint="Download the checkpoint again; config.json promises this tensor.",
            )
        if stored.shape != spec.source_shape:
            raise CheckpointError(
                stored.path,
                f"shape is {list(stored.shape)}, config.json makes it {list(spec.source_shape)}",
                tensor=source,
            )


def _find_left_out(checkpoint: Checkpoint, model: ModelSpec) -> list[str]:
    used = {source for spec in model.tensors for source in spec.sources}
    unused = [name for name in checkpoint.tensors if name not in used]
    strangers = [name for name in unused if not name.startswith(model.left_out or ("\0",))]
    if strangers:
        raise UnsupportedModel(
            f"{checkpoint.folder}: tensor {strangers[0]} and {len(strangers) - 1} more "
            f"have no place in a {model.architecture} model",
            "The checkpoint has parts that llama.cpp would ignore, so its answers would be wrong.",
        )
    return unused


def _choose_type(spec: OutputTensor, wanted: BlockType, fallback: BlockType | None) -> BlockType:
    width = spec.shape[-1]
    for candidate in (wanted, fallback):
        if candidate is not None and width % candidate.block_weights == 0:
            return candidate
    refused = fallback or wanted
    raise TypeMismatch(spec.name, width, refused.name, refused.block_weights, fitting_types(width))


def fitting_types(width: int) -> tuple[str, ...]:
    """Names of the types whose block divides `width` (in weights), finest first."""
    return tuple(name for name in ENCODABLE if width % type_named(name).block_weights == 0)


def _find_main_type(tensors: tuple[PlannedTensor, ...]) -> str:
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.type.name] += math.prod(tensor.spec.shape)
    return weights.most_common(1)[0][0]


def _note_left_out(left_out: list[str]) -> list[str]:
    return (
        [f"{len(left_out)} tensors of the draft head are left out: {left_out[0]} …"]
        if left_out
        else []
    )


def _note_padding(model: ModelSpec) -> list[str]:
    n_weights = sum(math.prod(t.shape) for t in model.tensors)
    n_stored = sum(len(t.sources) * math.prod(t.source_shape) for t in model.tensors)
    added = n_weights / n_stored - 1
    return [f"padding with zeros makes {added:.1%} more weights"] if added else []


def _note_types(tensors: tuple[PlannedTensor, ...], wanted: BlockType) -> list[str]:
    used = Counter(tensor.type.name for tensor in tensors if tensor.spec.matrix)
    return [
        f"{n} matrices are {name}, because a block of {wanted.name} does not divide their width"
        for name, n in used.items()
        if name != wanted.name
    ]


def _note_importance(
    tensors: tuple[PlannedTensor, ...], importance: Importance | None
) -> list[str]:
    known = importance.matrices if importance else {}
    blind = [
        f"{tensor.spec.name} is {tensor.type.name}, which is made for an importance matrix; "
        "without one every input counts the same"
        for tensor in tensors
        if tensor.spec.matrix
        and tensor.spec.name not in known
        and tensor.type.name not in _PLAIN
        and requires_importance(tensor.type)
    ]
    if len(blind) > 1:
        blind = [f"{blind[0]} (and {len(blind) - 1} more)"]
    coverage = importance.measure_coverage() if importance else None
    if coverage and coverage.n_empty + coverage.n_few:
        blind.append(
            f"of {coverage.n_experts} experts {coverage.n_empty} have no samples of their own and "
            f"{coverage.n_few} have few: the mean of their layer stands in for what is missing"
        )
    return blind


def _describe_importance(importance: Importance) -> tuple[MetadataEntry, ...]:
    """Keys as llama-quantize writes them."""
    return (
        ("quantize.imatrix.file", importance.path.name, "str"),
        ("quantize.imatrix.dataset", ", ".join(importance.datasets), "str"),
        ("quantize.imatrix.entries_count", len(importance.matrices), "u32"),
        ("quantize.imatrix.chunks_count", importance.n_chunks, "u32"),
    )


def _shape_unpadded(tensor: OutputTensor) -> tuple[int, ...]:
    stacked = len(tensor.sources) > 1
    return (len(tensor.sources), *tensor.source_shape) if stacked else tensor.source_shape
