"""A bare llama.cpp loop over the low-level interface: the runner that tests compare with."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp

_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


@contextmanager
def load_model(path: Path, *, vocab_only: bool = False) -> Iterator[Any]:
    """Load a GGUF and free it afterwards; fails the test if llama.cpp refuses the file."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.vocab_only = vocab_only
    parameters.use_extra_bufts = False  # AMX kernels crash, see localcascade/engine/model.py
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp refuses {path}"
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def compute_logits(path: Path, tokens: np.ndarray, n_at_once: int = 512) -> np.ndarray:
    """Logits float32 (n_tokens, n_vocab) of one decode over all of `tokens`, so many at once."""
    with load_model(path) as model:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = 512
        parameters.n_ubatch = n_at_once
        parameters.n_threads = parameters.n_threads_batch = 2
        parameters.flash_attn_type = 0  # off: the reference has none
        parameters.type_k = parameters.type_v = 0  # f32 cache
        context = llama_cpp.llama_init_from_model(model, parameters)
        assert context
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i] = int(token)
                batch.pos[i] = i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = 1
            batch.n_tokens = len(tokens)
            assert llama_cpp.llama_decode(context, batch) == 0
            n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
            flat = llama_cpp.llama_get_logits(context)
            return np.ctypeslib.as_array(flat, (len(tokens), n_vocab)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)


def requantize(source: Path, output: Path, file_type: int) -> None:
    """Run llama.cpp's own quantizer, with one type for all matrices."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 2
    parameters.pure = True
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(parameters)
    )
    assert code == 0
