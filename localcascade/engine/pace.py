"""How far to run ahead of an answer, and whether that pays: decided by what was measured.

Decoding k drafted tokens at once costs as much as 1 to 6 tokens one by one: it depends on the
model, its experts, the types of its weights and the machine. So nothing is assumed. Steps are
timed, and what drafts cost, with all that follows from them, is held against what the tokens
would have cost that came of them. Pure.
"""

from __future__ import annotations

MAX_DRAFT = 7
N_CALM = 8
"""Plain steps that are timed before the first draft: what it is held against."""
N_TRIAL = 6
"""Drafts of a trial, after which they must have paid."""
FIRST_PAUSE, LAST_PAUSE = 256, 8192
"""Plain steps until the next trial if they did not; twice as many each time."""
_FORGET = 0.9  # of the sums, at each draft: machines get busy, texts change
_STEADY = 0.9  # of the typical plain step


class Pace:
    """The steps of one model.

    Args:
        mode: `auto` runs ahead where it is faster, `on` wherever there is something to draft,
            `off` never.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._single_s = 0.0
        self._n_calm = 0  # plain steps to come before the next draft may be made
        self._pause = FIRST_PAUSE
        self._spent_s = self._saved_s = 0.0
        self._n_drafts = 0  # in this trial
        self._length, self._n_missed = 2, 0
        self._n_rest = 0
        if mode == "auto":
            self._n_calm = N_CALM

    @property
    def is_on(self) -> bool:
        """Whether there may be drafts at all."""
        return self._mode != "off"

    @property
    def gain(self) -> float:
        """Plain time over time spent, of the last drafts; 0 before the first."""
        return self._saved_s / self._spent_s if self._spent_s else 0.0

    def choose_length(self) -> int:
        """Say how many tokens may be drafted now; 0 is none."""
        if self._mode == "off" or self._n_calm > 0:
            return 0
        if self._n_rest > 0:
            self._n_rest -= 1
            return 0
        return self._length

    def note_plain(self, elapsed_s: float) -> None:
        """Take note of a step that brought one token of one answer, with no draft about it."""
        weight = _STEADY if self._single_s else 0.0
        # A step that was interrupted says nothing of the machine.
        capped_s = min(elapsed_s, 4 * self._single_s) if self._single_s else elapsed_s
        self._single_s = weight * self._single_s + (1 - weight) * capped_s
        self._n_calm -= self._n_calm > 0

    def note_ahead(self, elapsed_s: float, n_tokens: int) -> None:
        """Take note of a step that drafts caused, be it one to go back.

        Args:
            elapsed_s: What it took.
            n_tokens: What it brought of the answer, which may be nothing.
        """
        self._spent_s += elapsed_s
        self._saved_s += n_tokens * self._single_s

    def note_draft(self, n_drafted: int, n_accepted: int) -> None:
        """Take note of what became of a draft: the better they are, the longer they get."""
        self._spent_s *= _FORGET
        self._saved_s *= _FORGET
        self._n_drafts += 1
        if n_accepted == n_drafted:
            self._length = min(MAX_DRAFT, 2 * n_drafted + 1)
        else:
            self._length = max(1, n_accepted)
        self._n_missed = 0 if n_accepted else self._n_missed + 1
        # Text that only seems to repeat itself is left alone for longer and longer.
        self._n_rest = min(2**self._n_missed, 32) if self._n_missed else 0
        if self._mode == "auto" and self._n_drafts >= N_TRIAL:
            self._judge()

    def _judge(self) -> None:
        if self.gain >= 1:
            self._pause = FIRST_PAUSE
            return
        self._n_calm, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE)
        self._n_drafts, self._spent_s, self._saved_s = 0, 0.0, 0.0
