"""Models: loaded, and asked what their files say."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import ModelHandle, VocabHandle
from localcascade.engine._llama.library import get_cpu_buffer, make_device_list
from localcascade.errors import NativeError


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override { const char * pattern; buffer_type_t buft; }."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer", ctypes.c_void_p))


def load_model(
    path: Path,
    *,
    n_gpu_layers: int,
    use_mmap: bool,
    use_mlock: bool,
    use_extra_buffers: bool,
    cpu_tensors: Sequence[str] = (),
    gpus: Sequence[str] | None = None,
    gpu_shares: Sequence[float] = (),
    on_progress: Callable[[float], bool],
) -> ModelHandle:
    """Load a GGUF.

    Args:
        path: The file.
        n_gpu_layers: Layers to put on the GPU; -1 is all.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights from being swapped out.
        use_extra_buffers: Lay weights out anew for this CPU, as list_extra_buffers tells.
        cpu_tensors: Patterns (std::regex) of the names of tensors to keep in main memory,
            wherever their layer is.
        gpus: Names of the GPUs to use, as list_devices tells them; None leaves it to llama.cpp.
        gpu_shares: Share of the layers for each of these, in order; none leaves it to llama.cpp.
        on_progress: Called with the share done, 0 to 1; False stops the load.

    Returns:
        Its handle.

    Raises:
        NativeError: llama.cpp refused the file; why is in its log.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    # The numbers of the modes are bits: LLAMA_LOAD_MODE_MMAP_MLOCK is both.
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP * use_mmap | lib.LLAMA_LOAD_MODE_MLOCK * use_mlock
    params.use_extra_bufts = use_extra_buffers
    overrides = _make_overrides(cpu_tensors)
    params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    devices = make_device_list(gpus or ())
    params.devices = None if gpus is None else ctypes.cast(devices, ctypes.c_void_p)
    params.tensor_split = _make_split(gpu_shares)
    params.progress_callback = lib.llama_progress_callback(lambda share, _: on_progress(share))
    model = lib.llama_model_load_from_file(bytes(path), params)
    if not model:
        raise NativeError("llama_model_load_from_file", 0)
    return ModelHandle(model)


def _make_overrides(patterns: Sequence[str]) -> ctypes.Array[_Override]:
    """Make the array that load_from_file reads, which ends with NULL."""
    buffer = get_cpu_buffer()
    entries = [_Override(pattern.encode(), buffer) for pattern in patterns]
    return (_Override * (len(entries) + 1))(*entries)


def _make_split(shares: Sequence[float]) -> ctypes.Array[ctypes.c_float] | None:
    """Make an array as long as llama.cpp reads it."""
    n_devices = lib.llama_max_devices()
    return (ctypes.c_float * n_devices)(*shares[:n_devices]) if shares else None


def get_vocab(model: ModelHandle) -> VocabHandle:
    """Get a model's vocabulary, which lives as long as the model."""
    return VocabHandle(lib.llama_model_get_vocab(model))


def get_n_ctx_train(model: ModelHandle) -> int:
    """Get the context length that the model was trained for, in tokens."""
    return int(lib.llama_model_n_ctx_train(model))


def has_recurrent_state(model: ModelHandle) -> bool:
    """Tell whether a sequence of this model has a state that cannot be rewound."""
    return bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))


def read_metadata(model: ModelHandle) -> dict[str, str]:
    """Read the model's scalar metadata as text.

    Returns:
        key -> value, as llama.cpp prints it. Arrays are not for reading here.
    """
    count = lib.llama_model_meta_count(model)
    keys = (_read_string(lib.llama_model_meta_key_by_index, model, i) for i in range(count))
    values = (_read_string(lib.llama_model_meta_val_str_by_index, model, i) for i in range(count))
    return dict(zip(keys, values, strict=True))


def _read_string(call: Any, *arguments: object) -> str:
    """Run a call that fills (char * buf, size_t size) and returns the whole length, or -1."""
    length = call(*arguments, None, 0)
    if length < 0:
        raise NativeError(call.__name__, length)
    buffer = ctypes.create_string_buffer(length + 1)
    call(*arguments, buffer, length + 1)
    return buffer.value.decode("utf-8", "replace")
