"""The chat program: which conversation is on the screen, with which model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from localcascade.chat.composition import Manner
from localcascade.chat.conversation import Conversation
from localcascade.chat.exchange import Exchange
from localcascade.tui.screens.chat import ChatScreen
from localcascade.tui.speaker import ChatEngine


@dataclass(frozen=True, slots=True)
class Opening:
    """A conversation to be opened."""

    conversation: Conversation
    model: str
    """Name of the model, for the reader and the history."""
    engine: ChatEngine
    """Made, but not loaded."""
    title: str = ""
    notice: str = ""
    """What the user should know of it, above the line to write in."""


class ChatApp(App[None]):
    """Shows conversations.

    Args:
        opening: The first conversation.
        begin: Makes a new conversation, with a model of a name or the present one.
        manner: How answers are asked for at first.
    """

    TITLE = "LocalCascade"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+n", "begin_anew", "New conversation", id="app.new", priority=True),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
    ]

    def __init__(
        self,
        opening: Opening,
        begin: Callable[[str | None], Opening],
        manner: Manner | None = None,
    ) -> None:
        super().__init__()
        self._opening, self._begin = opening, begin
        self._manner = manner or Manner()

    def on_mount(self) -> None:
        """Show the first conversation."""
        self.push_screen(self._make_screen(self._opening))

    def action_begin_anew(self) -> None:
        """Leave this conversation, which is kept, for a new one."""
        self.switch_screen(self._make_screen(self._begin(None)))

    def _make_screen(self, opening: Opening) -> ChatScreen:
        exchange = Exchange(opening.conversation, self._manner, opening.model)
        title = f"{opening.model} — {opening.title}" if opening.title else opening.model
        return ChatScreen(exchange, opening.engine, title, opening.notice)
