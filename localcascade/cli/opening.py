"""Which conversation a chat begins with: its model, its engine, its place in the history."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from localcascade.errors import CascadeError, HistoryError, ModelNotFound
from localcascade.paths import find_data_folder
from localcascade.settings import Settings, load_settings
from localcascade.store import find_model, list_installed, mark_used

if TYPE_CHECKING:
    from types import TracebackType

    from localcascade.chat.composition import Manner
    from localcascade.history import History, ModelIdentity, Session
    from localcascade.tui.app import Opening


class Openings:
    """Makes conversations for the chat; a context manager that ends the history.

    Args:
        history: None where it cannot be used.
        problem: Why not.
        settings: The user's.
        ctx: Context in tokens.
    """

    def __init__(
        self, history: History | None, problem: str, settings: Settings, ctx: int | None
    ) -> None:
        self._history, self._problem = history, problem
        self._settings, self._ctx = settings, ctx
        self._model = ""

    @classmethod
    def open(cls, ctx: int | None) -> Self:
        """Open the history; a chat goes on without it, and says so.

        Args:
            ctx: Context in tokens.
        """
        from localcascade.history import History

        settings = load_settings()
        try:
            return cls(History.open(), "", settings, ctx)
        except HistoryError as error:
            return cls(None, f"Not kept: {error} {error.hint}".strip(), settings, ctx)

    @property
    def manner(self) -> Manner:
        """How answers are asked for, as the settings say."""
        from localcascade.chat.composition import Manner
        from localcascade.prompt.events import Sampling

        own = self._settings
        sampling = Sampling(**asdict(own.sampling))
        return Manner(own.mode == "thinking", sampling, own.budget_tokens, own.system)

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
        path, identity = self._find(name)
        if self._history is None:
            return self._make(Conversation(MemoryJournal()), path, identity, "")
        journal = HistoryJournal(self._history, identity)
        return self._make(Conversation(journal), path, identity, "")

    def resume(self, session: str | None, model: str | None) -> Opening:
        """Go on with a conversation.

        Args:
            session: The beginning of its id; None is the last one.
            model: As the user names it; None is the conversation's own.

        Raises:
            HistoryError: There is no such conversation, or no history.
            ModelNotFound: The model is gone.
        """
        from localcascade.chat.journal import open_session

        if self._history is None:
            raise HistoryError(self._problem, "Without --session and -c the chat works.")
        found = self._history.find_session(session) if session else self._find_last(self._history)
        path, identity = self._find(model or found.model.file or found.model.name)
        conversation = open_session(self._history, found, identity)
        return self._make(conversation, path, identity, found.title)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._history is not None:
            self._history.close()

    def _find(self, name: str) -> tuple[Path, ModelIdentity]:
        from localcascade.history import ModelIdentity

        path = find_model(name)
        mark_used(path)
        self._model = name
        shown = Path(name).stem if name.endswith(".gguf") else name
        return path, ModelIdentity(shown, str(path), path.stat().st_size)

    def _make(
        self, conversation: object, path: Path, identity: ModelIdentity, title: str
    ) -> Opening:
        from localcascade.chat.conversation import Conversation
        from localcascade.engine.client import Engine
        from localcascade.tui.app import Opening

        assert isinstance(conversation, Conversation)
        states = find_data_folder() / "states"
        engine = Engine(path, n_ctx=self._ctx, session_folder=str(states))
        return Opening(conversation, identity.name, engine, title, self._problem)

    def _choose_model(self) -> str:
        """The present model, the settings', the last conversation's, or the only one there is."""
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

    @staticmethod
    def _find_last(history: History) -> Session:
        found = history.find_last_session()
        if found is None:
            raise HistoryError("there is no conversation yet", "Begin one: localcascade chat")
        return found
