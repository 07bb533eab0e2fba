"""The conversations that are kept: listed, found by their words, deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localcascade.chat.journal import is_sealed

if TYPE_CHECKING:
    from localcascade.history import History, Match, Session

MAX_LISTED = 500
"""Most conversations that are listed; words find the others."""
MAX_MATCHES = 300
"""Most messages that are looked at for what to show of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A conversation that is kept."""

    id: str
    title: str
    model: str
    updated_s: float
    """When it was last spoken in, in seconds since 1970."""
    n_messages: int
    """On all branches."""
    snippet: tuple[str, ...] = ()
    """Where the words were found; every second piece is what was looked for."""


class Archive:
    """The conversations of the history. Any thread may ask.

    Args:
        history: The user's history.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    def list_entries(self, query: str = "") -> list[Entry]:
        """List conversations.

        Args:
            query: Words, or their beginnings, that a title or a message must have; none lists all.

        Returns:
            The one that was last spoken in first.

        Raises:
            HistoryError: The history cannot be read.
        """
        if not query.strip():
            return [_make_entry(session) for session in self._history.list_sessions(MAX_LISTED)]
        found: dict[str, Match | None] = {}
        for match in search_unsealed(self._history, query, MAX_MATCHES):
            found.setdefault(match.session, match)  # the best one of each
        # A long conversation with many of these words must not hide the others.
        found = dict.fromkeys(self._history.find_sessions(query)) | found
        return list(_choose(self._history.list_sessions(), found, query.casefold().split()))

    def delete(self, id: str) -> None:
        """Delete a conversation.

        Raises:
            HistoryError: The history cannot be written.
        """
        self._history.delete(id)
        self._history.flush()


def search_unsealed(history: History, query: str, limit: int) -> list[Match]:
    """Find messages by their words, but not by what a tutor thought.

    Args:
        history: The user's history.
        query: Words, or their beginnings, all of which a message must have.
        limit: Most matches that are looked at.

    Raises:
        HistoryError: The history cannot be read.
    """
    matches = history.search(query, limit=limit)
    thought = [match.message for match in matches if match.in_thinking]
    sealed = {each.id for each in history.read_messages(thought) if is_sealed(each)}
    return [match for match in matches if match.message not in sealed]


def _choose(
    sessions: Sequence[Session], found: Mapping[str, Match | None], words: Sequence[str]
) -> Iterable[Entry]:
    for session in sessions:
        title = session.title.casefold()
        if session.id in found:
            match = found[session.id]
            yield replace(_make_entry(session), snippet=match.snippet if match else ())
        elif all(word in title for word in words):
            yield _make_entry(session)


def _make_entry(session: Session) -> Entry:
    return Entry(
        session.id, session.title, session.model.name, session.updated_s, session.n_messages
    )
