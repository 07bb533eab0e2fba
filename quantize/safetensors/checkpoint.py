"""Open one Hugging Face checkpoint: config, index and shards, checked before anything is read.

Nothing in a checkpoint is ever executed; only JSON is parsed and numbers are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.closing import Closing
from quantize.errors import CheckpointError, NotFinite
from quantize.safetensors.documents import DAMAGED, read_object
from quantize.safetensors.header import DTYPE_BYTES, StoredTensor, read_header
from quantize.safetensors.shards import LocalShards, Shards

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
BLOCK_WEIGHTS = 1 << 18
"""Weights widened or checked at a time, so that a block stays in the processor's cache."""


@dataclass(frozen=True)
class Checkpoint(Closing):
    """An open checkpoint; a context manager. Any number of threads may read at once."""

    folder: Path
    config: dict[str, Any]
    """config.json as it is."""
    tensors: dict[str, StoredTensor]
    """By name, shard by shard, in the order of the data."""
    shards: Shards
    """Where the weights come from."""

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
        self.shards.close()

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
        try:
            self.shards.read_into(tensor.path, offset, buffer.view(np.uint8).data)
        except (OSError, EOFError) as error:
            problem = f"cannot be read at byte {offset}: {error}"
            raise CheckpointError(tensor.path, problem, tensor=tensor.name, hint=DAMAGED) from error


def open_checkpoint(folder: Path, shards: Shards | None = None) -> Checkpoint:
    """Open a checkpoint in Hugging Face layout and check every header in it.

    Args:
        folder: Holds config.json, and model.safetensors or the shards and their index.
        shards: Has the shards that the folder lacks; closed with the checkpoint. None reads files.

    Returns:
        The open checkpoint; close it, or use it in a `with` statement.

    Raises:
        CheckpointError: A file is missing, damaged, or contradicts another one.
    """
    shards = LocalShards() if shards is None else shards
    try:
        config = read_object(folder / "config.json", allow_infinity=True)
        checkpoint = Checkpoint(folder, config, {}, shards)
        for path, expected in _list_shards(folder, shards).items():
            found = _read_shard(path, shards)
            _compare_with_index(path, found, expected, checkpoint.tensors)
            checkpoint.tensors.update(found)
    except BaseException:
        shards.close()
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


def _list_shards(folder: Path, shards: Shards) -> dict[Path, set[str] | None]:
    """List the shards, each with the tensors that the index places in it; None without index."""
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    if not index.exists():
        if not shards.exists(single):
            raise CheckpointError(
                folder, f"holds neither {SINGLE_NAME} nor {INDEX_NAME}",
                hint="Name a folder with a complete safetensors checkpoint.",
            )  # fmt: skip
        return {single: None}
    listed: dict[Path, set[str] | None] = {}
    placed: dict[str, set[str]] = {}
    for name, shard in _read_weight_map(index).items():
        placed.setdefault(shard, set()).add(name)
    for shard in sorted(placed):
        listed[folder / shard] = placed[shard]
    if shards.exists(single) and single not in listed:
        raise CheckpointError(
            index, f"does not name {SINGLE_NAME}, which lies beside it",
            hint="Delete whichever of the two does not belong to this checkpoint.",
        )  # fmt: skip
    return listed


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


def _read_shard(path: Path, shards: Shards) -> dict[str, StoredTensor]:
    file_bytes = shards.open(path)

    def read(offset: int, n_bytes: int) -> bytes:
        room = bytearray(n_bytes)
        shards.read_into(path, offset, memoryview(room))
        return bytes(room)

    try:
        return read_header(path, read, file_bytes)
    except (OSError, EOFError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


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
