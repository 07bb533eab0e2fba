"""Running ahead of one answer: drafts are computed in one go, kept as far as they are right.

The answer must be what it would have been without. But a decode of several tokens rounds elsewhere
than several of one token, and what it leaves in the memory carries that on. So:

- A token is taken from such a decode, or after one, only if it leads the next likely by more than
  that can change (`Margin`).
- If it does not, the sequence goes back to where the first draft began, whose state was copied
  there, and reads what it has said since then one token at a time, as it would have without
  drafts; then the choice is made. What was taken before is compared with that, which tells how
  large the differences are.

A recurrent state is brought back from a copy. llama.cpp could keep one for each token of a batch
(n_rs_seq), but those take 48 MiB each for the 30 B model, whether drafts pay or not, and cost more
to write than one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from localcascade.engine import _llama
from localcascade.engine.lookup import Lookup
from localcascade.engine.margin import Margin
from localcascade.engine.model import Model
from localcascade.engine.pace import Pace
from localcascade.engine.session import Session
from localcascade.prompt.events import FinishReason


class Answer(Protocol):
    """What runs ahead: a Generation."""

    tokens: list[int]
    session: Session | None

    def go_on(self, row: int) -> FinishReason | None:
        """Choose the next token."""

    def measure_lead(self, row: int, token: int | None = None) -> float:
        """Tell how far a token leads all others; by default the one that would be chosen."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a sequence can go back to."""

    n_tokens: int
    recurrent: bytes | None


class Speculation:
    """The drafts of one answer, and the way back from them.

    Args:
        model: Whose context it is.
        answer: The answer; it takes the likeliest token each time.
        pace: How far to run ahead.
        margin: What differences to reckon with.
    """

    def __init__(self, model: Model, answer: Answer, pace: Pace, margin: Margin) -> None:
        self._model, self._answer, self._pace, self._margin = model, answer, pace, margin
        self._lookup = Lookup(answer.tokens)
        self._anchor: _Place | None = None  # where what is held was last as it would be
        self._back: _Place | None = None  # where the present draft began
        self._end = 0  # of what is read again, as a number of tokens
        self._leads: dict[int, float] = {}  # place of a token that was taken -> its lead
        self._runs: dict[int, int] = {}  # place -> tokens from there on that came at once
        self._was_plain = self._is_comparing = False
        self.n_drafted = self.n_accepted = 0

    @property
    def is_repeating(self) -> bool:
        """Whether tokens are read again, which is done one by one."""
        return len(self._held) < self._end

    def forget(self) -> None:
        """Go on from what is held as if there had been no drafts, and drop the copied states.

        So it is at the end, and when others join: batches are mixed then, and no answer is to the
        last bit what it is alone.
        """
        self._anchor = self._back = None
        self._is_comparing = False
        self._end = 0
        self._leads.clear()
        self._runs.clear()

    def limit_part(self, n_most: int) -> int:
        """Say how many tokens may be read at once; what is read again, as it would have been."""
        self._was_plain = False
        return min(n_most, self._runs.get(len(self._held), 1)) if self.is_repeating else n_most

    def draft(self, n_part: int) -> list[int]:
        """Guess what comes after the tokens to be read, if that seems worth it.

        Args:
            n_part: How many are to be read; the last token is among them.

        Returns:
            Token ids, to be put into the batch behind them.
        """
        if self.is_repeating or (n_part > 1 and self._anchor is None):
            return []  # also where an answer goes on after a prompt or words put into its mouth
        drafts = self._lookup.draft(min(self._pace.choose_length(), self._find_room(n_part)))
        self._was_plain = n_part == 1 and not drafts
        if drafts:
            self._back = self._note_place()
            self._anchor = self._anchor or self._back
        return drafts

    def advance(self, row: int, drafts: list[int]) -> FinishReason | None:
        """Choose tokens as far as the drafts were right.

        Args:
            row: Place in the batch of the last token before the drafts.
            drafts: What was put behind it.

        Returns:
            Why the answer is over, or None.
        """
        left, reason = list(drafts), None
        self._compare(row)
        while len(self._answer.tokens) == len(self._held) and reason is None:
            if self._anchor is not None and not self._is_sure(row):
                self._note_draft(drafts, left)
                self._repeat()
                return None
            reason = self._answer.go_on(row)
            self._note_run()
            while left and self._held_is_behind and self._next_known == left[0]:
                self._held.append(left.pop(0))
                row += 1
        self._note_draft(drafts, left)
        if left:
            self._go_back()
        return reason

    def note_time(self, elapsed_s: float, n_tokens: int) -> None:
        """Take note of what the last step took.

        Args:
            elapsed_s: The step.
            n_tokens: What it brought.
        """
        if self._was_plain:
            self._pace.note_plain(elapsed_s)
        elif not self._is_comparing:  # which is done once for a model, and says nothing of its pace
            self._pace.note_ahead(elapsed_s, n_tokens)

    @property
    def _held(self) -> list[int]:
        assert self._answer.session is not None
        return self._answer.session.tokens

    @property
    def _held_is_behind(self) -> bool:
        return len(self._held) < len(self._answer.tokens)

    @property
    def _next_known(self) -> int:
        return self._answer.tokens[len(self._held)]

    def _find_room(self, n_part: int) -> int:
        info = self._model.info
        room = min(self._model.n_batch - n_part, self._model.n_outputs - 1)
        return min(room, info.n_ctx - len(self._answer.tokens))

    def _note_run(self) -> None:
        """Remember words that were put into the answer's mouth: they are read at once."""
        n_new = len(self._answer.tokens) - len(self._held)
        if self._anchor is not None and n_new > 1:
            self._runs[len(self._held)] = n_new

    def _note_place(self) -> _Place:
        assert self._answer.session is not None
        if not self._model.has_recurrent_state:
            return _Place(len(self._held), None)
        state = _llama.read_recurrent(self._model.context, self._answer.session.number)
        return _Place(len(self._held), state)

    def _is_sure(self, row: int) -> bool:
        """Tell whether what would be chosen is what would be chosen without drafts."""
        place, lead = len(self._answer.tokens), self._answer.measure_lead(row)
        self._is_comparing = self._margin.needs_comparison(place, len(self._leads))
        if self._is_comparing or lead < self._margin.least_lead:
            return False
        self._leads[place] = lead
        return True

    def _repeat(self) -> None:
        """Read again one by one what was said since the first draft, for a choice like that."""
        assert self._anchor is not None
        self._rewind(self._anchor)
        self._end = len(self._answer.tokens)

    def _compare(self, row: int) -> None:
        """Hold a token that was taken against what is expected there without drafts."""
        if self._end == 0:
            return
        place = len(self._held)
        if place in self._leads:
            lead = self._answer.measure_lead(row, self._answer.tokens[place])
            self._margin.note(abs(lead - self._leads[place]), place, is_right=lead > 0)
        if place == self._end:
            self.forget()

    def _go_back(self) -> None:
        """Drop the drafts that were wrong."""
        assert self._back is not None and self._answer.session is not None
        if not self._model.has_recurrent_state:
            # What is held ends before the wrong ones, which only the memory knows of.
            _llama.remove_tail(self._model.context, self._answer.session.number, len(self._held))
            return
        self._rewind(self._back)
        if self._back is self._anchor and len(self._answer.tokens) <= self._back.n_tokens + 2:
            self._end = len(self._answer.tokens)  # so little that it is cheaper to be exact

    def _rewind(self, place: _Place) -> None:
        assert self._answer.session is not None
        self._answer.session.rewind(place.n_tokens, place.recurrent)

    def _note_draft(self, drafts: list[int], left: list[int]) -> None:
        if drafts:
            n_accepted = len(drafts) - len(left)
            self.n_drafted += len(drafts)
            self.n_accepted += n_accepted
            self._pace.note_draft(len(drafts), n_accepted)
