"""How sure a choice must be that was computed another way than it would have been.

How far logits differ between a decode of one token and one of several depends on the kernels, and
so on types, threads, flash attention and depth: on a CPU from nothing at all, with a quantized
cache, to a tenth and more, where attention adds up in half precision. So it is measured: wherever
tokens are read again one by one, what they lead by is compared. Pure.
"""

from __future__ import annotations

LEAST_LEAD = 0.1
"""A lead in logits below which no choice counts as sure, however small the differences were."""
SAFETY = 4.0
"""A lead must be so many times the largest difference seen."""
N_COMPARED = 32
"""Tokens that must have been compared, at contexts of about this length, before any more is taken
unseen: kernels change with the length."""


class Margin:
    """What was seen of the differences of one model."""

    def __init__(self) -> None:
        self.largest = 0.0
        """Largest difference of a lead, in logits."""
        self.n_wrong = 0
        """Tokens that were taken and would not have been chosen."""
        self._n_compared: dict[int, int] = {}  # by length of the context, in powers of two

    @property
    def least_lead(self) -> float:
        """What a token must lead by, in logits."""
        return max(LEAST_LEAD, SAFETY * self.largest)

    def needs_comparison(self, n_tokens: int, n_taken: int) -> bool:
        """Tell whether tokens must be compared before any more is taken.

        Args:
            n_tokens: Length of the context.
            n_taken: Tokens taken since any were compared.
        """
        n_compared = self._n_compared.get(n_tokens.bit_length(), 0)
        return n_compared < N_COMPARED <= n_taken

    def note(self, difference: float, n_tokens: int, *, is_right: bool) -> None:
        """Take note of a comparison.

        Args:
            difference: Of the lead, in logits.
            n_tokens: Length of the context.
            is_right: Whether the token would have been chosen.
        """
        self.largest = max(self.largest, difference)
        self.n_wrong += not is_right
        length = n_tokens.bit_length()
        self._n_compared[length] = self._n_compared.get(length, 0) + 1
