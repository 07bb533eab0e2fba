"""Answers that say the same are one answer, however they are written; others are not."""

from __future__ import annotations

import pytest

from localcascade.chat.voting import Ballot, extract_answer, is_expected, normalize_answer
from localcascade.maths.algebra import Algebra
from localcascade.maths.expressions import parse_expression

SAME = [
    ["1,000", "1000", "1e3", r"10{,}00".replace("10{,}00", "1{,}000"), "$1000$", "x = 1000"],
    ["1/2", "0.5", r"\frac{1}{2}", r"\frac12", "50%", r"50\%", r"\dfrac{1}{2}", "50 percent"],
    ["1.5", r"1\frac{1}{2}", r"\frac{3}{2}", "3/2", "y=1.5"],
    ["(B)", "B", r"\text{B}", "B.", r"\textbf{(B)}", "B) because", "option B"],
    [r"5\text{ cm}", "5 cm", r"5\,\mathrm{cm}", "5 centimeters"],
    [r"\$90.75", "90.75 dollars", "90.75 USD"],
    ["1, 2", "2 and 1", "x = 1, x = 2", r"\{2, 1\}", "1 or 2"],
    [r"\text{no solution}", "No solution."],
    ["-7", "−7", "$-7$"],
    [r"90^\circ", "90 degrees", "90°"],
]


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_forms_of_one_answer_agree(forms: list[str]) -> None:
    named = {(answer.key, answer.unit) for answer in map(normalize_answer, forms)}
    assert len(named) == 1


def test_different_answers_differ() -> None:
    forms = [forms[0] for forms in SAME] + ["5 m", "5", "(1, 2)", "(2, 1)", "[1, 2)", "A", "x^2"]
    assert len({(answer.key, answer.unit) for answer in map(normalize_answer, forms)}) == len(forms)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"So \boxed{3}, no: \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"\boxed{a\}b}", r"a\}b"),
        ("x is 3.\n\n**Answer:** 90.75 euros", "90.75 euros"),
        ("The final answer is 42.", "42"),
        ("The answer is $x^2$.", "$x^2$"),
        ("Answer: the value of x is 12", "12"),
        ("Only one fits.\n(C)", "C"),
        ("347 + 586 = 933.", "933"),
        ("it is 3, then 1,234.5.", "1,234.5"),
        ("We answer with 12 apples", "12"),
        (r"\boxed{unfinished", ""),
        ("I do not know.", ""),
    ],
)
def test_the_answer_is_found(text: str, found: str) -> None:
    assert extract_answer(text) == found


def count(*texts: str) -> Ballot:
    ballot = Ballot()
    for text in texts:
        ballot.add(text)
    return ballot


def test_the_majority_wins_and_says_by_how_much() -> None:
    vote = count(r"\boxed{41}", r"\boxed{42}", "no idea", "Answer: 42.0", r"\boxed{42}").count()
    assert (vote.answer, vote.n_votes, vote.n_chains) == ("42", 3, 5)
    assert [group.n_votes for group in vote.groups] == [3, 1]
    assert not vote.is_tied


def test_a_tie_is_told_and_the_first_stands() -> None:
    vote = count("Answer: 1", "Answer: 2", "Answer: 2", "Answer: 1").count()
    assert vote.is_tied
    assert vote.answer == "1"


@pytest.mark.parametrize(("n_left", "decided"), [(0, True), (1, True), (2, False), (3, False)])
def test_it_is_decided_when_nobody_can_draw_level(n_left: int, decided: bool) -> None:
    vote = count("Answer: 1", "Answer: 1", "Answer: 1", "Answer: 2").count()
    assert vote.is_decided(n_left) is decided


def test_nothing_is_decided_before_anybody_answers() -> None:
    assert not count("hm").count().is_decided(3)


def test_a_number_without_a_unit_joins_those_with_one_but_units_stay_apart() -> None:
    vote = count("Answer: 5", "Answer: 5 cm", "Answer: 5 m").count()
    assert [(group.shown, group.n_votes) for group in vote.groups] == [("5 cm", 2), ("5 m", 1)]


def test_equal_expressions_agree_where_algebra_says_so() -> None:
    with Algebra() as algebra:

        def is_same(one: str, other: str) -> bool:
            return algebra.compare(parse_expression(one), parse_expression(other)) is True

        ballot = Ballot(is_same)
        for form in ("x(x+1)", "x^2 + x", r"2\sqrt{2}", r"\sqrt{8}", "x^2"):
            ballot.add(rf"\boxed{{{form}}}")
        assert [group.n_votes for group in ballot.count().groups] == [2, 2, 1]
        assert is_expected(ballot.count(), "x + x^2", is_same)
        assert not is_expected(ballot.count(), "x - x^2", is_same)
