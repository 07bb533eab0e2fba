"""One sequence in one context: what it holds, how it is read in, how it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from localcascade.engine import _llama
from localcascade.engine.model import N_BATCH, Model
from localcascade.engine.sampling import Step
from localcascade.errors import ContextFull, NativeError
from localcascade.prompt.events import PromptProgress


class Session:
    """The tokens whose state the context holds, kept in step with it.

    Args:
        model: Whose context it is; nothing else may decode there.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._batch = _llama.Batch(N_BATCH)
        self.tokens: list[int] = []

    def read_prompt(self, prompt: Sequence[int]) -> Iterator[PromptProgress]:
        """Bring the context to the end of a prompt, micro-batch by micro-batch.

        Args:
            prompt: Token ids, at least one.

        Yields:
            How far it is: once before the first micro-batch, then after each. Stopping
            between two leaves a sound session.

        Raises:
            ContextFull: The prompt is longer than the context.
            NativeError: Decoding failed; the session is empty then.
        """
        self._check_room(prompt)
        reused = self._rewind(prompt)
        yield PromptProgress(done=reused, total=len(prompt), reused=reused)
        for start in range(reused, len(prompt), N_BATCH):
            self._decode(prompt[start : start + N_BATCH])
            yield PromptProgress(done=len(self.tokens), total=len(prompt), reused=reused)

    def generate(self, steps: Sequence[Step], max_tokens: int | None) -> Iterator[int]:
        """Go on from the prompt that was read.

        Args:
            steps: The sampler chain.
            max_tokens: Most tokens to yield; None is up to the context's end.

        Yields:
            Token ids. The caller stops at an end-of-generation token; if the iterator ends
            by itself, the limit or the context's end was reached.

        Raises:
            NativeError: Decoding failed; the session is empty then.
        """
        room = self._model.info.n_ctx - len(self.tokens) + 1  # the last one is not decoded
        n_tokens = room if max_tokens is None else min(room, max_tokens)
        sampler = _llama.create_sampler(steps)
        try:
            for i in range(n_tokens):
                token = _llama.sample(sampler, self._model.context)
                yield token
                if i + 1 < n_tokens:
                    self._decode((token,))
        finally:
            _llama.free_sampler(sampler)

    def read_logits(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Run the model over tokens.

        Args:
            tokens: Token ids, at least one.
            first: Position of the first whose logits are wanted. If the context holds exactly
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
            self._clear()
        logits = np.empty((len(tokens) - first, n_vocab), np.float32)
        for start in range(len(self.tokens), len(tokens), N_BATCH):
            part = tokens[start : start + N_BATCH]
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
        self._clear()
        for start in range(0, len(tokens), N_BATCH):
            part = tokens[start : start + N_BATCH]
            # Without logits for all, the output matrix, and in other families the last layer's
            # feed-forward, would see the last token only.
            self._decode(part, n_logits=len(part))
            yield len(self.tokens)

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Keep what the context shares with a prompt, as far as its memory can rewind.

        The prompt's last token is always decoded anew, for the logits after it.
        """
        kept = min(_count_common(self.tokens, prompt), len(prompt) - 1)
        if kept == len(self.tokens):
            return kept
        if kept and _llama.remove_tail(self._model.context, kept):
            del self.tokens[kept:]
        else:
            self._clear()
        return len(self.tokens)

    def _decode(self, tokens: Sequence[int], *, n_logits: int = 1) -> None:
        try:
            self._batch.decode(self._model.context, tokens, len(self.tokens), n_logits=n_logits)
        except NativeError:
            self._clear()
            raise
        self.tokens += tokens

    def _clear(self) -> None:
        _llama.clear_memory(self._model.context)
        self.tokens.clear()

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        n_vocab = self._model.info.n_vocab
        foreign = [token for token in tokens if not 0 <= token < n_vocab]
        if foreign or not tokens:
            problem = f"token {foreign[0]} is not among {n_vocab}" if foreign else "no tokens"
            raise ValueError(problem)
        self._check_room(tokens)

    def _check_room(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self._model.info.n_ctx:
            raise ContextFull(len(tokens), self._model.info.n_ctx)


def _count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens that two sequences share from the start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
