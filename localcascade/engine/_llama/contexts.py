"""Contexts: many sequences over one memory, and the state of each.

A hybrid model's memory has two parts: attention, which keeps something for every position and can
forget from any one on, and a recurrent state, which knows the last position only.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import ContextHandle, ModelHandle
from localcascade.engine._llama.taps import Tap
from localcascade.errors import NativeError

CACHE_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
"""Name -> number of ggml of the types that a KV cache may have."""

_FLASH_ATTENTION = {
    None: lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
_WHOLE, _RECURRENT_ONLY = 0, 1  # llama_state_seq_flags


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How to make a context."""

    n_ctx: int
    """Length in tokens, which the sequences share; llama.cpp rounds it up."""
    n_batch: int
    """Most tokens of one decode call, all computed at once."""
    n_threads: int
    """CPU threads, for prompts and generation alike."""
    n_sequences: int = 1
    cache_type: str = "f16"
    """Of CACHE_TYPES."""
    flash_attention: bool | None = None
    """None uses it where the device can."""
    n_outputs: int = 0
    """Most tokens of one decode call whose logits are computed, at least one a sequence; 0 is
    all. It bounds a buffer of n_outputs x n_vocab floats."""


def create_context(
    model: ModelHandle, options: ContextOptions, tap: Tap | None = None
) -> ContextHandle:
    """Create a context.

    Args:
        model: The model.
        options: Its lengths and types.
        tap: Gets what is computed; must live as long as the context.

    Returns:
        Its handle.

    Raises:
        NativeError: It could not be created, most often for want of memory.
    """
    params = lib.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = params.n_ubatch = options.n_batch
    params.n_threads = params.n_threads_batch = options.n_threads
    params.n_seq_max = options.n_sequences
    params.n_outputs_max = options.n_outputs
    params.kv_unified = True  # an idle sequence then takes nothing but its recurrent state
    params.type_k = params.type_v = CACHE_TYPES[options.cache_type]
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    if tap is not None:
        params.cb_eval = tap.callback
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise NativeError(
            "llama_init_from_model", 0, "Most often memory: start with a smaller --ctx."
        )
    return ContextHandle(context)


def get_n_ctx(context: ContextHandle) -> int:
    """Get the length of a context in tokens, as llama.cpp rounded it."""
    return int(lib.llama_n_ctx(context))


def get_n_batch(context: ContextHandle) -> int:
    """Get the most tokens of one decode call: no more than the context was asked to hold."""
    return int(lib.llama_n_batch(context))


# ---- memory ----------------------------------------------------------------------------------


def clear_sequence(context: ContextHandle, sequence: int) -> None:
    """Forget every token of a sequence; what others share with it stays theirs."""
    lib.llama_memory_seq_rm(lib.llama_get_memory(context), sequence, -1, -1)


def clear_memory(context: ContextHandle) -> None:
    """Forget every token of every sequence; the buffers are left as they are."""
    lib.llama_memory_clear(lib.llama_get_memory(context), False)


def remove_tail(context: ContextHandle, sequence: int, position: int) -> bool:
    """Forget a sequence's tokens from a position on.

    Args:
        context: The context.
        sequence: The sequence.
        position: First position to forget.

    Returns:
        False if this kind of memory cannot rewind; nothing was changed then.
    """
    memory = lib.llama_get_memory(context)
    return bool(lib.llama_memory_seq_rm(memory, sequence, position, -1))


def copy_sequence(context: ContextHandle, source: int, target: int, n_tokens: int) -> None:
    """Let an empty sequence share the first tokens of another one.

    Nothing is copied but who owns what. A recurrent state comes as it is at the source's end,
    whatever n_tokens is: unless that is the end, write_recurrent must follow.

    Args:
        context: The context.
        source: The sequence to share.
        target: The empty sequence.
        n_tokens: How many tokens, at least one.
    """
    lib.llama_memory_seq_cp(lib.llama_get_memory(context), source, target, 0, n_tokens)


# ---- states ----------------------------------------------------------------------------------


def read_recurrent(context: ContextHandle, sequence: int) -> bytes:
    """Read the recurrent state of a sequence.

    Returns:
        The state, good for this model and this build.

    Raises:
        NativeError: The call failed.
    """
    return _read_state(context, sequence, _RECURRENT_ONLY)


def write_recurrent(context: ContextHandle, sequence: int, state: bytes) -> None:
    """Put back what read_recurrent got; the attention part is to be cut to it afterwards.

    Raises:
        NativeError: The state is not one of this model, or there is no room.
    """
    _write_state(context, sequence, state, _RECURRENT_ONLY)


def read_state(context: ContextHandle, sequence: int) -> bytes:
    """Read the whole state of a sequence, attention and recurrent.

    Returns:
        The state, good for this model, this build and this type of KV cache.

    Raises:
        NativeError: The call failed.
    """
    return _read_state(context, sequence, _WHOLE)


def measure_state(context: ContextHandle, sequence: int) -> int:
    """Measure what read_state would read, in bytes."""
    return int(lib.llama_state_seq_get_size_ext(context, sequence, _WHOLE))


def write_state(context: ContextHandle, sequence: int, state: bytes) -> None:
    """Put back what read_state got, into an empty sequence.

    Raises:
        NativeError: The state is not one of this model, or there is no room.
    """
    _write_state(context, sequence, state, _WHOLE)


def _read_state(context: ContextHandle, sequence: int, flags: int) -> bytes:
    size = lib.llama_state_seq_get_size_ext(context, sequence, flags)
    data = bytearray(size)
    view = (ctypes.c_uint8 * size).from_buffer(data)
    written = lib.llama_state_seq_get_data_ext(context, view, size, sequence, flags)
    if written != size:
        raise NativeError("llama_state_seq_get_data_ext", written)
    return bytes(data)


def _write_state(context: ContextHandle, sequence: int, state: bytes, flags: int) -> None:
    view = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
    taken = lib.llama_state_seq_set_data_ext(context, view, len(state), sequence, flags)
    if taken != len(state):
        raise NativeError("llama_state_seq_set_data_ext", taken)


def synchronize(context: ContextHandle) -> None:
    """Wait until what was decoded is computed."""
    lib.llama_synchronize(context)


# ---- logits ----------------------------------------------------------------------------------


def read_logits(context: ContextHandle, n_rows: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Look at the logits of the last decode call, where llama.cpp keeps them.

    Args:
        context: The context.
        n_rows: How many tokens asked for logits.
        n_vocab: Size of the vocabulary.

    Returns:
        float32 [n_rows, n_vocab], overwritten by the next decode call.
    """
    return np.ctypeslib.as_array(lib.llama_get_logits(context), (n_rows, n_vocab))


def read_logits_row(context: ContextHandle, row: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """Look at the logits after one token of the last decode call.

    Args:
        context: The context.
        row: The token's place in the batch; it asked for logits.
        n_vocab: Size of the vocabulary.

    Returns:
        float32 [n_vocab], overwritten by the next decode call.
    """
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, row), (n_vocab,))
