"""Subscripts, superscripts, limits and primes on an atom."""

from __future__ import annotations

from dataclasses import replace

from localcascade.maths.alphabets import lower_text, raise_text
from localcascade.maths.atoms import Atom, Style, join_atoms
from localcascade.maths.box import place_beside, write_line
from localcascade.maths.delimiters import enclose
from localcascade.maths.shapes import attach_limits, attach_scripts
from localcascade.maths.symbols import Kind


def add_scripts(
    base: Atom,
    lower: list[Atom] | None,
    upper: list[Atom] | None,
    primes: str,
    style: Style,
) -> Atom:
    """Put scripts on an atom, in the form that the style allows.

    Args:
        base: What carries them.
        lower: Atoms of the subscript or lower limit.
        upper: Atoms of the superscript or upper limit.
        primes: Prime signs, drawn.
        style: The style of the base.

    Returns:
        Base and scripts as one atom.
    """
    if lower is None and upper is None and not primes:
        return base
    if base.loose:
        base = Atom(enclose("(", base.box, ")", style.ascii), "group")
    base = _add_primes(base, primes, style)
    if lower is None and upper is None:
        return base
    below, above = (None if atoms is None else join_atoms(atoms, True) for atoms in (lower, upper))
    if _is_linear(base, style) and all(box.height == 1 for box in (base.box, below, above) if box):
        return _write_line(
            base, _write_script(lower, "_", style) + _write_script(upper, "^", style)
        )
    big = base.box if style.flat else base.with_limits or base.box
    if base.stacks and (base.box.height > 1 or not style.flat):
        return Atom(attach_limits(big, below, above), _find_kind(base))
    return Atom(attach_scripts(big, below, above, style.ascii), _find_kind(base))


def _is_linear(base: Atom, style: Style) -> bool:
    """Whether scripts stay on the line: in text, and in ASCII where they are not limits."""
    has_limits = base.stacks or base.with_limits not in (None, base.box)
    return style.flat or (style.ascii and not has_limits)


def _write_line(base: Atom, scripts: str) -> Atom:
    """Base and scripts on one line; x_1 keeps its distance from the letter behind it."""
    kind = _find_kind(base)
    is_spelled = kind == "ord" and ("_" in scripts or "^" in scripts)
    line = place_beside([base.box, write_line(scripts)])
    return Atom(line, "root" if is_spelled else kind)


def _add_primes(base: Atom, primes: str, style: Style) -> Atom:
    if not primes:
        return base
    if base.box.height == 1:
        return replace(base, box=place_beside([base.box, write_line(primes)]))
    return replace(base, box=attach_scripts(base.box, None, write_line(primes), style.ascii))


def _write_script(atoms: list[Atom] | None, sign: str, style: Style) -> str:
    if atoms is None:
        return ""
    text = join_atoms(atoms, True).lines[0]
    small = None if style.ascii else (lower_text if sign == "_" else raise_text)(text)
    if small is not None:
        return small
    is_word = text.isascii() and (text.isdigit() or (sign == "_" and text.isalnum()))
    is_bracketed = text.startswith("(") and text.find(")") == len(text) - 1
    return sign + (text if is_word or is_bracketed or len(text) == 1 else f"({text})")


def _find_kind(base: Atom) -> Kind:
    return "big" if base.with_limits else base.kind
