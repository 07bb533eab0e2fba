"""Markdown as it streams: blocks that are finished, and the tail that may still change.

A block of the top level is handed out once, when what follows can no longer change it. Blocks that
grow long are handed out in pieces: a list by items, a table by rows, code by lines. Each piece
knows what it needs to be read on its own, so a reader never goes back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

CODE_LINES = 100
"""Lines of code in a piece of a long fence."""
TABLE_ROWS = 12
"""Rows of a table that are waited for: the first ones decide how wide the columns are."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_PATIENT_CHARACTERS = 2048
_PATIENT_GROWTH = 1.1
_MAX_OPEN_FORMULA = 4000
_FORMULA_SIGNS = ("$$", "\\[", "\\(", "\\begin", "$")


@dataclass(frozen=True, slots=True)
class Piece:
    """Markdown that is finished: a block of the top level, or a part of one."""

    text: str
    """As it stands in the source; all pieces together are the source."""
    lead: str = ""
    """To be put before the text where it is read on its own: a table's header, a fence."""
    tail: str = ""
    """To be put behind it."""
    continues: bool = False
    """Whether it goes on with the block of the piece before."""

    @property
    def markdown(self) -> str:
        """A document that holds only this piece."""
        return f"{self.lead}{self.text}{self.tail}"


@dataclass(slots=True)
class _Fence:
    """A fence that has been opened."""

    opening: str
    """Its first line."""
    marker: str
    """The ticks or tildes that it opened with; at least as many close it."""
    n_scanned: int
    """Characters of the tail that are known not to close it."""
    n_lines: int = 0
    """Lines of code in the tail."""

    def is_closed_by(self, line: str) -> bool:
        """Whether a line ends the code."""
        found = _FENCE.match(line)
        return bool(found and found[1].startswith(self.marker) and not line[found.end() :].strip())


class BlockSplitter:
    """Takes Markdown as it comes and hands out the finished pieces.

    Newlines are "\\n" alone; control characters are taken out by whoever feeds it. A formula is
    never cut, whatever Markdown would make of its lines.
    """

    def __init__(self) -> None:
        self._tail = ""
        self._lead = ""
        self._continues = False
        self._fence: _Fence | None = None
        self._n_parsed = 0

    @property
    def open(self) -> str:
        """The text that has not been handed out."""
        return self._tail

    @property
    def is_code(self) -> bool:
        """Whether the open text is inside a fence."""
        return self._fence is not None

    @property
    def open_code(self) -> str:
        """The open lines of code, without the line that opened the fence."""
        if self._fence is None or self._continues:
            return self._tail
        return self._tail.split(self._fence.opening, 1)[-1]

    @property
    def continues(self) -> bool:
        """Whether the open text belongs to the block of the last piece."""
        return self._continues

    def feed(self, text: str) -> list[Piece]:
        """Take more text.

        Args:
            text: What follows.

        Returns:
            The pieces that are finished now.
        """
        self._tail += text
        return self._cut(is_final=False) if "\n" in text else []

    def finish(self) -> list[Piece]:
        """Hand out the rest: nothing follows."""
        return self._cut(is_final=True)

    def _cut(self, *, is_final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._tail:
            had_fence = self._fence is not None
            pieces += self._cut_code(is_final) if had_fence else self._cut_blocks(is_final)
            if had_fence == (self._fence is not None):
                break
        return pieces

    def _take(self, n_characters: int, tail: str = "") -> Piece:
        piece = Piece(self._tail[:n_characters], self._lead, tail, self._continues)
        self._tail = self._tail[n_characters:]
        self._lead, self._continues, self._n_parsed = "", False, 0
        return piece

    def _cut_blocks(self, is_final: bool) -> list[Piece]:
        source = self._tail if is_final else self._tail[: self._tail.rfind("\n") + 1]
        if not source or (not is_final and self._is_early(len(source))):
            return []
        self._n_parsed = len(source)
        blocks = _read_blocks(self._lead, source, is_final)
        pieces, n_taken = [], 0
        for cut in [cut for block in blocks for cut in block.cuts if cut.at > 0]:
            pieces.append(self._take(cut.at - n_taken))
            n_taken = cut.at
            if cut.is_inside:
                self._lead, self._continues = cut.header, True
        if is_final:
            pieces.append(self._take(len(self._tail)))
        elif blocks and blocks[-1].kind == "fence":
            self._open_fence(blocks[-1].start - n_taken)
        return pieces

    def _is_early(self, n_open: int) -> bool:
        """Whether a long tail has hardly grown: parsing it each time would take ever longer."""
        return _PATIENT_CHARACTERS < n_open < self._n_parsed * _PATIENT_GROWTH

    def _open_fence(self, start: int) -> None:
        stop = self._tail.index("\n", start) + 1
        opening = self._tail[start:stop]
        found = _FENCE.match(opening)
        assert found is not None
        self._fence = _Fence(opening, found[1], stop)

    def _cut_code(self, is_final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._fence is not None:
            stop = self._tail.find("\n", self._fence.n_scanned) + 1
            if not stop and not is_final:
                break
            line = self._tail[self._fence.n_scanned : stop or None]
            if not stop or self._fence.is_closed_by(line):
                self._fence = None
                pieces.append(self._take(stop or len(self._tail)))
            else:
                pieces += self._pass_line(self._fence, stop)
        return [piece for piece in pieces if piece.text]

    def _pass_line(self, fence: _Fence, stop: int) -> list[Piece]:
        """Count a line of code, and take the lines when they are many."""
        fence.n_scanned, fence.n_lines = stop, fence.n_lines + 1
        if fence.n_lines < CODE_LINES:
            return []
        piece = self._take(stop, tail=fence.marker + "\n")
        fence.n_scanned = fence.n_lines = 0
        self._lead, self._continues = fence.opening, True
        return [piece]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A place where the source is cut."""

    at: int
    """Characters before it."""
    is_inside: bool = False
    """Whether what follows belongs to the same block."""
    header: str = ""
    """What that needs before it."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of the top level."""

    kind: str
    start: int
    """Characters before it."""
    cuts: tuple[_Cut, ...]
    """At its start, and inside it."""


def _read_blocks(lead: str, source: str, is_final: bool) -> list[_Block]:
    """Find the blocks of `source`, which goes on with the block that `lead` belongs to."""
    tokens = make_parser().parse(lead + _mask_formulas(source, is_final))
    n_lead_lines = lead.count("\n")
    offsets = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
    places = [offsets[max(t.map[0] - n_lead_lines, 0)] if t.map else 0 for t in tokens]
    tops = [at for at, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
    blocks = []
    for number, (at, stop) in enumerate(pairwise([*tops, len(tokens)])):
        cuts = [_Cut(places[at])] if number else []
        if tokens[at].type in ("bullet_list_open", "ordered_list_open"):
            cuts += _cut_list(tokens[at:stop], places[at:stop])
        elif stop == len(tokens) and not is_final:
            header = lead or "".join(source[places[at] :].splitlines(keepends=True)[:2])
            end = offsets[(tokens[at].map or [0, 0])[1] - n_lead_lines]
            cuts += _cut_table(tokens[at:], header, min(end, len(source)))
        blocks.append(_Block(tokens[at].type, places[at], tuple(cuts)))
    return blocks


def _cut_list(tokens: list[Token], places: list[int]) -> list[_Cut]:
    """Before each item of a list but the first."""
    pairs = zip(tokens, places, strict=True)
    items = [place for t, place in pairs if t.type == "list_item_open" and t.level == 1]
    return [_Cut(place, is_inside=True) for place in items[1:]]


def _cut_table(tokens: list[Token], header: str, end: int) -> list[_Cut]:
    """Behind the last row of a table that has many of them already."""
    n_rows = sum(token.type == "tr_open" for token in tokens)
    is_long = tokens[0].type == "table_open" and n_rows > TABLE_ROWS
    return [_Cut(end, is_inside=True, header=header)] if is_long else []


def _mask_formulas(source: str, is_final: bool) -> str:
    """Write formulas as lines of letters, so that Markdown sees words; lines stay lines."""
    if not any(sign in source for sign in _FORMULA_SIGNS):
        return source
    from localcascade.maths import find

    parts = []
    for segment in find(source, streaming=not is_final):
        is_lost = not segment.closed and len(segment.source) > _MAX_OPEN_FORMULA
        masked = segment.is_maths and not is_lost
        parts.append(re.sub(r"\S|(?<=\n)(?=\n)", "x", segment.source) if masked else segment.source)
    return "".join(parts)


@cache
def make_parser() -> MarkdownIt:
    """The one reader of Markdown: CommonMark with tables and strikethrough, HTML as text.

    A link's definition stays text: it mostly comes after its use, when that stands on the screen
    already, and an address that is never shown would be lost.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False})
    return parser.enable(["table", "strikethrough"]).disable("reference")


def find_code(text: str) -> list[str]:
    """Find the blocks of code in a text.

    Returns:
        The code of each, without its fence, in order.
    """
    tokens = make_parser().parse(text)
    return [token.content for token in tokens if token.type in ("fence", "code_block")]
