"""What the matrices of a model are multiplied with, summed up while it computes; worker only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from localcascade.engine import _llama
from localcascade.errors import ModelFileError
from quantize.importance import COUNTS, SUMS, name_mass

if TYPE_CHECKING:
    from localcascade.engine.session import Session

F32Array = npt.NDArray[np.float32]


class Collector:
    """Sums of squared inputs and counts, for each matrix and each expert; router mass beside.

    A micro-batch is summed in float32, the whole in float64.

    Args:
        path: The model file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tap = _llama.Tap(is_collected, self._take)
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._mass: dict[str, npt.NDArray[np.float64]] = {}
        self._experts: dict[str, npt.NDArray[np.int32]] = {}

    def collect(self, session: Session, tokens: list[int]) -> Iterator[int]:
        """Run a model over tokens from an empty context, and add what is seen to the sums.

        Args:
            session: Of the model whose context this collector's tap is on.
            tokens: Token ids, at least one.

        Yields:
            How many tokens are done, after each micro-batch.

        Raises:
            ContextFull: They do not fit the context.
            ValueError: There are none, or one is not in the vocabulary.
            ModelFileError: An input is NaN or infinite.
            NativeError: Decoding failed.
        """
        for n_done in session.run(tokens):
            if self.tap.failure is not None:
                raise self.tap.failure
            yield n_done

    def list_tensors(self) -> dict[str, F32Array]:
        """List what was collected, under the names that it has in a file."""
        tensors: dict[str, F32Array] = {}
        for name, sums in self._sums.items():
            tensors[name + SUMS] = sums.astype(np.float32)
            tensors[name + COUNTS] = self._counts[name].astype(np.float32)
        for layer, mass in self._mass.items():
            tensors[name_mass(layer)] = mass.astype(np.float32)
        return tensors

    def _take(self, seen: _llama.Product | _llama.Mixture) -> None:
        if isinstance(seen, _llama.Mixture):
            layer = f"blk.{seen.layer}"
            experts = self._experts[layer]
            self._mass[layer] += np.bincount(
                experts.ravel(), seen.weights.ravel(), len(self._mass[layer])
            )
        elif seen.experts is None:
            rows = seen.inputs[:, 0]
            self._add(seen.matrix, sum_squares(rows)[None], np.array([len(rows)]))
        else:
            self._add(seen.matrix, *sum_by_expert(seen.inputs, seen.experts, seen.n_experts))
            layer = seen.matrix.partition(".ffn_")[0]
            self._experts[layer] = seen.experts.copy()
            self._mass.setdefault(layer, np.zeros(seen.n_experts))

    def _add(self, matrix: str, sums: F32Array, counts: npt.NDArray[np.int64]) -> None:
        if not np.isfinite(sums).all():
            raise ModelFileError(
                self._path,
                "what it is multiplied with is NaN, or its square infinite",
                tensor=matrix,
                hint="Nothing can be learnt from this file: convert the checkpoint again.",
            )
        if matrix not in self._sums:
            self._sums[matrix] = np.zeros(sums.shape)
            self._counts[matrix] = np.zeros(len(sums), np.int64)
        self._sums[matrix] += sums
        self._counts[matrix] += counts


def is_collected(matrix: str) -> bool:
    """Tell whether a matrix is one of the model's: attention multiplies its cache, too."""
    return matrix.startswith("blk.") or matrix == "output.weight"


def sum_squares(rows: F32Array) -> F32Array:
    """Sum the squares of each column: [n_rows, width] -> [width]."""
    sums: F32Array = np.einsum("ij,ij->j", rows, rows)
    return sums


def sum_by_expert(
    inputs: F32Array, experts: npt.NDArray[np.int32], n_experts: int
) -> tuple[F32Array, npt.NDArray[np.int64]]:
    """Sum the squares of each column over the tokens of each expert.

    Args:
        inputs: float32 [n_tokens, n_slots, width]; n_slots is n_used, or 1 if shared.
        experts: int32 [n_tokens, n_used], the chosen ones.
        n_experts: How many there are.

    Returns:
        float32 [n_experts, width], and counts int64 [n_experts].
    """
    n_tokens, n_slots, width = inputs.shape
    n_used = experts.shape[1]
    chosen = experts.ravel()
    counts = np.bincount(chosen, minlength=n_experts)
    ends = counts.cumsum()
    order = chosen.argsort(kind="stable")
    rows = inputs.reshape(n_tokens * n_slots, width)
    places = order if n_slots == n_used else order // n_used
    sums = np.zeros((n_experts, width), np.float32)
    # One gather an expert stays in the cache: a tenth of the time of a one-hot matrix product.
    for expert in counts.nonzero()[0]:
        sums[expert] = sum_squares(rows[places[ends[expert] - counts[expert] : ends[expert]]])
    return sums, counts
