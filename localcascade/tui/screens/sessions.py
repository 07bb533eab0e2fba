"""The conversations that are kept: found by their words, opened, deleted, or a new one begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from localcascade.chat.archive import Archive, Entry
from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.offers import fit_cells, write_error
from localcascade.tui.screens.choosing import ChoosingScreen

SessionChoice = Entry | Literal["new"] | None

KEYS = "Enter opens · Ctrl+D deletes · Ctrl+N new · Esc closes"
_MODEL_CELLS, _AGE_CELLS, _COUNT_CELLS = 18, 10, 5
_WIDE_CELLS = 76
"""Of a row that has room for the model, and for what the number counts."""
_UNIT = " messages"


class SessionScreen(ChoosingScreen[SessionChoice]):
    """Lets the user choose a conversation; answers with it, with a wish for a new one, or None.

    Args:
        archive: What is kept.
        current: Id of the conversation that is open; None if it is not kept yet.
        read_clock: Seconds since 1970.
    """

    CSS_PATH = ["choosing.tcss", "sessions.tcss"]  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="sessions.close"),
        Binding("down", "move(1)", "Next", id="sessions.next", priority=True),
        Binding("up", "move(-1)", "Previous", id="sessions.previous", priority=True),
        Binding("pagedown", "move(8)", "Further down", id="sessions.page_down", priority=True),
        Binding("pageup", "move(-8)", "Further up", id="sessions.page_up", priority=True),
        Binding("ctrl+d", "ask_delete", "Delete", id="sessions.delete", priority=True),
        Binding("ctrl+n", "begin", "New conversation", id="sessions.new", priority=True),
    ]

    class Listed(Message):
        """The archive has answered."""

        def __init__(self, query: str, entries: Sequence[Entry]) -> None:
            super().__init__()
            self.query = query
            self.entries = entries

    class Failed(Message):
        """The archive could not answer, or could not delete."""

        def __init__(self, error: CascadeError) -> None:
            super().__init__()
            self.error = error

    def __init__(
        self,
        archive: Archive,
        current: str | None = None,
        read_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._archive, self._current, self._read_clock = archive, current, read_clock
        self._entries: Sequence[Entry] = ()
        self._doomed: Entry | None = None
        self._problem = ""

    def compose(self) -> ComposeResult:
        """The words, the conversations, what was found in the one below the cursor, the keys."""
        with Vertical(id="sessions"):
            yield Static("Conversations", classes="title")
            yield Input(
                placeholder="Type words to find them in titles and messages",
                compact=True,
                id="sessions-filter",
            )
            yield OptionList(id="sessions-list")
            yield Static("", id="sessions-found")
            yield Static("", id="sessions-hint", classes="hint", markup=False)

    def on_mount(self) -> None:
        """List everything."""
        self._look("")

    def on_resize(self, _event: events.Resize) -> None:
        """Draw the rows anew, as wide as they can be."""
        self.call_after_refresh(self._draw_rows)

    @work(thread=True, exclusive=True, group="sessions")
    def _look(self, query: str) -> None:
        try:
            entries = self._archive.list_entries(query)
        except CascadeError as error:
            self.post_message(self.Failed(error))
            return
        if not get_current_worker().is_cancelled:
            self.post_message(self.Listed(query, entries))

    @work(thread=True, group="sessions-delete")
    def _delete(self, entry: Entry, query: str) -> None:
        try:
            self._archive.delete(entry.id)
        except CascadeError as error:
            self.post_message(self.Failed(error))
        else:
            self.app.call_from_thread(self._look, query)

    @on(Listed)
    def _show_list(self, event: Listed) -> None:
        if event.query == self.query_one(Input).value:
            self._entries, self._problem = event.entries, ""
            self._draw_rows()

    @on(Failed)
    def _show_failure(self, event: Failed) -> None:
        self._problem = write_error(event.error)
        self._show_highlighted()

    @on(Input.Changed)
    def _look_typed(self, event: Input.Changed) -> None:
        event.stop()
        self._spare()
        self._look(event.value)

    @on(Input.Submitted)
    def _choose(self, event: Input.Submitted) -> None:
        event.stop()
        doomed, self._doomed = self._doomed, None
        if doomed is not None:
            self._delete(doomed, event.value)
        elif (entry := self._get_highlighted()) is not None:
            self.dismiss(entry)

    @on(OptionList.OptionSelected)
    def _choose_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._entries[event.option_index])

    @on(OptionList.OptionHighlighted)
    def _describe(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if self._doomed is None or self._doomed is not self._get_highlighted():
            self._spare()

    def action_leave(self) -> None:
        """Choose nothing; or keep what was about to be deleted."""
        if self._doomed is None:
            self.dismiss(None)
        self._spare()

    def action_move(self, step: int) -> None:
        """Move the cursor while the user goes on typing."""
        rows = self.query_one(OptionList)
        if self._entries:
            at = (rows.highlighted or 0) + step
            rows.highlighted = min(max(at, 0), len(self._entries) - 1)

    def action_begin(self) -> None:
        """Begin a new conversation."""
        self.dismiss("new")

    def action_ask_delete(self) -> None:
        """Ask whether the conversation below the cursor is to be deleted."""
        entry = self._get_highlighted()
        if entry is None:
            return
        if entry.id == self._current:
            self._show_hint("This one is open. Begin a new one first: Ctrl+N", is_warning=True)
            return
        self._doomed = entry
        title = fit_cells(_write_title(entry), 40).rstrip()
        self._show_hint(f"Delete “{title}”?  Enter deletes  ·  Esc keeps it", is_warning=True)

    def _spare(self) -> None:
        """Delete nothing; tell of what is below the cursor instead."""
        self._doomed = None
        self._show_highlighted()

    def _draw_rows(self) -> None:
        rows = self.query_one(OptionList)
        width, now_s = rows.scrollable_content_region.width, self._read_clock()
        at = rows.highlighted or 0
        rows.clear_options()
        rows.add_options(
            Option(draw_row(entry, width, now_s, is_open=entry.id == self._current))
            for entry in self._entries
        )
        rows.highlighted = min(at, len(self._entries) - 1) if self._entries else None
        self._show_highlighted()

    def _show_highlighted(self) -> None:
        entry = self._get_highlighted()
        found = self.query_one("#sessions-found", Static)
        found.update(draw_snippet(entry.snippet) if entry else "")
        found.display = bool(entry and entry.snippet)
        nothing = "Nothing is found." if self.query_one(Input).value else "Nothing is kept yet."
        told = KEYS if self._entries else f"{nothing}  Ctrl+N begins a new one"
        self._show_hint(self._problem or told, is_warning=bool(self._problem))

    def _show_hint(self, text: str, *, is_warning: bool = False) -> None:
        hint = self.query_one("#sessions-hint", Static)
        hint.update(make_safe(text))
        hint.set_class(is_warning, "-warning")

    def _get_highlighted(self) -> Entry | None:
        at = self.query_one(OptionList).highlighted
        return self._entries[at] if at is not None and at < len(self._entries) else None


def draw_row(entry: Entry, width: int, now_s: float, *, is_open: bool = False) -> Content:
    """Draw a conversation in one line.

    Args:
        entry: What to draw.
        width: Cells there are.
        now_s: Seconds since 1970.
        is_open: Whether it is the one on the screen.
    """
    quiet = "$foreground-muted"
    is_wide = width >= _WIDE_CELLS
    more_cells = (_MODEL_CELLS + 2 + len(_UNIT)) * is_wide
    room = width - 2 - more_cells - _COUNT_CELLS - 2 - _AGE_CELLS - 2
    parts: list[str | tuple[str, str]] = [("● " if is_open else "  ", "$text-primary")]
    parts.append((fit_cells(_write_title(entry), max(room, 1)), "bold"))
    if is_wide:
        parts += ["  ", (fit_cells(_write_line(entry.model), _MODEL_CELLS), quiet)]
    unit = (_UNIT if entry.n_messages != 1 else _UNIT[:-1].ljust(len(_UNIT))) * is_wide
    parts += ["  ", (f"{entry.n_messages:,}".rjust(_COUNT_CELLS) + unit, quiet)]
    parts += ["  ", (write_age(now_s - entry.updated_s, now_s).rjust(_AGE_CELLS), quiet)]
    return Content.assemble(*parts)


def draw_snippet(snippet: Sequence[str]) -> Content:
    """Draw the text around what was found, what was found standing out."""
    styles = ("$foreground-muted", "$text-accent bold")
    return Content.assemble(
        *((_write_line(part), styles[at % 2]) for at, part in enumerate(snippet))
    )


def write_age(seconds: float, now_s: float) -> str:
    """Write how long ago something was; the date where that is more than a month.

    Args:
        seconds: How long ago.
        now_s: Seconds since 1970.
    """
    for unit_s, limit_s, unit in ((60, 3600, "min"), (3600, 86_400, "h"), (86_400, 2.6e6, "d")):
        if seconds < limit_s:
            return f"{int(seconds // unit_s)} {unit}" if seconds >= 60 else "now"
    return time.strftime("%Y-%m-%d", time.localtime(now_s - seconds))


def _write_title(entry: Entry) -> str:
    return _write_line(entry.title) or "(no title)"


def _write_line(text: str) -> str:
    return make_safe(text).replace("\n", " ")
