"""Pieces of Markdown into lines of a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from localcascade.chat.blocks import Piece, make_parser
from localcascade.chat.code import colour_code
from localcascade.chat.flow import FIRST_MARK, MAX_MARKS, Formula, flow_tokens
from localcascade.chat.lines import BLANK, Line, Span, measure_line, pad_line, prefix_lines
from localcascade.chat.table import TableShape, draw_table, measure_table

if TYPE_CHECKING:
    from markdown_it.token import Token

MIN_CELLS = 20
"""A formula that is not wider has room everywhere."""

_DEFINITION = re.compile(r"\[[^\]]+\]:")
_BULLETS = ("•", "◦", "▪")


@dataclass(frozen=True, slots=True)
class Look:
    """How a page is set."""

    width: int
    """Cells of a line; formulas, code and tables may be wider."""
    shows_source: bool = False
    """Show the LaTeX of formulas."""
    ascii: bool = False
    """Draw formulas with ASCII characters only."""
    keeps_breaks: bool = False
    """Break lines where the text does, as in what people type and models think."""
    scrolls: bool = True
    """Whether one can scroll to what is wider than a line; if not, wide formulas flow as text."""


class Page:
    """Lines of a text whose pieces come one after another.

    Args:
        look: How it is set.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        self.lines: list[Line] = []
        self._shape: TableShape | None = None
        self._number = 0
        self._is_loose = False

    def add(self, piece: Piece) -> None:
        """Set a piece below what is there."""
        lines = self._draw(piece)
        if self.lines and lines and (not piece.continues or self._is_loose):
            self.lines.append(BLANK)
        self.lines += lines
        self._is_loose = piece.text.endswith("\n\n") and _is_item(piece)

    def _draw(self, piece: Piece) -> list[Line]:
        source, formulas = mark_formulas(piece.markdown, self.look)
        tokens = make_parser().parse(source)
        _harden_breaks(tokens, all_of_them=self.look.keeps_breaks)
        if not piece.continues:
            self._shape, self._number = None, 0
        self._count_items(tokens)
        if tokens and tokens[0].type == "table_open":
            return self._draw_table(tokens, formulas, piece.continues)
        return _Setter(formulas).draw(tokens, self.look.width)

    def _count_items(self, tokens: Sequence[Token]) -> None:
        """Number the items of a list that goes on from those above, whatever they say."""
        if tokens and tokens[0].type == "ordered_list_open":
            first = self._number or int(tokens[0].attrs.get("start", 1))
            tokens[0].attrs["start"] = first
            items = tokens[: _find_close(tokens, 0)]
            n_items = sum(t.type == "list_item_open" and t.level == 1 for t in items)
            self._number = first + n_items

    def _draw_table(
        self, tokens: Sequence[Token], formulas: Sequence[Formula], continues: bool
    ) -> list[Line]:
        """Set a table, or more rows of the last one below columns that stand."""
        setter = _Setter(formulas)
        stop = _find_close(tokens, 0)
        table = tokens[: stop + 1]
        shape = self._shape if continues else None
        self._shape = shape or measure_table(table, self.look.width, formulas)
        lines = draw_table(table, self._shape, formulas, with_header=shape is None)
        rest = setter.draw(tokens[stop + 1 :], self.look.width)
        return [*lines, BLANK, *rest] if rest else lines


def _harden_breaks(tokens: Sequence[Token], *, all_of_them: bool) -> None:
    """Keep breaks of lines: all, or those before a link's definition or a footnote."""
    for children in (token.children for token in tokens if token.children):
        for child, follower in pairwise(children):
            if child.type == "softbreak" and (all_of_them or _DEFINITION.match(follower.content)):
                child.type = "hardbreak"


def _is_item(piece: Piece) -> bool:
    head = piece.text.lstrip()[:1]
    return head in "-*+" or head.isdigit()


def draw_markdown(text: str, look: Look) -> list[Line]:
    """Set a whole text; the same lines as streaming it gives.

    Args:
        text: Without control characters but newlines.
        look: How it is set.
    """
    from localcascade.chat.blocks import BlockSplitter

    splitter = BlockSplitter()
    page = Page(look)
    for piece in (*splitter.feed(text), *splitter.finish()):
        page.add(piece)
    return page.lines


def warm_up() -> None:
    """Import what setting a text needs, so that the first answer does not wait for it."""
    draw_markdown("$x$\n\n| a |\n|---|\n\n```python\nx\n```\n", Look(80))


def mark_formulas(text: str, look: Look) -> tuple[str, list[Formula]]:
    """Put one character in the place of each formula, which Markdown then leaves alone.

    Args:
        text: Markdown, without characters of plane 15.
        look: Whether formulas are laid out.

    Returns:
        The text with marks, and the formulas in order.
    """
    if "$" not in text and "\\" not in text:
        return text, []
    from localcascade.maths import find

    formulas: list[Formula] = []
    parts: list[str] = []
    for segment in find(text):
        if segment.is_maths and len(formulas) < MAX_MARKS:
            parts.append(chr(FIRST_MARK + len(formulas)))
            formulas.append(_lay_out(segment.source, segment.latex, segment.display, look))
        else:
            parts.append(segment.source)
    return "".join(parts), formulas


def _lay_out(source: str, latex: str, display: bool, look: Look) -> Formula:
    from localcascade.maths import LayoutError, layout

    if look.shows_source:
        return Formula(source, display, None)
    try:
        box = layout(latex, ascii=look.ascii, display=display)
        if look.scrolls or box.width <= MIN_CELLS:
            return Formula(source, display, box)
        flat = layout(latex, ascii=look.ascii, display=False)
    except LayoutError:
        return Formula(source, display, None)
    return Formula(source, display, box, flat.lines[0] if len(flat.lines) == 1 else source)


@dataclass(frozen=True, slots=True)
class _Setter:
    """Sets the tokens of blocks; one method for each kind."""

    formulas: Sequence[Formula]
    depth: int = 0
    """How many lists it is inside of."""

    def draw(self, tokens: Sequence[Token], width: int, is_tight: bool = False) -> list[Line]:
        """Set blocks below each other, with a blank line between unless they are tight."""
        lines: list[Line] = []
        at = 0
        while at < len(tokens):
            stop = _find_close(tokens, at)
            draw = _BLOCKS.get(tokens[at].type, _draw_nothing)
            block = draw(self, tokens[at : stop + 1], max(width, 8))
            lines += [BLANK, *block] if lines and block and not is_tight else block
            at = stop + 1
        return lines

    def flow(self, token: Token, width: int, style: str = "") -> list[Line]:
        """Set the text of an inline token."""
        return flow_tokens(token.children or (), width, self.formulas, style)


def _find_close(tokens: Sequence[Token], start: int) -> int:
    """Index of the token that closes the one at `start`; itself if it opens nothing."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += tokens[at].nesting
        if depth <= 0:
            return at
    return len(tokens) - 1


def _draw_nothing(_setter: _Setter, _tokens: Sequence[Token], _width: int) -> list[Line]:
    return []


def _draw_paragraph(setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    return setter.flow(tokens[1], width)


def _draw_heading(setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    return setter.flow(tokens[1], width, f"heading {tokens[0].tag}")


def _draw_code(_setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    language = (tokens[0].info.split() or [""])[0]
    code = tokens[0].content.removesuffix("\n").expandtabs(4)
    lines: list[Line] = [(Span("  ", "fence"), *line) for line in colour_code(code, language)]
    width = max(width, *(measure_line(line) + 2 for line in lines))
    return [pad_line(line, width, "fence") for line in lines]


def _draw_rule(_setter: _Setter, _tokens: Sequence[Token], width: int) -> list[Line]:
    return [(Span("─" * width, "rule"),)]


def _draw_quote(setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    bar = Span("▌ ", "quote")
    return prefix_lines(setter.draw(tokens[1:-1], width - 2), bar, bar)


def _draw_list(setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    inner = replace(setter, depth=setter.depth + 1)
    is_tight = all(t.hidden for t in tokens if t.type == "paragraph_open" and t.level == 2)
    number = int(tokens[0].attrs.get("start", 1)) if tokens[0].tag == "ol" else None
    lines: list[Line] = []
    at = 1
    while at < len(tokens) - 1:
        stop = _find_close(tokens, at)
        mark = _BULLETS[setter.depth % 3] if number is None else f"{number}."
        body = inner.draw(tokens[at + 1 : stop], width - len(mark) - 1, is_tight)
        item = prefix_lines(
            body or [BLANK], Span(f"{mark} ", "bullet"), Span(" " * (len(mark) + 1))
        )
        lines += [BLANK, *item] if lines and not is_tight else item
        number = None if number is None else number + 1
        at = stop + 1
    return lines


def _draw_inner_table(setter: _Setter, tokens: Sequence[Token], width: int) -> list[Line]:
    shape = measure_table(tokens, width, setter.formulas)
    return draw_table(tokens, shape, setter.formulas, with_header=True)


_BLOCKS: Final[Mapping[str, Callable[[_Setter, Sequence[Token], int], list[Line]]]] = (
    MappingProxyType(
        {
            "paragraph_open": _draw_paragraph,
            "heading_open": _draw_heading,
            "fence": _draw_code,
            "code_block": _draw_code,
            "hr": _draw_rule,
            "blockquote_open": _draw_quote,
            "bullet_list_open": _draw_list,
            "ordered_list_open": _draw_list,
            "table_open": _draw_inner_table,
        }
    )
)
