"""Changes of the history as statements of SQL, and rows of it as records. Pure; no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from localcascade.history.records import Attachment, Message, ModelIdentity, Session
from localcascade.history.schema import JOINED_TEXT, JOINED_THINKING

THIS_PROCESS = object()
"""Stands among the values for the name of this process, which takes a while to find out."""
INTERRUPTED = "the program ended while this was written"


class Statement(NamedTuple):
    """One statement with its values."""

    sql: str
    values: tuple[Any, ...] = ()
    for_index: bool = False
    """Left out where SQLite has no full-text search."""


_UNINDEX = "INSERT INTO words(words, rowid, text, thinking) SELECT 'delete', n, text, thinking"
INDEX_REST = (
    Statement(
        "INSERT INTO words(rowid, text, thinking) SELECT n, text, thinking FROM messages"
        " WHERE NOT indexed AND state <> 'streaming'",
        (),
        True,
    ),
    Statement(
        "UPDATE messages SET indexed = 1 WHERE NOT indexed AND state <> 'streaming'", (), True
    ),
)
"""Makes searches find what was finished since the last time."""


def clean(text: str) -> str:
    """Replace halves of surrogate pairs, which no encoding has."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def insert_session(session: Session) -> Statement:
    """Add a session."""
    return Statement(
        "INSERT INTO sessions(id, title, model, leaf, created_s, updated_s)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            session.id,
            clean(session.title),
            json.dumps(asdict(session.model)),
            session.leaf,
            session.created_s,
            session.updated_s,
        ),
    )


def insert_message(message: Message) -> tuple[Statement, ...]:
    """Add a message, whole or one that this process streams, as the last one on the screen."""
    owner = THIS_PROCESS if message.state == "streaming" else None
    values = (message.id, message.session, message.parent, message.role)
    insert = Statement(
        "INSERT INTO messages(id, session, parent, role, text, thinking, state, note, details,"
        " created_s, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, *_list_contents(message), message.created_s, owner),
    )
    return insert, choose_leaf(message.session, message.id), touch(message)


def choose_leaf(session: str, leaf: str | None) -> Statement:
    """Remember the last message of the path on the screen."""
    return Statement("UPDATE sessions SET leaf = ? WHERE id = ?", (leaf, session))


def touch(message: Message) -> Statement:
    """Note when something was last said in a session."""
    return Statement(
        "UPDATE sessions SET updated_s = max(updated_s, ?) WHERE id = ?",
        (message.created_s, message.session),
    )


def rename(session: str, title: str) -> Statement:
    """Give a session another title."""
    return Statement("UPDATE sessions SET title = ? WHERE id = ?", (clean(title), session))


def hide(session: str, moment_s: float | None) -> Statement:
    """Hide a session; None as the moment shows it again."""
    return Statement("UPDATE sessions SET deleted_s = ? WHERE id = ?", (moment_s, session))


def purge(session: str) -> tuple[Statement, ...]:
    """Remove a session so that nothing of it stays in the file."""
    return (
        Statement(f"{_UNINDEX} FROM messages WHERE session = ? AND indexed", (session,), True),
        Statement("DELETE FROM sessions WHERE id = ?", (session,)),
        # Deleted words stay in the index until its parts are merged.
        Statement("INSERT INTO words(words) VALUES ('optimize')", (), True),
    )


def extend(message: str, thinking: str, text: str) -> Statement:
    """Add a piece to a message that streams."""
    return Statement(
        "INSERT INTO pieces(message, thinking, text) VALUES (?, ?, ?)",
        (message, clean(thinking), clean(text)),
    )


def reopen(message: str) -> tuple[Statement, ...]:
    """Let a finished message stream again."""
    return (
        Statement(f"{_UNINDEX} FROM messages WHERE id = ? AND indexed", (message,), True),
        Statement(
            "UPDATE messages SET state = 'streaming', note = '', owner = ?, indexed = 0"
            " WHERE id = ?",
            (THIS_PROCESS, message),
        ),
    )


def finish(message: Message) -> tuple[Statement, ...]:
    """Keep the whole of a message that streamed."""
    update = Statement(
        "UPDATE messages SET text = ?, thinking = ?, state = ?, note = ?, details = ?,"
        " owner = NULL WHERE id = ?",
        (*_list_contents(message), message.id),
    )
    return update, Statement("DELETE FROM pieces WHERE message = ?", (message.id,))


def close_stream(message: str, owner: str) -> tuple[Statement, ...]:
    """Keep as stopped what a dead process has written of a message."""
    return (
        Statement(
            f"UPDATE messages SET text = {JOINED_TEXT}, thinking = {JOINED_THINKING},"
            " state = 'stopped', note = ?, owner = NULL WHERE id = ? AND owner = ?",
            (INTERRUPTED, message, owner),
        ),
        Statement(
            "DELETE FROM pieces WHERE message = ? AND message IN"
            " (SELECT id FROM messages WHERE state <> 'streaming')",
            (message,),
        ),
    )


def read_session(row: Sequence[Any]) -> Session:
    """Make a session of a row of SESSION_COLUMNS."""
    id, title, model, *rest = row
    return Session(id, title, ModelIdentity(**json.loads(model)), *rest)


def read_message(row: Sequence[Any]) -> Message:
    """Make a message of a row of MESSAGE_COLUMNS."""
    *values, details, created_s = row
    fields = json.loads(details)
    fields["tool_calls"] = tuple(fields["tool_calls"])
    fields["attachments"] = tuple(Attachment(**each) for each in fields["attachments"])
    fields["model"] = ModelIdentity(**fields["model"])
    fields["created_s"] = created_s
    return Message(*values, **fields)


def _list_contents(message: Message) -> tuple[str, ...]:
    details = {
        "tool_calls": [dict(call) for call in message.tool_calls],
        "tool_call_id": message.tool_call_id,
        "attachments": [asdict(each) for each in message.attachments],
        "timings": dict(message.timings),
        "model": asdict(message.model),
        "sampling": dict(message.sampling),
    }
    written = json.dumps(details)  # ASCII, so that half a surrogate in an argument survives
    return clean(message.text), clean(message.thinking), message.state, clean(message.note), written
