"""Are the steps right? Each equality of a text, and its final answer, as far as we can tell.

"Wrong" is said only where nothing else can be meant: between numbers, or between expressions of
letters that nothing in the text pins down. An equation to be solved is not a claim.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from localcascade.maths.algebra import Algebra
from localcascade.maths.equalities import Equality, find_equalities
from localcascade.maths.expressions import Tree, find_symbols, parse_lexemes, substitute
from localcascade.maths.lexemes import Lexeme, Unreadable, read_lexemes

Verdict = Literal["right", "wrong", "not checked"]

MAX_STEPS = 200
CHECK_LIMIT_S = 20.0

_UNTRUE = re.compile(r"contradict|impossible|no solution|absurd|is false|not true", re.IGNORECASE)
_ASKED = re.compile(
    r"\s*(?:what is|compute|calculate|evaluate|work out|find|determine)?\s*(?:the value of)?\s*"
    r"(?P<formula>[^A-Za-z?]*\d[^A-Za-z?]*?|\$[^$?]+\$|\\\(.+?\\\))\s*[=]?\s*[.?]?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One equality of a text."""

    left: str
    right: str
    """Its sides, in LaTeX."""
    stop: int
    """Where its right side ends in the text: characters before that."""
    verdict: Verdict
    is_near: bool = False
    """Whether it says "about equal"."""


@dataclass(frozen=True, slots=True)
class _Side:
    tree: Tree
    symbols: frozenset[str]
    places: int | None
    """Decimal places, where the side is one decimal number."""


def check_steps(
    text: str, algebra: Algebra, problem: str = "", limit_s: float = CHECK_LIMIT_S
) -> list[Step]:
    """Mark the equalities of a text.

    Args:
        text: Markdown with formulas, or plain arithmetic.
        algebra: What compares.
        problem: What the text is the solution of: its equations are given, not claimed.
        limit_s: Seconds after which no further step is begun; the rest is not checked.

    Returns:
        A step for each equality, in order; at most MAX_STEPS.
    """
    end_s = time.monotonic() + limit_s

    links = list(find_equalities(text))[:MAX_STEPS]
    pinned = _find_pinned([*links, *find_equalities(problem)])
    hedges = bool(_UNTRUE.search(text))

    def mark(link: Equality) -> Step:
        in_time = time.monotonic() < end_s
        verdict = _judge(link, algebra, pinned, hedges) if in_time else "not checked"
        return Step(link.left, link.right, link.stop, verdict, link.is_near)

    return [mark(link) for link in links]


def check_answer(problem: str, answer: str, algebra: Algebra) -> Verdict:
    """Say whether an answer is right, for problems that are a calculation or one equation.

    Args:
        problem: As it was asked: "What is 347 + 586?", "Solve $2x + 3 = 7$."
        answer: In LaTeX, without the words around it; solutions with commas between.
        algebra: What compares.

    Returns:
        The verdict. Solutions are right if they solve the equation, even if others were missed.
        "Not checked" for every other kind of problem.
    """
    if match := _ASKED.fullmatch(problem):
        formula = re.sub(r"^(?:\$|\\\()|(?:\$|\\\))$", "", match["formula"].strip()).strip(" =.")
        claim = Equality(formula, answer.rpartition("=")[2], 0, False)
        return _judge(claim, algebra, frozenset(), hedges=False)
    links = list(find_equalities(problem))
    sides = [_read_side(side) for link in links for side in (link.left, link.right)]
    if len(links) != 1 or sides[0] is None or sides[1] is None:
        return "not checked"
    symbols = sides[0].symbols | sides[1].symbols
    if len(symbols) != 1:
        return "not checked"
    return _try_solutions(sides[0].tree, sides[1].tree, next(iter(symbols)), answer, algebra)


def compare_formulas(one: str, other: str, algebra: Algebra) -> bool | None:
    """Say whether two formulas in LaTeX are equal; None where that is not known."""
    sides = _read_side(one), _read_side(other)
    if sides[0] is None or sides[1] is None:
        return None
    return algebra.compare(sides[0].tree, sides[1].tree)


def _try_solutions(left: Tree, right: Tree, name: str, answer: str, algebra: Algebra) -> Verdict:
    """Put each solution into an equation."""
    found: list[bool | None] = []
    for part in re.split(r",|\\text\s*\{[^{}]*\}|\bor\b|\band\b", answer):
        side = _read_side(part.split("=")[-1])
        if side is None or side.symbols:
            return "not checked"
        one, other = (substitute(tree, name, side.tree) for tree in (left, right))
        found.append(algebra.compare(one, other))
    if None in found:
        return "not checked"
    return "right" if all(found) else "wrong"


def _judge(link: Equality, algebra: Algebra, pinned: frozenset[str], hedges: bool) -> Verdict:
    left, right = _read_side(link.left), _read_side(link.right)
    if left is None or right is None:
        return "not checked"
    is_same = algebra.compare(left.tree, right.tree, _choose_tolerance(left, right, link.is_near))
    if is_same:
        return "right"
    if is_same is None or hedges or not _is_claim(left, right, pinned):
        return "not checked"
    return "not checked" if _holds_below_zero(left, right, algebra) else "wrong"


def _is_claim(left: _Side, right: _Side, pinned: frozenset[str]) -> bool:
    """Whether two sides are meant to be equal for all numbers; i may be the imaginary unit."""
    return left.symbols == right.symbols and not left.symbols & (pinned | {"i"})


def _holds_below_zero(left: _Side, right: _Side, algebra: Algebra) -> bool:
    """Whether two sides are equal for negative numbers at least, as |x| and -x are."""
    if not left.symbols:
        return False
    one, other = left.tree, right.tree
    for name in left.symbols:
        minus: Tree = ("multiply", ("number", -1, 1), ("symbol", name))
        one, other = substitute(one, name, minus), substitute(other, name, minus)
    return algebra.compare(one, other) is not False


def _read_side(latex: str) -> _Side | None:
    try:
        lexemes = read_lexemes(latex)
        tree = parse_lexemes(lexemes)
    except Unreadable:
        return None
    return _Side(tree, find_symbols(tree), _find_places(lexemes))


def _find_places(lexemes: Sequence[Lexeme]) -> int | None:
    rest = [word for word in lexemes if word.text not in ("-", "+", "%")]
    return rest[0].places if len(rest) == 1 else None


def _choose_tolerance(left: _Side, right: _Side, is_near: bool) -> Fraction:
    """One in the last place of a decimal number, for it may be rounded or cut off."""
    places = [side.places for side in (left, right) if side.places is not None]
    if not places:
        return Fraction(1, 2) if is_near else Fraction(0)
    return Fraction(1, 10 ** max(places)) if is_near or max(places) > 1 else Fraction(0)


def _find_pinned(links: Sequence[Equality]) -> frozenset[str]:
    """The letters of which something particular is said: x = 2, or 2x + 3 = 7."""
    pinned: frozenset[str] = frozenset()
    for link in links:
        sides = [_read_side(link.left), _read_side(link.right)]
        if None in sides:
            continue
        known = [side for side in sides if side is not None]
        is_lone = any(side.tree[0] == "symbol" for side in known)
        if is_lone or known[0].symbols != known[1].symbols:
            pinned = pinned.union(*(side.symbols for side in known))
    return pinned
