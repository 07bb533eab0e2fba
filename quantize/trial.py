"""Trial encodings: what each type does to a sample of a checkpoint's own rows.

A type's error on real weights is near that on Gaussian ones, but not the same in every layer, and
an importance matrix tells how much each column, expert and neuron is used. The sample is the same
for the same checkpoint; a stack of experts gives rows of every other expert at least.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import numpy.typing as npt

from quantize.costs import EXPERTS_DOWN, TYPE_ERRORS, Costs, Sensitivity, split_name
from quantize.encoders import encode_rows
from quantize.families import ModelSpec, OutputTensor
from quantize.ggml import decode_rows, prepare_type, type_named
from quantize.gguf import BlockType
from quantize.importance import Importance, Moments
from quantize.safetensors import Checkpoint

TRIED = tuple(name for name in TYPE_ERRORS if not name.startswith("iq1_"))
"""Types that are tried; to prepare the encoder of the others takes half a minute."""
N_ROWS = 16
"""Rows of a plain matrix that are tried."""
N_EXPERT_ROWS = 64
"""Rows of a stack of experts, at most one of each expert unless there are fewer experts."""

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
Sample = tuple[F32Array, F32Array | None, float]
"""Rows of one source [n, width], importance of their columns [width], and how much it is used."""
OnProgress = Callable[[str, int, int], None]

_STRIDE = 7919  # a prime, so that neighbouring experts give rows of different places


def try_types(
    checkpoint: Checkpoint,
    model: ModelSpec,
    types: Iterable[str] = TRIED,
    importance: Importance | None = None,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> dict[str, dict[str, float]]:
    """Encode a sample of every matrix in every type and measure the relative errors.

    Args:
        checkpoint: The source, open.
        model: What its family makes of it, at its own widths.
        types: Names of the types; those that need importance are left out where there is none.
        importance: Importance matrix of the model.
        on_progress: Called with ("try", matrices done, in all).

    Returns:
        Matrix -> type -> relative error of its output.

    Raises:
        CheckpointError: The weights cannot be read.
        GGUFError: The importance is another model's.
    """
    found = [type_named(name) for name in types]
    for block_type in found:
        prepare_type(block_type)
    matrices = [tensor for tensor in model.tensors if tensor.matrix]
    errors: dict[str, dict[str, float]] = {}

    def try_matrix(tensor: OutputTensor) -> dict[str, float]:
        samples = list(_draw_samples(checkpoint, tensor, importance))
        blind = any(weights is None for _, weights, _ in samples)
        return {
            t.name: measure_error(samples, t) for t in found if not (blind and _needs_importance(t))
        }

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="try") as pool:
        for tensor, measured in zip(matrices, pool.map(try_matrix, matrices), strict=True):
            errors[tensor.name] = measured
            on_progress("try", len(errors), len(matrices))
    return errors


def make_costs(
    sensitivity: Sensitivity,
    importance: Importance | None,
    measured: Mapping[str, Mapping[str, float]],
) -> Costs:
    """Put together all that is known of a model.

    Args:
        sensitivity: How much it minds errors.
        importance: Importance matrix; None if nothing was collected.
        measured: What `try_types` found; empty if the weights were not looked at.
    """
    known = importance.matrices if importance else {}
    lost = {
        layer: measure_trims(moments, _weigh_experts(importance, name))
        for name, moments in known.items()
        if (layer := split_name(name)[0]) is not None and split_name(name)[1] == EXPERTS_DOWN
    }
    return Costs(sensitivity, frozenset(known), measured, lost)


def measure_error(samples: Iterable[Sample], block_type: BlockType) -> float:
    """Relative error of a matrix's output in a type, from samples of its rows.

    Args:
        samples: The rows; columns beyond the last whole block are left out, and a row shorter than
            a block is filled with zeros.
        block_type: The type.
    """
    error = energy = 0.0
    for rows, weights, use in samples:
        rows, weights = _fit_blocks(rows, weights, block_type.block_weights)
        width = rows.shape[1]
        encoded = np.empty(len(rows) * block_type.row_bytes(width), np.uint8)
        encode_rows(rows, block_type, encoded, weights)
        wrong = decode_rows(encoded, block_type, width).astype(np.float64) - rows
        scale = np.ones(width) if weights is None else weights.astype(np.float64)
        error += use * float(np.square(wrong).sum(axis=0) @ scale)
        energy += use * float(np.square(rows, dtype=np.float64).sum(axis=0) @ scale)
    return error / energy if energy else 0.0


def measure_trims(moments: Moments, uses: F64Array) -> tuple[float, ...]:
    """Measure what dropping neurons would lose, from the mean squares of their outputs.

    Args:
        moments: Of the inputs of `down`, which the neurons are.
        uses: How much each expert is used, [n_experts].

    Returns:
        For 0, 1, … neurons dropped of each expert, the least active first, the share of the
        experts' mean square output; that `down` weighs neurons differently is left out.
    """
    squares = np.sort(
        np.stack([moments.estimate(e).astype(np.float64) for e in range(len(uses))]), axis=1
    )
    lost = uses @ np.concatenate([np.zeros((len(uses), 1)), np.cumsum(squares, axis=1)], axis=1)
    total = lost[-1] or 1.0
    return tuple((lost / total).tolist())


def _draw_samples(
    checkpoint: Checkpoint, tensor: OutputTensor, importance: Importance | None
) -> Iterator[Sample]:
    n_sources = len(tensor.sources)
    n_rows, width = prod(tensor.source_shape[:-1]), tensor.source_shape[-1]
    n_wanted = N_ROWS if n_sources == 1 else N_EXPERT_ROWS
    uses = _weigh_experts(importance, tensor.name)
    step = max(1, n_sources // n_wanted)
    per_source = min(n_rows, max(1, n_wanted * step // n_sources))
    for i in range(0, n_sources, step):
        first = i * _STRIDE % (n_rows - per_source + 1)
        if per_source > 1:
            picked = [first + k * (n_rows - first) // per_source for k in range(per_source)]
        else:
            picked = [first]
        name = tensor.sources[i]
        rows = np.concatenate([checkpoint.read_f32(name, slice(k, k + 1)) for k in picked])
        vector = importance.vector(tensor.name, i, width) if importance else None
        yield rows.reshape(len(picked), width), vector, float(uses[i]) if uses.size > i else 1.0


def _weigh_experts(importance: Importance | None, name: str) -> F64Array:
    """How much each expert's errors count: tokens, times the square of its mean routing weight."""
    moments = importance.matrices.get(name) if importance else None
    if importance is None or moments is None:
        return np.empty(0)
    mass = importance.router_mass.get(name.partition(".ffn_")[0])
    if mass is None or len(mass) != len(moments.counts):
        return moments.counts if moments.counts.any() else np.ones(len(moments.counts))
    uses: F64Array = np.square(mass) / np.maximum(moments.counts, 1.0)
    return uses if uses.any() else np.ones(len(uses))


def _fit_blocks(
    rows: F32Array, weights: F32Array | None, block: int
) -> tuple[F32Array, F32Array | None]:
    width = rows.shape[1]
    whole = width // block * block
    if whole:
        cut = None if weights is None else np.ascontiguousarray(weights[:whole])
        return np.ascontiguousarray(rows[:, :whole]), cut
    room = ((0, 0), (0, block - width))
    # Padding is never fed, so it gets the least importance, as in the conversion.
    filled = None if weights is None else np.pad(weights, room[1], constant_values=weights.min())
    return np.pad(rows, room), filled


def _needs_importance(block_type: BlockType) -> bool:
    return TYPE_ERRORS.get(block_type.name, (None, 0.0))[0] is None
