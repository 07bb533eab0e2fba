"""A conversation kept in the history: begun with its first message, written as it streams."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from localcascade.chat.conversation import Conversation, Message, Stats
from localcascade.history import records

if TYPE_CHECKING:
    from localcascade.history import History, Stream

TITLE_CHARACTERS = 60
_STATS = {field.name for field in fields(Stats)}
_SEALED = "sealed"
"""Stands among the sampling of an answer whose thinking a tutor keeps from the student."""


class HistoryJournal:
    """Keeps a conversation in the history.

    Args:
        history: The user's history.
        model: Which model speaks.
        session: Id of a session that exists; None begins one with the first message.
    """

    def __init__(
        self, history: History, model: records.ModelIdentity, session: str | None = None
    ) -> None:
        self._history, self._model, self._session = history, model, session
        self._streams: dict[str, Stream] = {}

    @property
    def session(self) -> str | None:
        """Id of the session, once there is one."""
        return self._session

    def append(self, message: Message) -> str:
        """Keep a new message."""
        session = self._session or self._begin_session(message)
        sampling = {_SEALED: True} if message.is_sealed else {}
        if message.state == "streaming":
            stream = self._history.begin(
                session, message.parent, message.role, model=self._model, sampling=sampling
            )
            self._streams[stream.id] = stream
            return stream.id
        return self._history.append(
            session, message.parent, message.role, message.text, thinking=message.thinking,
            state=message.state, note=message.note, timings=asdict(message.stats),
            model=self._model, sampling=sampling,
        ).id  # fmt: skip

    def write(self, id: str, thinking: str, text: str) -> None:
        """Keep more of a message that streams."""
        self._get_stream(id).write(thinking, text)

    def finish(self, message: Message) -> None:
        """Keep the end of a message that streamed."""
        stream = self._get_stream(message.id)
        stream.finish(message.state, note=message.note, timings=asdict(message.stats))
        self._streams.pop(message.id, None)

    def choose(self, leaf: str) -> None:
        """Remember which path is on the screen."""
        if self._session is not None:
            self._history.set_leaf(self._session, leaf)

    def _begin_session(self, message: Message) -> str:
        self._session = self._history.create_session(write_title(message.text), self._model).id
        return self._session

    def _get_stream(self, id: str) -> Stream:
        if id not in self._streams:
            self._streams[id] = self._history.reopen(id)
        return self._streams[id]


def write_title(text: str) -> str:
    """A title for a conversation: the beginning of its first line of text."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_CHARACTERS else f"{line[: TITLE_CHARACTERS - 1]}…"


def is_sealed(kept: records.Message) -> bool:
    """Whether a message's thinking was sealed when it was kept."""
    return bool(kept.sampling.get(_SEALED))


def open_session(
    history: History, session: records.Session, model: records.ModelIdentity
) -> Conversation:
    """Read a session of the history, to go on with it.

    Args:
        history: The user's history.
        session: The session.
        model: Which model speaks from now on.
    """
    messages = [_read_message(kept) for kept in history.read_tree(session.id)]
    return Conversation(HistoryJournal(history, model, session.id), messages, session.leaf)


def _read_message(kept: records.Message) -> Message:
    figures = {name: value for name, value in kept.timings.items() if name in _STATS}
    stats = Stats(**figures)  # type: ignore[arg-type]  # counts come back as numbers
    role = kept.role if kept.role != "tool" else "user"
    return Message(
        kept.id, kept.parent, role, kept.text, kept.thinking, kept.state, stats,
        kept.model.name, kept.note, is_sealed(kept),
    )  # fmt: skip
