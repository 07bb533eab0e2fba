"""Where the formulas are in Markdown text: money, code and escaped signs left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localcascade.maths.tables import ENVIRONMENTS


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is a formula, or holds none."""

    source: str
    """As it stands in the text; all sources together are the text."""

    latex: str = ""
    """The formula without its delimiters; empty if there is none."""

    is_maths: bool = False
    """Whether it is a formula."""

    display: bool = False
    """Whether the formula stands on lines of its own."""

    closed: bool = True
    """Whether the formula is finished; if not, the text ends inside it."""


_OPENING = re.compile(
    r"(?P<fence>^[ \t>]*(?P<tick>`{3,}|~{3,}))|(?P<code>`+)|(?P<escape>\\[\\$`])"
    r"|(?P<money>\$\$?)|(?P<bracket>\\[(\[])|\\begin\s?\{(?P<name>[A-Za-z]+\*?)\}",
    re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_DOLLAR = re.compile(r"\\.|\$|\n[ \t]*\n", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s?\{([A-Za-z]+\*?)\}")
_TICKS = re.compile("`+")
# An amount with words behind it, or shell variables: $5 million and A$, $HOME:$PATH.
_NOT_MATHS = re.compile(r"\d[\d.,]*[ ]+[A-Za-z]{2,}[^\\^_={}]*\Z|[A-Z][A-Z_]+[:/]?\Z")
_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$$": "$$"}


def find(text: str, *, streaming: bool = False) -> list[Segment]:
    """Cut Markdown text into formulas and the rest.

    Args:
        text: Markdown with $…$, $$…$$, \\(…\\), \\[…\\] or environments.
        streaming: Whether more is to come: then a formula that the text ends in is a segment that
            is not closed; else it is text.

    Returns:
        Segments in order; their sources together are `text`. Code has no formulas, nor have \\$
        and amounts of money: an opening dollar touches what follows it, the closing one touches
        what is before it and no digit follows, and no blank line lies between.
    """
    segments: list[Segment] = []
    done = 0
    for start, stop, formula in _Finder(text, streaming).find_formulas():
        if start > done:
            segments.append(Segment(text[done:start]))
        segments.append(formula)
        done = stop
    if done < len(text):
        segments.append(Segment(text[done:]))
    return segments


Found = tuple[int, int, Segment]
"""Start, stop and the formula between."""


class _Finder:
    """One pass over a text; where a delimiter closes is looked up once, so it stays linear."""

    def __init__(self, text: str, streaming: bool) -> None:
        self._text = text
        self._streaming = streaming
        self._closing: dict[str, int] = {}
        self._ends: dict[int, int] | None = None
        self._runs: dict[int, list[int]] | None = None

    def find_formulas(self) -> Iterator[Found]:
        """Every formula, in order."""
        at = 0
        while match := _OPENING.search(self._text, at):
            found = None
            if match["fence"]:
                at = self._skip_fence(match)
            elif match["code"]:
                at = self._skip_code(match)
            elif match["escape"]:
                at = match.end()
            else:
                found = self._read_formula(match)
                at = found[1] if found else match.end()
            if found:
                yield found

    def _read_formula(self, match: re.Match[str]) -> Found | None:
        if match["name"]:
            return self._read_environment(match)
        if match["money"] == "$":
            return self._read_dollar(match)
        return self._read_delimited(match)

    def _skip_fence(self, match: re.Match[str]) -> int:
        """Where a fenced block ends: with a fence at least as long, or with the text."""
        at = match.end()
        while close := _FENCE.search(self._text, at):
            at = close.end()
            if close[1].startswith(match["tick"]):
                return at
        return len(self._text)

    def _skip_code(self, match: re.Match[str]) -> int:
        """Behind a code span; an opening run of ticks that nothing closes is text."""
        if self._runs is None:
            self._runs = {}
            for run in reversed(list(_TICKS.finditer(self._text))):
                self._runs.setdefault(len(run[0]), []).append(run.start())
        starts = self._runs.get(len(match[0]), [])
        while starts and starts[-1] < match.end():
            starts.pop()
        if starts:
            return starts[-1] + len(match[0])
        return (
            len(self._text)
            if self._streaming and "\n\n" not in self._text[match.end() : match.end() + 500]
            else match.end()
        )

    def _read_dollar(self, match: re.Match[str]) -> Found | None:
        start = match.end()
        if self._text[start : start + 1].isspace():
            return None
        at = start
        while close := _DOLLAR.search(self._text, at):
            at = close.end()
            if close[0] == "$":
                return self._close_dollar(start, close.start())
            if close[0][0] == "\n":
                return None
        return self._read_open(start, match)

    def _close_dollar(self, start: int, stop: int) -> Found | None:
        latex, after = self._text[start:stop], self._text[stop + 1 : stop + 2]
        if not latex or latex[-1].isspace() or after.isdigit() or _NOT_MATHS.match(latex):
            return None
        formula = Segment(self._text[start - 1 : stop + 1], latex, True)
        return start - 1, stop + 1, formula

    def _read_open(self, start: int, match: re.Match[str]) -> Found | None:
        """A formula that the text ends in; an amount of money is not one."""
        first = self._text[start : start + 1]
        if not self._streaming or (match[0] == "$" and (first.isdigit() or not first)):
            return None
        latex = self._text[start:]
        display = match[0] in ("$$", r"\[") or bool(match["name"])
        formula = Segment(self._text[match.start() :], latex, True, display, False)
        return match.start(), len(self._text), formula

    def _read_delimited(self, match: re.Match[str]) -> Found | None:
        opening, start = match[0], match.end()
        stop = self._find_closing(_CLOSING[opening], start)
        if stop < 0:
            return self._read_open(start, match)
        source = self._text[match.start() : stop + 2]
        latex = self._text[start:stop].strip()
        if not latex:
            return None
        return match.start(), stop + 2, Segment(source, latex, True, opening != r"\(")

    def _find_closing(self, closing: str, start: int) -> int:
        """Where `closing` is next at or after `start`, or -1; each stretch is searched once."""
        known = self._closing.get(closing, 0)
        if known >= 0 and known <= start:
            self._closing[closing] = known = self._text.find(closing, start)
        return known

    def _read_environment(self, match: re.Match[str]) -> Found | None:
        if match["name"] not in ENVIRONMENTS:
            return None
        stop = self._find_ends().get(match.start(), -1)
        if stop < 0:
            return self._read_open(match.start(), match)
        source = self._text[match.start() : stop]
        return match.start(), stop, Segment(source, source, True, True)

    def _find_ends(self) -> dict[int, int]:
        """Start of each \\begin -> end of the \\end that closes it."""
        if self._ends is None:
            self._ends = {}
            open_at: dict[str, list[int]] = {}
            for match in _ENVIRONMENT.finditer(self._text):
                starts = open_at.setdefault(match[2], [])
                if match[1] == "begin":
                    starts.append(match.start())
                elif starts:
                    self._ends[starts.pop()] = match.end()
        return self._ends
