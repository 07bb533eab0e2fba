"""What the matrices of a model are multiplied with, summed up while it computes; worker only.

A collector hears every product of the model's matrices and passes it to one listener: sums of
squares for an importance matrix, sums of outer products, or noise that is added to the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from localcascade.engine import _llama
from localcascade.errors import ModelFileError
from quantize.importance import COUNTS, SUMS, name_mass
from quantize.moments import pack_triangle

F32Array = npt.NDArray[np.float32]

N_MIXES = 64
"""Rank of the errors that a disturbed matrix has; of 128 experts of the 30 B model they take 60 to
90 MB, where errors of full rank would take 2.5 GB and as long again as the model itself."""


class Listener(Protocol):
    """What becomes of the products of matrices."""

    def wants(self, matrix: str) -> bool:
        """Tell whether it is to hear of a matrix."""

    def take(self, seen: _llama.Product | _llama.Mixture) -> F32Array | None:
        """Take a product; what is returned, if anything, takes the place of its result."""


class Collector:
    """Hears what a context computes, and lets one listener after another make something of it.

    Args:
        path: The model file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._squares = SquareSums(path)
        self._outers = OuterSums(path, ())
        self._listener: Listener = self._squares
        self.tap = _llama.Tap(lambda name: self._listener.wants(name), self._take)

    def check(self) -> None:
        """Ask after each micro-batch whether all that was heard could be used.

        Raises:
            ModelFileError: An input is NaN or infinite.
        """
        if self.tap.failure is not None:
            raise self.tap.failure

    def watch(self, matrices: Sequence[str]) -> None:
        """Sum up the outer products of the inputs of these from now on, and nothing else.

        Args:
            matrices: Names of matrices or stacks of experts; none goes back to the squares. What
                was summed up by an earlier watch is forgotten.
        """
        self._outers = OuterSums(self._path, matrices)
        self._listener = self._outers if matrices else self._squares

    def disturb(self, matrix: str, variances: Sequence[float], seed: int) -> None:
        """Compute as if a matrix's weights had random errors from now on, and collect nothing.

        Args:
            matrix: Its name. To end it, call watch.
            variances: Of the independent errors of its weights, one an expert, or one.
            seed: The same one gives the same noise.
        """
        self._listener = Noise(matrix, variances, seed)

    def list_tensors(self) -> dict[str, F32Array]:
        """List the sums of squares, under the names that they have in a file."""
        return self._squares.list_tensors()

    def read_outer(self, matrix: str, index: int) -> tuple[F32Array, int]:
        """Give one sum of outer products of a matrix that is watched.

        Args:
            matrix: Its name.
            index: The expert; 0 if all experts read the same.

        Returns:
            Lower triangle as quantize.moments packs it, and the number of samples.

        Raises:
            ValueError: Nothing was collected for it.
        """
        return self._outers.read(matrix, index)

    def _take(self, seen: _llama.Product | _llama.Mixture) -> F32Array | None:
        return self._listener.take(seen)


class SquareSums:
    """Sums of squared inputs and counts, for each matrix and each expert; router mass beside.

    A micro-batch is summed in float32, the whole in float64.

    Args:
        path: The model file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._mass: dict[str, npt.NDArray[np.float64]] = {}
        self._experts: dict[str, npt.NDArray[np.int32]] = {}

    def wants(self, matrix: str) -> bool:
        """Want every matrix of the model."""
        return is_collected(matrix)

    def take(self, seen: _llama.Product | _llama.Mixture) -> None:
        """Add a product's inputs, or the weights of a mixture, to the sums."""
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

    def list_tensors(self) -> dict[str, F32Array]:
        """List what was collected, under the names that it has in a file."""
        tensors: dict[str, F32Array] = {}
        for name, sums in self._sums.items():
            tensors[name + SUMS] = sums.astype(np.float32)
            tensors[name + COUNTS] = self._counts[name].astype(np.float32)
        for layer, mass in self._mass.items():
            tensors[name_mass(layer)] = mass.astype(np.float32)
        return tensors

    def _add(self, matrix: str, sums: F32Array, counts: npt.NDArray[np.int64]) -> None:
        check_sums(self._path, matrix, sums)
        if matrix not in self._sums:
            self._sums[matrix] = np.zeros(sums.shape)
            self._counts[matrix] = np.zeros(len(sums), np.int64)
        self._sums[matrix] += sums
        self._counts[matrix] += counts


class OuterSums:
    """Sums of the outer products of inputs, sum of x xT: one an expert, or one that all share.

    Where every expert of a token reads the same input, as `up` does, one sum over all tokens
    stands for all experts: one of each would cost a hundred times the memory for samples that
    are a few each. Summed in float32, like the products themselves.

    Args:
        path: The model file, for messages.
        matrices: Names of those to sum up.
    """

    def __init__(self, path: Path, matrices: Sequence[str]) -> None:
        self._path = path
        self._matrices = frozenset(matrices)
        self._sums: dict[str, F32Array] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}

    def wants(self, matrix: str) -> bool:
        """Want those that are watched."""
        return matrix in self._matrices

    def take(self, seen: _llama.Product | _llama.Mixture) -> None:
        """Add a product's inputs to the sums."""
        if isinstance(seen, _llama.Mixture):
            return
        width, is_shared = seen.inputs.shape[2], seen.inputs.shape[1] == 1
        if seen.matrix not in self._sums:
            n_sums = 1 if is_shared else seen.n_experts
            self._sums[seen.matrix] = np.zeros((n_sums, width, width), np.float32)
            self._counts[seen.matrix] = np.zeros(n_sums, np.int64)
        if seen.experts is None or is_shared:
            self._add(seen.matrix, 0, seen.inputs[:, 0])
            return
        rows = seen.inputs.reshape(-1, width)
        for expert, places in group_by_expert(seen.experts, seen.inputs.shape[1], seen.n_experts):
            self._add(seen.matrix, expert, rows[places])

    def read(self, matrix: str, index: int) -> tuple[F32Array, int]:
        """Give one sum, packed, and the number of samples; see Collector.read_outer."""
        if matrix not in self._sums:
            raise ValueError(f"nothing was collected for {matrix}")
        return pack_triangle(self._sums[matrix][index]), int(self._counts[matrix][index])

    def _add(self, matrix: str, index: int, rows: F32Array) -> None:
        # numpy computes half of a matrix times its own transpose, and mirrors it.
        outer: F32Array = rows.T @ rows
        check_sums(self._path, matrix, outer.diagonal())
        self._sums[matrix][index] += outer
        self._counts[matrix][index] += len(rows)


class Noise:
    """Computes as if a matrix's weights had random errors, the same ones for all tokens.

    The errors of an expert are U VT / sqrt(N_MIXES), with independent U [n_rows, N_MIXES] for each
    expert and V [width, N_MIXES] for all. The results of an input x then differ by a variance of
    v times the sum of its squares, and those of x and y vary together nearly as errors of all the
    weights would make them: by v times x y. So what the model sums up over tokens is counted.

    Args:
        matrix: Its name.
        variances: v, of the errors, one an expert, or one.
        seed: The same one gives the same errors.
    """

    def __init__(self, matrix: str, variances: Sequence[float], seed: int) -> None:
        self._matrix, self._seed = matrix, seed
        self._deviations = np.sqrt(np.array(variances, np.float32) / np.float32(N_MIXES))
        self._mixes: F32Array | None = None
        self._errors: dict[int, F32Array] = {}

    def wants(self, matrix: str) -> bool:
        """Want the one that is disturbed."""
        return matrix == self._matrix

    def take(self, seen: _llama.Product | _llama.Mixture) -> F32Array | None:
        """Give a product's result with what the errors make of it."""
        if isinstance(seen, _llama.Mixture):
            return None
        _, n_slots, width = seen.inputs.shape
        if self._mixes is None:
            self._mixes = self._draw(0, width)
        mixed = seen.inputs.reshape(-1, width) @ self._mixes
        disturbed: F32Array = seen.read_output().copy()
        rows = disturbed.reshape(-1, disturbed.shape[-1])  # one a token and expert; a view
        if seen.experts is None:
            rows += mixed @ self._find_errors(0, rows.shape[1])
            return disturbed
        n_used = seen.experts.shape[1]
        for expert, places in group_by_expert(seen.experts, n_used, seen.n_experts):
            inputs = places if n_slots == n_used else places // n_used
            rows[places] += mixed[inputs] @ self._find_errors(expert, rows.shape[1])
        return disturbed

    def _find_errors(self, expert: int, n_rows: int) -> F32Array:
        if expert not in self._errors:
            drawn = self._draw(expert + 1, n_rows).T
            self._errors[expert] = self._deviations[expert] * drawn
        return self._errors[expert]

    def _draw(self, part: int, length: int) -> F32Array:
        random = np.random.default_rng([self._seed, part])
        return random.standard_normal((length, N_MIXES), np.float32)


def is_collected(matrix: str) -> bool:
    """Tell whether a matrix is one of the model's: attention multiplies its cache, too."""
    return matrix.startswith("blk.") or matrix == "output.weight"


def check_sums(path: Path, matrix: str, sums: F32Array) -> None:
    """Refuse sums of squares that are no numbers.

    Args:
        path: The model file.
        matrix: Whose inputs they are of.
        sums: Of any shape.

    Raises:
        ModelFileError: One is NaN or infinite.
    """
    if not np.isfinite(sums).all():
        raise ModelFileError(
            path,
            "what it is multiplied with is NaN, or its square infinite",
            tensor=matrix,
            hint="Nothing can be learnt from this file: convert the checkpoint again.",
        )


def sum_squares(rows: F32Array) -> F32Array:
    """Sum the squares of each column: [n_rows, width] -> [width]."""
    sums: F32Array = np.einsum("ij,ij->j", rows, rows)
    return sums


def group_by_expert(
    experts: npt.NDArray[np.int32], n_slots: int, n_experts: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Find the inputs of each expert among those of all tokens.

    Args:
        experts: int32 [n_tokens, n_used], the chosen ones.
        n_slots: Inputs a token has: n_used, or 1 if its experts share it.
        n_experts: How many there are.

    Yields:
        Each expert that was chosen, and the rows of [n_tokens * n_slots, width] that it reads.
    """
    chosen = experts.ravel()
    counts = np.bincount(chosen, minlength=n_experts)
    ends = counts.cumsum()
    order = chosen.argsort(kind="stable")
    places = order if n_slots == experts.shape[1] else order // experts.shape[1]
    for expert in counts.nonzero()[0].tolist():
        yield expert, places[ends[expert] - counts[expert] : ends[expert]]


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
    _, n_slots, width = inputs.shape
    rows = inputs.reshape(-1, width)
    sums = np.zeros((n_experts, width), np.float32)
    counts = np.zeros(n_experts, np.int64)
    # One gather an expert stays in the cache: a tenth of the time of a one-hot matrix product.
    for expert, places in group_by_expert(experts, n_slots, n_experts):
        sums[expert] = sum_squares(rows[places])
        counts[expert] = len(places)
    return sums, counts
