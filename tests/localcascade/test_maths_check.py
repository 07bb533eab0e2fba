"""Steps are marked right or wrong only where that is certain; nothing hostile gets through."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest

from localcascade.maths.algebra import Algebra
from localcascade.maths.check import check_answer, check_steps
from localcascade.maths.equalities import find_equalities
from localcascade.maths.expressions import evaluate_exactly, find_symbols, parse_expression
from localcascade.maths.lexemes import Unreadable
from tests.localcascade.idleness import LIMIT_S


@pytest.fixture(scope="module")
def algebra() -> Iterator[Algebra]:
    with Algebra() as algebra:
        yield algebra


def mark(algebra: Algebra, text: str) -> list[str]:
    return [step.verdict for step in check_steps(text, algebra)]


RIGHT = [
    "457 + 385 = 842",
    r"$(x+1)^2 = x^2 + 2x + 1$",
    r"$\sqrt{8} = 2\sqrt2$",
    r"$\int_0^1 x^2\,dx = \frac13$",
    r"$\int_0^1 \frac{dx}{1 + x^2} = \frac{\pi}{4}$",
    r"$\int_0^1 \frac{2x\,dx}{1 + x^2} = \ln 2$",
    r"$\int x^2\,dx = \frac{x^3}{3} + C$",
    r"$\frac{d}{dx}(x^3 + \sin x) = 3x^2 + \cos x$",
    r"$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$",
    r"$\lim_{x \to 0} \frac{\sin x}{x} = 1$",
    r"$\sin^2 x + \cos^2 x = 1$".replace("= 1", r"= \cos^2 x + \sin^2 x"),
    r"$\log_2 8 = 3$",
    r"$\binom{10}{3} = 120$",
    r"$\sqrt[3]{-8} = -2$",
    r"$\frac{2}{3} \approx 0.67$",
    r"$1\frac{1}{2} = 1.5$",
    r"$10\,000 = 10^4$",
    "-3 + 5 = 2",
    "- -3 + 5 = 2",
    "1. 2 + 3 = 5",
    "12) -2 + 3 = 1",
    "**x = −3 + 5 = 2**",
    r"$\text{area} = 4 \cdot 3 = 12\text{ cm}^2$",
    r"$\text{so } 2 + 3 = 5\text{ apples}$",
    r"$1 - 5\% = 0.95$",
]
WRONG = [
    "457 + 385 = 843",
    r"$(x+1)^2 = x^2 + 1$",
    r"$\frac{d}{dx} x^3 = 3x$",
    r"$\frac12 + \frac13 = \frac25$",
    r"$\int_0^1 \frac{dx}{1 + x^2} = \frac{\pi}{2}$",
    r"$\int x\,dx = x^2 + x$",
    r"$\cos 0 = 0$",
    r"$\frac23 \approx 0.76$",
    "Then 3 = 4",
    r"$\sqrt{x^2 + 1} = x + 1$",
]
UNKNOWN = [
    r"$2x + 3 = 7$",
    r"$x^2 = x + 1$ has the roots $x = a$",
    r"$f(x) = x^2$",
    r"Suppose $1 = 0$, a contradiction",
    r"$x = \pm 2$",
    r"$y' = y$",
    r"$\begin{pmatrix}1\\2\end{pmatrix} = 3$",
    r"$\sin^{-1} x = x$",
    r"$\text{area} = 12$",
    "x + 3 = 7 and 3 * x + 4 = 10",
    "50% of 80 = 40, and 1/4 = 25%",
    "√16 = 4, sin 30 = 0.5, log 100 = 2, at 12:30 = 12.5",
    "The GCD of 12 and 18 = 6; the primes below 10 = 4",
    "22 / 7 = 3 R 1 and 22 / 7 = 3 remainder 1, 7 % 2 = 1",
    "17 = 2 (mod 5), 3 * 4 = 24 / x",
    r"$30\%$ of $50 = 15$, $22 / 7 = 3$ remainder $1$",
    r"$15 = 30\% \text{ of } 50$, $12 \div 5 = 2 \text{ remainder } 2$",
    r"$5\text{ boxes} + 4 = 9$",
    r"$80 - 20\% = 64$",
    r"$(1 + i)^2 = 2i$",
    r"$\cos 60 = 0.5$",
    r"$\sqrt{x^2} = -x$ where $x < 0$",
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_is_marked_so(algebra: Algebra, text: str) -> None:
    assert mark(algebra, text) == ["right"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_marked_so(algebra: Algebra, text: str) -> None:
    assert mark(algebra, text) == ["wrong"]


@pytest.mark.parametrize("text", UNKNOWN)
def test_equations_and_what_can_be_read_in_two_ways_are_left_alone(
    algebra: Algebra, text: str
) -> None:
    assert set(mark(algebra, text)) <= {"not checked"}


def test_a_chain_over_several_rows_is_marked_link_by_link(algebra: Algebra) -> None:
    text = (
        r"\begin{aligned} \frac12 + \frac13 &= \frac{3+2}{6} \\ &= \frac57 "
        r"\\ &\approx 0.71 \end{aligned}"
    )
    steps = check_steps(text, algebra)
    assert [step.verdict for step in steps] == ["right", "wrong", "right"]
    assert [text[: step.stop].rstrip()[-1] for step in steps] == ["}", "7", "1"]


def test_a_chain_of_plain_arithmetic_is_marked_link_by_link(algebra: Algebra) -> None:
    assert mark(algebra, "2 + 2 = 2 * 2 = 5 and 3*4 = 12, 12 - 5 = 7.") == [
        "right", "wrong", "right", "right",
    ]  # fmt: skip


def test_an_equation_of_the_problem_is_no_claim(algebra: Algebra) -> None:
    assert [s.verdict for s in check_steps("$x^2 = 2x$", algebra)] == ["wrong"]
    given = check_steps("$x^2 = 2x$", algebra, "Find x so that $x^2 - 2x = 0$.")
    assert [step.verdict for step in given] == ["not checked"]


@pytest.mark.parametrize(
    ("problem", "answer", "verdict"),
    [
        ("What is 457 + 385?", "842", "right"),
        ("What is 457 + 385?", "841", "wrong"),
        ("What is 457 + 385?", "457 + 385 = 842", "right"),
        (r"Compute $\frac12 + \frac13$.", r"\frac{5}{6}", "right"),
        ("Solve $2x + 3 = 7$.", "2", "right"),
        ("Solve $2x + 3 = 7$.", "x = 3", "wrong"),
        ("Find all x with $x^2 = 4$.", "x = 2, x = -2", "right"),
        ("How many primes are below 100?", "25", "not checked"),
    ],
)
def test_the_answer_of_a_calculation_is_checked(
    algebra: Algebra, problem: str, answer: str, verdict: str
) -> None:
    assert check_answer(problem, answer, algebra) == verdict


HOSTILE = [
    "$9^{9^{9^{9}}} = 1$",
    "$99999! = 1$",
    "$((((5!)!)!)!)! = 1$",
    r"$\sum_{k=1}^{1000000000} k^k = 1$",
    r"$\int_0^1 \sin(\cos(\exp(\sin(x^{x^x}))))^{\frac{1}{7}}\,dx = 7$",
    "$" + "(" * 500 + "x" + ")" * 500 + " = 1$",
    "$" + r"\sin " * 400 + "x = 1$",
    "$" + "-" * 3000 + "1 = 7$",
    "$" + "{" * 200 + "1" + "}" * 200 + " = 1$",
    r"$\frac{1}{0} = 1$",
    "$" + "9" * 5000 + " = 1$",
    "$__import__('os').system('touch hacked') = 1$",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_formulas_end_as_not_checked(home: object, text: str) -> None:
    with Algebra(limit_s=0.5) as algebra:
        assert set(mark(algebra, text)) <= {"not checked"}
        assert mark(algebra, "$2 + 2 = 4$") == ["right"]


def test_long_runs_of_numbers_are_looked_at_once() -> None:
    """Each of these took many minutes while every number began a search of its own."""
    for text in ("1 + " * 100_000, "1 " * 100_000 + "= x", "(1" * 100_000):
        assert not list(find_equalities(text))


def test_a_slow_question_is_given_up_and_the_next_one_is_answered() -> None:
    slow = parse_expression(r"\sum_{k=1}^{1000000000} k^k")
    with Algebra() as algebra:
        algebra.compare(parse_expression("x"), parse_expression("y"))
        algebra._limit_s = 0.3
        assert algebra.compare(slow, parse_expression("1")) is None  # and not in many years
        algebra._limit_s = LIMIT_S
        assert algebra.compare(parse_expression("x + x"), parse_expression("2x")) is True


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("2^10", 1024),
        ("-2^2", -4),
        ("1,234.5", Fraction(2469, 2)),
        (r"\frac{3}{4} \cdot 8", 6),
        ("50\\%", Fraction(1, 2)),
        ("2*(3 + 4)", 14),
        ("8 : 2", 4),
    ],
)
def test_numbers_are_read_exactly(latex: str, value: Fraction) -> None:
    assert evaluate_exactly(parse_expression(latex)) == value


def test_what_a_sum_binds_is_not_a_symbol() -> None:
    assert find_symbols(parse_expression(r"\sum_{i=1}^{n} i x_i".replace("x_i", "x"))) == {"n", "x"}


@pytest.mark.parametrize(
    "latex", ["f(x)", "3 4", "9^9^9", "a/bc", r"\log 5", r"x'", "", "1 +", "x(y)"]
)
def test_what_has_two_meanings_or_none_is_refused(latex: str) -> None:
    with pytest.raises(Unreadable):
        parse_expression(latex)
