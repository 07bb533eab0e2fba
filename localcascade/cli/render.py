"""An answer set as Markdown with formulas on a terminal, while it comes.

What is finished is written once and never touched again. Below it stands the open block as plain
text, as many of its last lines as the screen shows; only these are written anew.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TextIO

from localcascade.cli import console

if TYPE_CHECKING:
    from rich.text import Text

    from localcascade.chat.lines import Line

REDRAWS_PER_S = 8
MAX_CELLS = 120
"""Lines longer than this are hard to read."""

_MARKS = re.compile("[\U000f0000-\U000fffff]")
_STYLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "strong": "bold",
        "em": "italic",
        "strike": "strike",
        "code": "cyan",
        "link": "underline",
        "heading": "bold",
        "h1": "underline",
        "quote": "dim",
        "bullet": "cyan",
        "rule": "dim",
        "maths": "green",
        "dim": "dim",
        "comment": "dim",
        "keyword": "magenta",
        "string": "yellow",
        "number": "cyan",
        "builtin": "blue",
        "removed": "red",
        "added": "green",
    }
)


class MarkdownWriter:
    """Writes Markdown that streams to a terminal.

    Without escape codes nothing can be taken back, so only what is finished is written.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from localcascade.chat.blocks import BlockSplitter
        from localcascade.chat.markdown import Look, Page

        size = shutil.get_terminal_size()
        self._n_cells, self._n_rows = min(size.columns, MAX_CELLS) - 1, max(size.lines - 2, 1)
        self._stream, self._console = stream, console.make_console(stream)
        self._splitter, self._page = BlockSplitter(), Page(Look(self._n_cells, scrolls=False))
        self._n_written = self._n_live = 0
        self._drawn_s = 0.0
        self._is_live = console.use_colour(stream)

    def feed(self, text: str) -> None:
        """Take more text."""
        pieces = self._splitter.feed(_MARKS.sub("\ufffd", console.escape_controls(text)))
        for piece in pieces:
            self._page.add(piece)
        is_due = self._is_live and time.monotonic() - self._drawn_s > 1 / REDRAWS_PER_S
        if pieces or is_due:
            self._draw(self._lay_out_open() if self._is_live else [])

    def finish(self) -> None:
        """Write the rest; the next line is a new one."""
        for piece in self._splitter.finish():
            self._page.add(piece)
        self._draw([])

    def _lay_out_open(self) -> Sequence[Line]:
        """The open block as plain text: the last lines of it, for those above may scroll away."""
        from localcascade.chat.lines import BLANK, wrap_text

        text = self._splitter.open_code if self._splitter.is_code else self._splitter.open
        lines = wrap_text(text.strip("\n").expandtabs(4), self._n_cells) if text.strip() else []
        gap = [BLANK] if lines and self._page.lines and not self._splitter.continues else []
        return [*gap, *lines][-self._n_rows :]

    def _draw(self, live: Sequence[Line]) -> None:
        """Write what is new in the page, and the open block below it."""
        if self._n_live:
            self._stream.write(f"\x1b[{self._n_live}A\r\x1b[J")
        for line in (*self._page.lines[self._n_written :], *live):
            self._console.print(_style_line(line), soft_wrap=True)
        self._stream.flush()
        self._n_written, self._n_live = len(self._page.lines), len(live)
        self._drawn_s = time.monotonic()


def _style_line(line: Line) -> Text:
    from rich.style import Style
    from rich.text import Text

    text = Text()
    for span in line:
        words = (_STYLES.get(word, "") for word in span.style.split())
        text.append(span.text, Style.parse(" ".join(filter(None, words)) or "none"))
    return text
