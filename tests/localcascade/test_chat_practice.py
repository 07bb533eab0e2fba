"""The practice problems: each answer is worked out again, with SymPy, from the problem itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations, product
from typing import Any

import pytest
import sympy as sp

from localcascade.chat.checking import compare_answers
from localcascade.chat.conversation import Message
from localcascade.chat.lines import read_text
from localcascade.chat.markdown import Look, draw_markdown
from localcascade.chat.practice import filter_problems, find_problem, list_topics, load_problems
from localcascade.maths.algebra import Algebra

PROBLEMS = load_problems()
x, y, z, t, k, n = sp.symbols("x y z t k n")
p = sp.Symbol("p", positive=True)
R = sp.Rational


@pytest.fixture(scope="module")
def algebra() -> Iterator[Algebra]:
    with Algebra() as algebra:
        yield algebra


def solve(equation: Any, symbol: Any = x) -> list[Any]:
    return sorted(sp.solve(equation, symbol), key=sp.default_sort_key)


def real(equation: Any) -> list[Any]:
    return list(sp.solveset(equation, x, sp.S.Reals))


def system(equations: Any, *symbols: Any) -> tuple[Any, ...]:
    return tuple(*sp.linsolve(equations, *symbols))


def dice(n_dice: int, fits: Callable[[int], bool]) -> Any:
    throws = list(product(range(1, 7), repeat=n_dice))
    return R(sum(fits(sum(throw)) for throw in throws), len(throws))


def draw_two(n_red: int, n_blue: int) -> Any:
    balls = "r" * n_red + "b" * n_blue
    pairs = [a + b for a, b in permutations(balls, 2)]
    return R(pairs.count("rr"), len(pairs))


def ode(equation: Callable[[Any], Any], **ics: Any) -> Any:
    f = sp.Function("f")
    places = {"y0": f(0), "y1": f(1), "d0": f(x).diff(x).subs(x, 0)}
    return sp.dsolve(equation(f(x)), ics={places[key]: value for key, value in ics.items()}).rhs


def recur(first: int, step: Callable[[int], int], index: int) -> int:
    return first if index == 1 else step(recur(first, step, index - 1))


WORKED: Mapping[str, Callable[[], Any]] = {
    "arithmetic-1": lambda: 347 + 586 - 129,
    "arithmetic-2": lambda: 24 * 37,
    "arithmetic-3": lambda: 18 - 3 * (7 - 2) + R(8, 4),
    "arithmetic-4": lambda: 1000 % 37,
    "arithmetic-5": lambda: sp.gcd(252, 198),
    "arithmetic-6": lambda: (13 * 60 + 12) - (9 * 60 + 47),
    "fractions-1": lambda: R(2, 3) + R(3, 5),
    "fractions-2": lambda: R(5, 6) / R(10, 9),
    "fractions-3": lambda: R(3, 10) + sp.Sum(R(6, 100) * R(1, 10) ** k, (k, 0, sp.oo)).doit(),
    "fractions-4": lambda: 80 * R(125, 100) * R(80, 100),
    "fractions-5": lambda: (28 - R(3, 7) * 28) / 4,
    "fractions-6": lambda: solve(sp.Eq(3 * R(12, 100), (3 + x) * R(9, 100))),
    "equations-1": lambda: solve(sp.Eq(3 * x - 7, 2 * x + 5)),
    "equations-2": lambda: solve(sp.Eq(x / 3 + x / 4, 14)),
    "equations-3": lambda: solve(sp.Eq(5 * (x - 2), 2 * (x + 7))),
    "equations-4": lambda: system([2 * x + y - 11, x - y - 1], x, y),
    "equations-5": lambda: 3 * solve(sp.Eq(3 * x + 6, 2 * (x + 6)))[0],
    "equations-6": lambda: solve(sp.Eq(x + (x - 2) + (x - 4), 87)),
    "polynomials-1": lambda: solve(x**2 - 5 * x + 6),
    "polynomials-2": lambda: real(2 * x**2 + 3 * x - 2),
    "polynomials-3": lambda: solve(x**2 - 2 * x - 1),
    "polynomials-4": lambda: solve(sp.discriminant(x**2 + p * x + 9, x), p),
    "polynomials-5": lambda: sp.minimum(x**2 - 6 * x + 11, x),
    "polynomials-6": lambda: real(x**4 - 5 * x**2 + 4),
    "polynomials-7": lambda: sp.rem(x**3 - 2 * x**2 + 4 * x - 5, x - 2),
    "geometry-1": lambda: sp.sqrt(5**2 + 12**2),
    "geometry-2": lambda: max(solve(sp.Eq(x * (17 - x), 60))),
    "geometry-3": lambda: R(180 * (8 - 2), 8),
    "geometry-4": lambda: sp.Polygon((0, 0), (6, 0), (3, 3 * sp.sqrt(3))).area,
    "geometry-5": lambda: sp.integrate(sp.pi * (3 * (1 - t / 4)) ** 2, (t, 0, 4)),
    "geometry-6": lambda: sp.Point(1, 2).distance(sp.Point(7, 10)),
    "geometry-7": lambda: sp.simplify((2 * p) ** 3 / p**3),
    "powers-1": lambda: R(2**7 * 4**3, 8**2),
    "powers-2": lambda: sp.Integer(27) ** R(2, 3),
    "powers-3": lambda: sp.sqrt(50) - sp.sqrt(18),
    "powers-4": lambda: sp.simplify(sp.log(48, 2) - sp.log(3, 2)),
    "powers-5": lambda: real(sp.Eq(3 ** (2 * x - 1), 27)),
    "powers-6": lambda: real(sp.Eq(sp.exp(2 * x), 5)),
    "powers-7": lambda: [sp.log(root, 2) for root in solve(p**2 - 6 * p + 8, p)],
    "trigonometry-1": lambda: sp.sin(sp.pi / 3) * sp.cos(sp.pi / 6),
    "trigonometry-2": lambda: sp.tan(sp.asin(R(3, 5))),
    "trigonometry-3": lambda: sp.cos(sp.pi / 12),
    "trigonometry-4": lambda: sp.sqrt(7**2 + 8**2 - 2 * 7 * 8 * sp.cos(sp.pi / 3)),
    "trigonometry-5": lambda: sp.solveset(2 * sp.sin(x) - 1, x, sp.Interval.Ropen(0, 2 * sp.pi)),
    "trigonometry-6": lambda: sp.simplify(sp.sin(2 * x) / (2 * sp.sin(x))),
    "sequences-1": lambda: sum(range(1, 101)),
    "sequences-2": lambda: 4 + 19 * R(31 - 4, 9),
    "sequences-3": lambda: sum(2**i for i in range(10)),
    "sequences-4": lambda: sp.Sum(R(1, 3) ** k, (k, 0, sp.oo)).doit(),
    "sequences-5": lambda: sum(R(1, i * (i + 1)) for i in range(1, 100)),
    "sequences-6": lambda: recur(2, lambda a: 3 * a - 1, 5),
    "probability-1": lambda: len(list(permutations(range(5)))),
    "probability-2": lambda: sp.binomial(8, 3),
    "probability-3": lambda: dice(2, lambda total: total == 8),
    "probability-4": lambda: R(sum(sum(c) == 2 for c in product((0, 1), repeat=4)), 16),
    "probability-5": lambda: len(set(permutations("BANANA"))),
    "probability-6": lambda: draw_two(4, 6),
    "probability-7": lambda: R(1 * 90, 1 * 90 + 99 * 5),
    "limits-1": lambda: sp.limit((x**2 - 4) / (x - 2), x, 2),
    "limits-2": lambda: sp.limit(sp.sin(3 * x) / x, x, 0),
    "limits-3": lambda: sp.limit((3 * n**2 + n) / (2 * n**2 - 5), n, sp.oo),
    "limits-4": lambda: sp.limit((1 - sp.cos(x)) / x**2, x, 0),
    "limits-5": lambda: sp.limit((1 + 2 / n) ** n, n, sp.oo),
    "limits-6": lambda: sp.limit(sp.sqrt(n**2 + n) - n, n, sp.oo),
    "derivatives-1": lambda: sp.diff(3 * x**4 - 5 * x**2 + 7, x),
    "derivatives-2": lambda: sp.diff(x**2 * sp.exp(x), x),
    "derivatives-3": lambda: sp.diff(sp.log(1 + x**2), x),
    "derivatives-4": lambda: sp.simplify(sp.diff(x / (x + 1), x)),
    "derivatives-5": lambda: sp.diff(sp.sin(x**2), x),
    "derivatives-6": lambda: sp.diff(x**3 - 2 * x, x).subs(x, 2),
    "derivatives-7": lambda: solve(sp.diff(p + 4 / p, p), p),
    "derivatives-8": lambda: sp.maximum(x * (10 - x), x),
    "integrals-1": lambda: sp.integrate(3 * x**2 + 1, (x, 0, 2)),
    "integrals-2": lambda: sp.integrate(sp.sin(x), (x, 0, sp.pi)),
    "integrals-3": lambda: sp.integrate(1 / x, (x, 1, sp.E)),
    "integrals-4": lambda: sp.integrate(x * sp.exp(x), (x, 0, 1)),
    "integrals-5": lambda: sp.integrate(x * sp.cos(x), x),
    "integrals-6": lambda: sp.integrate(x - x**2, (x, 0, 1)),
    "integrals-7": lambda: sp.integrate(1 / (1 + x**2), (x, 0, 1)),
    "linear-1": lambda: sp.Matrix([[3, 1], [4, 2]]).det(),
    "linear-2": lambda: sp.Matrix([[1, 2, 0], [0, 1, 3], [2, 0, 1]]).det(),
    "linear-3": lambda: list(sp.Matrix([[2, 1], [1, 2]]).eigenvals()),
    "linear-4": lambda: sp.Matrix([1, -2, 3]).dot(sp.Matrix([4, 0, 5])),
    "linear-5": lambda: tuple(sp.Matrix([1, 0, 2]).cross(sp.Matrix([0, 3, 1]))),
    "linear-6": lambda: sp.Matrix([[1, 2, 3], [2, 4, 6], [1, 0, 1]]).rank(),
    "linear-7": lambda: solve(sp.Matrix([1, 2, t]).dot(sp.Matrix([3, -1, 1])), t),
    "linear-8": lambda: system([x + y + z - 6, x - y + 1, 2 * x - z + 1], x, y, z),
    "complex-1": lambda: sp.expand((2 + 3 * sp.I) * (1 - sp.I)),
    "complex-2": lambda: sp.Abs(3 - 4 * sp.I),
    "complex-3": lambda: sp.I**2026,
    "complex-4": lambda: sp.re(1 / (1 + sp.I)),
    "differential-1": lambda: ode(lambda f: sp.Eq(f.diff(x), 3 * f), y0=2),
    "differential-2": lambda: ode(lambda f: sp.Eq(f.diff(x), 2 * x), y1=5),
    "differential-3": lambda: ode(lambda f: sp.Eq(f.diff(x), -f + 1), y0=0),
    "differential-4": lambda: ode(lambda f: sp.Eq(f.diff(x, 2) + f, 0), y0=0, d0=3),
}


def write_latex(value: Any) -> str:
    """Write what SymPy found as a student would: solutions with commas, points in brackets."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(write_latex, value)) + ")"
    if isinstance(value, list | sp.FiniteSet):
        return ", ".join(map(write_latex, value))
    return str(sp.latex(sp.sympify(value), ln_notation=True))


def test_there_are_enough_of_all_kinds() -> None:
    assert len(PROBLEMS) >= 60 and len(list_topics(PROBLEMS)) >= 10
    assert len({problem.id for problem in PROBLEMS}) == len(PROBLEMS)
    assert len({problem.text for problem in PROBLEMS}) == len(PROBLEMS)
    assert Counter(problem.level for problem in PROBLEMS).keys() == {
        "school", "upper school", "first year",
    }  # fmt: skip
    assert WORKED.keys() == {problem.id for problem in PROBLEMS}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_every_answer_is_right(algebra: Algebra, problem: Any) -> None:
    worked = write_latex(WORKED[problem.id]())
    assert compare_answers(worked, problem.answer, algebra) == "right", worked


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_no_other_number_is_right(algebra: Algebra, problem: Any) -> None:
    assert compare_answers("123456.75", problem.answer, algebra) == "wrong"


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_every_formula_is_laid_out(problem: Any) -> None:
    shown = read_text(draw_markdown(problem.text, Look(100)))
    assert "$" not in shown and "\\" not in shown


def test_problems_are_found_by_words() -> None:
    assert {p.topic for p in filter_problems(PROBLEMS, "deriv")} == {"Derivatives"}
    assert {p.level for p in filter_problems(PROBLEMS, "FIRST year")} == {"first year"}
    assert filter_problems(PROBLEMS, "") == list(PROBLEMS)
    assert filter_problems(PROBLEMS, "geometry eigenvalues") == []


def test_the_last_problem_of_a_path_is_the_one_that_is_practised() -> None:
    first, second = PROBLEMS[0], PROBLEMS[30]
    path = [
        Message("1", None, "user", first.text),
        Message("2", "1", "assistant", second.text),
        Message("3", "2", "user", "What now?"),
    ]
    assert find_problem(path) is first
    assert find_problem([*path, Message("4", "3", "user", second.text)]) is second
    assert find_problem(path[1:]) is None


@pytest.mark.parametrize(
    ("given", "expected", "verdict"),
    [
        ("sqrt(2)", r"\sqrt{2}", "right"),
        ("3/4", "0.75", "right"),
        ("x = 2", "2", "right"),
        ("3, 2", "2, 3", "right"),
        ("x = 2 or x = 3", "2, 3", "right"),
        ("2", "2, 3", "wrong"),
        ("2, 4", "2, 3", "wrong"),
        (r"1-sqrt(2), 1+sqrt(2)", r"1 + \sqrt{2}, 1 - \sqrt{2}", "right"),
        ("(1, 2)", "(1, 2)", "right"),
        ("(2, 1)", "(1, 2)", "wrong"),
        ("2x(x + 1)", "2x^2 + 2x", "right"),
        ("2x^2 + x", "2x^2 + 2x", "wrong"),
        ("x^3/3", "x^3/3 + C", "right"),
        ("x^3/3 + c", "x^3/3 + C", "right"),
        ("x^2/3 + C", "x^3/3 + C", "wrong"),
        ("5 m", "5", "right"),
        ("I do not know, perhaps 3", "2, 3", "not checked"),
        ("no idea", "5", "not checked"),
        ("", "5", "not checked"),
    ],
)
def test_a_students_answer_is_compared(
    algebra: Algebra, given: str, expected: str, verdict: str
) -> None:
    assert compare_answers(given, expected, algebra) == verdict


def test_numbers_are_compared_without_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localcascade.maths.algebra.find_spec", lambda name: None)
    with Algebra() as algebra:
        assert compare_answers("6/8", r"\frac{3}{4}", algebra) == "right"
        assert compare_answers("7/8", r"\frac{3}{4}", algebra) == "wrong"
        assert compare_answers("x(x + 1)", "x^2 + x", algebra) == "not checked"
        assert compare_answers("x^2 + x", "x^2+x", algebra) == "right"
