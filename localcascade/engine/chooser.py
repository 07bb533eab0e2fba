"""How an answer's tokens are chosen: a chain of samplers, and a grammar after the thinking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localcascade.engine import _llama
from localcascade.engine.model import Model
from localcascade.engine.sampling import Step

SLOW_S = 5.0
"""Most seconds of a grammar for one token. One that can read an answer in two ways at each letter
takes twice as long with each, and others wait for it."""


class Chooser:
    """The samplers of one answer; to be freed.

    Args:
        model: Whose logits they see.
        steps: The chain.
        grammar: GBNF that the answer must follow; None leaves it free.

    Raises:
        ValueError: llama.cpp does not understand the grammar.
    """

    def __init__(self, model: Model, steps: Sequence[Step], grammar: str | None = None) -> None:
        self._model = model
        self._grammar = None if grammar is None else model.vocabulary.create_grammar(grammar)
        self._chain = _llama.create_sampler(steps)

    def choose(self, row: int, *, is_answer: bool) -> int:
        """Choose the token after one of the last batch.

        Args:
            row: That token's place in the batch.
            is_answer: Whether the grammar counts.

        Returns:
            The token's id.

        Raises:
            ValueError: The grammar allows no token, or takes too long over one.
        """
        if self._grammar is None or not is_answer:
            return _llama.sample(self._chain, self._model.context, row)
        n_vocab = self._model.info.n_vocab
        logits = _llama.read_logits_row(self._model.context, row, n_vocab)
        with self._model.patience:
            token = _llama.choose(self._chain, self._grammar, logits)
        if self._model.patience.last_s > SLOW_S:
            raise ValueError(
                f"grammar: one token took it {self._model.patience.last_s:.0f} s, for what the "
                "answer has so far can be read in too many ways; the next would take longer"
            )
        return token

    def measure_lead(self, row: int, token: int | None = None, *, is_answer: bool) -> float:
        """Tell how far a token leads all others, before samplers and grammar see them.

        Args:
            row: Place in the batch of the token before it.
            token: Its id; None is the likeliest, unless the grammar forbids that.
            is_answer: Whether the grammar counts.

        Returns:
            Logits; below 0 for a token that does not lead, 0 for one that is forbidden.
        """
        logits = _llama.read_logits_row(self._model.context, row, self._model.info.n_vocab)
        best = int(logits.argmax()) if token is None else token
        grammar = self._grammar if is_answer and token is None else None
        if grammar is not None:
            with self._model.patience:
                if not _llama.allows(grammar, best):
                    return 0.0
        second = max(part.max(initial=-np.inf) for part in (logits[:best], logits[best + 1 :]))
        return float(logits[best] - second)

    def accept(self, token: int) -> None:
        """Take note of a token of the thinking that was put there rather than chosen."""
        _llama.accept(self._chain, token)

    def free(self) -> None:
        """Free the samplers."""
        _llama.free_sampler(self._chain)
        if self._grammar is not None:
            _llama.free_sampler(self._grammar)
