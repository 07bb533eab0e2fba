"""Tables in a terminal: columns as wide as their text wants and the line allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from localcascade.chat.flow import Formula, flow_tokens
from localcascade.chat.lines import BLANK, Line, Span, measure_line

if TYPE_CHECKING:
    from markdown_it.token import Token

GAP_CELLS = 2
_LEAST_CELLS = 6
_WIDE = 10_000

Align = Literal["left", "center", "right"]


@dataclass(frozen=True, slots=True)
class TableShape:
    """The columns of a table."""

    widths: tuple[int, ...]
    """Cells of each column."""
    aligns: tuple[Align, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    cells: tuple[Token, ...]
    """An inline token for each column."""
    is_header: bool


def measure_table(tokens: Sequence[Token], width: int, formulas: Sequence[Formula]) -> TableShape:
    """Choose the widths of a table's columns.

    Args:
        tokens: From table_open to table_close.
        width: Cells of the line; columns that want more share it, none below 6 cells.
        formulas: Those that the text's marks stand for.
    """
    rows = _read_rows(tokens)
    wanted = [
        max(
            measure_line(line)
            for row in column
            for line in flow_tokens(_text(row), _WIDE, formulas)
        )
        for column in zip(*(row.cells for row in rows), strict=True)
    ]
    room = width - GAP_CELLS * (len(wanted) - 1)
    return TableShape(tuple(_share(wanted, room)), _read_aligns(tokens))


def draw_table(
    tokens: Sequence[Token],
    shape: TableShape,
    formulas: Sequence[Formula],
    *,
    with_header: bool,
) -> list[Line]:
    """Set the rows of a table.

    Args:
        tokens: From table_open to table_close.
        shape: The columns.
        formulas: Those that the text's marks stand for.
        with_header: Whether the header is wanted: not where rows go on below others.
    """
    lines: list[Line] = []
    for row in _read_rows(tokens):
        if row.is_header and with_header:
            lines += _draw_row(row, shape, formulas, "strong")
            lines.append((Span((" " * GAP_CELLS).join("─" * n for n in shape.widths), "rule"),))
        elif not row.is_header:
            lines += _draw_row(row, shape, formulas, "")
    return lines


def _share(wanted: Sequence[int], room: int) -> list[int]:
    """Give narrow columns what they want, and the others an equal part of the rest."""
    widths = list(wanted)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for n_done, at in enumerate(order):
        fair = max(room // (len(order) - n_done), _LEAST_CELLS)
        widths[at] = min(wanted[at], fair)
        room -= widths[at]
    return widths


def _read_rows(tokens: Sequence[Token]) -> list[_Row]:
    rows: list[_Row] = []
    cells: list[Token] = []
    for before, token in zip((None, *tokens), tokens, strict=False):
        if token.type == "inline" and before is not None:
            cells.append(token)
        elif token.type == "tr_close":
            rows.append(_Row(tuple(cells), is_header=not rows))
            cells = []
    return rows


def _read_aligns(tokens: Sequence[Token]) -> tuple[Align, ...]:
    styles = [str(t.attrs.get("style", "")) for t in tokens if t.type == "th_open"]
    return tuple(
        "right" if "right" in style else "center" if "center" in style else "left"
        for style in styles
    )


def _text(token: Token) -> Sequence[Token]:
    return token.children or ()


def _draw_row(row: _Row, shape: TableShape, formulas: Sequence[Formula], style: str) -> list[Line]:
    cells = [
        flow_tokens(_text(token), width, formulas, style)
        for token, width in zip(row.cells, shape.widths, strict=True)
    ]
    height = max(len(cell) for cell in cells)
    return [_join_cells([_at(cell, n) for cell in cells], shape) for n in range(height)]


def _at(lines: Sequence[Line], n: int) -> Line:
    return lines[n] if n < len(lines) else BLANK


def _join_cells(cells: Sequence[Line], shape: TableShape) -> Line:
    spans: list[Span] = []
    gap = 0
    for cell, width, align in zip(cells, shape.widths, shape.aligns, strict=True):
        spare = max(width - measure_line(cell), 0)
        left = {"left": 0, "center": spare // 2, "right": spare}[align]
        if cell:
            spans += [Span(" " * (gap + left)), *cell] if gap + left else [*cell]
            gap = 0
            left = width - spare - measure_line(cell)
            gap = spare - {"left": 0, "center": spare // 2, "right": spare}[align]
        else:
            gap += width
        gap += GAP_CELLS
    return tuple(spans)
