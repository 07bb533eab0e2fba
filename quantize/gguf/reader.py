"""Open a GGUF file and check its header.

Nothing a file says about a length is used before it is compared with the bytes that are there.

Source: docs/gguf.md of the ggml project; ggml/src/gguf.cpp of llama.cpp.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quantize.errors import GGUFError
from quantize.gguf.blocks import (
    ARRAY_ID,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME_BYTES,
    READABLE_VERSIONS,
    SCALARS,
    TYPES,
    U64,
    VALUE_NAMES,
    GGUFTensor,
    pad_bytes,
)
from quantize.gguf.file import GGUFArray, GGUFFile, decode_text

_MAX_STRINGS = 1 << 24
"""In one array; each is walked, and the largest vocabularies have a million tokens."""


def open_gguf(path: Path) -> GGUFFile:
    """Map a GGUF file and check its whole header.

    Args:
        path: A little-endian file of version 2 or 3.

    Returns:
        The open file; close it, or use it in a `with` statement.

    Raises:
        GGUFError: Not a GGUF file, of another version or byte order, truncated, or it
            contradicts itself; names the byte.
    """
    data = _map_file(path)
    try:
        return _read_header(path, data)
    except BaseException:
        data.close()
        raise


def _map_file(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise GGUFError(path, "not a file", hint="Name the .gguf file itself.")
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise GGUFError(
                    path, "not a GGUF file: it does not start with GGUF", offset=0,
                    hint="Convert a checkpoint with localcascade quantize, or name another file.",
                )  # fmt: skip
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise GGUFError(path, f"cannot be opened: {error.strerror or error}") from error


class _Cursor:
    """A position in the header; what it takes is there, or GGUFError says where it is not."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = len(data)
        self.position = len(MAGIC)

    def fail(self, problem: str, offset: int | None = None, hint: str = "") -> GGUFError:
        return GGUFError(
            self.path,
            problem,
            offset=self.position if offset is None else offset,
            hint=hint or "The file is damaged: download or convert it again.",
        )

    def skip(self, n_bytes: int, what: str) -> int:
        start = self.position
        if n_bytes > self.end - start:
            raise self.fail(
                f"{what} needs {n_bytes} bytes, but {self.end - start} are left in the file"
            )
        self.position = start + n_bytes
        return start

    def take(self, value_type: str, what: str) -> Any:
        scalar = SCALARS[value_type]
        return scalar.unpack_from(self.data, self.skip(scalar.size, what))[0]

    def take_count(self, what: str, least_bytes: int) -> int:
        """Read a count of things of which each takes at least so many bytes."""
        count: int = self.take("u64", what)
        if count * least_bytes > self.end - self.position:
            raise self.fail(f"{what} is {count}, more than fit the file", self.position - 8)
        return count

    def take_text(self, what: str) -> str:
        n_bytes = self.take_count(f"length of {what}", 1)
        start = self.skip(n_bytes, what)
        return decode_text(self.path, self.data, start, n_bytes, what)

    def take_name(self, what: str) -> str:
        start = self.position
        name = self.take_text(what)
        # Names are shown in terminals: control characters in them are an attack or damage.
        if not name or not name.isprintable():
            raise self.fail(f"{what} is empty or unprintable: {name[:80]!r}", start)
        return name

    def skip_strings(self, n: int, what: str) -> None:
        data, position, end = self.data, self.position, self.end
        unpack = U64.unpack_from
        try:
            for _ in range(n):
                start = position
                position += 8 + unpack(data, start)[0]
                if position > end:
                    raise self.fail(f"a string of {what} runs past the end of the file", start)
        except struct.error as error:
            raise self.fail(f"{what} runs past the end of the file", position) from error
        self.position = position


def _read_header(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(path, data)
    version = _read_version(cursor)
    # The shortest tensor info is 24 bytes, the shortest metadata entry 14.
    n_tensors = cursor.take_count("number of tensors", 24)
    n_entries = cursor.take_count("number of metadata entries", 14)
    metadata, spans = _read_metadata(cursor, n_entries)
    alignment = _read_alignment(cursor, metadata)
    infos = _read_tensor_infos(cursor, n_tensors)
    data_offset = pad_bytes(cursor.position, alignment)
    tensors = _place_tensors(cursor, infos, data_offset, alignment)
    return GGUFFile(
        path,
        version,
        MappingProxyType(metadata),
        MappingProxyType(spans),
        tensors,
        alignment,
        data_offset,
        len(data),
        data,
    )


def _read_version(cursor: _Cursor) -> int:
    version: int = cursor.take("u32", "version")
    if version in READABLE_VERSIONS:
        return version
    if version and version & 0xFFFF == 0:
        raise cursor.fail("a big-endian GGUF file", 4, "Convert the checkpoint again.")
    if version < 2:
        raise cursor.fail(f"GGUF version {version} is obsolete", 4, "Convert the model again.")
    raise cursor.fail(f"GGUF version {version} is newer than 3", 4, "Update LocalCascade.")


def _read_metadata(
    cursor: _Cursor, n_entries: int
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Read the entries: key to value, and key to the value's first byte and the one after it."""
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for i in range(n_entries):
        start = cursor.position
        key = cursor.take_name(f"metadata key {i}")
        if key in metadata:
            raise cursor.fail(f"metadata key {key} occurs twice", start)
        first = cursor.position
        metadata[key] = _read_value(cursor, key)
        spans[key] = first, cursor.position
    return metadata, spans


def _read_value(cursor: _Cursor, key: str) -> Any:
    number: int = cursor.take("u32", f"type of {key}")
    if number == ARRAY_ID:
        return _read_array(cursor, key)
    value_type = VALUE_NAMES.get(number)
    if value_type is None:
        raise cursor.fail(f"{key} has unknown value type {number}", cursor.position - 4)
    return cursor.take_text(key) if value_type == "str" else cursor.take(value_type, key)


def _read_array(cursor: _Cursor, key: str) -> GGUFArray:
    number: int = cursor.take("u32", f"element type of {key}")
    value_type = VALUE_NAMES.get(number)
    if value_type is None:
        kind = "an array of arrays" if number == ARRAY_ID else f"of unknown type {number}"
        raise cursor.fail(f"{key} is {kind}, which llama.cpp cannot load", cursor.position - 4)
    element_bytes = 8 if value_type == "str" else SCALARS[value_type].size
    n = cursor.take_count(f"length of {key}", element_bytes)
    start = cursor.position
    if value_type == "str":
        if n > _MAX_STRINGS:
            raise cursor.fail(f"length of {key} is {n}, more than {_MAX_STRINGS}", start - 8)
        cursor.skip_strings(n, key)
    else:
        cursor.skip(n * element_bytes, key)
    return GGUFArray(cursor.path, cursor.data, value_type, start, n)


def _read_alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    type_id: int
    n_bytes: int
    relative_offset: int
    position: int
    """Byte where the info starts, for messages."""


def _read_tensor_infos(cursor: _Cursor, n_tensors: int) -> dict[str, _TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for i in range(n_tensors):
        start = cursor.position
        name = cursor.take_name(f"name of tensor {i}")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise cursor.fail(f"name of tensor {i} exceeds {MAX_NAME_BYTES} bytes", start)
        if name in infos:
            raise cursor.fail(f"tensor {name} occurs twice", start)
        shape = _read_shape(cursor, name)
        type_id: int = cursor.take("u32", f"type of {name}")
        n_bytes = _measure_tensor(cursor, name, shape, type_id)
        infos[name] = _TensorInfo(
            name, shape, type_id, n_bytes, cursor.take("u64", f"offset of {name}"), start
        )
    return infos


def _read_shape(cursor: _Cursor, name: str) -> tuple[int, ...]:
    n_dims: int = cursor.take("u32", f"number of axes of {name}")
    if n_dims > MAX_DIMS:
        raise cursor.fail(f"tensor {name} has {n_dims} axes, more than 4", cursor.position - 4)
    dims = [cursor.take("u64", f"shape of {name}") for _ in range(n_dims)]
    if 0 in dims or prod(dims) >= 1 << 63:
        raise cursor.fail(f"tensor {name} has the impossible shape {dims[::-1]}")
    return tuple(reversed(dims))


def _measure_tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int) -> int:
    block_type = TYPES.get(type_id)
    if block_type is None:
        raise cursor.fail(
            f"tensor {name} has unknown ggml type {type_id}", cursor.position - 4,
            "It may be written by a newer llama.cpp: update LocalCascade.",
        )  # fmt: skip
    width = shape[-1] if shape else 1
    if width % block_type.block_weights:
        raise cursor.fail(
            f"tensor {name} has rows of {width}, not whole {block_type.name} blocks of "
            f"{block_type.block_weights}"
        )
    return prod(shape) // block_type.block_weights * block_type.block_bytes


def _place_tensors(
    cursor: _Cursor, infos: Mapping[str, _TensorInfo], data_offset: int, alignment: int
) -> dict[str, GGUFTensor]:
    used = 0
    for info in sorted(infos.values(), key=lambda info: info.relative_offset):
        begin, end = info.relative_offset, info.relative_offset + info.n_bytes
        if begin % alignment:
            raise cursor.fail(
                f"tensor {info.name} at {begin} is not aligned to {alignment}", info.position
            )
        if begin < used:
            raise cursor.fail(f"tensor {info.name} overlaps the one before it", info.position)
        if data_offset + end > cursor.end:
            raise cursor.fail(
                f"tensor {info.name} ends at byte {data_offset + end}, but the file at "
                f"{cursor.end}: it is truncated",
                info.position,
                "Finish the download, or convert again.",
            )
        used = end
    return {
        info.name: GGUFTensor(
            info.name, info.shape, info.type_id, data_offset + info.relative_offset, info.n_bytes
        )
        for info in infos.values()
    }
