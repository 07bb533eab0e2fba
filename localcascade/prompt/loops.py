"""Tells when generated tokens go round in circles. Pure; constant work for each token.

Two signs, both slow to show on purpose: a loop that is noticed late costs seconds, an answer that
was cut off by mistake costs the answer.

- A run: every token equals the one `period` before it, for long enough and often enough.
- Staleness: hardly any of the last few thousand n-grams is new, though no period holds; so look
  the same paragraphs in changing order, or with a number counted up far apart.

Tables, code, digits and lists of similar lines repeat much, but seldom so long without a change.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

GRAM_TOKENS = 12
"""Long enough that n-grams of rows of digits, or of a board printed again, tell places apart."""
HORIZON_TOKENS = 1 << 14
"""N-grams are remembered for one to two horizons, so that memory stays bounded; no longer period
is noticed."""


@dataclass(frozen=True, slots=True)
class LoopRule:
    """What counts as a loop."""

    run_tokens: int
    """Tokens in a row that must equal those one period before."""
    run_periods: int
    """Periods that they must cover."""
    stale_tokens: int
    """Window in which n-grams must be old; 0 looks for runs only."""
    stale_share: float
    """Share of new n-grams in the window below which it is stale."""


THINKING_RULE = LoopRule(run_tokens=1536, run_periods=3, stale_tokens=4096, stale_share=0.04)
ANSWER_RULE = LoopRule(run_tokens=4096, run_periods=16, stale_tokens=0, stale_share=0)
"""An answer may have been asked to repeat itself, so only what nobody reads any more counts."""


class LoopDetector:
    """Watches one stream of tokens.

    Args:
        rule: What counts as a loop.
    """

    def __init__(self, rule: LoopRule) -> None:
        self._rule = rule
        self._tokens: list[int] = []
        self._gram: deque[int] = deque(maxlen=GRAM_TOKENS)
        self._recent: dict[int, int] = {}  # hash of an n-gram -> where it last ended
        self._older: dict[int, int] = {}
        self._period = self._run = 0
        self._is_new: deque[bool] = deque()
        self._n_new = 0

    def feed(self, token: int) -> bool:
        """Take the next token; tells whether the stream goes round in circles by now."""
        self._tokens.append(token)
        self._gram.append(token)
        before = self._note_gram()
        self._follow_run(token, before)
        return self._is_running() or self._is_stale(before is None)

    def _note_gram(self) -> int | None:
        """Note the n-gram that ends here; returns where the same last ended before."""
        at, key = len(self._tokens) - 1, hash(tuple(self._gram))
        before = self._recent.get(key)
        if before is None:
            before = self._older.get(key)
        self._recent[key] = at
        if len(self._recent) >= HORIZON_TOKENS:
            self._older, self._recent = self._recent, {}
        return before

    def _follow_run(self, token: int, before: int | None) -> None:
        """Go on with the period that holds, or try the distance to the same n-gram."""
        at = len(self._tokens) - 1
        if self._period and self._tokens[at - self._period] == token:
            self._run += 1
        elif before is None:
            self._period = self._run = 0
        else:
            self._period, self._run = at - before, GRAM_TOKENS

    def _is_running(self) -> bool:
        least = max(self._rule.run_tokens, self._rule.run_periods * self._period)
        return self._run >= least

    def _is_stale(self, is_new: bool) -> bool:
        window = self._rule.stale_tokens
        if not window:
            return False
        self._is_new.append(is_new)
        self._n_new += is_new
        if len(self._is_new) <= window:
            return False
        self._n_new -= self._is_new.popleft()
        return self._n_new < self._rule.stale_share * window
