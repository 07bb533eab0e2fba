"""Are the steps right? Each equality of a text, and its final answer, as far as we can tell.

"Wrong" is said only where nothing else can be meant: between numbers, or between expressions of
letters that nothing in the text pins down. An equation to be solved is not a claim.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from localcascade.maths.algebra import Algebra
from localcascade.maths.expressions import Tree, find_symbols, parse_lexemes, substitute
from localcascade.maths.lexemes import Lexeme, Unreadable, read_lexemes
from localcascade.maths.segments import find

Verdict = Literal["right", "wrong", "not checked"]

MAX_STEPS = 200
CHECK_LIMIT_S = 20.0

_ALIGNED = r"(?:align|aligned|equation|gather|gathered|split|multline)\*?"
_TOKEN = re.compile(
    rf"\\(?:begin|end)\s*\{{{_ALIGNED}\}}|\\(?:text|mbox|tag)\s*\{{[^{{}}]*\}}|\\\\(?:\[[^\]]*\])?"
    r"|\\[A-Za-z]+|\\.|.",
    re.DOTALL,
)
_BREAKS = frozenset(
    [r"\implies", r"\Rightarrow", r"\iff", r"\Leftrightarrow", r"\quad", r"\qquad", r"\to", ";",
     r"\le", r"\leq", r"\ge", r"\geq", r"\ne", r"\neq", r"\equiv", r"\in", "<", ">", "≤", "≥", "≠",
     r"\Longrightarrow", r"\rightarrow", r"\sim", r"\propto", r"\mid", r"\,,", "⇒", "→"]
)  # fmt: skip
_NEAR = frozenset([r"\approx", r"\simeq", "≈"])
_PLAIN = re.compile(
    r"(?<![\w.])[\d(][\d.,()+*/^×·÷−\s-]*(?:[=≈][\d.,()+*/^×·÷−\s-]*\d\)?)+(?![\w^])"
)
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
class _Link:
    left: str
    right: str
    stop: int
    is_near: bool


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

    links = list(_find_links(text))[:MAX_STEPS]
    pinned = _find_pinned([*links, *_find_links(problem)])
    hedges = bool(_UNTRUE.search(text))

    def mark(link: _Link) -> Step:
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
        return _judge(_Link(formula, answer, 0, False), algebra, frozenset(), hedges=False)
    links = list(_find_links(problem))
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


def _judge(link: _Link, algebra: Algebra, pinned: frozenset[str], hedges: bool) -> Verdict:
    left, right = _read_side(link.left), _read_side(link.right)
    if left is None or right is None:
        return "not checked"
    is_same = algebra.compare(left.tree, right.tree, _choose_tolerance(left, right, link.is_near))
    if is_same:
        return "right"
    is_claim = left.symbols == right.symbols and not left.symbols & pinned
    return "wrong" if is_same is False and is_claim and not hedges else "not checked"


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


def _find_pinned(links: Sequence[_Link]) -> frozenset[str]:
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


def _find_links(text: str) -> Iterator[_Link]:
    """Every equality, in formulas and in plain arithmetic between them."""
    at = 0
    for segment in find(text):
        if segment.is_maths:
            start = at + max(segment.source.find(segment.latex), 0)
            yield from _split_chains(segment.latex, start)
        else:
            for match in _PLAIN.finditer(segment.source):
                yield from _split_chains(match[0], at + match.start())
        at += len(segment.source)


def _split_chains(latex: str, start: int) -> Iterator[_Link]:
    """Cut a formula at its relations; a row that begins with one goes on with the row above."""
    left, begin, sign, depth = "", 0, "", 0
    for at, stop, token in [*_scan(latex), (len(latex), len(latex), "")]:
        depth += (token in ("{", "(", "[", r"\{")) - (token in ("}", ")", "]", r"\}"))
        is_row = token.startswith("\\\\") or token.startswith((r"\begin", r"\end"))
        is_relation = token == "=" or token in _NEAR
        is_break = token in _BREAKS or token.startswith((r"\text", r"\mbox", r"\tag"))
        is_comma = token == "," and not re.match(r",\d{3}(?!\d)", latex[at:])
        if token and (depth > 0 or not (is_row or is_relation or is_break or is_comma)):
            continue
        side = latex[begin:at].replace("&", " ").strip().rstrip(".")
        if side and sign and left:
            yield _Link(left, side, start + at, sign in _NEAR)
        left, begin = side or left, stop
        if is_relation:
            sign = token
        elif is_row:
            sign = ""
        else:
            left, sign = "", ""


def _scan(latex: str) -> Iterator[tuple[int, int, str]]:
    for match in _TOKEN.finditer(latex):
        yield match.start(), match.end(), match[0]
