"""Lay out a new GGUF file: header bytes and the place of each tensor, without writing any.

The gguf package's own writer wants a file to write to, guesses the type of an array from its
elements, drops empty strings, and does not know Q2_0; so the header is packed here, and tests
compare it with that writer's, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from quantize.gguf.blocks import (
    ARRAY_ID,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    SCALARS,
    TYPES,
    U32,
    U64,
    VALUE_IDS,
    VERSION,
    GGUFTensor,
    pad_bytes,
)

MetadataEntry = tuple[str, Any, str]
"""Key, value, type: u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64, or "arr:" before one."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    """Numpy order."""
    type_id: int


@dataclass(frozen=True)
class FilePlan:
    """A GGUF file of which only the tensor data is left to write."""

    header: bytes
    """All bytes before `data_offset`, padding included."""
    data_offset: int
    tensors: tuple[GGUFTensor, ...]
    """Where each tensor goes; what lies between them is zero."""
    file_bytes: int
    """Size of the finished file, the last tensor's padding included."""


def plan_file(metadata: Sequence[MetadataEntry], tensors: Sequence[TensorSpec]) -> FilePlan:
    """Lay out a GGUF file: header bytes, and the place of each tensor.

    Args:
        metadata: Entries in file order.
        tensors: Tensors in file order.

    Returns:
        The plan; write `header` at 0 and each tensor's bytes at its offset, in any order.

    Raises:
        ValueError: A key or name occurs twice, a value is not of its type, a name is too long,
            or a type's block does not divide a row.
    """
    keys = [key for key, _, _ in metadata]
    names = [spec.name for spec in tensors]
    for kind, given in (("key", keys), ("tensor", names)):
        if len(set(given)) != len(given):
            raise ValueError(f"{kind} {max(given, key=given.count)} is given twice")
        if "" in given:
            raise ValueError(f"a {kind} has no name")
    if "general.alignment" in keys:
        raise ValueError("general.alignment is not to be given: it is always 32")
    infos, data_bytes = _pack_tensor_infos(tensors)
    header = b"".join(
        [
            MAGIC + U32.pack(VERSION) + U64.pack(len(tensors)) + U64.pack(len(metadata)),
            *(_pack_text(key) + pack_value(key, value, kind) for key, value, kind in metadata),
            *(info for _, info in infos),
        ]
    )
    data_offset = pad_bytes(len(header), DEFAULT_ALIGNMENT)
    placed = tuple(
        GGUFTensor(t.name, t.shape, t.type_id, data_offset + t.offset, t.n_bytes) for t, _ in infos
    )
    return FilePlan(header.ljust(data_offset, b"\0"), data_offset, placed, data_offset + data_bytes)


def _pack_tensor_infos(specs: Sequence[TensorSpec]) -> tuple[list[tuple[GGUFTensor, bytes]], int]:
    """Pack each tensor's info; offsets count from the start of the data. Also the data's bytes."""
    packed: list[tuple[GGUFTensor, bytes]] = []
    offset = 0
    for spec in specs:
        if len(spec.name.encode()) > MAX_NAME_BYTES or len(spec.shape) > MAX_DIMS:
            raise ValueError(f"{spec.name}: names have 63 bytes at most, tensors 4 axes")
        if any(dim <= 0 for dim in spec.shape):
            raise ValueError(f"{spec.name}: impossible shape {spec.shape}")
        width = spec.shape[-1] if spec.shape else 1
        n_bytes = prod(spec.shape[:-1]) * TYPES[spec.type_id].row_bytes(width)
        dims = b"".join(U64.pack(dim) for dim in reversed(spec.shape))
        info = U32.pack(len(spec.shape)) + dims + U32.pack(spec.type_id) + U64.pack(offset)
        tensor = GGUFTensor(spec.name, spec.shape, spec.type_id, offset, n_bytes)
        packed.append((tensor, _pack_text(spec.name) + info))
        offset = pad_bytes(offset + n_bytes, DEFAULT_ALIGNMENT)
    return packed, offset


def _pack_text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return U64.pack(len(encoded)) + encoded


def pack_value(key: str, value: Any, kind: str) -> bytes:
    """Pack a metadata value as it stands after its key: the number of its type, then the value.

    Args:
        key: For messages.
        value: A scalar, a text or a sequence of either.
        kind: As in `MetadataEntry`.

    Raises:
        ValueError: The value is not of that type, or there is no such type.
    """
    element = kind.removeprefix("arr:")
    if element not in VALUE_IDS:
        raise ValueError(f"{key}: there is no value type {kind!r}")
    number = U32.pack(VALUE_IDS[element])
    try:
        if element == kind:
            return number + _pack_elements([value], element)
        count = U64.pack(len(value))
        return U32.pack(ARRAY_ID) + number + count + _pack_elements(value, element)
    except (struct.error, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"{key}: not a value of type {kind}: {error}") from error


def _pack_elements(values: Sequence[Any], element: str) -> bytes:
    if isinstance(values, str):
        raise TypeError("a string where an array belongs")
    if element == "str":
        return b"".join(map(_pack_text, values))
    if element == "bool" and not all(type(value) is bool for value in values):
        raise TypeError("not a bool")
    return struct.pack(f"<{len(values)}{SCALARS[element].format[-1]}", *values)
