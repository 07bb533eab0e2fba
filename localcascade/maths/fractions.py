"""Fractions, binomials and roots: stacked, or on one line inside text and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localcascade.maths.alphabets import raise_text
from localcascade.maths.atoms import Atom, Style, join_atoms, mark_signs
from localcascade.maths.box import Box, blank, place_above, write_line
from localcascade.maths.calls import Call, Draw
from localcascade.maths.delimiters import enclose
from localcascade.maths.shapes import draw_fraction, draw_root


def draw_over(
    name: str, above: list[Atom], below: list[Atom], style: Style, draw_items: Draw
) -> Atom:
    """The old forms a \\over b, a \\choose b, a \\atop b."""
    call = Call(name, (), style, draw_items)
    return (_make_fraction if name == "over" else _make_binomial)(call, above, below)


def draw_fraction_call(call: Call) -> Atom:
    """A fraction, stacked or with a slash."""
    return _make_fraction(call, call.atoms(0), call.atoms(1))


def draw_continued_fraction(call: Call) -> Atom:
    """A fraction after an optional alignment."""
    return _make_fraction(call, call.atoms(1), call.atoms(2))


def _make_fraction(call: Call, above: list[Atom], below: list[Atom]) -> Atom:
    small = call.style.small
    over, under = (join_atoms(atoms, small) for atoms in (above, below))
    is_line = over.height == under.height == 1
    if is_line and (call.is_linear or call.name in ("nicefrac", "sfrac")):
        top = _bracket(over, is_term(above))
        bottom = _bracket(under, is_product(below))
        return Atom(write_line(f"{top}/{bottom}"), "ratio", loose=True)
    return Atom(draw_fraction(over, under, call.pen), "inner", loose=True)


def _bracket(box: Box, bare: bool) -> str:
    return box.lines[0] if bare else f"({box.lines[0]})"


_NOT_IN_TERMS = frozenset(("bin", "rel", "punct", "ratio", "inner", "op", "big"))


def is_term(atoms: Sequence[Atom]) -> bool:
    """Whether atoms can stand before a slash without brackets: one, or a product with a sign."""
    kinds = {atom.kind for atom in mark_signs(atoms)}
    return len(atoms) == 1 or not kinds & _NOT_IN_TERMS


def is_product(atoms: Sequence[Atom]) -> bool:
    """Whether atoms can stand behind a slash without brackets: a number, one sign, dx."""
    if any(atom.kind in ("bin", "rel", "ratio") for atom in atoms):
        return False
    text = "".join(atom.box.lines[0] for atom in atoms)
    is_pair = len(atoms) == 2 and (text[:1] in "d∂" or text[-1:] == "!")
    return len(atoms) == 1 or text.isdigit() or is_pair


def draw_binomial(call: Call) -> Atom:
    """A binomial coefficient."""
    return _make_binomial(call, call.atoms(0), call.atoms(1))


def _make_binomial(call: Call, above: list[Atom], below: list[Atom]) -> Atom:
    boxes = [join_atoms(atoms, call.style.small) for atoms in (above, below)]
    if call.is_linear and all(box.height == 1 for box in boxes):
        return Atom(write_line("C(" + ", ".join(box.lines[0] for box in boxes) + ")"), "ord")
    stacked = place_above([boxes[0], blank(1), boxes[1]], boxes[0].height)
    brackets = "()" if call.name != "atop" else ("", "")
    return Atom(enclose(brackets[0], stacked, brackets[1], call.style.ascii), "group")


def draw_root_call(call: Call) -> Atom:
    """A root with its bar, or on one line."""
    atoms = call.atoms(1)
    body = join_atoms(atoms, call.style.small)
    index = None
    if call.arguments[0] is not None:
        index = call.box(0, replace(call.style, small=True))
    if not call.is_linear and (not call.style.ascii or body.height > 1 or index):
        if _is_short(body, atoms, index, call.style.ascii):
            return _write_root(body, index, "", "")
        return Atom(draw_root(body, index, call.style.ascii), "ord")
    if body.height > 1 or (index and index.height > 1):
        return Atom(draw_root(body, index, call.style.ascii), "ord")
    return _write_linear_root(call, body, index, atoms)


def _is_short(body: Box, atoms: list[Atom], index: Box | None, in_ascii: bool) -> bool:
    """Whether the body needs neither bar nor brackets: one sign or a number."""
    text = body.lines[0]
    if in_ascii or body.height > 1 or (index and raise_text(index.lines[0]) is None):
        return False
    return (len(atoms) == 1 and len(text) == 1) or text.isdigit()


def _write_linear_root(call: Call, body: Box, index: Box | None, atoms: list[Atom]) -> Atom:
    if call.style.ascii:
        return _write_ascii_root(body, index)
    if index is not None and raise_text(index.lines[0]) is None:
        return Atom(write_line(f"root({index.lines[0]}, {body.lines[0]})"))
    brackets = ("", "") if _is_short(body, atoms, index, False) else ("(", ")")
    return _write_root(body, index, *brackets)


def _write_root(body: Box, index: Box | None, left: str, right: str) -> Atom:
    raised = raise_text(index.lines[0]) if index else ""
    text = f"{raised}√{left}{body.lines[0]}{right}"
    return Atom(write_line(text), "root", loose=True)


def _write_ascii_root(body: Box, index: Box | None) -> Atom:
    name = f"root({index.lines[0]}, " if index else "sqrt("
    return Atom(write_line(name + body.lines[0] + ")"), "word")
