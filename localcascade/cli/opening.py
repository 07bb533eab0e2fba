"""Which conversation a chat begins with: its model, its engine, its place in the history."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from localcascade.cli.logbook import identify_model
from localcascade.cli.remote import FIRST_MODEL, make_remote_engine
from localcascade.errors import CascadeError, HistoryError, ModelNotFound
from localcascade.history.records import ModelIdentity
from localcascade.paths import find_data_folder
from localcascade.settings import Settings, load_settings
from localcascade.store import find_model, list_installed, mark_used
from quantize.closing import Closing

if TYPE_CHECKING:
    from localcascade.chat.archive import Archive
    from localcascade.chat.conversation import Conversation
    from localcascade.cli.loading import Source
    from localcascade.history import History
    from localcascade.tui.opening import Opening, Preferences
    from localcascade.tui.speaker import ChatEngine


class Openings(Closing):
    """Makes conversations for the chat; a context manager that ends the history.

    Args:
        history: None where it cannot be used.
        problem: Why not.
        settings: The user's.
        source: How models are loaded, or where they are.
    """

    def __init__(
        self,
        history: History | None,
        problem: str,
        settings: Settings,
        source: Source,
    ) -> None:
        self._history, self._problem = history, problem
        self._settings, self._source = settings, source
        self._model = ""
        self._engine: tuple[ModelIdentity, ChatEngine] | None = None

    @classmethod
    def open(cls, source: Source) -> Self:
        """Open the history; a chat goes on without it, and says so.

        Args:
            source: How models are loaded, or where they are.
        """
        from localcascade.history import History

        settings = load_settings()
        try:
            return cls(History.open(), "", settings, source)
        except HistoryError as error:
            return cls(None, f"Not kept: {error} {error.hint}".strip(), settings, source)

    @property
    def preferences(self) -> Preferences:
        """What the settings say of the chat."""
        from localcascade.chat.composition import Manner
        from localcascade.prompt.events import Sampling
        from localcascade.tui.opening import Preferences

        own = self._settings
        sampling = Sampling(**asdict(own.sampling))
        manner = Manner(own.mode == "thinking", sampling, own.budget_tokens, own.system)
        return Preferences(own.theme, own.keys, manner, own.check_steps)

    @property
    def theme(self) -> str:
        """Name of the look that the settings ask for."""
        return self._settings.theme

    @property
    def archive(self) -> Archive | None:
        """The conversations that are kept; None where there is no history."""
        from localcascade.chat.archive import Archive

        return Archive(self._history) if self._history is not None else None

    def begin(self, model: str | None) -> Opening:
        """Begin a new conversation.

        Args:
            model: As the user names it; None is the present one, or the one used last.

        Raises:
            ModelNotFound: There is no such model, or none at all.
        """
        from localcascade.chat.conversation import Conversation, MemoryJournal
        from localcascade.chat.journal import HistoryJournal

        name = model or self._choose_model()
        identity = self._find(name)
        if self._history is None:
            return self._make(Conversation(MemoryJournal()), identity, "")
        return self._make(Conversation(HistoryJournal(self._history, identity)), identity, "")

    def resume(self, session: str | None, model: str | None) -> Opening:
        """Go on with a conversation.

        Args:
            session: The beginning of its id; None is the last one.
            model: As the user names it; None is the conversation's own.

        Raises:
            SessionNotFound: There is no such conversation.
            CascadeError: There is no history.
            ModelNotFound: The model is gone.
        """
        from localcascade.chat.journal import open_session

        if self._history is None:
            raise CascadeError(self._problem, "Without --session and -c the chat works.")
        found = self._history.find_session(session or None)
        identity = self._find(*([model] if model else [found.model.name, found.model.file]))
        conversation = open_session(self._history, found, identity)
        return self._make(conversation, identity, found.title)

    def close(self) -> None:
        """End the history."""
        if self._history is not None:
            self._history.close()

    def _find(self, *names: str) -> ModelIdentity:
        """Find the first of some models; a name is as good as its file, unless that is gone."""
        if self._source.remote is not None:
            # A conversation's own model is asked for only where it came from this server.
            is_there = len(names) == 1 or names[-1] == self._source.remote
            self._model = names[0] if is_there else self._choose_model()
            return ModelIdentity(self._model, self._source.remote)
        for name in names[:-1]:
            with suppress(CascadeError):
                find_model(name)
                return self._find(name)
        path = find_model(names[-1])
        mark_used(path)
        self._model = names[-1]
        shown = Path(self._model).stem if self._model.endswith(".gguf") else self._model
        return identify_model(shown, path)

    def _make(self, conversation: Conversation, identity: ModelIdentity, title: str) -> Opening:
        from localcascade.tui.opening import Opening

        if self._engine is None or self._engine[0] != identity:
            self._engine = identity, self._make_engine(identity)
        name = self._source.remote if identity.name == FIRST_MODEL else identity.name
        return Opening(conversation, name or "", self._engine[1], title, self._problem)

    def _make_engine(self, identity: ModelIdentity) -> ChatEngine:
        source = self._source
        if source.remote is not None:
            name = None if identity.name == FIRST_MODEL else identity.name
            return make_remote_engine(source.remote, source.remote_key, name)
        from localcascade.engine.client import Engine
        from localcascade.settings import CHAT_OUTPUTS

        return Engine(
            Path(identity.file),
            n_outputs=CHAT_OUTPUTS,
            session_folder=str(find_data_folder() / "states"),
            **{"lookup": self._settings.lookup, **source.engine_options},
        )

    def _choose_model(self) -> str:
        """The present model, the settings', the last conversation's, or the only one there is."""
        if self._source.remote is not None:
            return self._model or FIRST_MODEL
        last = self._history.find_last_session() if self._history is not None else None
        wanted = [self._model, self._settings.model, last.model.file if last else ""]
        for name in filter(None, wanted):
            with suppress(CascadeError):
                find_model(name)
                return name
        installed = list_installed()
        if not installed:
            raise ModelNotFound(
                "no model is installed",
                "Try the bundled one: localcascade demo, then localcascade chat tiny",
            )
        return next(iter(installed))

    @property
    def has_model(self) -> bool:
        """Whether there is any model to begin with."""
        return self._source.remote is not None or bool(list_installed())
