"""How an answer's tokens are chosen: a chain of samplers, and a grammar after the thinking."""

from __future__ import annotations

from collections.abc import Sequence

from localcascade.engine import _llama
from localcascade.engine.model import Model
from localcascade.engine.sampling import Step


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
        """
        if self._grammar is None or not is_answer:
            return _llama.sample(self._chain, self._model.context, row)
        n_vocab = self._model.info.n_vocab
        logits = _llama.read_logits_row(self._model.context, row, n_vocab)
        return _llama.choose(self._chain, self._grammar, logits)

    def accept(self, token: int) -> None:
        """Take note of a token of the thinking that was put there rather than chosen."""
        _llama.accept(self._chain, token)

    def free(self) -> None:
        """Free the samplers."""
        _llama.free_sampler(self._chain)
        if self._grammar is not None:
            _llama.free_sampler(self._grammar)
