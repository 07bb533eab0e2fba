"""Reading a damaged history row by row: what can still be read, and how much cannot."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from localcascade.history import statements
from localcascade.history.database import explain
from localcascade.history.records import Message, ModelIdentity, Session, Transcript
from localcascade.history.schema import JOINED_TEXT, JOINED_THINKING, MESSAGE_COLUMNS

T = TypeVar("T")

LOST_TITLE = "(title lost)"
_PATIENCE = 10_000
"""Row numbers without a row after which the end of a table is believed to be passed."""
_SESSION_COLUMNS = "id, title, model, leaf, created_s, updated_s"
_PLAIN_COLUMNS = MESSAGE_COLUMNS.replace(JOINED_TEXT, "text").replace(JOINED_THINKING, "thinking")


@dataclass(frozen=True, slots=True)
class Salvage:
    """What was saved of a history."""

    transcripts: tuple[Transcript, ...]
    n_lost: int
    """Rows that are there and cannot be read; there may have been more."""


def salvage(path: Path) -> Salvage:
    """Read what can be read of a history, without writing to it.

    Args:
        path: The file.

    Returns:
        Sessions with their messages; a session whose own row is lost has no title.

    Raises:
        HistoryDamaged: Nothing can be read at all.
    """
    try:
        with closing(_open(path)) as connection:
            return _read_all(connection)
    except sqlite3.Error as error:
        raise explain(path, error) from error


def _open(path: Path) -> sqlite3.Connection:
    """Open the file so that nothing is written to it.

    Where a crash left a journal beside it, SQLite takes that into a copy, which is then read from
    the memory.
    """
    journals = [path.with_name(path.name + ending) for ending in ("-journal", "-wal")]
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    if not any(journal.exists() for journal in journals):
        return sqlite3.connect(address, uri=True)
    with TemporaryDirectory() as folder, suppress(OSError, sqlite3.Error):
        for file in (path, *filter(Path.exists, journals)):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as repaired:
            repaired.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            copy = sqlite3.connect(":memory:")
            copy.deserialize(repaired.serialize())
            return copy
    return sqlite3.connect(address, uri=True)


def _read_all(connection: sqlite3.Connection) -> Salvage:
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    sessions, n_lost = _read_rows(connection, "sessions", (_SESSION_COLUMNS,), _make_session)
    columns = (MESSAGE_COLUMNS, _PLAIN_COLUMNS)
    messages, n_more_lost = _read_rows(connection, "messages", columns, statements.read_message)
    if not sessions and not messages:
        connection.execute("PRAGMA integrity_check").fetchone()
        connection.execute("SELECT count(*) FROM messages NOT INDEXED").fetchone()
    return Salvage(tuple(_gather(sessions, messages)), n_lost + n_more_lost)


def _make_session(row: tuple[Any, ...]) -> Session:
    return statements.read_session((*row, 0))


def _read_rows(
    connection: sqlite3.Connection,
    table: str,
    columns: tuple[str, ...],
    make: Callable[[tuple[Any, ...]], T],
) -> tuple[list[T], int]:
    """Ask for one row number after the other, as a scan ends at the first damaged page.

    Returns:
        What was read, and how many rows could not be.
    """
    found: list[T] = []
    n_lost = n_missing = n = 0
    last = _find_last(connection, table)
    while n < last or n_missing < _PATIENCE:
        n += 1
        row, is_there = _read_row(connection, table, columns, n, make)
        n_missing = 0 if row else n_missing + 1
        n_lost += is_there and row is None and n <= last
        if row:
            found.append(row)
    return found, n_lost


def _find_last(connection: sqlite3.Connection, table: str) -> int:
    """The last row number that was given; 0 if that is lost too."""
    try:
        sql = "SELECT seq FROM sqlite_sequence WHERE name = ?"
        return int(connection.execute(sql, (table,)).fetchone()[0])
    except (sqlite3.Error, TypeError, ValueError):
        return 0


def _read_row(
    connection: sqlite3.Connection,
    table: str,
    columns: tuple[str, ...],
    n: int,
    make: Callable[[tuple[Any, ...]], T],
) -> tuple[T | None, bool]:
    """Read one row with the first of some lists of columns that works.

    Returns:
        The row, and whether there is one at all.
    """
    for names in columns:
        try:
            row = connection.execute(f"SELECT {names} FROM {table} WHERE n = ?", (n,)).fetchone()
            return (make(row), True) if row else (None, False)
        except (sqlite3.Error, ValueError, TypeError, KeyError):
            continue
    return None, True


def _gather(sessions: list[Session], messages: list[Message]) -> list[Transcript]:
    by_session: dict[str, list[Message]] = {session.id: [] for session in sessions}
    for message in messages:
        by_session.setdefault(message.session, []).append(message)
    known = {session.id: session for session in sessions}
    return [
        Transcript(known.get(id) or _stand_in(id, its), tuple(its))
        for id, its in by_session.items()
    ]


def _stand_in(id: str, messages: list[Message]) -> Session:
    first, last = messages[0], messages[-1]
    model = next((each.model for each in messages if each.model.name), ModelIdentity())
    return Session(id, LOST_TITLE, model, last.id, first.created_s, last.created_s)
