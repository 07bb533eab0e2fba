"""Text as it will stand in a terminal: lines of spans, each with the name of a style.

Nothing here knows of colours or of a screen. A style is one or more of these words: strong, em,
strike, code, link, heading, quote, bullet, rule, maths, dim, fence and the kinds of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.cells import cell_len, chop_cells


class Span(NamedTuple):
    """Text of one style."""

    text: str
    style: str = ""


Line = tuple[Span, ...]
"""One line of the terminal, left to right."""

BLANK: Line = ()

# A word with the spaces behind it; Chinese and Japanese break at every character.
_WORD = re.compile(
    r"[\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6]"
    r"[\s]*|[^\s\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60]+\s*"
    r"|\s+"
)


def measure_text(text: str) -> int:
    """Terminal cells that a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def measure_line(line: Line) -> int:
    """Terminal cells that a line takes."""
    return sum(measure_text(span.text) for span in line)


def read_text(lines: Iterable[Line]) -> str:
    """The lines without their styles."""
    return "\n".join("".join(span.text for span in line) for line in lines)


def split_words(text: str) -> list[str]:
    """Cut text where a line may break; the parts are the text."""
    return _WORD.findall(text)


def prefix_lines(lines: Sequence[Line], first: Span, rest: Span) -> list[Line]:
    """Put a span before each line, another before the first."""
    return [(rest if at else first, *line) for at, line in enumerate(lines)]


def pad_line(line: Line, width: int, style: str) -> Line:
    """Fill a line with blanks of a style up to `width` cells."""
    spare = width - measure_line(line)
    return (*line, Span(" " * spare, style)) if spare > 0 else line


def wrap_text(text: str, width: int, style: str = "") -> list[Line]:
    """Break plain text into lines; its own line breaks and indentation stay.

    Args:
        text: Without control characters but newlines.
        width: Cells of a line.
        style: Of every line.
    """
    lines = [part for line in text.split("\n") for part in _wrap_line(line, max(width, 1))]
    return [(Span(line, style),) if line else BLANK for line in lines]


def _wrap_line(text: str, width: int) -> list[str]:
    if measure_text(text) <= width:
        return [text]
    lines: list[str] = []
    line, n_cells = "", 0
    for word in split_words(text):
        n_word = measure_text(word.rstrip())
        if n_cells + n_word > width and line:
            lines.append(line.rstrip())
            line, n_cells = "", 0
        if n_word > width:
            *full, word = chop_cells(word, width)
            lines += full
        line += word
        n_cells += measure_text(word)
    return [*lines, line.rstrip()]


class PlainText:
    """Plain text that grows, wrapped as it comes: only its last line is wrapped again.

    Args:
        width: Cells of a line.
        style: Of every line.
    """

    def __init__(self, width: int, style: str = "") -> None:
        self._width, self._style = width, style
        self._done: list[Line] = []
        self._last = ""

    def feed(self, text: str) -> None:
        """Take more text."""
        lines = [
            part
            for line in (self._last + text).split("\n")
            for part in _wrap_line(line, max(self._width, 1))
        ]
        ends_blank = (self._last + text).endswith(" ") and lines[-1]
        self._last = lines[-1] + (" " if ends_blank else "")
        self._done += [self._style_line(line) for line in lines[:-1]]

    @property
    def lines(self) -> list[Line]:
        """All lines so far."""
        return [*self._done, self._style_line(self._last)] if self._last else list(self._done)

    def _style_line(self, text: str) -> Line:
        return (Span(text, self._style),) if text else BLANK


def mark_line(line: Line, start: int, stop: int, style: str) -> Line:
    """Add a style to some characters of a line.

    Args:
        line: The line.
        start: First character.
        stop: Behind the last one.
        style: Its name.
    """
    spans: list[Span] = []
    at = 0
    for text, own_style in line:
        cuts = sorted({0, len(text), *(min(max(n - at, 0), len(text)) for n in (start, stop))})
        for left, right in pairwise(cuts):
            is_marked = start <= at + left < stop
            spans.append(Span(text[left:right], f"{own_style} {style}" if is_marked else own_style))
        at += len(text)
    return tuple(spans)


def mark_text(line: Line, wanted: str, style: str) -> Line:
    """Add a style to a line wherever some text stands in it, whatever its case.

    Args:
        line: The line.
        wanted: The text, folded already; not empty.
        style: Its name.
    """
    text = read_text([line]).casefold()
    at = text.find(wanted)
    while at >= 0:
        line = mark_line(line, at, at + len(wanted), style)
        at = text.find(wanted, at + len(wanted))
    return line
