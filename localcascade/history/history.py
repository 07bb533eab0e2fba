"""The history: one file, many sessions; written by a thread of its own, read at once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from localcascade import paths
from localcascade.errors import HistoryError, SessionNotFound
from localcascade.history import statements
from localcascade.history.database import Database, open_database
from localcascade.history.owner import is_alive
from localcascade.history.records import (
    Attachment,
    Match,
    Message,
    ModelIdentity,
    Role,
    Session,
    State,
    Transcript,
)
from localcascade.history.schema import MESSAGE_COLUMNS, SESSION_COLUMNS
from localcascade.history.search import find_sessions, search
from localcascade.history.statements import Statement
from localcascade.history.stream import Stream
from localcascade.history.writer import Writer
from quantize.closing import Closing

UNDO_S = 24 * 3600.0
"""How long a deleted session can be restored."""

_NOBODY = ModelIdentity()
_PATH = """
    WITH RECURSIVE path(id, parent, depth) AS (
        SELECT id, parent, 0 FROM messages WHERE id = ?
        UNION ALL
        SELECT messages.id, messages.parent, depth + 1 FROM messages
        JOIN path ON messages.id = path.parent LIMIT ?
    )
"""


def find_history_path() -> Path:
    """Path of the history in the data folder."""
    return paths.find_data_folder() / "sessions.sqlite3"


class History(Closing):
    """Sessions and their messages. For several threads, and several processes at once.

    Changes return at once and are on the disk within a quarter of a second; reading waits for
    them and sees them all. Where the file cannot be written, `problem` says why, reading works,
    and a change raises that problem.

    Args:
        database: An open file; `History.open` opens one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = None if database.problem else Writer(database)

    @classmethod
    def open(cls, path: Path | None = None) -> Self:
        """Open a history, or make it.

        What a dead process was writing is kept as stopped; what was deleted a day ago is purged.

        Args:
            path: Of the file; None is the user's own.

        Raises:
            HistoryDamaged: The file is damaged; `salvage` reads what is left.
            HistoryError: It is a newer version's or another program's, or cannot be opened.
        """
        history = cls(open_database(path or find_history_path()))
        if history._writer:
            history._close_streams()
            history._purge_deleted()
        return history

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def problem(self) -> HistoryError | None:
        """Why nothing can be written, or why the last try failed; None if all is well."""
        return self._database.problem or (self._writer.problem if self._writer else None)

    def flush(self, timeout_s: float = 20.0) -> None:
        """Wait until all changes are on the disk.

        Raises:
            HistoryError: They cannot be written; they are kept and tried again until `close`.
        """
        if self._writer:
            self._writer.flush(timeout_s)

    def close(self) -> None:
        """Write what is left and close the file; `problem` says if that failed."""
        if self._writer:
            self._writer.close()
        self._database.connection.close()

    # Sessions

    def create_session(self, title: str = "", model: ModelIdentity = _NOBODY) -> Session:
        """Begin a session.

        Args:
            title: For lists; may be given later.
            model: What it is held with.
        """
        now_s = time.time()
        session = Session(_make_id(), title, model, None, now_s, now_s)
        self._change(statements.insert_session(session))
        return session

    def list_sessions(self, limit: int | None = None) -> list[Session]:
        """List sessions, the one that was last spoken in first; deleted ones are left out."""
        return self._read_sessions("1 ORDER BY updated_s DESC, n DESC LIMIT ?", limit or -1)

    def find_session(self, prefix: str | None) -> Session:
        """Find a session by the beginning of its id; None is the one that was last spoken in.

        Raises:
            SessionNotFound: None begins so, or more than one; or there is none at all.
        """
        if prefix is None:
            last = self.find_last_session()
            if last is None:
                raise SessionNotFound(self.path, "there is no session yet", "Begin one.")
            return last
        text = prefix.lower()
        found = self._read_sessions("substr(id, 1, ?) = ? LIMIT 2", len(text), text) if text else []
        if len(found) == 1:
            return found[0]
        which = "more than one session begins" if found else "no session begins"
        hint = "Give more of the id." if found else "`localcascade session ls` lists them."
        raise SessionNotFound(self.path, f"{which} with {prefix!a:.60}", hint)

    def find_last_session(self) -> Session | None:
        """Find the session that was last spoken in; None if there is none."""
        return next(iter(self.list_sessions(1)), None)

    def rename(self, session: str, title: str) -> None:
        """Give a session another title."""
        self._change(statements.rename(session, title))

    def delete(self, session: str) -> None:
        """Hide a session; it can be restored for a day."""
        self._change(statements.hide(session, time.time()))

    def restore(self, session: str) -> None:
        """Bring a deleted session back."""
        self._change(statements.hide(session, None))

    def purge(self, session: str) -> None:
        """Remove a session for good, with all its words."""
        self._change(*statements.purge(session))

    def set_leaf(self, session: str, leaf: str | None) -> None:
        """Remember the last message of the path on the screen."""
        self._change(statements.choose_leaf(session, leaf))

    # Messages

    def append(
        self,
        session: str,
        parent: str | None,
        role: Role,
        text: str = "",
        *,
        thinking: str = "",
        state: State = "complete",
        note: str = "",
        tool_calls: Sequence[Mapping[str, Any]] = (),
        tool_call_id: str = "",
        attachments: Sequence[Attachment] = (),
        timings: Mapping[str, float] | None = None,
        model: ModelIdentity = _NOBODY,
        sampling: Mapping[str, Any] | None = None,
    ) -> Message:
        """Add a whole message; it becomes the last one of the path on the screen.

        Args:
            session: Id of its session.
            parent: Id of the message it answers; None begins a branch at the root.
            role: Who says it.
            text: What is said.
            thinking: What was thought before.
            state: How it ended.
            note: Why it stopped or failed.
            tool_calls: In the OpenAI form.
            tool_call_id: Which call a result is of.
            attachments: Files that went into the text.
            timings: Numbers by name.
            model: What generated it.
            sampling: How.

        Returns:
            The message, with its id.

        Raises:
            HistoryError: Nothing can be written; see `problem`.
        """
        message = Message(
            _make_id(), session, parent, role, text, thinking, state, note, tuple(tool_calls),
            tool_call_id, tuple(attachments), dict(timings or {}), model, dict(sampling or {}),
            time.time(),
        )  # fmt: skip
        self._change(*statements.insert_message(message))
        return message

    def begin(
        self,
        session: str,
        parent: str | None,
        role: Role = "assistant",
        *,
        model: ModelIdentity = _NOBODY,
        sampling: Mapping[str, Any] | None = None,
    ) -> Stream:
        """Add a message that is still to be written; arguments as for `append`.

        Returns:
            What takes it. Should this process die, what it took stays, marked as stopped.
        """
        message = Message(
            _make_id(), session, parent, role, state="streaming", model=model,
            sampling=dict(sampling or {}), created_s=time.time(),
        )  # fmt: skip
        self._change(*statements.insert_message(message))
        return Stream(message, self._require_writer())

    def reopen(self, message: str) -> Stream:
        """Let a message that was stopped be written on, after what it holds.

        Raises:
            KeyError: There is none of that id.
        """
        stream = Stream(self.read(message), self._require_writer())
        self._change(*statements.reopen(message))
        return stream

    # Reading

    def read(self, message: str) -> Message:
        """Read one message.

        Raises:
            KeyError: There is none of that id.
        """
        found = self.read_messages((message,))
        if not found:
            raise KeyError(message)
        return found[0]

    def read_messages(self, ids: Sequence[str]) -> list[Message]:
        """Read some messages, in the order of their ids; those that are gone are left out."""
        found: dict[str, Message] = {}
        for i in range(0, len(ids), 500):  # SQLite takes so many values in any build
            some = ids[i : i + 500]
            marks = ", ".join("?" * len(some))
            for message in self._read_messages(f"id IN ({marks})", *some):
                found[message.id] = message
        return [found[id] for id in ids if id in found]

    def read_tree(self, session: str) -> list[Message]:
        """Read all messages of a session, in the order in which they were begun."""
        return self._read_messages("session = ? ORDER BY n", session)

    def path_ids(self, leaf: str, last: int | None = None) -> list[str]:
        """List the ids from the root down to a message; only the `last` of them, if given."""
        rows = self._query(f"{_PATH} SELECT id FROM path ORDER BY depth DESC", leaf, last or -1)
        return [id for (id,) in rows]

    def path_to(self, leaf: str, last: int | None = None) -> list[Message]:
        """Read the messages from the root down to one; only the `last` of them, if given."""
        return self.read_messages(self.path_ids(leaf, last))

    def children(self, session: str, message: str | None) -> list[str]:
        """List the ids of the messages below one, or of the roots for None, the oldest first."""
        sql = "SELECT id FROM messages WHERE session = ? AND parent IS ? ORDER BY n"
        return [id for (id,) in self._query(sql, session, message)]

    def search(self, query: str, *, session: str | None = None, limit: int = 50) -> list[Match]:
        """Find messages by words of their text or thinking.

        Args:
            query: Words, or their beginnings, all of which must occur; "in quotes" as a whole.
            session: Look only there.
            limit: Most matches.

        Returns:
            The best ones first.
        """
        self._flush_quietly()
        return search(self._database, query, session, limit)

    def find_sessions(self, query: str) -> set[str]:
        """Find the ids of all sessions with a message whose text, not thinking, has such words."""
        self._flush_quietly()
        return find_sessions(self._database, query)

    def export(self, session: str) -> Transcript:
        """Read a whole session.

        Raises:
            SessionNotFound: There is none of that id.
        """
        return Transcript(self.find_session(session), tuple(self.read_tree(session)))

    def _read_messages(self, condition: str, *values: Any) -> list[Message]:
        rows = self._query(f"SELECT {MESSAGE_COLUMNS} FROM messages WHERE {condition}", *values)
        return [statements.read_message(row) for row in rows]

    def _read_sessions(self, condition: str, *values: Any) -> list[Session]:
        sql = f"SELECT {SESSION_COLUMNS} FROM sessions WHERE deleted_s IS NULL AND {condition}"
        return [statements.read_session(row) for row in self._query(sql, *values)]

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        self._flush_quietly()
        return self._database.query(sql, values)

    def _flush_quietly(self) -> None:
        """What cannot be written must not keep anybody from reading what is there."""
        try:
            self.flush()
        except HistoryError:
            return

    def _change(self, *changes: Statement) -> None:
        self._require_writer().submit(*changes)

    def _require_writer(self) -> Writer:
        if self._writer is None:
            assert self._database.problem is not None
            raise self._database.problem
        return self._writer

    def _close_streams(self) -> None:
        sql = "SELECT id, owner FROM messages WHERE state = 'streaming'"
        for message, owner in self._query(sql):
            if not is_alive(owner or ""):
                self._change(*statements.close_stream(message, owner))

    def _purge_deleted(self) -> None:
        sql = "SELECT id FROM sessions WHERE deleted_s < ?"
        for (session,) in self._query(sql, time.time() - UNDO_S):
            self._change(*statements.purge(session))


def _make_id() -> str:
    return secrets.token_hex(8)
