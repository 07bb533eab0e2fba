"""A paragraph set into lines: words of several styles, and formulas that take several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localcascade.chat.lines import BLANK, Line, Span, measure_text, split_words

if TYPE_CHECKING:
    from markdown_it.token import Token

    from localcascade.maths import Box

FIRST_MARK = 0xF0000
"""Formula number n stands in the text as this character and n more: private use, plane 15."""
MAX_MARKS = 0xFFFD
_MARKS = re.compile(f"([{chr(FIRST_MARK)}-{chr(FIRST_MARK + MAX_MARKS)}])")

_STYLES = {"strong": "strong", "em": "em", "s": "strike", "link": "link"}


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula of a text."""

    source: str
    """With its delimiters."""
    display: bool
    """Whether it stands on lines of its own."""
    box: Box | None
    """None where the source is to be shown."""
    narrow: str = ""
    """What flows as text where the box has no room; empty if the box is wanted all the same."""


@dataclass(frozen=True, slots=True)
class _Word:
    """Something that no line breaks."""

    lines: tuple[str, ...]
    baseline: int
    n_cells: int
    style: str

    @property
    def n_ink(self) -> int:
        """Cells without the blanks at its end."""
        return self.n_cells if len(self.lines) > 1 else measure_text(self.lines[0].rstrip())


@dataclass(slots=True)
class _Row:
    """The words of a line that is being filled."""

    words: list[_Word] = field(default_factory=list)
    n_cells: int = 0

    def add(self, word: _Word) -> None:
        """Put a word at the end."""
        self.words.append(word)
        self.n_cells += word.n_cells

    def draw(self) -> list[Line]:
        """All lines that its words take, their baselines on one."""
        if not self.words:
            return [BLANK]
        above = max(word.baseline for word in self.words)
        below = max(len(word.lines) - word.baseline for word in self.words)
        return [self._draw_line(at - above) for at in range(above + below)]

    def _draw_line(self, at: int) -> Line:
        spans: list[Span] = []
        for word in self.words:
            row = at + word.baseline
            text = word.lines[row] if 0 <= row < len(word.lines) else " " * word.n_cells
            style = word.style if 0 <= row < len(word.lines) else ""
            if spans and spans[-1].style == style:
                spans[-1] = Span(spans[-1].text + text, style)
            else:
                spans.append(Span(text, style))
        while spans and not spans[-1].text.strip():
            spans.pop()
        if spans:
            spans[-1] = Span(spans[-1].text.rstrip(), spans[-1].style)
        return tuple(spans)


def flow_tokens(
    tokens: Sequence[Token], width: int, formulas: Sequence[Formula], style: str = ""
) -> list[Line]:
    """Set the inline tokens of a paragraph.

    Args:
        tokens: Children of an inline token of markdown-it.
        width: Cells of a line; a formula or a cell of code may be wider.
        formulas: Those that the text's marks stand for.
        style: Of the whole paragraph.

    Returns:
        At least one line.
    """
    lines: list[Line] = []
    row = _Row()
    for text, own_style in _read_runs(tokens, style):
        for word in _make_words(text, own_style, width, formulas):
            if row.words and (word is None or row.n_cells + word.n_ink > width):
                lines += row.draw()
                row = _Row()
            if word is not None and (row.words or word.lines[0].strip() or len(word.lines) > 1):
                row.add(word)
    if row.words or not lines:
        lines += row.draw()
    return lines


def _read_runs(tokens: Sequence[Token], style: str) -> Iterator[tuple[str, str]]:
    """Text and style of each run; a line break is "\\n"."""
    styles = [style] if style else []
    link = ""
    for token in tokens:
        kind = token.type.removesuffix("_open").removesuffix("_close")
        if kind in _STYLES:
            styles = [*styles, _STYLES[kind]] if token.nesting > 0 else styles[:-1]
            if kind == "link":
                yield from _read_address(token, link, style)
                link = str(token.attrs.get("href", "")) if token.nesting > 0 else ""
        elif kind == "code_inline":
            yield token.content, " ".join([*styles, "code"])
        elif kind in ("softbreak", "hardbreak"):
            yield " " if kind == "softbreak" else "\n", " ".join(styles)
        elif kind == "image":
            yield f"[image: {token.content}]", " ".join([*styles, "dim"])
        else:
            link = "" if token.content == link else link
            yield token.content, " ".join(styles)


def _read_address(token: Token, link: str, style: str) -> Iterator[tuple[str, str]]:
    """Where a link that ends here leads, unless its text says so."""
    if token.nesting < 0 and link:
        yield f" ({link})", f"{style} dim".strip()


def _make_words(
    text: str, style: str, width: int, formulas: Sequence[Formula]
) -> Iterator[_Word | None]:
    """The words of a run; None is a line break."""
    for part in _MARKS.split(text):
        number = ord(part) - FIRST_MARK if len(part) == 1 else -1
        if 0 <= number < len(formulas):
            yield from _make_formula(formulas[number], width)
            continue
        for at, line in enumerate(part.split("\n")):
            if at:
                yield None
            for word in split_words(line):
                yield from _chop_word(word, style, width)


def _chop_word(word: str, style: str, width: int) -> Iterator[_Word]:
    if measure_text(word.rstrip()) > width > 0:
        from rich.cells import chop_cells

        for part in chop_cells(word, width):
            yield _Word((part,), 0, measure_text(part), style)
    else:
        yield _Word((word,), 0, measure_text(word), style)


def _flow_text(text: str, width: int) -> Iterator[_Word | None]:
    for at, line in enumerate(text.split("\n")):
        if at:
            yield None
        for word in split_words(line):
            yield from _chop_word(word, "maths", width)


def _make_formula(formula: Formula, width: int) -> Iterator[_Word | None]:
    if formula.box is None:
        yield from _flow_text(formula.source, width)
        return
    if formula.narrow and formula.box.width > width:
        yield None
        yield from _flow_text(formula.narrow, width)
        yield None
        return
    indent = "    " if formula.display and formula.box.width + 4 <= width else ""
    lines = tuple(indent + line for line in formula.box.lines)
    if formula.display:
        yield None
    yield _Word(lines, formula.box.baseline, formula.box.width + len(indent), "maths")
    if formula.display:
        yield None
