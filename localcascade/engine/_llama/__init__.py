"""The runner's fence around llama.cpp: everything that touches ctypes is in this package.

Each wrapper allocates, calls, checks the code, raises a typed error and returns plain Python.
Handles are opaque. A worker has one model, one context and one batch, which end with it, so
only samplers are freed. Prototypes stand above the calls that llama_cpp does not bind itself.
Source: llama.h, ggml.h and ggml-backend.h of the pinned build.
"""

from __future__ import annotations

from localcascade.engine._llama.batches import NO_ROOM, Batch
from localcascade.engine._llama.binding import (
    ContextHandle,
    ModelHandle,
    SamplerHandle,
    VocabHandle,
)
from localcascade.engine._llama.contexts import (
    CACHE_TYPES,
    ContextOptions,
    clear_memory,
    clear_sequence,
    copy_sequence,
    create_context,
    get_n_batch,
    get_n_ctx,
    measure_state,
    read_logits,
    read_logits_row,
    read_recurrent,
    read_state,
    remove_tail,
    synchronize,
    write_recurrent,
    write_state,
)
from localcascade.engine._llama.library import (
    LEVEL_CONTINUED,
    LEVEL_DEBUG,
    LEVEL_ERROR,
    LEVEL_INFO,
    LEVEL_WARNING,
    Device,
    list_devices,
    list_extra_buffers,
    set_log,
    start_backend,
)
from localcascade.engine._llama.models import (
    get_n_ctx_train,
    get_vocab,
    has_recurrent_state,
    load_model,
    read_metadata,
)
from localcascade.engine._llama.samplers import (
    Step,
    accept,
    allows,
    choose,
    create_grammar,
    create_sampler,
    free_sampler,
    sample,
)
from localcascade.engine._llama.taps import Mixture, Product, Tap
from localcascade.engine._llama.vocab import (
    adds_bos,
    find_special_tokens,
    get_bos,
    get_eos,
    get_n_vocab,
    is_eog,
    read_piece,
    splits_words,
    tokenize,
)

__all__ = [
    "CACHE_TYPES",
    "LEVEL_CONTINUED",
    "LEVEL_DEBUG",
    "LEVEL_ERROR",
    "LEVEL_INFO",
    "LEVEL_WARNING",
    "NO_ROOM",
    "Batch",
    "ContextHandle",
    "ContextOptions",
    "Device",
    "Mixture",
    "ModelHandle",
    "Product",
    "SamplerHandle",
    "Step",
    "Tap",
    "VocabHandle",
    "accept",
    "adds_bos",
    "allows",
    "choose",
    "clear_memory",
    "clear_sequence",
    "copy_sequence",
    "create_context",
    "create_grammar",
    "create_sampler",
    "find_special_tokens",
    "free_sampler",
    "get_bos",
    "get_eos",
    "get_n_batch",
    "get_n_ctx",
    "get_n_ctx_train",
    "get_n_vocab",
    "get_vocab",
    "has_recurrent_state",
    "is_eog",
    "list_devices",
    "list_extra_buffers",
    "load_model",
    "measure_state",
    "read_logits",
    "read_logits_row",
    "read_metadata",
    "read_piece",
    "read_recurrent",
    "read_state",
    "remove_tail",
    "sample",
    "set_log",
    "splits_words",
    "start_backend",
    "synchronize",
    "tokenize",
    "write_recurrent",
    "write_state",
]
