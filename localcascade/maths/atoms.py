"""Atoms, the pieces a line of maths is made of, and the space between them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from localcascade.maths.alphabets import map_alphabet
from localcascade.maths.box import Box, place_beside, write_line
from localcascade.maths.symbols import Kind, Symbol, read_characters

_FONT_ALPHABETS = {"bold", "blackboard", "calligraphic", "fraktur"}


@dataclass(frozen=True, slots=True)
class Style:
    """How a piece is to be drawn; what is inside inherits it."""

    ascii: bool = False
    """Only ASCII characters, but for the letters of the source itself."""

    flat: bool = False
    """On one line where a form on one line exists: formulas inside a sentence."""

    small: bool = False
    """In a script: no space around operators, fractions with a slash."""

    font: str = ""
    """An alphabet of `alphabets`, or empty for plain letters."""

    depth_left: int = 32
    """How much deeper a formula may nest."""

    def go_deeper(self) -> Style:
        """The style of what is inside; `dataclasses.replace` would take a tenth of a layout."""
        return Style(self.ascii, self.flat, self.small, self.font, self.depth_left - 1)


@dataclass(frozen=True, slots=True)
class Atom:
    """One piece: what it looks like and how it stands beside others."""

    box: Box
    kind: Kind = "ord"

    loose: bool = False
    """Needs brackets before a script is put on it: a/b, √2."""

    stacks: bool = False
    """Takes its limits above and below."""

    with_limits: Box | None = None
    """What it looks like once it has limits: a tall integral sign."""


EMPTY = Atom(write_line(""), "ord")

# left kind -> right kinds with a blank between them; `rel`, `bin` and `punct` are in find_gap.
_WIDE: dict[Kind, frozenset[Kind]] = {
    "ord": frozenset(("op", "big", "inner", "ratio", "word")),
    "word": frozenset(("ord", "word", "op", "big", "inner", "ratio", "root")),
    "op": frozenset(("ord", "word", "op", "big", "inner", "ratio", "root", "sign")),
    "big": frozenset(
        ("ord", "word", "op", "big", "inner", "ratio", "root", "sign", "open", "group")
    ),
    "inner": frozenset(("ord", "word", "op", "big", "inner", "ratio", "root", "open", "group")),
    "ratio": frozenset(("ord", "word", "op", "big", "inner", "ratio", "root", "open", "group")),
    "sign": frozenset(("inner",)),
    "root": frozenset(("ord", "word", "op", "big", "inner", "ratio", "root")),
    "group": frozenset(("op", "big", "inner", "ratio", "word")),
    "close": frozenset(("op", "big", "inner", "ratio", "word")),
}
_NO_OPERAND_BEFORE = frozenset(("bin", "rel", "op", "big", "open", "punct", "sign"))


def join_atoms(atoms: Sequence[Atom], small: bool) -> Box:
    """Set atoms in a row, spaced as TeX would where a terminal can.

    Args:
        atoms: Left to right.
        small: Whether the row is a script, which has no space around operators.

    Returns:
        The row.
    """
    boxes: list[Box] = []
    before: Atom | None = None
    for atom in mark_signs(atoms):
        if before is not None and not _has_gap(before.box, atom.box):
            tight = small and not (_is_spelled(before) or _is_spelled(atom))
            if find_gap(before.kind, atom.kind, tight):
                boxes.append(_GAP)
        boxes.append(atom.box)
        before = atom
    return place_beside(boxes)


_GAP = write_line(" ")


def _has_gap(left: Box, right: Box) -> bool:
    """Whether a text brings the blank itself, as \\text{ if } does."""
    texts = [box.lines[0] if box.height == 1 else "" for box in (left, right)]
    return texts[0].endswith(" ") or texts[1].startswith(" ")


def _is_spelled(atom: Atom) -> bool:
    """Whether an operator is made of letters, which would melt into its operands: in, mod."""
    return atom.kind in ("rel", "bin") and atom.box.lines[0].isalpha()


def find_gap(left: Kind, right: Kind, small: bool) -> bool:
    """Whether a blank stands between two neighbours of these kinds."""
    if left == "space" or right == "space":
        return False
    if left in ("rel", "bin") or right in ("rel", "bin"):
        return not small and left != right and left != "open" and right != "close"
    if left == "punct":
        return not small
    return right in _WIDE.get(left, ())


def mark_signs(atoms: Sequence[Atom]) -> list[Atom]:
    """The atoms, with operators that miss an operand turned into signs: the minus of -x."""
    marked: list[Atom] = []
    before: Kind = "open"
    for atom in atoms:
        if atom.kind == "bin" and before in _NO_OPERAND_BEFORE:
            atom = replace(atom, kind="sign")
        marked.append(atom)
        if atom.kind != "space":
            before = atom.kind
    return marked


def make_symbol(symbol: Symbol, in_ascii: bool) -> Atom:
    """The atom of a symbol; one that is spelled out keeps its distance from letters."""
    text = symbol.ascii if in_ascii else symbol.unicode
    is_word = symbol.kind == "ord" and len(text) > 1 and text[-1:].isalpha()
    return Atom(write_line(text), "word" if is_word else symbol.kind)


# Typed character -> drawn character.
_TYPED = {"-": "−", "∗": "*", "∙": "·", "⋅": "·", "¯": "‾"}


@lru_cache(maxsize=4096)
def make_character(character: str, font: str, in_ascii: bool) -> Atom:
    """The atom of one character of the source, with its combining marks."""
    if font in _FONT_ALPHABETS and not in_ascii:
        dressed = map_alphabet(font).get(character[0])
        if dressed:
            return Atom(write_line(dressed + character[1:]))
    symbol = read_characters().get(_TYPED.get(character, character))
    return make_symbol(symbol, in_ascii) if symbol else Atom(write_line(character))


def combine(text: str, mark: str) -> str:
    """`text` with a combining mark on each character, precomposed where Unicode has it."""
    marked = (c if unicodedata.combining(c) or c == " " else c + mark for c in text)
    return unicodedata.normalize("NFC", "".join(marked))
