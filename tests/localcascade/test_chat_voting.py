"""Answers that say the same are one answer, however they are written; others are not."""

from __future__ import annotations

import pytest

from localcascade.chat.answers import extract_answer, is_same_answer, normalize_answer
from localcascade.chat.voting import Ballot, is_expected
from localcascade.maths.algebra import Algebra
from localcascade.maths.check import compare_formulas
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
    ["7/4", "1 3/4", r"1\frac{3}{4}", "1.75"],
    ["-5/2", "-2 1/2"],
    ["1 000 000", r"1\,000\,000", "10^6"],
    [r"0.1\overline{6}", r"\frac16", r"0.1\bar{6}"],
    [r"12\text{ cm}^2", "12 cm^2", "12 cm²", r"12\text{ square centimeters}", r"12\,\mathrm{cm^2}"],
    ["3 m/s", "3 meters per second", r"3\text{ m/s}"],
    [r"100\,^\circ\mathrm{C}", "100 °C"],
    ["{4, 8}", r"\{8, 4\}", r"x \in \{4, 8\}", r"x = 4 \text{ or } x = 8"],
    [r"x = \pm 6", r"\{-6, 6\}", "6, -6"],
    ["x = 9, y = 5", "y = 5 and x = 9", "(9, 5)", r"$x = 9$ and $y = 5$"],
    [r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}", r"\begin{bmatrix} 1&2 \\ 3&4 \end{bmatrix}"],
    [r"\begin{pmatrix} 7 \\ 6 \end{pmatrix}", "(7, 6)"],
    [r"(-\infty,2) \cup (3,\infty)", r"\left(-\infty, 2\right)\cup(3, \infty)"],
    ["f(x) = 2x", "2x", "y = 2x", r"\frac{dy}{dx} = 2x"],
    ["347 + 586 = 933", "933", "x = 347 + 586 = 933"],
    ["Yes", "yes", r"\text{Yes}"],
    [r"\emptyset", r"\varnothing", "∅"],
]


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_forms_of_one_answer_agree(forms: list[str]) -> None:
    named = {(answer.key, answer.unit) for answer in map(normalize_answer, forms)}
    assert len(named) == 1


def test_different_answers_differ() -> None:
    forms = [forms[0] for forms in SAME] + ["5 m", "5", "(1, 2)", "(2, 1)", "[1, 2)", "A", "x^2"]
    assert len({(answer.key, answer.unit) for answer in map(normalize_answer, forms)}) == len(forms)


@pytest.mark.parametrize(
    "pair",
    [("5x", "5"), ("6x^2", "6"), ("2i", "2"), ("2 sin x", "2"), ("2pi", "2"), ("2, 2, 3", "2, 3"),
     ("x = 1, y = 2", "x = 2, y = 1"), ("(0, 1)", "[0, 1]"), ("x > 2", r"x \ge 2"), ("Yes", "No"),
     ("12 cm^2", "12 cm^3"), ("1 3/4", "13/4"), (r"\begin{pmatrix}1&2\end{pmatrix}", "(1, 2)")],
)  # fmt: skip
def test_answers_that_only_look_alike_have_no_common_vote(pair: tuple[str, str]) -> None:
    ballot = Ballot()
    for text in pair:
        ballot.put(normalize_answer(text))
    assert len(ballot.groups) == 2


@pytest.mark.parametrize(
    ("given", "expected", "is_same"),
    [
        ("y = 3, x = 4", "(4, 3)", True),
        ("9√3", r"9\sqrt{3}", True),
        ("x² + 4", "x^2 + 4", True),
        ("2x", "2", False),
        ("[0, 1]", "(0, 1)", None),
        (r"(-\infty, 2]", r"x \le 2", None),
        (r"\{1 + \sqrt{2}, 1 - \sqrt{2}\}", r"1 \pm \sqrt{2}", True),
    ],
)
def test_an_answer_of_a_student_is_compared(
    given: str, expected: str, is_same: bool | None
) -> None:
    with Algebra() as algebra:
        found = is_same_answer(given, expected, lambda a, b: compare_formulas(a, b, algebra))
    assert found is is_same


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"Hence $x = \frac{3}{4}$.", r"\frac{3}{4}"),
        (r"The area is $12\text{ cm}^2$, as wanted.", r"12\text{ cm}^2"),
        (r"$x = 2$, so it is 7 at most.", "7"),
        ("The answer is **42**.", "42"),
        ("The correct option is **C**.", "C"),
        (r"So \boxed{3}, no: \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
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


def test_a_list_that_nests_deep_is_a_text() -> None:
    assert normalize_answer("(1, " * 240 + "2" + ")" * 240).kind == "text"


def test_boxes_that_a_model_opens_without_end_are_looked_at_once() -> None:
    """It took minutes while each of them began a search for its own end."""
    assert extract_answer(r"\boxed{3} " + r"\boxed{" * 100_000) == "3"


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
