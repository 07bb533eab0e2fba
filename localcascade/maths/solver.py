"""The process that runs SymPy: a pair of trees a line in, same | different | unknown out.

It builds expressions from trees and never reads text as code. Its limits of memory and processor
time are set before the first question; its parent ends it when an answer takes too long.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

MAX_MEMORY_BYTES = 1 << 30
MAX_CPU_S = 60
MAX_EXPONENT = 2000
MAX_POWER_BITS = 20_000
MAX_FACTORIAL = 1000
N_DIGITS = 50
N_POINTS = 5

Expression = Any
"""An expression of SymPy, which has no types."""

_REALS = ("0.3713", "0.8129", "1.4337", "2.2939", "3.7171")
_WHOLES = ("2", "3", "5", "6", "8")
_FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "log",
)  # fmt: skip
_COUNTING: Final = frozenset(["factorial", "binomial", "sum", "product"])


class TooLarge(ValueError):
    """A number that nobody needs in a formula."""


def main() -> None:
    """Answer questions until stdin ends."""
    import sympy  # noqa: F401  so that the first question is not slower than the others

    _limit_itself()
    _tell("ready")
    for line in sys.stdin.buffer:
        left, right, tolerance = json.loads(line)
        try:
            _tell(compare(left, right, Fraction(tolerance)))
        except Exception:  # whatever SymPy stumbles over is not checked
            _tell("unknown")


def _limit_itself() -> None:
    import resource

    for kind, most in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, MAX_CPU_S)):
        with suppress(OSError, ValueError):  # macOS knows no limit of address space
            resource.setrlimit(kind, (most, most))


def _tell(word: str) -> None:
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


def compare(left: Sequence[Any], right: Sequence[Any], tolerance: Fraction) -> str:
    """Compare two trees of localcascade.maths.expressions.

    Args:
        left: One.
        right: The other.
        tolerance: What their values may differ by.

    Returns:
        same, different or unknown.
    """
    import sympy

    one, other = build(left), build(right)
    if name := _find_integrated(left) or _find_integrated(right):
        variable = sympy.Symbol(name, positive=True)
        one, other = sympy.diff(one, variable), sympy.diff(other, variable)
    verdicts = [
        verdict
        for point in _choose_points(one, other, _counts(left) or _counts(right))
        if (verdict := _compare_at(one, other, point, tolerance)) is not None
    ]
    if False in verdicts:
        return "different"
    needed = 3 if one.free_symbols | other.free_symbols else 1
    if len(verdicts) >= needed:
        return "same"
    return "same" if sympy.simplify(one - other) == 0 else "unknown"


def _choose_points(
    one: Expression, other: Expression, counts: bool
) -> list[list[tuple[Expression, Expression]]]:
    """Values for the symbols, none of them special; whole numbers where things are counted."""
    import sympy

    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if not symbols:
        return [[]]
    values = [sympy.Rational(text) for text in (_WHOLES if counts else _REALS)]
    step = sympy.Integer(1) if counts else sympy.Rational(17, 101)
    return [
        [(symbol, values[at] + step * number) for number, symbol in enumerate(symbols)]
        for at in range(N_POINTS)
    ]


def _compare_at(
    one: Expression,
    other: Expression,
    point: Sequence[tuple[Expression, Expression]],
    tolerance: Fraction,
) -> bool | None:
    """Compare at a point; None where a value is missing, infinite or not real."""
    import sympy

    left, right = (sympy.N(side.subs(point), N_DIGITS) for side in (one, other))
    if left == right and left in (sympy.oo, -sympy.oo):
        return True
    if not all(side.is_Float or side.is_Integer or side.is_Rational for side in (left, right)):
        return None
    scale = max(sympy.Integer(1), abs(left), abs(right))
    allowed = sympy.Rational(tolerance.numerator, tolerance.denominator)
    return bool(abs(left - right) <= allowed + scale * sympy.Rational(1, 10**40))


def _counts(tree: Sequence[Any]) -> bool:
    inside = any(_counts(part) for part in tree[1:] if isinstance(part, list | tuple))
    return inside or tree[0] in _COUNTING


def _find_integrated(tree: Sequence[Any]) -> str:
    """The variable of an integral without bounds, whose value is known up to a constant."""
    if tree[0] == "integral":
        return str(tree[2])
    parts = (part for part in tree[1:] if isinstance(part, list | tuple))
    return next((name for part in parts if (name := _find_integrated(part))), "")


def build(tree: Sequence[Any]) -> Expression:
    """Make an expression of SymPy.

    Args:
        tree: See localcascade.maths.expressions.

    Raises:
        TooLarge: A power or a factorial would have too many digits.
    """
    import sympy

    kind, *parts = tree
    if kind == "number":
        return sympy.Rational(parts[0], parts[1])
    if kind == "symbol":
        return sympy.Symbol(parts[0], positive=True)
    if kind == "constant":
        return {"pi": sympy.pi, "e": sympy.E, "oo": sympy.oo}[parts[0]]
    if kind == "call":
        return _call(parts[0], [build(part) for part in parts[1:]])
    return _BUILDERS[kind](
        *(
            build(part) if isinstance(part, list | tuple) else sympy.Symbol(part, positive=True)
            for part in parts
        )
    )


def _call(name: str, arguments: Sequence[Expression]) -> Expression:
    import sympy

    short = name.replace("arc", "a") if name.startswith("arc") else name
    if short not in _FUNCTIONS:
        raise ValueError(name)
    return getattr(sympy, short)(*arguments)


def _raise(base: Expression, exponent: Expression) -> Expression:
    import sympy

    if base.is_number and exponent.is_number:
        size = abs(float(sympy.N(exponent)))
        bits = max(len(str(base)) * 4, 1)
        if size > MAX_EXPONENT or size * bits > MAX_POWER_BITS:
            raise TooLarge
        if base.is_negative and not exponent.is_integer:  # the real root, as at school
            if exponent.is_Rational and exponent.q % 2:
                return (-1) ** exponent.p * (-base) ** exponent
            raise TooLarge
    return base**exponent


def _factorial(number: Expression) -> Expression:
    import sympy

    if number.is_number and not (number.is_integer and 0 <= number <= MAX_FACTORIAL):
        raise TooLarge
    return sympy.factorial(number)


def _binomial(number: Expression, chosen: Expression) -> Expression:
    import sympy

    if any(part.is_number and not abs(part) <= MAX_FACTORIAL for part in (number, chosen)):
        raise TooLarge
    return sympy.binomial(number, chosen)


def _add_up(body: Expression, name: Expression, low: Expression, high: Expression) -> Expression:
    import sympy

    return sympy.Sum(body, (name, low, high)).doit()


def _multiply_up(
    body: Expression, name: Expression, low: Expression, high: Expression
) -> Expression:
    import sympy

    return sympy.Product(body, (name, low, high)).doit()


def _find_area(body: Expression, name: Expression, *bounds: Expression) -> Expression:
    import sympy

    return sympy.Integral(body, (name, *bounds))


def _find_limit(body: Expression, name: Expression, target: Expression) -> Expression:
    import sympy

    return sympy.limit(body, name, target)


def _add(*parts: Expression) -> Expression:
    import sympy

    return sympy.Add(*parts)


def _multiply(*parts: Expression) -> Expression:
    import sympy

    return sympy.Mul(*parts)


def _differentiate(body: Expression, name: Expression) -> Expression:
    import sympy

    return sympy.diff(body, name)


_BUILDERS: Final[Mapping[str, Callable[..., Expression]]] = MappingProxyType(
    {
        "add": _add,
        "multiply": _multiply,
        "power": _raise,
        "factorial": _factorial,
        "binomial": _binomial,
        "abs": abs,
        "derivative": _differentiate,
        "integral": _find_area,
        "area": _find_area,
        "sum": _add_up,
        "product": _multiply_up,
        "limit": _find_limit,
    }
)
