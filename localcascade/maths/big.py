"""Operators that take limits: sums, integrals, lim."""

from __future__ import annotations

from localcascade.maths.atoms import Atom
from localcascade.maths.box import Box, write_line
from localcascade.maths.shapes import ASCII_PEN, UNICODE_PEN, draw_integral
from localcascade.maths.symbols import LIMITLESS, Symbol

# How ASCII draws the two that every course uses, once they have limits.
_ASCII_ART = {
    "sum": ("__ ", "\\  ", "/__"),
    "prod": ("___", "| |", "| |"),
}


def make_big(name: str, symbol: Symbol, in_ascii: bool) -> Atom:
    """The atom of an operator with limits.

    Args:
        name: Its LaTeX name.
        symbol: Its entry in the table.
        in_ascii: Whether to draw it in ASCII.

    Returns:
        The atom; without limits, one that is a word is spaced like sin.
    """
    text = symbol.ascii if in_ascii else symbol.unicode
    box = write_line(text)
    kind = symbol.kind if len(symbol.unicode) == 1 else "op"
    return Atom(box, kind, False, name not in LIMITLESS, _draw_with_limits(name, in_ascii) or box)


def _draw_with_limits(name: str, in_ascii: bool) -> Box | None:
    if name == "int":
        return draw_integral(ASCII_PEN if in_ascii else UNICODE_PEN)
    if in_ascii and name in _ASCII_ART:
        return Box(_ASCII_ART[name], 3, 1)
    return None
