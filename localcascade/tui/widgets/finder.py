"""The line in which the user looks for words in the conversation and its thinking."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Label


class Finder(Horizontal):
    """Asks for words; hidden until it is opened."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "look(1)", "Next", show=False),
        Binding("up", "look(-1)", "Previous", show=False),
        Binding("escape", "close", "Close", show=False),
    ]

    class Wanted(Message):
        """Look for words, from the last match on."""

        def __init__(self, query: str, step: int) -> None:
            super().__init__()
            self.query = query
            self.step = step
            """0 is from the end, 1 the next one up the screen's order, -1 the one before."""

    class Closed(Message):
        """The user is done."""

    def compose(self) -> ComposeResult:
        """The words, and how many matches there are."""
        yield Label("Find ")
        yield Input(placeholder="in messages and thinking", compact=True)
        yield Label("", id="finder-count")

    def open(self) -> None:
        """Show it and let the user write."""
        self.display = True
        self.query_one(Input).focus()

    def show_count(self, place: int, n_matches: int) -> None:
        """Tell which match is shown."""
        text = f" {place} / {n_matches}" if n_matches else " nothing"
        has_query = bool(self.query_one(Input).value)
        self.query_one("#finder-count", Label).update(text if has_query else "")

    @on(Input.Changed)
    def _look_anew(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Wanted(event.value, 0))

    @on(Input.Submitted)
    def _look_on(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_look(1)

    def action_look(self, step: int) -> None:
        """Look for the next match, or the one before."""
        self.post_message(self.Wanted(self.query_one(Input).value, step))

    def action_close(self) -> None:
        """Hide it."""
        self.display = False
        self.post_message(self.Closed())
