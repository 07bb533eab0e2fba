"""One sequence of a context: what it holds, how it goes back, how it is read in whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from localcascade.engine import _llama
from localcascade.engine.model import Model
from localcascade.errors import ContextFull, NativeError


class Session:
    """The tokens whose state one sequence of the context holds, kept in step with it.

    Args:
        model: Whose context it is.
        number: The sequence.
    """

    def __init__(self, model: Model, number: int = 0) -> None:
        self._model = model
        self.number = number
        self.tokens: list[int] = []

    def clear(self) -> None:
        """Forget everything."""
        _llama.clear_sequence(self._model.context, self.number)
        self.tokens.clear()

    def rewind(self, n_tokens: int, recurrent: bytes | None) -> None:
        """Go back to the state after the first tokens.

        Args:
            n_tokens: How many, at least one and fewer than it holds.
            recurrent: The recurrent state there; None if the model has none.

        Raises:
            NativeError: The state does not fit; the session is empty then.
        """
        try:
            if recurrent is not None:
                _llama.write_recurrent(self._model.context, self.number, recurrent)
            if not _llama.remove_tail(self._model.context, self.number, n_tokens):
                raise NativeError("llama_memory_seq_rm", 0)
        except NativeError:
            self.clear()
            raise
        del self.tokens[n_tokens:]

    def share(self, source: Session, n_tokens: int, recurrent: bytes | None) -> None:
        """Begin with the first tokens of another session, whose memory is shared.

        Args:
            source: The other one.
            n_tokens: How many tokens, at least one.
            recurrent: The recurrent state there; None if the model has none, or if that is the
                end of the source.

        Raises:
            NativeError: The state does not fit; the session is empty then.
        """
        self.clear()
        _llama.copy_sequence(self._model.context, source.number, self.number, n_tokens)
        try:
            if recurrent is not None:
                _llama.write_recurrent(self._model.context, self.number, recurrent)
        except NativeError:
            self.clear()
            raise
        self.tokens = source.tokens[:n_tokens]

    def load(self, tokens: Sequence[int], state: bytes) -> None:
        """Begin with a state that was saved.

        Args:
            tokens: Whose state it is.
            state: As read_state of `_llama` got it.

        Raises:
            NativeError: The state does not fit; the session is empty then.
        """
        self.clear()
        try:
            _llama.write_state(self._model.context, self.number, state)
        except NativeError:
            self.clear()
            raise
        self.tokens = list(tokens)

    def read_logits(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Run the model over tokens.

        Args:
            tokens: Token ids, at least one.
            first: Position of the first whose logits are wanted. If the session holds exactly
                the tokens before it, as after a call that ended there, they are not read again.

        Returns:
            float32 [n_tokens - first, n_vocab]: what the model expects after each token.

        Raises:
            ContextFull: They do not fit the context.
            ValueError: There are none, one is not in the vocabulary, or `first` is no position.
            NativeError: Decoding failed; the session is empty then.
        """
        n_vocab = self._model.info.n_vocab
        self._check_tokens(tokens)
        if not 0 <= first < len(tokens):
            raise ValueError(f"position {first} is not among {len(tokens)} tokens")
        if first == 0 or self.tokens != list(tokens[:first]):
            self.clear()
        logits = np.empty((len(tokens) - first, n_vocab), np.float32)
        n_batch = self._model.n_outputs
        for start in range(len(self.tokens), len(tokens), n_batch):
            part = tokens[start : start + n_batch]
            end = start + len(part) - first
            n_rows = max(0, min(len(part), end))
            self._decode(part, n_logits=max(1, n_rows))
            if n_rows:
                rows = _llama.read_logits(self._model.context, n_rows, n_vocab)
                logits[end - n_rows : end] = rows
        return logits

    def run(self, tokens: Sequence[int]) -> Iterator[int]:
        """Run the whole model over every token from an empty context, for who taps it.

        Args:
            tokens: Token ids, at least one.

        Yields:
            How many tokens are done, after each micro-batch.

        Raises:
            ContextFull, ValueError, NativeError: As read_logits does.
        """
        self._check_tokens(tokens)
        self.clear()
        for start in range(0, len(tokens), self._model.n_batch):
            part = tokens[start : start + self._model.n_batch]
            # Without logits for all, the output matrix, and in other families the last layer's
            # feed-forward, would see the last token only.
            self._decode(part, n_logits=len(part))
            yield len(self.tokens)

    def _decode(self, tokens: Sequence[int], *, n_logits: int = 1) -> None:
        batch = self._model.batch
        batch.clear()
        batch.add(self.number, tokens, len(self.tokens), n_logits=n_logits)
        try:
            if not batch.decode(self._model.context):
                raise NativeError("llama_decode", _llama.NO_ROOM)
        except NativeError:
            self.clear()
            raise
        self.tokens += tokens

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        n_vocab = self._model.info.n_vocab
        foreign = [token for token in tokens if not 0 <= token < n_vocab]
        if foreign or not tokens:
            problem = f"token {foreign[0]} is not among {n_vocab}" if foreign else "no tokens"
            raise ValueError(problem)
        if len(tokens) > self._model.info.n_ctx:
            raise ContextFull(len(tokens), self._model.info.n_ctx)


def count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens that two sequences share from the start, by halves: slices compare fast."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
