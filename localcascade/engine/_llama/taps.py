"""Inputs of matrices, seen while a context computes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import POINTER, TEXT, bind


class _Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as it is read."""


_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", POINTER),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", POINTER),
    ("view_offs", ctypes.c_size_t),
    ("data", POINTER),
    ("name", ctypes.c_char * 64),
)

_name_operation = bind("const char * ggml_op_desc(const struct ggml_tensor *)", TEXT, POINTER)
_count_bytes = bind(
    "size_t ggml_nbytes(const struct ggml_tensor *)", ctypes.c_size_t, ctypes.POINTER(_Tensor)
)
_is_host = bind("bool ggml_backend_buffer_is_host(ggml_backend_buffer_t)", ctypes.c_bool, POINTER)
_copy_data = bind(
    "void ggml_backend_tensor_get(const struct ggml_tensor *, void * data, size_t offset, size_t)",
    None, ctypes.POINTER(_Tensor), POINTER, ctypes.c_size_t, ctypes.c_size_t,
)  # fmt: skip
_replace_data = bind(
    "void ggml_backend_tensor_set(struct ggml_tensor *, const void * data, size_t offset, size_t)",
    None, ctypes.POINTER(_Tensor), POINTER, ctypes.c_size_t, ctypes.c_size_t,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """A weight matrix, or a stack of experts, and what it has just been multiplied with."""

    matrix: str
    n_experts: int
    """1 for a plain matrix."""
    inputs: npt.NDArray[np.float32]
    """[n_tokens, n_slots, width]; one slot if every expert of a token reads the same. Memory of
    llama.cpp's, good until the call that got it returns."""
    experts: npt.NDArray[np.int32] | None
    """Chosen experts [n_tokens, n_used]; None for a plain matrix."""
    read_output: Callable[[], npt.NDArray[np.float32]]
    """Looks at the result, [..., n_tokens, n_rows], or [..., n_used, n_rows] of experts."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The weights with which the outputs of a layer's experts have just been added."""

    layer: int
    weights: npt.NDArray[np.float32]
    """[n_tokens, n_used], in the order of Product.experts; memory of llama.cpp's."""


class Tap:
    """Shows what a context computes, while it does, to whoever collects it.

    Args:
        wants: Says of a matrix's name whether its products are wanted.
        take: Gets them, and the mixtures, in the order of computation. What it returns, if
            anything, takes the place of a product's result; float32 of its shape.
    """

    def __init__(
        self,
        wants: Callable[[str], bool],
        take: Callable[[Product | Mixture], npt.NDArray[np.float32] | None],
    ) -> None:
        self._wants, self._take = wants, take
        self.callback = lib.ggml_backend_sched_eval_callback(self._receive)
        self.failure: Exception | None = None
        """What `take` raised: no exception crosses C."""

    def _receive(self, address: int, ask: bool, _user_data: object) -> bool:
        node = _Tensor.from_address(address)
        operation = _name_operation(address)
        if ask:
            return self._asks_for(node, operation)
        try:
            changed = self._take(
                _read_mixture(node) if operation == b"MUL" else _read_product(node)
            )
            if changed is not None:
                _write(node, changed)
        except Exception as exc:
            self.failure = exc
        return self.failure is None

    def _asks_for(self, node: _Tensor, operation: bytes) -> bool:
        if operation == b"MUL":
            return bool(node.name.startswith(_MIXTURE))
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return False
        matrix, inputs = node.src[0].contents, node.src[1].contents
        is_plain = operation == b"MUL_MAT" and matrix.ne[2] > 1
        return inputs.type == _F32 and not is_plain and self._wants(_read_name(matrix))


_F32 = 0  # GGML_TYPE_F32
_MIXTURE = b"ffn_moe_weighted-"


def _read_product(node: _Tensor) -> Product:
    matrix, inputs = node.src[0].contents, _view(node.src[1], np.float32)
    name = _read_name(matrix)

    def read_output() -> npt.NDArray[np.float32]:
        return _view(ctypes.pointer(node), np.float32)

    if not node.src[2]:
        return Product(name, 1, inputs.reshape(-1, 1, inputs.shape[-1]), None, read_output)
    experts = _view(node.src[2], np.int32)[0, 0]
    return Product(name, matrix.ne[2], inputs[0], experts, read_output)


def _write(tensor: _Tensor, values: npt.NDArray[np.float32]) -> None:
    """Give a computed tensor, contiguous as every product is, other values."""
    data = np.ascontiguousarray(values, np.float32)
    if data.nbytes != _count_bytes(tensor):
        raise ValueError(f"{data.nbytes} bytes for a tensor of {_count_bytes(tensor)}")
    _replace_data(tensor, data.ctypes.data, 0, data.nbytes)


def _read_mixture(node: _Tensor) -> Mixture:
    layer = int(node.name.removeprefix(_MIXTURE))
    return Mixture(layer, _view(node.src[1], np.float32)[0, :, :, 0])


def _read_name(matrix: _Tensor) -> str:
    """Read a name as the file has it: copies on a device are called DEVICE#NAME#NUMBER."""
    name: str = matrix.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def _view(tensor: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Look at a computed tensor, [ne3, ne2, ne1, ne0]; from a device it is copied."""
    fields, n_bytes = tensor.contents, _count_bytes(tensor)
    if _is_host(fields.buffer):
        data = (ctypes.c_char * n_bytes).from_address(fields.data)
    else:
        data = (ctypes.c_char * n_bytes)()
        _copy_data(tensor, data, 0, n_bytes)
    return np.ndarray(fields.ne[::-1], dtype, data, strides=fields.nb[::-1])
