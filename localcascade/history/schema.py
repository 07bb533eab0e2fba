"""The tables of the history, as steps from one version of the file to the next."""

from __future__ import annotations

APPLICATION_ID = 0x4C434859  # "LCHY", which SQLite keeps in the header of the file

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE sessions (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        model TEXT NOT NULL,        -- JSON of ModelIdentity
        leaf TEXT,
        created_s REAL NOT NULL,
        updated_s REAL NOT NULL,
        deleted_s REAL              -- hidden since then, and purged a day later
    );
    CREATE TABLE messages (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        session TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
        parent TEXT,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        thinking TEXT NOT NULL,
        state TEXT NOT NULL,
        note TEXT NOT NULL,
        details TEXT NOT NULL,      -- JSON: tool calls, attachments, timings, model, sampling
        created_s REAL NOT NULL,
        owner TEXT,                 -- the process that streams it
        indexed INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX messages_by_parent ON messages(session, parent);
    CREATE INDEX messages_unindexed ON messages(n) WHERE NOT indexed;
    CREATE TABLE pieces (           -- what has come of messages that stream
        n INTEGER PRIMARY KEY,
        message TEXT NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
        thinking TEXT NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX pieces_by_message ON pieces(message);
    """,
)
"""Step i makes version i + 1 of version i. A step that was released is never changed."""

MAKE_INDEX = """
    CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
        text, thinking, content='messages', content_rowid='n',
        tokenize='unicode61 remove_diacritics 2'
    )
"""
"""Apart from the steps, as an SQLite without FTS5 goes on without it."""


def split_script(script: str) -> list[str]:
    """Cut a step into its statements, as executescript would commit between them."""
    return [part for part in script.split(";\n") if part.strip()]


def _join(column: str) -> str:
    pieces = f"SELECT {column} FROM pieces WHERE message = messages.id ORDER BY n"
    rest = f"coalesce((SELECT group_concat({column}, '') FROM ({pieces})), '')"
    return f"CASE state WHEN 'streaming' THEN {column} || {rest} ELSE {column} END"


JOINED_TEXT, JOINED_THINKING = _join("text"), _join("thinking")
"""A message's text and thinking with the pieces that have come since."""

MESSAGE_COLUMNS = (
    f"id, session, parent, role, {JOINED_TEXT}, {JOINED_THINKING}, state, note, details, created_s"
)
SESSION_COLUMNS = (
    "id, title, model, leaf, created_s, updated_s,"
    " (SELECT count(*) FROM messages WHERE session = sessions.id)"
)
