"""The plan of one conversion: every output tensor with its shape, type, bytes and sources.

Planning reads headers only; nothing is allocated and nothing is written, so that every refusal
comes before the first byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quantize.choices import Choices
from quantize.errors import CheckpointError, ChoiceRefused, TypeMismatch, UnsupportedModel
from quantize.expert_errors import describe_experts
from quantize.families import ModelSpec, OutputTensor
from quantize.ggml import ENCODABLE, requires_importance, type_named
from quantize.gguf import BlockType, MetadataEntry
from quantize.importance import Importance
from quantize.pairs import PLAIN, Pair, PlannedTensor, find_pairs
from quantize.quality import reserve_quality
from quantize.safetensors import Checkpoint
from quantize.tokenizer import Vocabulary
from quantize.transform import NONE, F32Array, SecondMoments, Transforms

FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23,
    "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "bf16": 32,
    "tq1_0": 36, "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
"""Type of most weights -> `general.file_type`. Source: enum llama_ftype in llama.h."""


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
    transforms: Transforms = NONE
    pairs: tuple[Pair, ...] = ()
    """Matrices that are changed together; their tensors are among `tensors`."""
    norm_factors: Mapping[str, F32Array] = field(default_factory=dict)
    """Name of a norm weight -> factors on it, [width], by which the columns of the matrices behind
    it are divided."""
    moments: SecondMoments | None = None
    """What neurons that stay are refitted on, and errors of columns made up for."""


def plan_recipe(
    checkpoint: Checkpoint,
    model: ModelSpec,
    vocabulary: Vocabulary,
    types: Mapping[str, str],
    *,
    importance: Importance | None = None,
    transforms: Transforms = NONE,
    moments: SecondMoments | None = None,
    notes: Iterable[str] = (),
    metadata: Iterable[MetadataEntry] = (),
    name: str,
) -> Recipe:
    """Settle the type of every tensor and check that the checkpoint holds what the model needs.

    Args:
        checkpoint: The source, open.
        model: What its family makes of it, at the widths that were chosen.
        vocabulary: Its tokenizer.
        types: Name of a matrix -> ggml type; everything else is f32.
        importance: Collected on this model, untransformed; None counts every input the same.
        transforms: What may be changed besides the widths.
        moments: Second moments of this model, untransformed, for the refit after a trim.
        notes: What the user should hear beside our own.
        metadata: What else the file is to say.
        name: Written as `general.name`.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
        ChoiceRefused: A type is for no matrix of this model.
        UnsupportedModel: The checkpoint holds tensors that nobody would read.
        TypeMismatch: A type's block does not divide a matrix's width.
        GGUFError: The importance, or the second moments, are another model's.
        ValueError: No such type.
    """
    for spec in model.tensors:
        _check_sources(checkpoint, spec)
    left_out = _find_left_out(checkpoint, model)
    for collected in (importance, moments):
        if collected:
            collected.check_shapes({t.name: _shape_source(t) for t in model.tensors})
    tensors, pairs = plan_tensors(model, types, transforms)
    main = tensors[: len(model.tensors)]
    return Recipe(
        architecture=model.architecture,
        metadata=list_metadata(
            model,
            vocabulary.to_metadata(),
            _find_main_type(main),
            importance=importance,
            transforms=transforms,
            metadata=metadata,
            name=name,
        ),
        tensors=tensors,
        notes=(
            *_note_left_out(left_out),
            *_note_widths(model),
            *notes,
            *_note_importance(main, importance),
            *_note_blind_trims(pairs, importance),
            *_note_idle_moments(moments, importance, transforms),
        ),
        importance=importance,
        transforms=transforms,
        pairs=pairs,
        moments=moments if transforms.refit or transforms.feedback else None,
    )


def list_metadata(
    model: ModelSpec,
    vocabulary: Iterable[MetadataEntry],
    main_type: str,
    *,
    importance: Importance | None,
    transforms: Transforms,
    metadata: Iterable[MetadataEntry],
    name: str,
) -> tuple[MetadataEntry, ...]:
    """List the metadata of a file, in its order; of `vocabulary` what its tokenizer says.

    The rest as for `plan_recipe`; only the value of one key depends on the main type.
    """
    return (
        ("general.architecture", model.architecture, "str"),
        ("general.type", "model", "str"),
        ("general.name", name, "str"),
        ("general.file_type", FILE_TYPES[main_type], "u32"),
        ("general.quantization_version", 2, "u32"),
        *(_describe_importance(importance) if importance else ()),
        *_describe_transforms(transforms),
        *describe_experts(count_experts(model.tensors), _count_samples(importance), {}),
        *reserve_quality(),
        *metadata,
        *model.metadata,
        *vocabulary,
    )


def plan_tensors(
    model: ModelSpec, types: Mapping[str, str], transforms: Transforms
) -> tuple[tuple[PlannedTensor, ...], tuple[Pair, ...]]:
    """Settle what tensors a file holds; arguments and errors as `plan_recipe`.

    Returns:
        The model's tensors in their order, factors of experts behind them; and the pairs among
        them that are changed together.
    """
    _check_names(model, types)
    main = tuple(
        PlannedTensor(spec, _choose_type(spec, type_named(types.get(spec.name, "f32")), None))
        for spec in model.tensors
    )
    pairs = find_pairs(main, transforms)
    return (*main, *(scale for pair in pairs for scale in pair.tensors[2:])), pairs


def count_experts(tensors: Iterable[OutputTensor]) -> dict[str, int]:
    """Name of each tensor -> the experts that it stacks; 1 for a plain one."""
    return {tensor.name: len(tensor.sources) for tensor in tensors}


def _count_samples(importance: Importance | None) -> dict[str, list[float]]:
    matrices = importance.matrices if importance else {}
    return {name: moments.counts.tolist() for name, moments in matrices.items()}


def choose_types(
    model: ModelSpec, wanted: BlockType, fallback: BlockType | None = None
) -> tuple[dict[str, str], list[str]]:
    """Give all large matrices one type.

    Args:
        model: The model, at its final widths.
        wanted: The type.
        fallback: For matrices whose width `wanted` does not divide; None refuses them.

    Returns:
        Name of a matrix -> type; and notes on the fallback.

    Raises:
        TypeMismatch: Neither type fits a matrix.
    """
    types = {t.name: _choose_type(t, wanted, fallback).name for t in model.tensors if t.matrix}
    return types, _note_types(types, wanted)


def round_widths(widths: Choices, block: int) -> Choices:
    """Round every width up to whole blocks; zeros fill them, exactly."""

    def up(width: int | None) -> int:
        return -(-(width or 0) // block) * block

    return Choices(
        types=widths.types,
        n_embd=up(widths.n_embd),
        expert_widths={layer: up(width) for layer, width in widths.expert_widths.items()},
        shared_width=up(widths.shared_width),
        dense_width=up(widths.dense_width),
        latent_width=up(widths.latent_width),
    )


def _check_names(model: ModelSpec, types: Mapping[str, str]) -> None:
    specs = {spec.name: spec for spec in model.tensors}
    for name, type_name in types.items():
        if name not in specs:
            raise ChoiceRefused(
                f"{name}: a type {type_name} is chosen for it, but the model has no such tensor",
                "Compare the recipe with what `--dry-run` shows for this model.",
            )
        if not specs[name].matrix and type_name != "f32":
            raise ChoiceRefused(
                f"{name}: cannot be {type_name}; llama.cpp wants this tensor in f32",
                "Leave it out of the recipe.",
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


def _note_widths(model: ModelSpec) -> list[str]:
    """Say what zeros add and what trimming takes away."""
    notes = []
    n_weights = sum(math.prod(t.shape) for t in model.tensors)
    n_stored = sum(len(t.sources) * math.prod(t.source_shape) for t in model.tensors)
    trimmed = [
        (t.shape[-1], t.source_shape[-1])
        for t in model.tensors
        if t.name in {s.feeds for s in model.tensors} and t.shape[-1] < t.source_shape[-1]
    ]
    added = n_weights / n_stored - 1
    if added > 0:
        notes.append(f"padding with zeros makes {added:.1%} more weights")
    if trimmed:
        least, own = min(trimmed)
        notes.append(
            f"in {len(trimmed)} layers neurons are left out; of {own} at least {least} stay"
        )
    return notes


def _note_types(types: Mapping[str, str], wanted: BlockType) -> list[str]:
    return [
        f"{n} matrices are {name}, because a block of {wanted.name} does not divide their width"
        for name, n in Counter(types.values()).items()
        if name != wanted.name
    ]


def _note_blind_trims(pairs: tuple[Pair, ...], importance: Importance | None) -> list[str]:
    known = importance.matrices if importance else {}
    blind = [
        pair.down.spec.name
        for pair in pairs
        if pair.n_neurons[1] < pair.n_neurons[0] and pair.down.spec.name not in known
    ]
    return (
        [f"without an importance matrix the neurons of {blind[0]} are chosen by their weights alone"
         + (f" (and of {len(blind) - 1} more)" if len(blind) > 1 else "")]
        if blind
        else []
    )  # fmt: skip


def _note_idle_moments(
    moments: SecondMoments | None, importance: Importance | None, transforms: Transforms
) -> list[str]:
    if moments is None or importance or not transforms.feedback:
        return []
    return [
        "without an importance matrix second moments refit trimmed experts, but make up for no "
        "errors of encoding"
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
        and tensor.type.name not in PLAIN
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
    """Keys as llama-quantize writes them, and what it does not say."""
    coverage = importance.measure_coverage()
    return (
        ("quantize.imatrix.file", importance.path.name, "str"),
        ("quantize.imatrix.dataset", ", ".join(importance.datasets), "str"),
        ("quantize.imatrix.entries_count", len(importance.matrices), "u32"),
        ("quantize.imatrix.chunks_count", importance.n_chunks, "u32"),
        ("localcascade.imatrix.tokens", importance.n_chunks * importance.chunk_tokens, "u64"),
        ("localcascade.imatrix.experts", coverage.n_experts, "u32"),
        ("localcascade.imatrix.experts_empty", coverage.n_empty, "u32"),
        ("localcascade.imatrix.experts_few", coverage.n_few, "u32"),
    )


def _describe_transforms(transforms: Transforms) -> tuple[MetadataEntry, ...]:
    """What is collected on such a file does not fit the checkpoint: neurons have other places."""
    names = [name for name in Transforms.__dataclass_fields__ if getattr(transforms, name)]
    return (("localcascade.transforms", ", ".join(names), "str"),) if names else ()


def _shape_source(tensor: OutputTensor) -> tuple[int, ...]:
    stacked = len(tensor.sources) > 1
    return (len(tensor.sources), *tensor.source_shape) if stacked else tensor.source_shape
