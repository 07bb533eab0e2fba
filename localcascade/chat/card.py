"""One message as lines of a terminal, which grow while it streams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from localcascade.chat.blocks import BlockSplitter
from localcascade.chat.checking import Findings, draw_findings
from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Message
from localcascade.chat.lines import BLANK, Line, PlainText, Span, pad_line, prefix_lines
from localcascade.chat.markdown import Look, Page, draw_markdown
from localcascade.chat.outline import find_step

ThinkingView = Literal["line", "tail", "all"]
ChecksView = Literal["off", "line", "all"]
CHECKS_VIEWS: tuple[ChecksView, ...] = ("off", "line", "all")
"""Nothing of what was found about the steps; how many are right and which are wrong; all."""
THINKING_VIEWS: tuple[ThinkingView, ...] = ("line", "tail", "all")
TAIL_LINES = 8
"""Lines of thinking that its tail shows."""
_NO_EDGE = 100_000
FOLD_LINES = 24
"""Lines of a question that are shown before it is unfolded."""


@dataclass(frozen=True, slots=True)
class Live:
    """What is known of an answer beyond its text."""

    n_thinking: int = 0
    thinking_s: float = 0.0
    tokens_per_s: float = 0.0
    waiting: str = ""
    """What it waits for, before there is any text."""


class Card:
    """The lines of one message.

    Args:
        message: What it says.
        branches: Place of the message among those with its parent, and their number.
        look: How it is set.
    """

    def __init__(self, message: Message, branches: tuple[int, int], look: Look) -> None:
        self.message, self.branches = message, branches
        self.view: ThinkingView = "line"
        self.findings: Findings | None = None
        self.checks_view: ChecksView = "off"
        self.live = _read_live(message)
        self._lines: list[Line] | None = None
        self._look = look
        self._begin()
        self._feed(message.text)
        self._end_if_over()

    def take(self, message: Message, live: Live | None = None) -> None:
        """Take a newer state of the message.

        Args:
            message: Its text and thinking begin with those that were there.
            live: Figures, while it streams.
        """
        old, self.message = self.message, message
        self.live = live or _read_live(message)
        if not self._is_open and message.state == "streaming":
            self._begin()
            self._feed(message.text)
        else:
            self._thought.feed(make_safe(message.open_thinking[len(old.open_thinking) :]))
            self._feed(message.text[len(old.text) :])
        self._end_if_over()
        self._lines = None

    def set_look(self, look: Look) -> None:
        """Set it anew, narrower or wider, with or without the source of formulas."""
        self._look = look
        self._begin()
        self._feed(self.message.text)
        self._end_if_over()

    def set_view(self, view: ThinkingView) -> None:
        """Show more or less of the thinking, or of a long question."""
        self.view = view
        self._lines = None

    def set_findings(self, findings: Findings | None, view: ChecksView) -> None:
        """Show what was found about its steps; its text stays as it is."""
        self.findings, self.checks_view = findings, view
        self._lines = None

    @property
    def lines(self) -> list[Line]:
        """All its lines; the last one is blank."""
        if self._lines is None:
            is_question = self.message.role in ("user", "system")
            body, checks = self._body, self._draw_checks()
            if is_question:  # what is found of an attempt stands right below it
                body, checks = [*self._fold(body), *checks], []
            parts = [self._draw_thinking(), body, checks, self._draw_foot()]
            self._lines = [line for part in parts if part for line in (*part, BLANK)] or [BLANK]
        return self._lines

    def _begin(self) -> None:
        self._splitter = BlockSplitter()
        keeps_breaks = self.message.role == "user"  # who presses Enter means it
        self._page = Page(replace(self._look, keeps_breaks=keeps_breaks))
        self._open = PlainText(self._look.width)
        self._thought = PlainText(self._look.width - 2, "dim")
        self._thought.feed(make_safe(self.message.open_thinking))
        self._is_open = True
        self._lines = None

    def _feed(self, text: str) -> None:
        safe, was_code = make_safe(text), self._splitter.is_code
        pieces = self._splitter.feed(safe)
        for piece in pieces:
            self._page.add(piece)
        is_code = self._splitter.is_code
        if pieces or is_code != was_code:
            self._open = PlainText(_NO_EDGE, "fence") if is_code else PlainText(self._look.width)
            safe = self._splitter.open_code if is_code else self._splitter.open.lstrip("\n")
        self._open.feed(safe)

    def _end_if_over(self) -> None:
        if self.message.state != "streaming" and self._is_open:
            for piece in self._splitter.finish():
                self._page.add(piece)
            self._open = PlainText(self._look.width)
            self._is_open = False

    @property
    def _body(self) -> list[Line]:
        """What is finished, and below it the open tail as it is written."""
        tail, page = self._open.lines, self._page.lines
        if self._splitter.is_code:
            inset = Span("  ", "fence")
            tail = [pad_line((inset, *line), self._look.width, "fence") for line in tail]
        gap = [] if self._splitter.continues or not (page and tail) else [BLANK]
        return [*page, *gap, *tail]

    def _fold(self, body: list[Line]) -> list[Line]:
        n_more = len(body) - FOLD_LINES
        if self.view != "line" or n_more <= 0:
            return body
        return [*body[:FOLD_LINES], (Span(f"… {n_more} more lines", "dim"),)]

    def _draw_thinking(self) -> list[Line]:
        if not self.message.thinking:
            return []
        is_thinking = self.message.state == "streaming" and not self.message.text
        head = self._write_outline(is_thinking)
        if self.view == "line" or self.message.is_sealed:
            return [head]
        if self.view == "all" and not is_thinking:
            body = draw_markdown(make_safe(self.message.thinking), self._thinking_look)
        else:
            body = self._thought.lines
            body = body[-TAIL_LINES:] if self.view == "tail" else body
        bar = Span("│ ", "quote")
        dimmed = [tuple(Span(s.text, f"{s.style} dim".strip()) for s in line) for line in body]
        return [head, *prefix_lines(dimmed, bar, bar)]

    @property
    def _thinking_look(self) -> Look:
        return replace(self._look, width=self._look.width - 2, keeps_breaks=True)

    def _write_outline(self, is_thinking: bool) -> Line:
        is_sealed = self.message.is_sealed
        mark = "▪" if is_sealed else "▾" if self.view != "line" else "▸"
        word = "Thinking" if is_thinking else "Thought"
        figures = [f"{self.live.thinking_s:.0f} s"] if self.live.thinking_s >= 1 else []
        figures += [f"{self.live.n_thinking:,} tokens"] if self.live.n_thinking > 1 else []
        if is_thinking and self.live.tokens_per_s:
            figures.append(f"{self.live.tokens_per_s:.0f} tok/s")
        parts = [f"{mark} {word} {figures[0] if figures else ''}".rstrip(), *figures[1:]]
        head = " · ".join([*parts, "sealed"] if is_sealed else parts)
        room = self._look.width - len(head) - 3
        step = find_step(make_safe(self.message.open_thinking)) if room > 12 else ""
        shown = step if len(step) <= room else f"{step[: room - 1]}…"
        style = "step live" if is_thinking else "step"
        return (Span(head, style), *([Span(f"   {shown}", "dim em")] if shown else []))

    def _draw_checks(self) -> list[Line]:
        """What was found; on an attempt of the user's own always, as he asked for it."""
        is_wanted = self.checks_view != "off" or self.message.role == "user"
        if self.findings is None or self.message.state == "streaming" or not is_wanted:
            return []
        return draw_findings(self.findings, self._look, shows_all=self.checks_view == "all")

    def _draw_foot(self) -> list[Line]:
        message, (place, n_branches) = self.message, self.branches
        if message.state == "streaming" and not (message.text or message.thinking):
            return [(Span(self.live.waiting or "…", "dim"),)]
        spans = [Span(f"‹ {place}/{n_branches} ›  ", "dim")] if n_branches > 1 else []
        if message.state == "failed":
            spans.append(Span(f"✗ {make_safe(message.note)}", "error"))
        elif message.state == "stopped":
            spans.append(Span(f"■ {make_safe(message.note) or 'Stopped.'}", "warn"))
        return [tuple(spans)] if spans else []


def _read_live(message: Message) -> Live:
    return Live(message.stats.thinking_tokens, message.stats.thinking_s)
