"""Batches: the tokens of one decode call, of any sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from localcascade.engine._llama.binding import ContextHandle
from localcascade.errors import NativeError

NO_ROOM = 1
"""What llama_decode returns if the memory has no room for the batch; nothing was changed then."""


class Batch:
    """Room for the tokens of one decode call.

    Args:
        n_batch: Most tokens it holds.
    """

    def __init__(self, n_batch: int) -> None:
        self._batch: Any = lib.llama_batch_init(n_batch, 0, 1)
        self._token = np.ctypeslib.as_array(self._batch.token, (n_batch,))
        self._position = np.ctypeslib.as_array(self._batch.pos, (n_batch,))
        self._wants_logits = np.ctypeslib.as_array(self._batch.logits, (n_batch,))
        # One array in place of n_batch small ones, so that it can be filled by slices.
        self._sequence = np.zeros(n_batch, np.int32)
        start = self._sequence.ctypes.data
        for i in range(n_batch):
            self._batch.n_seq_id[i] = 1
            address = ctypes.c_void_p(start + i * self._sequence.itemsize)
            self._batch.seq_id[i] = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        self.n_tokens = 0

    def clear(self) -> None:
        """Begin anew."""
        self.n_tokens = 0

    def add(self, sequence: int, tokens: Sequence[int], position: int, *, n_logits: int = 1) -> int:
        """Add tokens that follow what a sequence holds.

        Args:
            sequence: The sequence.
            tokens: Ids, for which there must be room.
            position: Of the first one.
            n_logits: Compute logits for this many of them, the last ones.

        Returns:
            The place of the last one in the batch.
        """
        start, end = self.n_tokens, self.n_tokens + len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = range(position, position + len(tokens))
        self._sequence[start:end] = sequence
        self._wants_logits[start:end] = False
        self._wants_logits[end - n_logits : end] = True
        self.n_tokens = end
        return end - 1

    def decode(self, context: ContextHandle) -> bool:
        """Run the model over the batch.

        Args:
            context: The context.

        Returns:
            False if the memory has no room for it; nothing was changed then.

        Raises:
            NativeError: The call failed; what the context holds is unknown then.
        """
        self._batch.n_tokens = self.n_tokens
        code = lib.llama_decode(context, self._batch)
        if code not in (0, NO_ROOM):
            raise NativeError("llama_decode", code)
        return bool(code != NO_ROOM)
