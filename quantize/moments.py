"""Second moments: how the inputs of a matrix vary together, for least squares on its columns.

An importance matrix holds the diagonal of H, the mean of x xT over a calibration text; trimming
with a refit and error feedback need all of it. A file is a GGUF of `general.type` moments. For
each matrix it holds `NAME.in_outer` F32 [n, width * (width + 1) / 2], the sums of x xT, of each
the lower triangle row after row, and `NAME.counts` F32 [n], the samples behind each. n is the
number of experts, or 1 where all experts read the same input and so share one.

A stack of experts of the 30 B model takes 0.8 GiB, so nothing is held in memory: a file is written
stack by stack, and read where it lies.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.closing import Closing
from quantize.errors import GGUFError, OutputError
from quantize.gguf import (
    FilePlan,
    GGUFFile,
    GGUFTensor,
    MetadataEntry,
    TensorSpec,
    open_gguf,
    plan_file,
)
from quantize.part import Part, open_part

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]

OUTER, COUNTS = ".in_outer", ".counts"
_F32 = 0
_READ_BYTES = 8 << 20
_HINT = "Collect it again with `localcascade calibrate --moments`."


@dataclass(frozen=True, slots=True)
class Stack:
    """The second moments of one matrix, or of a stack of experts."""

    name: str
    """Of the matrix in the model's GGUF."""
    n_matrices: int
    """Number of experts; 1 for a plain matrix and where all experts read the same."""
    width: int

    @property
    def n_packed(self) -> int:
        """Values of one triangle."""
        return self.width * (self.width + 1) // 2

    @property
    def n_bytes(self) -> int:
        """Bytes in a file, counts included."""
        return 4 * self.n_matrices * (self.n_packed + 1)

    @property
    def square_bytes(self) -> int:
        """Bytes of the whole matrices in float32, as they are summed up."""
        return 4 * self.n_matrices * self.width**2


def pack_triangle(matrix: F32Array) -> F32Array:
    """Take the lower triangle of a symmetric matrix, row after row.

    Args:
        matrix: float32 [width, width].

    Returns:
        float32 [width * (width + 1) / 2].
    """
    packed: F32Array = matrix[np.tri(len(matrix), dtype=np.bool_)]
    return packed


def unpack_triangle(packed: F32Array) -> F64Array:
    """Undo pack_triangle, in float64."""
    width = _find_width(packed.size)
    matrix, lower = np.empty((width, width)), np.tri(width, dtype=np.bool_)
    matrix[lower] = packed
    matrix.T[lower] = packed
    return matrix


def _find_width(n_packed: int) -> int:
    """The width of which a triangle has so many values; 0 if none has."""
    width = isqrt(2 * n_packed)
    return width if width * (width + 1) // 2 == n_packed else 0


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments(Closing):
    """An open file of second moments; a context manager. Matrices are read when asked for."""

    path: Path
    stacks: Mapping[str, Stack]
    """By the matrix's name in the model's GGUF."""
    _file: GGUFFile

    def matrix(self, tensor_name: str, expert: int = 0) -> F64Array | None:
        """Give the mean of x xT over the inputs of one expert.

        Args:
            tensor_name: Name of the matrix in the model's GGUF.
            expert: Index of the expert; where all share one, any.

        Returns:
            float64 [width, width], symmetric; None if nothing was collected for it.

        Raises:
            GGUFError: There is no such expert, or the file is damaged.
        """
        count = self.count(tensor_name, expert)
        if count == 0:
            return None
        stored = self._file.copy_row(tensor_name + OUTER, self._find(tensor_name, expert))
        matrix = unpack_triangle(stored.view("<f4"))
        matrix /= count
        if not np.isfinite(matrix).all() or (matrix.diagonal() < 0).any():
            problem = f"tensor {tensor_name}{OUTER} of expert {expert} holds no second moments"
            raise GGUFError(self.path, problem, hint=_HINT)
        return matrix

    def count(self, tensor_name: str, expert: int = 0) -> int:
        """Count the samples behind a matrix; arguments and errors as those of `matrix`."""
        if tensor_name not in self.stacks:
            return 0
        counts = self._read(tensor_name + COUNTS).reshape(-1)
        return int(counts[self._find(tensor_name, expert)])

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what was collected on another model.

        Args:
            shapes: Name -> shape, in numpy order, of the model's tensors.

        Raises:
            GGUFError: A matrix is not the model's, or has another width or number of experts.
        """
        for name, stack in self.stacks.items():
            shape = shapes.get(name, ())
            fits = len(shape) > 1 and stack.n_matrices in (1, prod(shape[:-2]))
            if not fits or stack.width != shape[-1]:
                raise GGUFError(
                    self.path,
                    f"{name} is for {stack.n_matrices} x {stack.width} inputs (experts x width), "
                    f"the model's tensor is {list(shape) or 'missing'}",
                    hint="It was collected on another model, or on a padded or trimmed file.",
                )

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _find(self, tensor_name: str, expert: int) -> int:
        n_matrices = self.stacks[tensor_name].n_matrices
        if n_matrices == 1:
            return 0
        if not 0 <= expert < n_matrices:
            problem = f"{tensor_name} is for {n_matrices} experts, there is no {expert}"
            raise GGUFError(self.path, problem, hint=_HINT)
        return expert

    def _read(self, name: str) -> F32Array:
        return self._file.read(name).view(np.float32)


def read_moments(path: Path) -> Moments:
    """Open a file of second moments.

    Args:
        path: A GGUF file that `calibrate --moments` made.

    Returns:
        The open file; matrices stay on the disk until they are asked for.

    Raises:
        GGUFError: It is no such file, or a damaged one; names tensor or key.
    """
    file = open_gguf(path)
    try:
        kind = file.metadata.get("general.type")
        if kind != "moments":
            raise GGUFError(path, f"general.type is {kind!r}, not 'moments'", hint=_HINT)
        names = [name.removesuffix(OUTER) for name in file.tensors if name.endswith(OUTER)]
        if not names:
            raise GGUFError(path, "it holds no second moments of any matrix", hint=_HINT)
        return Moments(path, {name: _describe_stack(file, name) for name in names}, file)
    except BaseException:
        file.close()
        raise


def _describe_stack(file: GGUFFile, name: str) -> Stack:
    outer, counts = (_find_tensor(file, name + suffix) for suffix in (OUTER, COUNTS))
    n_matrices, width = prod(outer.shape[:-1]), _find_width(outer.shape[-1])
    problem = ""
    if not width:
        problem = f"{outer.name} has rows of {outer.shape[-1]} values, which are no triangle"
    elif prod(counts.shape) != n_matrices:
        problem = f"{counts.name} has {prod(counts.shape)} values for {n_matrices} matrices"
    else:
        values = file.read(counts.name).view(np.float32)
        if not (np.isfinite(values) & (values >= 0)).all():
            problem = f"{counts.name} holds what is no count"
    if problem:
        raise GGUFError(file.path, f"tensor {problem}", hint=_HINT)
    return Stack(name, n_matrices, width)


def _find_tensor(file: GGUFFile, name: str) -> GGUFTensor:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type_id != _F32:
        problem = "is missing" if tensor is None else f"is {tensor.type.name}, not f32"
        raise GGUFError(file.path, f"tensor {name} {problem}", hint=_HINT)
    return tensor


# ---- writing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MomentsPart:
    """A file of second moments under construction."""

    plan: FilePlan
    _part: Part
    _checksums: dict[str, int]

    def is_finished(self, stack: Stack) -> bool:
        """Tell whether this run, or one that was killed, has written a stack."""
        return stack.name in self._checksums

    def write(self, stack: Stack, sums: Iterable[tuple[F32Array, int]]) -> None:
        """Write one stack, and note that it is finished.

        Args:
            stack: One of those that the file was opened with.
            sums: Of each of its matrices, the packed sum of x xT and the count.
        """
        outer, counts = _place(self.plan, stack)
        offset, found = outer.offset, []
        for packed, count in sums:
            self._part.write(packed.astype("<f4", copy=False).data, offset)
            offset += packed.nbytes
            found.append(count)
        self._part.write(np.array(found, "<f4").data, counts.offset)
        checksum = _sum_up(self._part, outer, counts)
        self._part.record({stack.name: checksum})
        self._checksums[stack.name] = checksum

    def verify(self, stacks: Sequence[Stack]) -> None:
        """Read everything back; raises OutputError if it is not as it was written."""
        for stack in stacks:
            if self._checksums.get(stack.name) != _sum_up(self._part, *_place(self.plan, stack)):
                raise OutputError(
                    f"{self._part.path}: {stack.name} does not read back as written",
                    "The disk may be failing; try another one.",
                )


@contextmanager
def write_moments(
    path: Path, stacks: Sequence[Stack], datasets: Sequence[str], identity: str
) -> Iterator[MomentsPart]:
    """Make a file of second moments, stack by stack.

    Args:
        path: Replaced by a complete file, read back, if the body ends well.
        stacks: What the file will hold.
        datasets: Names of the texts.
        identity: What is collected of what, one line: a run that was killed is gone on with by
            one of the same identity.

    Yields:
        What to write the stacks to, each but those that are finished.

    Raises:
        OutputError: It cannot be written, the disk is too small for it, or it did not read back.
        ValueError: A name is too long, or there are no stacks.
    """
    if not stacks:
        raise ValueError("second moments of no matrices")
    plan = plan_moments(stacks, datasets)
    with open_part(path, plan.file_bytes, identity) as part:
        part.write(plan.header, 0)
        writer = MomentsPart(plan, part, dict(part.finished))
        yield writer
        writer.verify(stacks)


def plan_moments(stacks: Sequence[Stack], datasets: Sequence[str]) -> FilePlan:
    """Lay out a file of second moments; arguments and errors as those of write_moments."""
    metadata: tuple[MetadataEntry, ...] = (
        ("general.type", "moments", "str"),
        ("moments.datasets", tuple(datasets), "arr:str"),
    )
    tensors = [
        TensorSpec(stack.name + suffix, (stack.n_matrices, n_values), _F32)
        for stack in stacks
        for suffix, n_values in ((OUTER, stack.n_packed), (COUNTS, 1))
    ]
    return plan_file(metadata, tensors)


def _place(plan: FilePlan, stack: Stack) -> tuple[GGUFTensor, GGUFTensor]:
    placed = {tensor.name: tensor for tensor in plan.tensors}
    return placed[stack.name + OUTER], placed[stack.name + COUNTS]


def _sum_up(part: Part, *tensors: GGUFTensor) -> int:
    """CRC-32 of what the file holds of some tensors."""
    checksum = 0
    for tensor in tensors:
        for start in range(0, tensor.n_bytes, _READ_BYTES):
            n_bytes = min(_READ_BYTES, tensor.n_bytes - start)
            data = os.pread(part.descriptor, n_bytes, tensor.offset + start)
            checksum = zlib.crc32(data, checksum)
    return checksum
