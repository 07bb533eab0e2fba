"""The chat program: which screen is shown, with which conversation and model.

All screens but the first are imported when they are shown, so that the first is painted sooner.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import SystemModalScreen

from localcascade.chat.controls import make_safe
from localcascade.chat.exchange import Exchange
from localcascade.chat.tutor import load_tutor
from localcascade.errors import CascadeError, ModelNotFound
from localcascade.settings import save_theme
from localcascade.tui.actions import apply_keys, collect_ids, list_actions
from localcascade.tui.opening import Opening, Preferences, Source
from localcascade.tui.screens.chat import ChatScreen
from localcascade.tui.screens.lesson import LessonScreen
from localcascade.tui.shelf import Offer, Shelf
from localcascade.tui.speaker import ChatEngine
from localcascade.tui.themes import find_next_theme, register_themes

if TYPE_CHECKING:
    from textual.command import Provider

    from localcascade.chat.archive import Archive
    from localcascade.tui.screens.first_run import FirstChoice
    from localcascade.tui.screens.sessions import SessionChoice


NEVER = 1_000_000
"""Collections of young garbage before one of all; see ChatScreen, which asks for that."""


def _load_provider() -> type[Provider]:
    from localcascade.tui.screens.palette import ActionProvider

    return ActionProvider


class ChatApp(App[None]):
    """Shows conversations.

    Args:
        source: Where they come from.
        opening: The first one; None where no model is installed yet.
        preferences: The user's.
        shelf: The models to choose from; None offers none.
        archive: The conversations that are kept; None where there is no history.
        topic: Words to filter the practice problems with, which are shown at first; None shows
            the conversation.
    """

    TITLE = "LocalCascade"
    COMMANDS = {_load_provider}  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "show_keys", "Keys", id="app.help", priority=True),
        Binding("f2", "choose_model", "Models", id="app.models", priority=True),
        Binding("ctrl+l", "choose_session", "Conversations", id="app.sessions", priority=True),
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
        archive: Archive | None = None,
    ) -> None:
        super().__init__()
        self._archive = archive
        self._topic = topic
        self._source, self._opening, self._shelf = source, opening, shelf
        self._preferences = preferences or Preferences()
        register_themes(self, self._preferences.theme)

    def on_mount(self) -> None:
        """Show the first conversation, or what there is to begin with."""
        # To look through all that there is takes 40 ms, in which no key is heard: after answers.
        gc.set_threshold(*gc.get_threshold()[:2], NEVER)
        if self._preferences.keys:
            for problem in apply_keys(self, self._preferences.keys, _collect_ids()):
                self._tell(problem)
        if self._opening is not None:
            self.push_screen(self._make_screen(self._opening))
        else:
            self._begin_again()

    def on_unmount(self) -> None:
        """End the engine."""
        if self._opening is not None:
            self._opening.engine.close()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow what changes the conversation only where one is on the screen."""
        if action in ("choose_model", "choose_session", "begin_anew"):
            own = [s for s in self.screen_stack if not isinstance(s, SystemModalScreen)]
            return isinstance(own[-1], ChatScreen)
        return super().check_action(action, parameters)

    def action_show_keys(self) -> None:
        """List what the keys do on this screen."""
        from localcascade.tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            note = 'Other keys: a [keys] table in settings.toml, as chat.stop = "ctrl+x".'
            self.push_screen(HelpScreen(list_actions(self.screen), note))

    def action_choose_model(self) -> None:
        """Go on with another model."""
        if self._shelf is not None:
            from localcascade.tui.screens.models import ModelScreen

            name = self._opening.model if self._opening is not None else ""
            self.push_screen(ModelScreen(self._shelf, name), self._use_offer)

    def action_choose_session(self) -> None:
        """Go on with another conversation, or delete some."""
        if self._archive is None:
            self._tell("There is no history here, so no other conversation is kept.")
            return
        from localcascade.tui.screens.sessions import SessionScreen

        current = self._opening.conversation.session if self._opening is not None else None
        self.push_screen(SessionScreen(self._archive, current), self._use_session)

    def action_begin_anew(self) -> None:
        """Leave this conversation, which is kept, for a new one."""
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
            from localcascade.tui.screens.models import ModelScreen

            self.push_screen(ModelScreen(self._shelf), self._begin_browsed)
        elif isinstance(choice, Offer):
            self._use_offer(choice)

    def _begin_browsed(self, offer: Offer | None) -> None:
        self._use_offer(offer) if offer is not None else self._begin_again()

    def _begin_again(self) -> None:
        """Show what there is to begin with, where nothing was chosen."""
        if self._opening is None and self._shelf is not None:
            from localcascade.tui.screens.first_run import FirstRunScreen

            self.push_screen(FirstRunScreen(self._shelf), self._begin_first)

    def _use_offer(self, offer: Offer | None) -> None:
        if offer is None or self._shelf is None:
            return
        if offer.state == "installed":
            self._open(offer.name)
        else:
            from localcascade.tui.screens.fetch import FetchScreen

            def open_fetched(is_here: bool | None) -> None:
                self._open(offer.name) if is_here else self._begin_again()

            self.push_screen(FetchScreen(self._shelf, offer), open_fetched)

    def _use_session(self, choice: SessionChoice) -> None:
        if choice == "new":
            self._show(lambda: self._source.begin(None))
        elif choice is not None:
            self._show(lambda: self._resume(choice.id, choice.model))

    def _resume(self, session: str, model: str) -> Opening:
        """Open a conversation with its own model, or with the present one where that is gone."""
        try:
            return self._source.resume(session, None)
        except ModelNotFound:
            if self._opening is None:
                raise
            opening = self._source.resume(session, self._opening.model)
            notice = f"{model} is not installed: {opening.model} goes on with this conversation."
            return replace(opening, notice=f"{notice} {opening.notice}".strip())

    def _open(self, model: str | None) -> None:
        """Open a new conversation, or the present one with another model."""
        session = self._opening.conversation.session if self._opening is not None else None
        if model is not None and session is not None:
            self._show(lambda: self._source.resume(session, model))
        else:
            self._show(lambda: self._source.begin(model))

    def _show(self, open_conversation: Callable[[], Opening]) -> None:
        """Open a conversation in the place of the present one, which stays if that fails."""
        old = self._opening
        try:
            self._opening = open_conversation()
        except CascadeError as error:
            self._tell(f"{error} {error.hint}".strip())
            return
        if old is not None and old.engine is not self._opening.engine:
            self._close(old.engine)
        if isinstance(self.screen, ChatScreen):
            self.switch_screen(self._make_screen(self._opening, self.screen.draft))
        else:
            self.push_screen(self._make_screen(self._opening))

    @work(thread=True)
    def _close(self, engine: ChatEngine) -> None:
        engine.close()

    def _make_screen(self, opening: Opening, draft: str = "") -> ChatScreen:
        manner, checks = self._preferences.manner, self._preferences.checks
        if opening.conversation.is_tutored and manner.tutor is None:
            manner = replace(manner, tutor=load_tutor())
        exchange = Exchange(opening.conversation, manner, opening.model)
        topic, self._topic = self._topic, None
        return LessonScreen(
            exchange, opening.engine, opening.title, opening.notice, checks, draft, topic
        )

    def _tell(self, text: str) -> None:
        self.notify(make_safe(text), severity="error", markup=False, timeout=8)


def _collect_ids() -> set[str]:
    """The ids of all actions there are, on whatever screen."""
    from localcascade.tui.screens.fetch import FetchScreen
    from localcascade.tui.screens.first_run import FirstRunScreen
    from localcascade.tui.screens.help import HelpScreen
    from localcascade.tui.screens.models import ModelScreen
    from localcascade.tui.screens.practice import PracticeScreen
    from localcascade.tui.screens.sessions import SessionScreen
    from localcascade.tui.widgets.attach import AttachPicker

    screens = (PracticeScreen, ModelScreen, SessionScreen, FetchScreen, FirstRunScreen, HelpScreen)
    return collect_ids(ChatApp, LessonScreen, *screens, AttachPicker)
