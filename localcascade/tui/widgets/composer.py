"""Where the user writes: Enter sends, Shift+Enter begins a new line."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from localcascade.tui.curtain import PLACEHOLDER

NEWLINE_KEYS = ("shift+enter", "ctrl+j", "alt+enter")


class Composer(TextArea):
    """A text area that grows with its text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Some terminals, and tmux in them, send this for the backspace key.
        Binding("ctrl+h", "delete_left", "Delete left", show=False),
        Binding("alt+z", "redo", "Redo", show=False),  # Ctrl+Y, the usual key, copies a message
    ]

    class Submitted(Message):
        """The text is to be sent."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class AttachWanted(Message):
        """The user typed @ at the beginning of a word."""

    def __init__(self, text: str = "", *, id: str | None = None) -> None:
        super().__init__(
            text,
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            compact=True,
            highlight_cursor_line=False,
            placeholder=PLACEHOLDER,
        )

    def write(self, text: str) -> None:
        """Put a text in the place of what is here, which undo brings back."""
        if text != self.text:
            self.replace(text, self.document.start, self.document.end)
        self.move_cursor(self.document.end)
        self.focus()

    def take_sign(self) -> None:
        """Take away the @ before the cursor."""
        row, column = self.cursor_location
        if self.document.get_line(row)[:column].endswith("@"):
            self.delete((row, column - 1), (row, column))

    def undo(self) -> None:
        """Take back the last edits."""
        if self.history.undo_stack:
            self.move_cursor((0, 0))  # Textual asks where it is before it is moved: lines may go
        super().undo()

    def redo(self) -> None:
        """Make the last edits again that were taken back."""
        if self.history.redo_stack:
            self.move_cursor((0, 0))
        super().redo()

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Submitted(self.text))
        elif event.key in NEWLINE_KEYS:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.character == "@" and self._is_word_start():
            self.post_message(self.AttachWanted())
            await super()._on_key(event)
        else:
            await super()._on_key(event)

    def _is_word_start(self) -> bool:
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        return not before or before[-1].isspace()
