"""The conversation on the screen: cards below each other, drawn only where they are in sight.

Cards are made for a window of messages, from the last one up; more are made as the user reads
upwards. All others are data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.message import Message as TextualMessage
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from localcascade.chat.card import THINKING_VIEWS, Card, ChecksView, Live, ThinkingView
from localcascade.chat.checking import Findings
from localcascade.chat.conversation import Message
from localcascade.chat.lines import Line, Span, mark_line, mark_text, measure_line, read_text
from localcascade.chat.markdown import Look

WINDOW_CARDS = 60
"""Most cards that are made when a conversation is opened; they also stop at a few screens."""
WINDOW_LINES = 200
GUTTER_CELLS = 2
STYLES = (
    "strong", "em", "strike", "code", "link", "heading", "h1", "h2", "h3", "h4", "h5", "h6",
    "quote", "bullet", "rule", "maths", "dim", "fence", "comment", "keyword", "string", "number",
    "name", "builtin", "removed", "added", "user", "step", "live", "warn", "error", "match",
    "selection", "cursor", "summary",
)  # fmt: skip
_MARKS = {"user": Span("❯ ", "user"), "summary": Span("≡ ", "summary"), "system": Span("⚙ ", "dim")}


@dataclass(frozen=True, slots=True)
class Entry:
    """A message with its place among the branches."""

    message: Message
    branches: tuple[int, int] = (1, 1)


class Transcript(ScrollView, can_focus=True):
    """Shows the path of a conversation; told of it in plain data."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"transcript--{name}" for name in STYLES}

    selected: var[int | None] = var(None)
    """Index of the message that the cursor is on; None is the end."""

    class Clicked(TextualMessage):
        """The user clicked on a message; its thinking wants to be opened or closed."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []
        self._cards: list[Card] = []
        self._first = 0
        self._starts: list[int] = [0]
        self._styles: dict[str, Style] = {}
        self._shows_source = False
        self._ascii = False
        self._findings: dict[str, Findings] = {}
        self._checks_view: ChecksView = "off"
        self._query = ""
        self._width = 0
        self._wide = 0
        self._is_at_end = True

    @property
    def entries(self) -> Sequence[Entry]:
        """All messages of the path."""
        return self._entries

    @property
    def n_cards(self) -> int:
        """Messages that have been set into lines."""
        return len(self._cards)

    @property
    def look(self) -> Look:
        """How messages are set at the present width."""
        width = (self.scrollable_content_region.width or self.size.width) - GUTTER_CELLS - 1
        return Look(max(width, 20), self._shows_source, self._ascii)

    def show_path(self, entries: Sequence[Entry]) -> None:
        """Show a path from its end; thinking that was open and is on the path stays open."""
        views = {card.message.id: card.view for card in self._cards}
        self._entries, self._cards = list(entries), []
        self._first, self._wide = len(self._entries), 0
        self.selected = None
        if self._is_laid_out:
            self._make_window(views)

    def take(self, message: Message, live: Live | None = None) -> None:
        """Take a newer state of the last message; the view follows only if it was at the end."""
        self._entries[-1] = replace(self._entries[-1], message=message)
        if self._cards:
            self._cards[-1].take(message, live)
            self._measure_last()
        if self.is_at_end:
            self._go_to(self.max_scroll_y)
        self.refresh()

    @property
    def is_at_end(self) -> bool:
        """Whether the last line was in sight when last scrolled; less room does not change that."""
        return self._is_at_end

    def change(self, index: int, message: Message) -> None:
        """Take a newer state of any message; what is read stays where it is."""
        self._entries[index] = replace(self._entries[index], message=message)
        self._reach(index)
        self._cards[index - self._first].take(message)
        self._measure()
        self.refresh()

    def select_message(self, index: int | None) -> None:
        """Put the cursor on a message and bring it into sight; None takes it off."""
        self.selected = index
        if index is None:
            self._go_to(self.max_scroll_y)
        else:
            self._reach(index)
            top = self._starts[index - self._first]
            bottom = self._starts[index - self._first + 1]
            self._bring_into_sight(top, bottom - 1)
        self.refresh()

    def read_view(self, index: int) -> ThinkingView:
        """How much of a message's thinking is shown."""
        self._reach(index)
        return self._cards[index - self._first].view

    def set_view(self, index: int, view: ThinkingView) -> None:
        """Show more or less of a message's thinking; what is read stays where it is."""
        self._reach(index)
        self._cards[index - self._first].set_view(view)
        self._measure()
        if self.is_at_end:
            self._go_to(self.max_scroll_y)
        self.refresh()

    def turn_view(self, index: int) -> ThinkingView:
        """Show the thinking in the next of its three ways."""
        old = THINKING_VIEWS.index(self.read_view(index))
        view = THINKING_VIEWS[(old + 1) % len(THINKING_VIEWS)]
        self.set_view(index, view)
        return view

    def show_source(self, shows_source: bool) -> None:
        """Show the LaTeX of formulas, or their layout."""
        self._shows_source = shows_source
        self._set_anew()

    def show_findings(self, id: str, findings: Findings) -> None:
        """Show what was found about the steps of a message, below it."""
        self._findings[id] = findings
        self._tell_checks(lambda card: card.message.id == id)

    def show_checks(self, view: ChecksView) -> None:
        """Show more or less of what was found about the steps of all messages."""
        self._checks_view = view
        self._tell_checks(lambda card: card.message.id in self._findings)

    def _tell_checks(self, is_meant: Callable[[Card], bool]) -> None:
        for card in filter(is_meant, self._cards):
            card.set_findings(self._findings[card.message.id], self._checks_view)
        self._measure()
        if self.is_at_end:
            self._go_to(self.max_scroll_y)
        self.refresh()

    def mark_matches(self, query: str) -> None:
        """Mark where a text stands, whatever its case; an empty one marks nothing."""
        self._query = query.casefold()
        self.refresh()

    def show_match(self, index: int, query: str, number: int) -> None:
        """Bring words in a message into sight, its thinking opened if they stand there.

        Args:
            index: Of the message.
            query: The words.
            number: Which of the places in the message, from 0.
        """
        self._reach(index)
        card, wanted = self._cards[index - self._first], query.casefold()
        is_question = card.message.role == "user"
        if is_question or wanted in card.message.open_thinking.casefold():
            card.set_view("all")
            self._measure()
        counts = [read_text([line]).casefold().count(wanted) for line in card.lines]
        if card.message.thinking:
            counts[0] = 0  # the step that its outline shows stands below once more
        places = [at for at, count in enumerate(counts) for _ in range(count)] or [0]
        y = self._starts[index - self._first] + places[min(number, len(places) - 1)]
        self.selected = index
        self._go_to(max(y - self.size.height // 2, 0))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw one line of the view."""
        x, top = self.scroll_offset
        width = self.size.width
        base = self._find_style("")
        row = top + y
        if row >= self._starts[-1]:
            return Strip.blank(width, base)
        at = bisect_right(self._starts, row) - 1
        line = self._find_line(at, row)
        strip = Strip([Segment(span.text, self._find_style(span.style)) for span in line])
        return strip.crop_extend(x, x + width, base).apply_offsets(x, row)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text that the mouse has selected."""
        lines = [line for card in self._cards for line in card.lines]
        text = read_text((Span(" " * GUTTER_CELLS), *line) for line in lines)
        picked = selection.extract(text)
        return "\n".join(line.strip() for line in picked.split("\n")), "\n"

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        """Draw a new selection."""
        self.refresh()

    def notify_style_update(self) -> None:
        """Forget the colours of the old theme."""
        super().notify_style_update()
        self._styles.clear()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Make more cards before the user reaches the first."""
        super().watch_scroll_y(old_value, new_value)
        self._is_at_end = new_value >= self.max_scroll_y - 1
        if new_value < old_value and new_value < self.size.height and self._first:
            self.call_next(self._make_more)

    def on_resize(self) -> None:
        """Set everything for the new width."""
        if self.look.width == self._width:
            if self.is_at_end:
                self._go_to(self.max_scroll_y)
            return
        was_empty = not self._cards
        self._width = self.look.width
        if was_empty:
            self._make_window({})
        else:
            self._set_anew()

    def on_click(self, event: events.Click) -> None:
        """Tell which message was clicked."""
        row = int(self.scroll_offset.y) + event.y
        if row < self._starts[-1] and self.text_selection is None:
            at = bisect_right(self._starts, row) - 1
            self.post_message(self.Clicked(self._first + at))

    @property
    def _is_laid_out(self) -> bool:
        return self.size.width > 0

    def _make_card(self, index: int) -> Card:
        entry = self._entries[index]
        card = Card(entry.message, entry.branches, self.look)
        card.set_findings(self._findings.get(entry.message.id), self._checks_view)
        return card

    def _make_window(self, views: dict[str, ThinkingView]) -> None:
        """Make cards from the last message up, until they fill some screens."""
        n_lines = 0
        cards: list[Card] = []
        while self._first > 0 and len(cards) < WINDOW_CARDS and n_lines < WINDOW_LINES:
            self._first -= 1
            card = self._make_card(self._first)
            card.set_view(views.get(card.message.id, "line"))
            n_lines += len(card.lines)
            cards.append(card)
        self._cards = cards[::-1]
        self._width = self.look.width
        self._measure()
        self._go_to(self.max_scroll_y)
        self.refresh()

    def _make_more(self, n_cards: int = 10) -> None:
        """Make cards above the first one; what is in sight stays where it is."""
        first = max(self._first - n_cards, 0)
        new = [self._make_card(index) for index in range(first, self._first)]
        if not new:
            return
        self._first = first
        self._cards = new + self._cards
        self._measure()
        n_lines = sum(len(card.lines) for card in new)
        self._go_to(self.scroll_y + n_lines)
        self.refresh()

    def _reach(self, index: int) -> None:
        """Make the cards down from a message, if there are none yet."""
        if index < self._first:
            self._make_more(self._first - index + 3)

    def _set_anew(self) -> None:
        """Set all cards again; the line at the top stays in the message that it is in."""
        at_end, top = self.is_at_end, int(self.scroll_offset.y)
        at = max(bisect_right(self._starts, top) - 1, 0)
        share = (top - self._starts[at]) / max(len(self._cards[at].lines), 1) if self._cards else 0
        self._wide = 0
        for card in self._cards:
            card.set_look(self.look)
        self._measure()
        if at_end or not self._cards:
            self._go_to(self.max_scroll_y)
        elif at < len(self._cards):
            y = self._starts[at] + int(share * len(self._cards[at].lines))
            self._go_to(y)
        self.refresh()

    def _measure(self) -> None:
        self._starts = list(accumulate((len(card.lines) for card in self._cards), initial=0))
        self._wide = max((self._measure_card(card) for card in self._cards), default=0)
        self._resize_virtual()

    def _measure_last(self) -> None:
        self._starts[-1] = self._starts[-2] + len(self._cards[-1].lines)
        self._wide = max(self._wide, self._measure_card(self._cards[-1], last_lines=80))
        self._resize_virtual()

    def _measure_card(self, card: Card, last_lines: int = 0) -> int:
        return max(map(measure_line, card.lines[-last_lines:]), default=0)

    def _resize_virtual(self) -> None:
        width = self._wide + GUTTER_CELLS if self._wide > self.look.width else 0
        size = Size(max(width, 1), self._starts[-1])
        if size != self.virtual_size:
            self.virtual_size = size

    def _bring_into_sight(self, top: int, bottom: int) -> None:
        height = self.size.height
        y = int(self.scroll_offset.y)
        if top < y or bottom - top >= height:
            self._go_to(top)
        elif bottom >= y + height:
            self._go_to(bottom - height + 1)

    def _go_to(self, y: float) -> None:
        """Scroll at once, also where the scrollbar has not been shown yet."""
        self.scroll_to(y=y, animate=False, force=True, immediate=True)

    def _find_line(self, at: int, row: int) -> Line:
        """A line with its gutter, matches and the selection marked."""
        card = self._cards[at]
        number = row - self._starts[at]
        is_selected = self.selected == self._first + at
        gutter = Span("▎ ", "cursor") if is_selected else Span(" " * GUTTER_CELLS)
        own_mark = _MARKS.get(card.message.role)
        if own_mark is not None and number == 0:
            gutter = own_mark if not is_selected else Span(own_mark.text, "cursor")
        line: Line = (gutter, *card.lines[number])
        if self._query:
            line = mark_text(line, self._query, "match")
        return self._mark_selection(line, row)

    def _mark_selection(self, line: Line, row: int) -> Line:
        selection = self.text_selection
        span = selection.get_span(row) if selection is not None else None
        if span is None:
            return line
        start, stop = span
        return mark_line(line, start, stop if stop >= 0 else 10_000, "selection")

    def _find_style(self, style: str) -> Style:
        found = self._styles.get(style)
        if found is None:
            found = self.rich_style
            for name in style.split():
                found += self._read_component(f"transcript--{name}")
            self._styles[style] = found
        return found

    def _read_component(self, name: str) -> Style:
        """What a component changes of the plain style, its colours blended with the ground."""
        plain, whole = self.rich_style, self.get_component_rich_style(name)
        colours = Style(
            color=whole.color if whole.color != plain.color else None,
            bgcolor=whole.bgcolor if whole.bgcolor != plain.bgcolor else None,
        )
        return colours + self.get_component_rich_style(name, partial=True).without_color
