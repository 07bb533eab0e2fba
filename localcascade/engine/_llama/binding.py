"""What the parts of the fence share: handles, and how a C function is bound."""

from __future__ import annotations

import ctypes
from typing import Any, NewType

from llama_cpp import llama_cpp as lib

ModelHandle = NewType("ModelHandle", int)
ContextHandle = NewType("ContextHandle", int)
VocabHandle = NewType("VocabHandle", int)
SamplerHandle = NewType("SamplerHandle", int)

POINTER, TEXT, INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int

_native: Any = lib._lib  # libllama; finds the symbols of the ggml libraries behind it too


def bind(prototype: str, result: Any, *arguments: Any) -> Any:
    """Bind a function that llama_cpp does not, given its prototype in C and in ctypes."""
    name = prototype.partition("(")[0].split()[-1].lstrip("*")
    function = getattr(_native, name)
    function.restype, function.argtypes = result, arguments
    return function
