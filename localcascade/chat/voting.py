"""Many answers to one problem: what each one says, which say the same, and which has the majority.

Pure, but for the comparison of expressions, which the caller may bring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localcascade.chat.answers import Answer, extract_answer, is_same_answer, normalize_answer

IsSame = Callable[[str, str], bool]
"""Whether two expressions in LaTeX are equal; False also where that is not known."""


@dataclass(frozen=True, slots=True)
class Group:
    """Answers that say the same."""

    answers: tuple[Answer, ...]

    @property
    def n_votes(self) -> int:
        """How many they are."""
        return len(self.answers)

    @property
    def shown(self) -> str:
        """The form that most of them have; of those with a unit, if there are such."""
        with_unit = [answer.shown for answer in self.answers if answer.unit]
        forms = Counter(with_unit or [answer.shown for answer in self.answers])
        return forms.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Vote:
    """The count so far."""

    groups: tuple[Group, ...]
    """The largest first; of equals, the one that came first."""
    n_chains: int
    """Chains that have ended, also those without an answer."""

    @property
    def answer(self) -> str:
        """What the largest group says; empty if nobody answered."""
        return self.groups[0].shown if self.groups else ""

    @property
    def n_votes(self) -> int:
        """Of the largest group."""
        return self.groups[0].n_votes if self.groups else 0

    @property
    def is_tied(self) -> bool:
        """Whether another group is as large."""
        return len(self.groups) > 1 and self.groups[1].n_votes == self.n_votes

    def is_decided(self, n_left: int) -> bool:
        """Whether no other group can win or draw level with `n_left` more votes."""
        second = self.groups[1].n_votes if len(self.groups) > 1 else 0
        return self.n_votes > second + n_left


@dataclass
class Ballot:
    """Collects answers one by one.

    Args:
        is_same: Compares expressions.
    """

    is_same: IsSame = lambda _one, _other: False
    groups: list[list[Answer]] = field(default_factory=list)
    n_chains: int = 0

    def add(self, text: str) -> Answer | None:
        """Take the text of an answer.

        Returns:
            What it says; None if it says nothing.
        """
        self.n_chains += 1
        found = extract_answer(text)
        if not found:
            return None
        answer = normalize_answer(found)
        self.put(answer)
        return answer

    def put(self, answer: Answer) -> None:
        """Add an answer to those that say the same."""
        for group in self.groups:
            if self._agrees(answer, group):
                group.append(answer)
                return
        self.groups.append([answer])

    def count(self) -> Vote:
        """Count the votes."""
        ordered = sorted(self.groups, key=len, reverse=True)
        return Vote(tuple(Group(tuple(group)) for group in ordered), self.n_chains)

    def _agrees(self, answer: Answer, group: Sequence[Answer]) -> bool:
        units = {other.unit for other in group} | {answer.unit}
        if len(units - {""}) > 1:
            return False
        if answer.key == group[0].key:
            return True
        kinds = {answer.kind, group[0].kind}
        if len(kinds) > 1 and kinds != {"number", "expression"}:
            return False
        return is_same_answer(answer.shown, group[0].shown, self.is_same) is True


def is_expected(vote: Vote, expected: str, is_same: IsSame) -> bool:
    """Whether the majority's answer is the expected one, however that is written."""
    if not vote.groups:
        return False
    ballot = Ballot(is_same, [list(vote.groups[0].answers)])
    ballot.put(normalize_answer(expected))
    return len(ballot.groups) == 1
