"""The plainest possible use of llama.cpp, one token at a time: what the engine is held against."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib


def _silence(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp's messages are not what is tested."""


_SILENCE = lib.llama_log_callback(_silence)


class BareModel:
    """A model and a context of 512 tokens, used without any of the engine's code."""

    def __init__(self, path: Path) -> None:
        lib.llama_log_set(_SILENCE, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(bytes(path), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = 512, 1, 1
        self.context = lib.llama_init_from_model(self.model, params)
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def step(self, token: int) -> np.ndarray:
        """Decode one token; float32 [n_vocab], the logits after it."""
        assert lib.llama_decode(
            self.context, lib.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1)
        ) == 0  # fmt: skip
        row = lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (self.n_vocab,)).copy()

    def read_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """From an empty context: float32 [n_tokens, n_vocab]."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        return np.stack([self.step(token) for token in tokens])

    def generate(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """The likeliest continuation of a prompt, token by token."""
        logits = self.read_logits(prompt)[-1]
        tokens: list[int] = []
        while len(tokens) < n_tokens:
            tokens.append(int(logits.argmax()))
            logits = self.step(tokens[-1])
        return tokens

    def close(self) -> None:
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)
