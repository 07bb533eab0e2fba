"""The chat program: which screen is shown, with which conversation and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType

from localcascade.chat.composition import Manner
from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Conversation
from localcascade.chat.exchange import Exchange
from localcascade.chat.tutor import load_tutor
from localcascade.errors import CascadeError
from localcascade.settings import THEMES, save_theme
from localcascade.tui.actions import apply_keys, collect_ids, list_actions
from localcascade.tui.screens.chat import ChatScreen
from localcascade.tui.screens.fetch import FetchScreen
from localcascade.tui.screens.first_run import FirstChoice, FirstRunScreen
from localcascade.tui.screens.help import HelpScreen
from localcascade.tui.screens.lesson import LessonScreen
from localcascade.tui.screens.models import ModelScreen
from localcascade.tui.screens.palette import ActionProvider
from localcascade.tui.screens.practice import PracticeScreen
from localcascade.tui.shelf import Offer, Shelf
from localcascade.tui.speaker import ChatEngine
from localcascade.tui.themes import find_next_theme, register_themes
from localcascade.tui.widgets.attach import AttachPicker

_SCREENS = (
    LessonScreen,
    PracticeScreen,
    ModelScreen,
    FetchScreen,
    FirstRunScreen,
    HelpScreen,
    AttachPicker,
)


@dataclass(frozen=True, slots=True)
class Opening:
    """A conversation to be opened."""

    conversation: Conversation
    model: str
    """Name of the model, for the reader and the history."""
    engine: ChatEngine
    """Made, but perhaps not loaded."""
    title: str = ""
    notice: str = ""
    """What the user should know of it, above the line to write in."""


class Source(Protocol):
    """Where conversations come from."""

    def begin(self, model: str | None) -> Opening:
        """Begin a new one, with a model of a name or the present one."""

    def resume(self, session: str | None, model: str | None) -> Opening:
        """Go on with one, with another model or its own."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the user has set for good."""

    theme: str = THEMES[0]
    keys: Mapping[str, str] = field(default_factory=dict)
    """Id of an action -> its keys."""
    manner: Manner = field(default_factory=Manner)
    """How answers are asked for at first."""
    checks: bool | None = None
    """Whether steps are marked as right or wrong; None where SymPy is installed."""


class ChatApp(App[None]):
    """Shows conversations.

    Args:
        source: Where they come from.
        opening: The first one; None where no model is installed yet.
        preferences: The user's.
        shelf: The models to choose from; None offers none.
        topic: Words to filter the practice problems with, which are shown at first; None shows
            the conversation.
    """

    TITLE = "LocalCascade"
    COMMANDS = {ActionProvider}  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "show_keys", "Keys", id="app.help", priority=True),
        Binding("f2", "choose_model", "Models", id="app.models", priority=True),
        Binding("ctrl+n", "begin_anew", "New conversation", id="app.new", priority=True),
        Binding("f10", "turn_theme", "Next theme", id="app.theme", priority=True),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
    ]

    def __init__(
        self,
        source: Source,
        opening: Opening | None,
        preferences: Preferences | None = None,
        shelf: Shelf | None = None,
        topic: str | None = None,
    ) -> None:
        super().__init__()
        self._topic = topic
        self._source, self._opening, self._shelf = source, opening, shelf
        self._preferences = preferences or Preferences()
        register_themes(self, self._preferences.theme)

    def on_mount(self) -> None:
        """Show the first conversation, or what there is to begin with."""
        problems = apply_keys(self, self._preferences.keys, collect_ids(ChatApp, *_SCREENS))
        for problem in problems:
            self._tell(problem)
        if self._opening is not None:
            self.push_screen(self._make_screen(self._opening))
        elif self._shelf is not None:
            self.push_screen(FirstRunScreen(self._shelf), self._begin_first)

    def on_unmount(self) -> None:
        """End the engine."""
        if self._opening is not None:
            self._opening.engine.close()

    def action_show_keys(self) -> None:
        """List what the keys do on this screen."""
        if not isinstance(self.screen, HelpScreen):
            note = 'Other keys: a [keys] table in settings.toml, as chat.stop = "ctrl+x".'
            self.push_screen(HelpScreen(list_actions(self.screen), note))

    def action_choose_model(self) -> None:
        """Go on with another model."""
        if self._shelf is not None and isinstance(self.screen, ChatScreen):
            name = self._opening.model if self._opening is not None else ""
            self.push_screen(ModelScreen(self._shelf, name), self._use_offer)

    def action_begin_anew(self) -> None:
        """Leave this conversation, which is kept, for a new one."""
        if isinstance(self.screen, ChatScreen):
            self._open(None)

    def action_turn_theme(self) -> None:
        """Change to the next theme, and remember it."""
        self.theme = find_next_theme(self.theme)
        try:
            save_theme(self.theme)
        except (CascadeError, OSError) as error:
            self._tell(f"The theme is not remembered: {error}")

    def _begin_first(self, choice: FirstChoice) -> None:
        if choice is None:
            self.exit()
        elif choice == "browse" and self._shelf is not None:
            self.push_screen(ModelScreen(self._shelf), self._begin_browsed)
        elif isinstance(choice, Offer):
            self._use_offer(choice)

    def _begin_browsed(self, offer: Offer | None) -> None:
        self._use_offer(offer) if offer is not None else self._begin_again()

    def _begin_again(self) -> None:
        """Show what there is to begin with, where nothing was chosen."""
        if self._opening is None and self._shelf is not None:
            self.push_screen(FirstRunScreen(self._shelf), self._begin_first)

    def _use_offer(self, offer: Offer | None) -> None:
        if offer is None or self._shelf is None:
            return
        if offer.state == "installed":
            self._open(offer.name)
        else:

            def open_fetched(is_here: bool | None) -> None:
                self._open(offer.name) if is_here else self._begin_again()

            self.push_screen(FetchScreen(self._shelf, offer), open_fetched)

    def _open(self, model: str | None) -> None:
        """Open a new conversation, or the present one with another model."""
        old = self._opening
        session = old.conversation.session if old is not None else None
        try:
            self._opening = (
                self._source.resume(session, model)
                if model is not None and session is not None
                else self._source.begin(model)
            )
        except CascadeError as error:
            self._tell(f"{error} {error.hint}".strip())
            return
        if old is not None and old.engine is not self._opening.engine:
            self._close(old.engine)
        screen = self._make_screen(self._opening)
        if isinstance(self.screen, ChatScreen):
            self.switch_screen(screen)
        else:
            self.push_screen(screen)

    @work(thread=True)
    def _close(self, engine: ChatEngine) -> None:
        engine.close()

    def _make_screen(self, opening: Opening) -> ChatScreen:
        manner, checks = self._preferences.manner, self._preferences.checks
        if opening.conversation.is_tutored and manner.tutor is None:
            manner = replace(manner, tutor=load_tutor())
        exchange = Exchange(opening.conversation, manner, opening.model)
        title = f"{opening.model} — {opening.title}" if opening.title else opening.model
        topic, self._topic = self._topic, None
        return LessonScreen(exchange, opening.engine, title, opening.notice, checks, topic)

    def _tell(self, text: str) -> None:
        self.notify(make_safe(text), severity="error", markup=False, timeout=8)
