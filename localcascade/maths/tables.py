"""Environments: matrices, cases, aligned equations and other tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pylatexenc.latexwalker import LatexSpecialsNode

from localcascade.maths.atoms import EMPTY, Atom, Style, join_atoms
from localcascade.maths.box import Align, Box, blank, place_above, place_beside, widen, write_line
from localcascade.maths.calls import Draw
from localcascade.maths.delimiters import enclose
from localcascade.maths.errors import LayoutError
from localcascade.maths.fences import name_of, sign_of
from localcascade.maths.grammar import Item, Node, flatten, is_blank

MAX_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Environment:
    """How the table of an environment is set."""

    aligns: str = "c"
    """Alignment of the columns, l c or r, over and over."""

    left: str = ""
    """Bracket on its left."""

    right: str = ""
    """Bracket on its right."""

    gaps: tuple[int, ...] = (2,)
    """Cells between columns, over and over."""

    arguments: str = ""
    """As `make_grammar` reads it."""


_MATRIX, _ALIGNED = Environment(), Environment("rl", gaps=(0, 3))
_GATHERED = Environment("c")
_CASES = Environment("l", "{", gaps=(2,))

ENVIRONMENTS: dict[str, Environment] = {
    "matrix": _MATRIX, "smallmatrix": _MATRIX,
    "pmatrix": Environment("c", "(", ")"), "bmatrix": Environment("c", "[", "]"),
    "Bmatrix": Environment("c", "{", "}"), "vmatrix": Environment("c", "|", "|"),
    "Vmatrix": Environment("c", "‖", "‖"),
    "array": Environment("c", arguments="[{"), "subarray": Environment("c", arguments="{"),
    "cases": _CASES, "dcases": _CASES, "rcases": Environment("l", "", "}"),
    "aligned": replace(_ALIGNED, arguments="["), "align": _ALIGNED, "align*": _ALIGNED,
    "split": _ALIGNED, "flalign": _ALIGNED, "flalign*": _ALIGNED,
    "alignat": replace(_ALIGNED, arguments="{"), "alignat*": replace(_ALIGNED, arguments="{"),
    "alignedat": replace(_ALIGNED, arguments="{"),
    "eqnarray": Environment("rcl", gaps=(1,)), "eqnarray*": Environment("rcl", gaps=(1,)),
    "gather": _GATHERED, "gather*": _GATHERED, "gathered": replace(_GATHERED, arguments="["),
    "multline": _GATHERED, "multline*": _GATHERED, "equation": _GATHERED, "equation*": _GATHERED,
    "displaymath": _GATHERED, "math": _GATHERED,
}  # fmt: skip
"""Name of an environment -> how it is set."""


def draw_table(node: Node, style: Style, draw_items: Draw) -> Atom:
    """The atom of an environment.

    Args:
        node: The environment as the parser gives it.
        style: The style around it.
        draw_items: What draws the items of a cell.

    Returns:
        The table with its brackets.

    Raises:
        LayoutError: The environment is not known, or one of its cells has no layout.
    """
    environment = ENVIRONMENTS.get(node.environmentname)
    if environment is None:
        raise LayoutError(f"the environment {node.environmentname[:40]} has no layout")
    bars = frozenset[int]()
    if node.environmentname in ("array", "subarray"):
        aligns, bars = _read_columns(node.nodeargd.argnlist[-1])
        environment = replace(environment, aligns=aligns)
    table = draw_rows(flatten(node.nodelist), environment, style, draw_items, bars)
    sides = ["||" if s == "‖" and style.ascii else s for s in (environment.left, environment.right)]
    enclosed = _space_brace(enclose(sides[0], table, sides[1], style.ascii), sides[0])
    return Atom(enclosed, "group" if any(sides) else "ord")


def draw_rows(
    items: Sequence[Item],
    environment: Environment,
    style: Style,
    draw_items: Draw,
    bars: frozenset[int] = frozenset(),
) -> Box:
    """Rows and columns of items, parted by \\\\ and &, set as the environment wants."""
    rows, rules = split_rows(items)
    boxes = [
        [_draw_cell(cell, n, environment, style, draw_items) for n, cell in enumerate(row)]
        for row in rows
    ]
    return draw_grid(boxes, environment.aligns, environment.gaps, bars, rules, style.ascii)


def draw_grid(
    rows: Sequence[Sequence[Box]],
    aligns: str,
    gaps: Sequence[int],
    bars: frozenset[int] = frozenset(),
    rules: frozenset[int] = frozenset(),
    in_ascii: bool = False,
) -> Box:
    """Set boxes in rows and columns.

    Args:
        rows: The cells, which may be fewer in some rows.
        aligns: Alignment of the columns, l c or r, over and over.
        gaps: Cells between columns, over and over.
        bars: Columns that have a vertical bar on their left; the number of columns for the end.
        rules: Rows that have a rule above them; the number of rows for the end.
        in_ascii: Whether bars and rules are ASCII.

    Returns:
        The table. A blank line parts rows of several lines, so that they cannot be read together.
    """
    n_columns = max((len(row) for row in rows), default=0)
    if n_columns > MAX_COLUMNS:
        raise LayoutError(f"the formula has a table of {n_columns} columns")
    filled = [[*row, *[blank(0)] * (n_columns - len(row))] for row in rows]
    widths = [max(box.width for box in column) for column in zip(*filled, strict=True)]
    lines = [_draw_row(row, widths, aligns, gaps, bars, in_ascii) for row in filled]
    return _stack_rows(lines, rules, in_ascii)


def _draw_row(
    row: Sequence[Box],
    widths: Sequence[int],
    aligns: str,
    gaps: Sequence[int],
    bars: frozenset[int],
    in_ascii: bool,
) -> Box:
    above = max((box.baseline for box in row), default=0)
    below = max((box.height - box.baseline for box in row), default=1)
    parts: list[Box] = []
    for n, (box, width) in enumerate(zip(row, widths, strict=True)):
        gap = _write_gap(n, len(row), gaps, bars, in_ascii)
        parts.append(Box((gap,) * (above + below), len(gap), above))
        parts.append(widen(box, width, _ALIGNS[aligns[n % len(aligns)]]))
    if len(row) in bars:
        gap = _write_gap(len(row), len(row), gaps, bars, in_ascii)
        parts.append(Box((gap,) * (above + below), len(gap), above))
    return place_beside(parts)


_ALIGNS: dict[str, Align] = {"l": "left", "c": "center", "r": "right"}


def _write_gap(
    column: int, n_columns: int, gaps: Sequence[int], bars: frozenset[int], in_ascii: bool
) -> str:
    """What stands on the left of a column; on the right of the last one for `n_columns`."""
    if column in bars:
        left, right = " " if column else "", " " if column < n_columns else ""
        return left + ("|" if in_ascii else "│") + right
    return " " * gaps[(column - 1) % len(gaps)] if column else ""


def _stack_rows(rows: list[Box], rules: frozenset[int], in_ascii: bool) -> Box:
    width = max((row.width for row in rows), default=0)
    stacked: list[Box] = []
    for n, row in enumerate(rows):
        if n in rules:
            stacked.append(write_line(("-" if in_ascii else "─") * width))
        elif n and max(row.height, rows[n - 1].height) > 1:
            stacked.append(blank(width))
        stacked.append(row)
    if len(rows) in rules:
        stacked.append(write_line(("-" if in_ascii else "─") * width))
    if len(stacked) == 1:
        return stacked[0]
    height = sum(box.height for box in stacked)
    return place_above(stacked or [blank(0)], max(height - 1, 0) // 2)


def _draw_cell(
    cell: list[Item], column: int, environment: Environment, style: Style, draw_items: Draw
) -> Box:
    atoms = draw_items(cell, style)
    if environment.aligns == "rl" and column % 2 and atoms:
        atoms = [EMPTY, *atoms]
    return join_atoms(atoms, style.small)


def split_rows(items: Sequence[Item]) -> tuple[list[list[list[Item]]], frozenset[int]]:
    """Rows of cells of items, and the rows that have a rule above them."""
    rows: list[list[list[Item]]] = [[[]]]
    rules: set[int] = set()
    at = 0
    while at < len(items):
        item = items[at]
        at += 1
        if name_of(item) in ("\\", "cr", "newline"):
            rows.append([[]])
            at = _skip_length(items, at)
        elif name_of(item) == "hline":
            rules.add(len(rows) - 1)
        elif isinstance(item, LatexSpecialsNode) and item.specials_chars == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(item)
    if len(rows[-1]) == 1 and all(is_blank(item) for item in rows[-1][0]):
        rows.pop()
    return rows, frozenset(rules)


def _skip_length(items: Sequence[Item], at: int) -> int:
    """Behind the star and the length, as in [2pt], that may follow the end of a row."""
    if at < len(items) and sign_of(items[at]) == "*":
        at += 1
    length = _LENGTH.match("".join(sign_of(item) or "]" for item in items[at : at + 12]))
    return at + length.end() if length else at


_LENGTH = re.compile(r"\[-?[\d.]+ ?[a-z]{2}\]")


def _read_columns(node: Node) -> tuple[str, frozenset[int]]:
    spec = re.sub(r"\{[^{}]*\}|[^lcr|]", "", node.latex_verbatim()[1:-1])
    aligns, bars = "", set()
    for sign in spec:
        if sign == "|":
            bars.add(len(aligns))
        else:
            aligns += sign
    return aligns or "c", frozenset(bars)


def _space_brace(box: Box, left: str) -> Box:
    if left != "{" or box.height == 1:
        return box
    lines = tuple(line[:1] + " " + line[1:] for line in box.lines)
    return Box(lines, box.width + 1, box.baseline)
