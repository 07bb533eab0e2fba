"""A look at some rows of every matrix behind a norm, to choose factors between norm and matrices.

All matrices behind a norm must be divided by the same factors, so these are settled before the
first of them is encoded: from the importance of the inputs, and from the size of the columns, which
a few rows of each matrix tell well enough.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantize.families import OutputTensor
from quantize.importance import Importance
from quantize.pairs import PLAIN, PlannedTensor
from quantize.recipe import Recipe
from quantize.safetensors import Checkpoint
from quantize.transform import F32Array, F64Array, balance_columns

N_PLACES = 8
"""Places at which each matrix, or stack of experts, is read."""
PLACE_ROWS = 32


def choose_norm_factors(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, F32Array]:
    """Choose what each norm's weight is multiplied with, and the columns behind it divided by.

    Args:
        checkpoint: The source, open.
        recipe: Its importance decides; without any, nothing is chosen.

    Returns:
        Name of a norm weight -> float32 [width], positive, about 1; those that help only.

    Raises:
        CheckpointError: The source cannot be read.
    """
    importance = recipe.importance
    if importance is None or not recipe.transforms.scale_norms:
        return {}
    readers: dict[str, list[PlannedTensor]] = {}
    for tensor in recipe.tensors:
        if tensor.spec.norm and tensor.spec.matrix and tensor.type.name not in PLAIN:
            readers.setdefault(tensor.spec.norm, []).append(tensor)
    chosen = {
        norm: _choose_factors(checkpoint, [t.spec for t in tensors], importance)
        for norm, tensors in readers.items()
    }
    return {norm: factors for norm, factors in chosen.items() if factors is not None}


def _choose_factors(
    checkpoint: Checkpoint, specs: list[OutputTensor], importance: Importance
) -> F32Array | None:
    known = [spec for spec in specs if spec.name in importance.matrices]
    if not known:
        return None
    squares = np.mean([_measure_columns(checkpoint, spec) for spec in specs], axis=0)
    inputs = np.mean([_average_importance(spec, importance) for spec in known], axis=0)
    return balance_columns(np.sqrt(squares), inputs).astype(np.float32)


def _average_importance(spec: OutputTensor, importance: Importance) -> F64Array:
    """Mean over the experts of their inputs' importance, of mean 1: [width]."""
    vectors = [
        importance.vector(spec.name, expert, spec.source_shape[-1])
        for expert in range(len(spec.sources))
    ]
    shares = [v.astype(np.float64) / v.mean(dtype=np.float64) for v in vectors if v is not None]
    mean: F64Array = np.mean(shares, axis=0)
    return mean


def _measure_columns(checkpoint: Checkpoint, spec: OutputTensor) -> F64Array:
    """Mean square of each column over some rows: [width]."""
    total = np.zeros(spec.source_shape[-1])
    n_rows = 0
    for source, rows in _spread(spec):
        part = checkpoint.read_f32(source, rows)
        total += np.einsum("ij,ij->j", part, part, dtype=np.float64)
        n_rows += len(part)
    return total / n_rows


def _spread(spec: OutputTensor) -> Iterator[tuple[str, slice]]:
    """Places spread over the rows of all sources."""
    height = spec.source_shape[0]
    n_rows = min(PLACE_ROWS, height)
    for i in range(N_PLACES):
        source = spec.sources[i * len(spec.sources) // N_PLACES]
        first = i * (height - n_rows) // (N_PLACES - 1)
        yield source, slice(first, first + n_rows)
