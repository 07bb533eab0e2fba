"""Open one Hugging Face checkpoint: config, index and shards, checked before anything is read.

Nothing in a checkpoint is ever executed; only JSON is parsed and numbers are read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from quantize.errors import CheckpointError, NotFinite
from quantize.safetensors.documents import DAMAGED, read_object
from quantize.safetensors.header import DTYPE_BYTES, StoredTensor, read_header

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
READ_BYTES = 1 << 30
"""One system call reads no more: Linux stops at 2 GiB - 4 KiB, macOS fails above 2 GiB."""
BLOCK_WEIGHTS = 1 << 18
"""Weights widened or checked at a time, so that a block stays in the processor's cache."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; a context manager. Any number of threads may read at once."""

    folder: Path
    config: dict[str, Any]
    """config.json as it is."""
    tensors: dict[str, StoredTensor]
    """By name, shard by shard, in the order of the data."""
    _descriptors: dict[Path, int] = field(repr=False)

    def read_f32(
        self, name: str, rows: slice | None = None, *, out: F32Array | None = None
    ) -> F32Array:
        """Read a tensor, or some of its rows, widened to float32 without rounding.

        Args:
            name: The tensor.
            rows: Part of the first axis, step 1; None is all of it.
            out: Receives the weights: float32, C-contiguous, of the shape read.

        Returns:
            float32 (rows, ...), C-contiguous; `out` if it was given.

        Raises:
            CheckpointError: The shard cannot be read to the end.
            ValueError: `rows` or `out` does not match the tensor, or the checkpoint is closed.
        """
        tensor, first, shape = self._select(name, rows)
        result = np.empty(shape, np.float32) if out is None else out
        if result.shape != shape or result.dtype != np.float32 or not result.flags.c_contiguous:
            raise ValueError(f"{name}: out is not a contiguous float32 array of shape {shape}")
        flat = result.reshape(-1)
        if tensor.dtype == "F32":
            self._fill(tensor, first, flat)
        else:
            self._widen(tensor, first, flat)
        return result

    def read_raw(
        self, name: str, rows: slice | None = None, *, out: U8Array | None = None
    ) -> U8Array:
        """Read the bytes of a tensor, or of some of its rows, as they are stored.

        Args:
            name: The tensor.
            rows: Part of the first axis, step 1; None is all of it.
            out: Receives the bytes: uint8 (n_bytes,), C-contiguous.

        Returns:
            uint8 (n_bytes,); `out` if it was given.

        Raises:
            CheckpointError: The shard cannot be read to the end.
            ValueError: `rows` or `out` does not match the tensor, or the checkpoint is closed.
        """
        tensor, first, shape = self._select(name, rows)
        n_bytes = prod(shape) * DTYPE_BYTES[tensor.dtype]
        result = np.empty(n_bytes, np.uint8) if out is None else out
        if result.shape != (n_bytes,) or result.dtype != np.uint8 or not result.flags.c_contiguous:
            raise ValueError(f"{name}: out is not a contiguous uint8 array of {n_bytes} bytes")
        self._fill(tensor, first, result)
        return result

    def close(self) -> None:
        """Close the shards."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _select(self, name: str, rows: slice | None) -> tuple[StoredTensor, int, tuple[int, ...]]:
        """Find a tensor, the first byte of the rows in its shard, and the shape they have."""
        tensor = self.tensors[name]
        if rows is None:
            return tensor, tensor.offset, tensor.shape
        if not tensor.shape or rows.step not in (None, 1):
            raise ValueError(f"{name} {tensor.shape}: cannot take rows {rows}")
        start, stop, _ = rows.indices(tensor.shape[0])
        row_bytes = tensor.n_bytes // tensor.shape[0]
        return tensor, tensor.offset + start * row_bytes, (max(stop - start, 0), *tensor.shape[1:])

    def _widen(self, tensor: StoredTensor, offset: int, flat: F32Array) -> None:
        scratch = np.empty(min(BLOCK_WEIGHTS, flat.size), np.uint16)
        for start in range(0, flat.size, BLOCK_WEIGHTS):
            target = flat[start : start + BLOCK_WEIGHTS]
            source = scratch[: target.size]
            self._fill(tensor, offset + 2 * start, source)
            if tensor.dtype == "BF16":
                # A bfloat16 is the upper half of a float32.
                np.left_shift(source, 16, out=target.view(np.uint32), dtype=np.uint32)
            else:
                np.copyto(target, source.view(np.float16))

    def _fill(self, tensor: StoredTensor, offset: int, buffer: npt.NDArray[Any]) -> None:
        """Read from an offset of the tensor's shard until the buffer is full."""
        if tensor.path not in self._descriptors:
            raise ValueError(f"{self.folder}: the checkpoint is closed")
        try:
            _read_exactly(self._descriptors[tensor.path], buffer.view(np.uint8).data, offset)
        except (OSError, EOFError) as error:
            problem = f"cannot be read at byte {offset}: {error}"
            raise CheckpointError(tensor.path, problem, tensor=tensor.name, hint=DAMAGED) from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint in Hugging Face layout and check every header in it.

    Args:
        folder: Holds config.json, and model.safetensors or the shards and their index.

    Returns:
        The open checkpoint; close it, or use it in a `with` statement.

    Raises:
        CheckpointError: A file is missing, damaged, or contradicts another one.
    """
    config = read_object(folder / "config.json", allow_infinity=True)
    shards = _list_shards(folder)
    checkpoint = Checkpoint(folder, config, {}, {})
    try:
        for path, expected in shards.items():
            descriptor, file_bytes = _open_shard(path)
            checkpoint._descriptors[path] = descriptor
            found = _read_shard(path, descriptor, file_bytes)
            _compare_with_index(path, found, expected, checkpoint.tensors)
            checkpoint.tensors.update(found)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def check_finite(path: Path, name: str, weights: F32Array, *, first_row: int = 0) -> None:
    """Refuse NaN and infinities.

    Args:
        path: File they come from, for the message.
        name: Tensor they come from, for the message.
        weights: float32 (rows, ...), C-contiguous.
        first_row: Row of the tensor that `weights` begins with.

    Raises:
        NotFinite: The first such value, with its position in the tensor.
    """
    flat = weights.reshape(-1)
    for start in range(0, flat.size, BLOCK_WEIGHTS):
        finite = np.isfinite(flat[start : start + BLOCK_WEIGHTS])
        if not finite.all():
            first = start + int(np.argmin(finite))
            position = [int(i) for i in np.unravel_index(first, weights.shape)]
            if position:
                position[0] += first_row
            raise NotFinite(path, name, tuple(position), float(flat[first]))


def _list_shards(folder: Path) -> dict[Path, set[str] | None]:
    """List the shards, each with the tensors that the index places in it; None without index."""
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if not index.exists():
        if not single.exists():
            raise CheckpointError(
                folder, f"holds neither {SINGLE_NAME} nor {INDEX_NAME}",
                hint="Name a folder with a complete safetensors checkpoint.",
            )  # fmt: skip
        return {single: None}
    shards: dict[Path, set[str] | None] = {}
    placed: dict[str, set[str]] = {}
    for name, shard in _read_weight_map(index).items():
        placed.setdefault(shard, set()).add(name)
    for shard in sorted(placed):
        shards[folder / shard] = placed[shard]
    if single.exists() and single not in shards:
        raise CheckpointError(
            index, f"does not name {SINGLE_NAME}, which lies beside it",
            hint="Delete whichever of the two does not belong to this checkpoint.",
        )  # fmt: skip
    return shards


def _read_weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "key weight_map: not a filled object", hint=DAMAGED)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            shown = f"{shard!a:.80}" if isinstance(shard, str) else type(shard).__name__
            raise CheckpointError(
                index, f"shard {shown} is not the name of a file in this folder",
                tensor=_show(name), hint=DAMAGED,
            )  # fmt: skip
    return weight_map


def _show(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _is_plain_name(name: str) -> bool:
    forbidden = {"/", "\\", ":", os.sep}
    return name.isprintable() and name not in {"", ".", ".."} and not forbidden & set(name)


def _open_shard(path: Path) -> tuple[int, int]:
    """Open a shard; its descriptor and its size in bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(path, "not a file", hint=DAMAGED)
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)), status.st_size
    except FileNotFoundError as error:
        raise CheckpointError(
            path, "shard not found", hint="Download the missing file into the folder."
        ) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be opened: {error.strerror or error}") from error


def _read_shard(path: Path, descriptor: int, file_bytes: int) -> dict[str, StoredTensor]:
    try:
        return read_header(path, descriptor, file_bytes)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error


def _read_exactly(descriptor: int, room: memoryview, offset: int) -> None:
    while room:
        n_read = os.preadv(descriptor, [room[:READ_BYTES]], offset)
        if n_read == 0:
            raise EOFError(f"the file ends at byte {offset}")
        room, offset = room[n_read:], offset + n_read


def _compare_with_index(
    path: Path,
    found: Mapping[str, StoredTensor],
    expected: set[str] | None,
    earlier: Mapping[str, StoredTensor],
) -> None:
    if expected is None:
        return
    for name in found.keys() & earlier.keys():
        raise CheckpointError(
            path, f"also stored in {earlier[name].path.name}", tensor=name, hint=DAMAGED
        )
    for name in sorted(expected - found.keys()):
        raise CheckpointError(
            path, f"missing, though {INDEX_NAME} places it here", tensor=_show(name), hint=DAMAGED
        )
    for name in sorted(found.keys() - expected):
        raise CheckpointError(
            path, f"stored here, but {INDEX_NAME} does not say so", tensor=name, hint=DAMAGED
        )
