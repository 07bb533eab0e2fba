"""Importance matrices: how much each input of a matrix matters, expert by expert.

For every matrix the squares of its inputs are summed over the tokens of a calibration text, and
the tokens are counted: for a stack of experts, those tokens that were routed to each. The mean
square of an input is the weight that its column's squared errors get when the matrix is encoded.

A file holds, for each matrix, `NAME.in_sum2` F32 [n_experts, width] and `NAME.counts` F32
[n_experts, 1], not divided, as llama-imatrix writes and llama-quantize reads them; ours also
hold `blk.N.ffn_gate_inp.weight.router_mass` F32 [n_experts], which those leave alone.
Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.errors import GGUFError, OutputError
from quantize.gguf import GGUFArray, GGUFFile, MetadataEntry, TensorSpec, open_gguf, plan_file
from quantize.part import open_part

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]

SUMS, COUNTS, MASS = ".in_sum2", ".counts", ".router_mass"
FEW_SAMPLES = 256
"""Below it an expert's importance is reported as uncertain."""
PRIOR_SAMPLES = 24
"""What the neutral vector counts for, in samples of an expert's own. On tiny, vectors of 8 to 4096
samples came closest to those from the rest of the text with 32 for `up` and 16 for `down`."""
FLOOR = 1e-6
"""Least importance of an input, as a share of its matrix's mean: a block of which no input ever
fired must not divide by zero."""

_F32 = 0
_HINT = "Collect it again with `localcascade calibrate`."
_OTHER_MODEL = "It was collected on another model, or on a padded or trimmed file of this one."


@dataclass(frozen=True)
class Moments:
    """What was collected at the input of one matrix, or of a stack of experts."""

    sums: F64Array
    """Sum of squared inputs, [n_experts, width]; one row for a plain matrix."""
    counts: F64Array
    """Samples behind each row, [n_experts]."""

    @cached_property
    def neutral(self) -> F64Array:
        """Mean over the experts of their vectors, each of mean 1: [width], of mean 1."""
        levels = self._levels
        known = levels > 0
        if not known.any():
            return np.ones(self.sums.shape[1])
        scale = self.counts[known] * levels[known]
        neutral: F64Array = (self.sums[known] / scale[:, None]).mean(axis=0)
        return neutral

    def estimate(self, expert: int) -> F32Array:
        """Estimate the mean square of each input of one expert.

        With n samples of its own and the neutral vector, at the expert's own level, counting
        for PRIOR_SAMPLES more, it is (sums + PRIOR_SAMPLES * level * neutral) / (n +
        PRIOR_SAMPLES). A plain matrix is its own neutral vector and keeps sums / n; an expert
        without samples gets the neutral vector at the mean level of the others.

        Args:
            expert: Index of the expert; 0 for a plain matrix.

        Returns:
            float32 [width], every element positive.
        """
        count, level = self.counts[expert], self._levels[expert]
        if count == 0:
            level = self._levels[self.counts > 0].mean() if self.counts.any() else 1.0
        if level == 0:
            return np.ones(self.sums.shape[1], np.float32)
        prior = PRIOR_SAMPLES * level * self.neutral
        vector = (self.sums[expert] + prior) / (count + PRIOR_SAMPLES)
        floored: F32Array = np.maximum(vector, FLOOR * level).astype(np.float32)
        return floored

    @cached_property
    def _levels(self) -> F64Array:
        """Mean square over all inputs of each expert, [n_experts]; 0 without samples."""
        means = self.sums.mean(axis=1)
        levels: F64Array = np.zeros_like(means)
        np.divide(means, self.counts, out=levels, where=self.counts > 0)
        return levels


@dataclass(frozen=True)
class Coverage:
    """How many samples the experts of a model got; each expert of each layer is one."""

    n_experts: int
    empty: Mapping[str, tuple[int, ...]]
    """Stack of experts, as `blk.1`, -> indices of those without samples; none if there are none."""
    few: Mapping[str, tuple[int, ...]]
    """The same for those with fewer than FEW_SAMPLES, but some."""

    @property
    def n_empty(self) -> int:
        """Experts without samples."""
        return sum(map(len, self.empty.values()))

    @property
    def n_few(self) -> int:
        """Experts with too few."""
        return sum(map(len, self.few.values()))


@dataclass(frozen=True)
class Importance:
    """An importance matrix: what was collected for every matrix of a model."""

    matrices: Mapping[str, Moments]
    """By the tensor's name in the model's GGUF, ascending."""
    router_mass: Mapping[str, F64Array] = field(default_factory=dict)
    """Layer, as `blk.1`, -> sum of the weights with which each expert's output was added, as
    applied (normalized and scaled as the model does it), [n_experts]."""
    datasets: tuple[str, ...] = ()
    """Names of the texts."""
    n_chunks: int = 0
    chunk_tokens: int = 0
    path: Path = Path()
    """Where it was read from, for messages."""

    def vector(self, tensor_name: str, expert_index: int, width: int) -> F32Array | None:
        """Give the weights for the squared errors of one expert's columns.

        Args:
            tensor_name: Name of the matrix in the model's GGUF.
            expert_index: Index of the expert; 0 for a plain matrix.
            width: Inputs of the matrix, as it was when it was calibrated.

        Returns:
            float32 [width], every element positive; None if nothing was collected for it.

        Raises:
            GGUFError: The collected vector has another width, or there is no such expert.
        """
        moments = self.matrices.get(tensor_name)
        if moments is None:
            return None
        n_experts, own_width = moments.sums.shape
        if width != own_width:
            raise self._refuse(tensor_name, f"is for {own_width} inputs, the model's has {width}")
        if expert_index >= n_experts:
            raise self._refuse(tensor_name, f"is for {n_experts} experts, not {expert_index + 1}")
        return moments.estimate(expert_index)

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what was collected on another model.

        Args:
            shapes: Name -> shape, in numpy order, of the model's tensors; those that were not
                calibrated may be among them.

        Raises:
            GGUFError: A matrix is not the model's, or has another width or number of experts.
        """
        for name, moments in self.matrices.items():
            if name not in shapes:
                raise self._refuse(name, "is not among the model's tensors")
            shape = shapes[name]
            wanted = (prod(shape[:-2]), shape[-1])
            if moments.sums.shape != wanted:
                raise self._refuse(
                    name,
                    f"is for {moments.sums.shape[0]} x {moments.sums.shape[1]} inputs "
                    f"(experts x width), the model has {wanted[0]} x {wanted[1]}",
                )

    def measure_coverage(self) -> Coverage:
        """Count the experts that got no, few and enough samples."""
        counts = {
            name.partition(".ffn_")[0]: moments.counts
            for name, moments in self.matrices.items()
            if len(moments.counts) > 1
        }
        return Coverage(
            n_experts=sum(map(len, counts.values())),
            empty=_index({layer: n == 0 for layer, n in counts.items()}),
            few=_index({layer: (n > 0) & (n < FEW_SAMPLES) for layer, n in counts.items()}),
        )

    def _refuse(self, name: str, problem: str) -> GGUFError:
        return GGUFError(self.path, f"importance of {name} {problem}", hint=_OTHER_MODEL)


def _index(marks: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, tuple[int, ...]]:
    found = {layer: tuple(np.flatnonzero(mark).tolist()) for layer, mark in marks.items()}
    return {layer: indices for layer, indices in found.items() if indices}


# ---- tensors -----------------------------------------------------------------------------------


def join_moments(
    tensors: Mapping[str, F32Array],
) -> tuple[dict[str, Moments], dict[str, F64Array]]:
    """Put the tensors of a file, or of a collector, together.

    Args:
        tensors: By the names that they have in a file, of any shape; other names are left alone.

    Returns:
        Matrices and router mass, as Importance has them.

    Raises:
        ValueError: A tensor is missing, of another size, negative or not finite; the text begins
            with its name.
    """
    names = {
        name.removesuffix(suffix)
        for name in tensors
        for suffix in (SUMS, COUNTS)
        if name.endswith(suffix)
    }
    matrices = {name: _join_pair(tensors, name) for name in sorted(names)}
    mass = {
        name.partition(".ffn_")[0]: _check_values(tensors, name)
        for name in sorted(tensors)
        if name.endswith(MASS)
    }
    return matrices, mass


def _join_pair(tensors: Mapping[str, F32Array], name: str) -> Moments:
    counts, sums = (_check_values(tensors, name + suffix) for suffix in (COUNTS, SUMS))
    if sums.size % counts.size:
        raise ValueError(f"{name}{SUMS} has {sums.size} values for {counts.size} counts")
    return Moments(sums.reshape(counts.size, -1), counts)


def _check_values(tensors: Mapping[str, F32Array], name: str) -> F64Array:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    values = tensors[name].astype(np.float64).ravel()
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
        raise ValueError(f"{name} holds {values[wrong[0]]} at {wrong[0]}")
    return values


def split_moments(importance: Importance) -> dict[str, F32Array]:
    """Undo join_moments: the tensors of a file, in its order."""
    tensors: dict[str, F32Array] = {}
    for name, moments in sorted(importance.matrices.items()):
        for suffix, values in ((SUMS, moments.sums), (COUNTS, moments.counts[:, None])):
            # ggml leaves out leading axes of one.
            stored = values if len(values) > 1 else values[0]
            tensors[name + suffix] = stored.astype(np.float32)
    for layer, mass in sorted(importance.router_mass.items()):
        tensors[name_mass(layer)] = mass.astype(np.float32)
    return tensors


def name_mass(layer: str) -> str:
    """Name the tensor with the router mass of a layer, as `blk.1`."""
    return f"{layer}.ffn_gate_inp.weight{MASS}"


# ---- files -------------------------------------------------------------------------------------


def read_importance(path: Path) -> Importance:
    """Read an importance matrix of ours or of llama-imatrix.

    Args:
        path: A GGUF file; the older .dat format is not read.

    Raises:
        GGUFError: It is no importance matrix, or a damaged one; names tensor or key.
    """
    with open_gguf(path) as file:
        kind = file.metadata.get("general.type")
        if kind != "imatrix":
            raise GGUFError(path, f"general.type is {kind!r}, not 'imatrix'", hint=_HINT)
        datasets = file.metadata.get("imatrix.datasets", ())
        if not isinstance(datasets, GGUFArray | tuple) or not all(
            isinstance(name, str) for name in datasets
        ):
            raise GGUFError(path, "imatrix.datasets is no list of texts", hint=_HINT)
        try:
            matrices, mass = join_moments(dict(_read_tensors(file)))
        except ValueError as error:
            raise GGUFError(path, f"tensor {error}", hint=_HINT) from error
        if not matrices:
            raise GGUFError(path, "it holds no importance of any matrix", hint=_HINT)
        return Importance(
            matrices,
            mass,
            tuple(datasets),
            _read_count(file, "imatrix.chunk_count"),
            _read_count(file, "imatrix.chunk_size"),
            path,
        )


def _read_tensors(file: GGUFFile) -> Iterator[tuple[str, F32Array]]:
    for name, tensor in file.tensors.items():
        if not name.endswith((SUMS, COUNTS, MASS)):
            continue
        if tensor.type_id != _F32:
            raise ValueError(f"{name} is {tensor.type.name}, not f32")
        yield name, file.read(name).reshape(-1).view(np.float32)


def _read_count(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    if type(value) is not int or value < 0:
        raise GGUFError(file.path, f"{key} is {value!r}, not a count", hint=_HINT)
    return value


def write_importance(path: Path, importance: Importance) -> None:
    """Write an importance matrix that llama-quantize and llama-imatrix read.

    Args:
        path: Replaced only by a complete file that has been read back.
        importance: What to write; sums and counts are rounded to float32.

    Raises:
        OutputError: It cannot be written, or did not read back as written.
        ValueError: A name is too long, or there are no matrices.
    """
    tensors = split_moments(importance)
    if not importance.matrices:
        raise ValueError("an importance matrix without matrices")
    metadata: tuple[MetadataEntry, ...] = (
        ("general.type", "imatrix", "str"),
        ("imatrix.datasets", importance.datasets, "arr:str"),
        ("imatrix.chunk_count", importance.n_chunks, "u32"),
        ("imatrix.chunk_size", importance.chunk_tokens, "u32"),
    )
    plan = plan_file(metadata, [TensorSpec(n, t.shape, _F32) for n, t in tensors.items()])
    data = bytearray(plan.file_bytes)
    data[: len(plan.header)] = plan.header
    for placed in plan.tensors:
        end = placed.offset + placed.n_bytes
        data[placed.offset : end] = tensors[placed.name].astype("<f4").tobytes()
    with open_part(path, len(data), f"importance {zlib.crc32(data):08x}") as part:
        part.write(data, 0)
        os.fsync(part.descriptor)
        if part.path.read_bytes() != data:
            raise OutputError(
                f"{part.path}: does not read back as written",
                "The disk may be failing; try another one.",
            )
