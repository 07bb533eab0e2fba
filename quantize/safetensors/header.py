"""Parse the header of one shard and check it against the bytes that are there.

A shard is: length of the header (u64), header (JSON), data without holes.

Source: the format's description in the README of the safetensors project.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from quantize.errors import CheckpointError
from quantize.safetensors.documents import DAMAGED, MAX_JSON_BYTES, parse_object

MAX_DIMS = 8
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""What can be read."""
_OTHER_DTYPES = frozenset(
    ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F64", "C64", "F8_E5M2",
     "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2")
)  # fmt: skip
_CONVERT = "Use a checkpoint stored as BF16, F16 or F32."


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a checkpoint."""

    name: str
    dtype: str
    """BF16, F16 or F32."""
    shape: tuple[int, ...]
    path: Path
    """The shard."""
    offset: int
    """First byte, counted from the start of the shard."""
    n_bytes: int


def read_header(
    path: Path, read: Callable[[int, int], bytes], file_bytes: int
) -> dict[str, StoredTensor]:
    """Parse a shard's header and check that its tensors cover the file exactly.

    Args:
        path: The shard, for messages.
        read: Returns what the shard holds at (offset, n_bytes), all of it.
        file_bytes: Its size.

    Returns:
        Tensors by name, in the order of their data.

    Raises:
        CheckpointError: The header is damaged, or does not fit the file.
    """
    if file_bytes < 8:
        raise CheckpointError(path, f"has {file_bytes} bytes, too few for a header", hint=DAMAGED)
    (header_bytes,) = struct.unpack("<Q", read(0, 8))
    if header_bytes > min(MAX_JSON_BYTES, file_bytes - 8):
        raise CheckpointError(
            path, f"byte 0: header of {header_bytes} bytes in a file of {file_bytes}", hint=DAMAGED
        )
    header = parse_object(path, read(8, header_bytes))
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise CheckpointError(path, "key __metadata__: not an object of strings", hint=DAMAGED)
    data_offset = 8 + header_bytes
    tensors = [_read_entry(path, name, entry, data_offset) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_cover(path, tensors, data_offset, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _read_entry(path: Path, name: str, entry: object, data_offset: int) -> StoredTensor:
    def fail(problem: str, hint: str = DAMAGED) -> CheckpointError:
        return CheckpointError(path, problem, tensor=shown, hint=hint)

    # Names are shown in terminals: control characters in them are an attack or damage.
    shown = name if name.isprintable() and name else ascii(name)
    if shown != name:
        raise fail("an empty or unprintable name")
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise fail("not an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise fail("dtype is not a string")
    if dtype not in DTYPE_BYTES:
        known = dtype in _OTHER_DTYPES
        raise fail(f"{'' if known else 'unknown '}dtype {dtype!a:.40} cannot be read", _CONVERT)
    if not _are_counts(shape) or len(shape) > MAX_DIMS or 0 in shape:
        raise fail(f"shape is not a list of 0 to {MAX_DIMS} positive whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("data_offsets are not two ascending whole numbers")
    n_bytes = offsets[1] - offsets[0]
    if n_bytes != prod(shape) * DTYPE_BYTES[dtype]:
        raise fail(f"{n_bytes} bytes of data are not {dtype} {shape}")
    return StoredTensor(name, dtype, tuple(shape), path, data_offset + offsets[0], n_bytes)


def _are_counts(values: object) -> bool:
    """Whether it is a list of whole numbers that fit a file; true and 1.0 are not numbers here."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)


def _check_cover(
    path: Path, tensors: list[StoredTensor], data_offset: int, file_bytes: int
) -> None:
    """Refuse overlaps, holes, and data that ends before or after the file."""
    end = data_offset
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "follows a hole"
            raise CheckpointError(
                path, f"data at byte {tensor.offset} {kind}, which ends at {end}",
                tensor=tensor.name, hint=DAMAGED,
            )  # fmt: skip
        end += tensor.n_bytes
    if end != file_bytes:
        kind = "truncated" if file_bytes < end else "longer than its tensors"
        raise CheckpointError(
            path, f"{kind}: {file_bytes} bytes where the header needs {end}", hint=DAMAGED
        )
