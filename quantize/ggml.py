"""The fence around libggml-base: find it, encode rows, decode rows. No other file here calls C.

The library is the one that llama-cpp-python installs, so that what is encoded is what is run.
All calls release the GIL: encode from as many threads as there are cores.

Source: ggml/include/ggml.h and ggml/src/ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.errors import NativeError
from quantize.gguf import TYPES, BlockType

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

ENCODABLE: tuple[str, ...] = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q5_k", "q4_1", "q4_0", "q4_k",
    "iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs",
    "iq2_xxs", "q2_0", "tq2_0", "tq1_0", "iq1_m", "iq1_s", "q1_0",
)  # fmt: skip
"""Types that `ggml_quantize_chunk` encodes, finest first."""

_LIBRARY_NAMES = {
    "linux": "libggml-base.so",
    "darwin": "libggml-base.dylib",
    "win32": "ggml-base.dll",
}


def type_named(name: str) -> BlockType:
    """Look up an encodable type.

    Args:
        name: As ggml spells it, any case.

    Raises:
        ValueError: No such type, or ggml cannot encode it.
    """
    wanted = name.lower()
    for block_type in TYPES.values():
        if block_type.name == wanted and wanted in ENCODABLE:
            return block_type
    raise ValueError(f"{name!r} is not a type ggml can encode; there are {', '.join(ENCODABLE)}")


def library_path() -> Path:
    """Find libggml-base beside the installed llama_cpp, without importing it.

    Raises:
        NativeError: llama-cpp-python is not installed, or lacks the library.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError(
            "llama-cpp-python is not installed, and libggml-base comes with it",
            "Run: pip install llama-cpp-python",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    path = folder / _LIBRARY_NAMES.get(sys.platform, "libggml-base.so")
    if not path.is_file():
        raise NativeError(f"{path}: not found", "Reinstall llama-cpp-python.")
    return path


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load libggml-base once and declare the calls that are used.

    Raises:
        NativeError: The library is missing, cannot be loaded, or lacks a symbol.
    """
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"{path}: cannot be loaded: {error}") from error
    try:
        _declare_calls(library)
    except AttributeError as error:
        raise NativeError(f"{path}: {error}", "Install llama-cpp-python 0.3.36.") from error
    return library


class _TypeTraits(ctypes.Structure):
    # struct ggml_type_traits { const char * type_name; int64_t blck_size;
    #   int64_t blck_size_interleave; size_t type_size; bool is_quantized;
    #   ggml_to_float_t to_float; ggml_from_float_t from_float_ref; };
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        # void (*)(const void * x, float * y, int64_t k)
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def _declare_calls(library: ctypes.CDLL) -> None:
    pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    # size_t ggml_quantize_chunk(enum ggml_type type, const float * src, void * dst,
    #   int64_t start, int64_t nrows, int64_t n_per_row, const float * imatrix);
    library.ggml_quantize_chunk.argtypes = (i32, pointer, pointer, i64, i64, i64, pointer)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    # void ggml_quantize_init(enum ggml_type type);
    library.ggml_quantize_init.argtypes = (i32,)
    library.ggml_quantize_init.restype = None
    # bool ggml_quantize_requires_imatrix(enum ggml_type type);
    library.ggml_quantize_requires_imatrix.argtypes = (i32,)
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    # void ggml_bf16_to_fp32_row(const ggml_bf16_t * x, float * y, int64_t n);
    # void ggml_fp16_to_fp32_row(const ggml_fp16_t * x, float * y, int64_t n);
    for call in (library.ggml_bf16_to_fp32_row, library.ggml_fp16_to_fp32_row):
        call.argtypes = (pointer, pointer, i64)
        call.restype = None
    # const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type type);
    library.ggml_get_type_traits.argtypes = (i32,)
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)


def requires_importance(block_type: BlockType) -> bool:
    """Say whether ggml refuses to encode the type without an importance vector."""
    return bool(load_library().ggml_quantize_requires_imatrix(block_type.id))


def prepare_type(block_type: BlockType) -> None:
    """Build the type's lookup tables now, so that threads find them ready."""
    load_library().ggml_quantize_init(block_type.id)


def widen(raw: U8Array, dtype: str, out: F32Array) -> None:
    """Turn stored weights into float32, exactly.

    Args:
        raw: Bytes of the weights, contiguous.
        dtype: "BF16", "F16" or "F32".
        out: Receives the weights; contiguous, as many as `raw` holds.
    """
    size = 4 if dtype == "F32" else 2
    _check_contiguous(raw, out)
    if raw.nbytes != out.size * size:
        raise ValueError(f"{raw.nbytes} bytes of {dtype} are not {out.size} weights")
    if dtype == "F32":
        out.reshape(-1)[:] = raw.reshape(-1).view(np.float32)
        return
    library = load_library()
    call = {"BF16": library.ggml_bf16_to_fp32_row, "F16": library.ggml_fp16_to_fp32_row}[dtype]
    call(raw.ctypes.data, out.ctypes.data, out.size)


def encode_rows(
    weights: F32Array, block_type: BlockType, out: U8Array, importance: F32Array | None = None
) -> None:
    """Encode rows of weights with ggml's own encoder.

    Args:
        weights: float32 (n_rows, width), contiguous.
        block_type: The type to encode to; its block divides `width`.
        out: uint8, exactly the bytes of the encoded rows, contiguous.
        importance: float32 (width,), weight of each column's squared error; None is uniform.

    Raises:
        ValueError: The buffers do not match; checked here because ggml would abort.
    """
    n_rows, width = weights.shape
    row_bytes = block_type.row_bytes(width)
    _check_contiguous(weights, out)
    if out.nbytes != n_rows * row_bytes:
        raise ValueError(f"{out.nbytes} bytes of room for {n_rows} rows of {row_bytes}")
    if importance is not None and (importance.shape != (width,) or importance.dtype != np.float32):
        raise ValueError(f"importance is {importance.dtype} {importance.shape}, not ({width},)")
    if importance is None and requires_importance(block_type):
        importance = np.ones(width, dtype=np.float32)
    load_library().ggml_quantize_chunk(
        block_type.id,
        weights.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        width,
        importance.ctypes.data if importance is not None else None,
    )


def decode_rows(encoded: U8Array, block_type: BlockType, width: int) -> F32Array:
    """Decode rows as ggml's reference decoder does.

    Args:
        encoded: uint8, whole rows, contiguous.
        block_type: Their type.
        width: Weights a row.

    Returns:
        float32 (n_rows, width).
    """
    n_rows = encoded.nbytes // block_type.row_bytes(width)
    decoded = np.empty((n_rows, width), dtype=np.float32)
    if block_type.name == "f32":
        decoded.reshape(-1)[:] = encoded.reshape(-1).view(np.float32)
        return decoded
    _check_contiguous(encoded, decoded)
    traits = load_library().ggml_get_type_traits(block_type.id).contents
    traits.to_float(encoded.ctypes.data, decoded.ctypes.data, decoded.size)
    return decoded


def _check_contiguous(*arrays: npt.NDArray[np.generic]) -> None:
    for array in arrays:
        if not array.flags.c_contiguous:
            raise ValueError("arrays that cross into C must be contiguous")
