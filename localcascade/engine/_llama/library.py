"""The library itself: its log, its devices."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import INT, POINTER, TEXT, bind

LogSink = Callable[[int, str], None]
"""Receives one message of llama.cpp: its level (a `LEVEL_` number) and its text."""

LEVEL_DEBUG, LEVEL_INFO, LEVEL_WARNING, LEVEL_ERROR, LEVEL_CONTINUED = 1, 2, 3, 4, 5
DEVICE_KINDS = ("cpu", "gpu", "igpu", "accelerator", "meta")

_keep_alive: dict[str, Any] = {}  # callbacks that C still points to

_count_devices = bind("size_t ggml_backend_dev_count(void)", ctypes.c_size_t)
_get_device = bind("ggml_backend_dev_t ggml_backend_dev_get(size_t)", POINTER, ctypes.c_size_t)
_name_device = bind("const char * ggml_backend_dev_name(ggml_backend_dev_t)", TEXT, POINTER)
_describe_device = bind(
    "const char * ggml_backend_dev_description(ggml_backend_dev_t)", TEXT, POINTER
)
_get_device_type = bind(
    "enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t)", INT, POINTER
)
_read_memory = bind(
    "void ggml_backend_dev_memory(ggml_backend_dev_t, size_t * free, size_t * total)",
    None, POINTER, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
)  # fmt: skip
_get_registry = bind(
    "ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t)", POINTER, POINTER
)
_get_registry_call = bind(
    "void * ggml_backend_reg_get_proc_address(ggml_backend_reg_t, const char * name)",
    POINTER, POINTER, TEXT,
)  # fmt: skip
_get_cpu_buffer = bind("ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type(void)", POINTER)
_name_buffer = bind(
    "const char * ggml_backend_buft_name(ggml_backend_buffer_type_t)", TEXT, POINTER
)
# ggml_backend_buffer_type_t * (*)(ggml_backend_dev_t device), ending with NULL
_ListExtraBuffers = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)


@dataclass(frozen=True, slots=True)
class Device:
    """One device that the build can compute on."""

    name: str
    description: str
    kind: str
    """One of DEVICE_KINDS."""
    free_bytes: int
    total_bytes: int
    """0 where the device does not tell, as for free_bytes."""


def set_log(sink: LogSink) -> None:
    """Send every message of llama.cpp and ggml to `sink` from now on.

    Args:
        sink: Called in whichever thread logs; must not raise.
    """

    def receive(level: int, text: bytes | None, _user_data: object) -> None:
        sink(level, (text or b"").decode("utf-8", "replace"))

    callback = lib.llama_log_callback(receive)
    lib.llama_log_set(callback, None)
    _keep_alive["log"] = callback


def start_backend() -> None:
    """Make the backends known; to be called once, before anything else but set_log."""
    lib.llama_backend_init()


def list_devices() -> tuple[Device, ...]:
    """List the devices of this build, in ggml's order.

    Returns:
        Name, description, kind and memory of each.
    """
    return tuple(map(_describe, _list_device_handles()))


def _describe(device: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _read_memory(device, free, total)
    return Device(
        name=_name_device(device).decode("utf-8", "replace"),
        description=_describe_device(device).decode("utf-8", "replace"),
        kind=DEVICE_KINDS[_get_device_type(device)],
        free_bytes=free.value,
        total_bytes=total.value,
    )


def list_extra_buffers() -> tuple[str, ...]:
    """List the special memory layouts that this build would use for weights on this CPU.

    Returns:
        ggml's names of them, such as CPU_REPACK and AMX.
    """
    found: list[int] = []
    for device in _list_device_handles():
        address = _get_registry_call(_get_registry(device), b"ggml_backend_dev_get_extra_bufts")
        buffers = _ListExtraBuffers(address)(device) if address else ()
        found += itertools.takewhile(bool, buffers)
    return tuple(_name_buffer(buffer).decode() for buffer in found)


def get_cpu_buffer() -> int:
    """Get the handle of the type of buffers that lie in main memory."""
    return int(_get_cpu_buffer())


def make_device_list(names: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
    """Make an array of some devices' handles, which ends with NULL."""
    by_name = {_name_device(one).decode("utf-8", "replace"): one for one in _list_device_handles()}
    return (POINTER * (len(names) + 1))(*(by_name[name] for name in names))


def _list_device_handles() -> list[int]:
    return [_get_device(i) for i in range(_count_devices())]
