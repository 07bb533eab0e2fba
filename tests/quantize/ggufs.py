"""Small GGUF files for tests: one written by the gguf package, and libggml's own view of a file."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

TYPE_NUMBERS = {kind.name: kind.value for kind in gguf.GGUFValueType}


def encode_at_random(
    shape: tuple[int, ...], block_weights: int, block_bytes: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Random bytes in the place of an encoded tensor: uint8 (..., bytes per row)."""
    row_bytes = shape[-1] // block_weights * block_bytes
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape[:-1], row_bytes), np.uint8)


def write_with_gguf(
    path: Path,
    metadata: list[tuple[str, Any, gguf.GGUFValueType, gguf.GGUFValueType | None]],
    tensors: dict[str, tuple[npt.NDArray[Any], gguf.GGMLQuantizationType | None]],
) -> None:
    """Write a file with the gguf package; `metadata` follows general.architecture = "test"."""
    writer = gguf.GGUFWriter(path, "test")
    for key, value, kind, element in metadata:
        writer.add_key_value(key, value, kind, element)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True)
class NativeView:
    """What llama.cpp's own reader finds in a file."""

    keys: list[str]
    texts: dict[str, str]
    """Values of string keys."""
    alignment: int
    data_offset: int
    tensors: dict[str, tuple[int, int, int]]
    """Name to type number, absolute offset, bytes."""


class _InitParams(ctypes.Structure):
    # struct gguf_init_params { bool no_alloc; struct ggml_context ** ctx; };
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def load_libggml() -> ctypes.CDLL:
    """libggml-base with the calls of this file declared, loaded apart from the code under test."""
    from quantize.ggml import library_path

    library = ctypes.CDLL(str(library_path()))
    pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, (ctypes.c_char_p, _InitParams)),
        ("gguf_free", None, (pointer,)),
        ("gguf_get_alignment", size, (pointer,)),
        ("gguf_get_data_offset", size, (pointer,)),
        ("gguf_get_n_kv", i64, (pointer,)),
        ("gguf_get_key", ctypes.c_char_p, (pointer, i64)),
        ("gguf_get_kv_type", ctypes.c_int, (pointer, i64)),
        ("gguf_get_val_str", ctypes.c_char_p, (pointer, i64)),
        ("gguf_get_n_tensors", i64, (pointer,)),
        ("gguf_get_tensor_name", ctypes.c_char_p, (pointer, i64)),
        ("gguf_get_tensor_type", ctypes.c_int, (pointer, i64)),
        ("gguf_get_tensor_offset", size, (pointer, i64)),
        ("gguf_get_tensor_size", size, (pointer, i64)),
        ("ggml_type_name", ctypes.c_char_p, (ctypes.c_int,)),
        ("ggml_blck_size", i64, (ctypes.c_int,)),
        ("ggml_type_size", size, (ctypes.c_int,)),
        ("ggml_log_set", None, (pointer, pointer)),
    ):
        call = getattr(library, name)
        call.restype, call.argtypes = result, arguments
    return library


def read_natively(path: Path) -> NativeView | None:
    """Read a header with llama.cpp's reader; None if it refuses the file."""
    library = load_libggml()
    context = library.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    if not context:
        return None
    try:
        data_offset = library.gguf_get_data_offset(context)
        keys = [
            library.gguf_get_key(context, i).decode(errors="replace")
            for i in range(library.gguf_get_n_kv(context))
        ]
        texts = {
            key: library.gguf_get_val_str(context, i).decode(errors="replace")
            for i, key in enumerate(keys)
            if library.gguf_get_kv_type(context, i) == TYPE_NUMBERS["STRING"]
        }
        tensors = {
            library.gguf_get_tensor_name(context, i).decode(errors="replace"): (
                library.gguf_get_tensor_type(context, i),
                data_offset + library.gguf_get_tensor_offset(context, i),
                library.gguf_get_tensor_size(context, i),
            )
            for i in range(library.gguf_get_n_tensors(context))
        }
        alignment = library.gguf_get_alignment(context)
        return NativeView(keys, texts, alignment, data_offset, tensors)
    finally:
        library.gguf_free(context)
