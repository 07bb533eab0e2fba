"""Change metadata of a finished GGUF file in place, where the new values take the old ones' room.

What is only known once a file is whole, such as its measured quality, is reserved while the file
is laid out and filled in here. No byte moves, so tensors of any size are never copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.errors import GGUFError, OutputError
from quantize.gguf.blocks import ARRAY_ID, U32, VALUE_NAMES
from quantize.gguf.file import GGUFFile
from quantize.gguf.layout import pack_value
from quantize.gguf.reader import open_gguf


def patch_metadata(path: Path, values: Mapping[str, Any]) -> None:
    """Replace metadata values by others of the same type and the same number of bytes.

    All new bytes are in one write, flushed to the disk and read back. A killed run leaves the old
    values or the new ones; not even a failing power supply can reach anything but metadata between
    the first and the last key given, so reserve such keys side by side.

    Args:
        path: A complete GGUF file that nobody else writes. Digests of it that others keep, as the
            store does, are no longer true afterwards.
        values: Key -> new value; a text as long in UTF-8 as the old one, an array of as many.

    Raises:
        GGUFError: The file is damaged, or has no such key; nothing was written.
        ValueError: A value is not of its key's type, or takes other room; nothing was written.
        OutputError: It cannot be written, or did not read back as written.
    """
    if not values:
        return
    with open_gguf(path) as file:
        places = {_find_span(file, key): _pack_alike(file, key, values[key]) for key in values}
        first, end = min(span[0] for span in places), max(span[1] for span in places)
        patched = bytearray(file.read_header(first, end))
    for (start, stop), packed in places.items():
        patched[start - first : stop - first] = packed
    _write_over(path, first, bytes(patched))


def _find_span(file: GGUFFile, key: str) -> tuple[int, int]:
    if key not in file.value_spans:
        raise GGUFError(
            file.path,
            f"its metadata has no {key}, so there is no room for it",
            hint="Convert the model again with this version of LocalCascade.",
        )
    return file.value_spans[key]


def _pack_alike(file: GGUFFile, key: str, value: Any) -> bytes:
    """Pack a value in the type that the key has in the file."""
    start, end = file.value_spans[key]
    packed = pack_value(key, value, _read_kind(file.read_header(start, min(end, start + 8))))
    if len(packed) != end - start:
        raise ValueError(f"{key}: the new value takes {len(packed)} bytes, the old {end - start}")
    return packed


def _read_kind(head: bytes) -> str:
    """Name the type of a packed value by its first bytes, as `MetadataEntry` does."""
    (number,) = U32.unpack_from(head)
    if number != ARRAY_ID:
        return VALUE_NAMES[number]
    return f"arr:{VALUE_NAMES[U32.unpack_from(head, 4)[0]]}"


def _write_over(path: Path, offset: int, data: bytes) -> None:
    """Write bytes over others, bring them to the disk and read them back."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            n_written = os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
            read_back = os.pread(descriptor, len(data), offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(
            f"{path}: byte {offset}: cannot be written: {error.strerror}",
            "Make the file writable, or work on a copy.",
        ) from error
    if n_written != len(data) or read_back != data:
        raise OutputError(
            f"{path}: byte {offset}: does not read back as written",
            "The disk may be failing; convert the model again on another one.",
        )
