"""What may come next by the look of what came before: drafts from a sequence's own tokens.

An answer that quotes its prompt, or itself, goes on as the passage did that it quotes. The place
of every n-gram is kept with a link to the one before it, so that a token costs the same however
long the sequence is, and the longest match among the latest few is found without a scan.
Pure: no model, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

N_GRAM = 6
"""Tokens that must agree before a passage counts as quoted. Phrases of three come again in any
text, and a quarter of what was guessed from them was right; a quotation soon has six."""
MAX_MATCH = 32
"""Tokens back to which matches are compared; longer ones are as good as equal."""
MAX_CANDIDATES = 8
"""Earlier places of an n-gram that are looked at, the latest first."""
INDEX_STEP = 8192
"""Tokens indexed at a time: about 3 ms, so that a long prompt keeps nobody waiting."""


class Lookup:
    """The n-grams of one sequence, which only grows.

    Args:
        tokens: The sequence itself, not a copy: what is appended to it is found at the next draft.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._latest: dict[tuple[int, ...], int] = {}  # n-gram -> where its successor is
        self._before: list[int] = [-1] * N_GRAM  # place -> the one before it of the same n-gram

    def draft(self, n_most: int) -> list[int]:
        """Guess what follows.

        Args:
            n_most: Most tokens to guess.

        Returns:
            Token ids; none if the last n-gram is new, or while a long prompt is being indexed.
        """
        if n_most < 1 or not self._index():
            return []
        place, n_match = self._find_longest()
        period = len(self._tokens) - place  # what quotes its own end goes round
        # What agreed for a few tokens only is not trusted for many.
        return [self._tokens[place + i % period] for i in range(min(n_most, n_match))]

    def _index(self) -> bool:
        """Enter some of the tokens that are new; tell whether all are in."""
        tokens, latest, before = self._tokens, self._latest, self._before
        start = len(before)
        end = min(len(tokens), start + INDEX_STEP)
        window = tokens[start - N_GRAM : end]
        grams = zip(*(window[i:] for i in range(N_GRAM)), strict=False)
        for place, gram in zip(range(start, end), grams, strict=False):
            before.append(latest.get(gram, -1))
            latest[gram] = place
        return end == len(tokens)

    def _find_longest(self) -> tuple[int, int]:
        """Find the longest match of the end, the latest of equals: where it goes on, its length."""
        best, n_best = -1, 0
        place = self._latest.get(tuple(self._tokens[-N_GRAM:]), -1)
        for _ in range(MAX_CANDIDATES):
            if place < 0 or n_best == MAX_MATCH:
                break
            n_match = self._count_match(place)
            if n_match > n_best:
                best, n_best = place, n_match
            place = self._before[place]
        return best, n_best

    def _count_match(self, place: int) -> int:
        """Count how many tokens before a place are also the last ones."""
        tokens, n_match, end = self._tokens, N_GRAM, len(self._tokens)
        most = min(MAX_MATCH, place)
        while n_match < most and tokens[place - 1 - n_match] == tokens[end - 1 - n_match]:
            n_match += 1
        return n_match
