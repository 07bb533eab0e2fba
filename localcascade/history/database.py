"""The SQLite file under the history: opened safely, brought up to date, its errors put in words."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localcascade.errors import HistoryDamaged, HistoryError
from localcascade.history import schema
from localcascade.history.statements import INDEX_REST, Statement

BUSY_S = 10.0
"""How long a change waits for another process; theirs take milliseconds."""

_IN_USE_HINT = "Another process holds it; try again when that has ended."
_PROBLEMS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: ("it is in use by another process", _IN_USE_HINT),
    sqlite3.SQLITE_LOCKED: ("it is in use by another process", _IN_USE_HINT),
    sqlite3.SQLITE_READONLY: ("it cannot be written", "Check its permissions and its folder's."),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "Check its permissions and its folder's."),
    sqlite3.SQLITE_PERM: ("it cannot be opened", "Check its permissions and its folder's."),
    sqlite3.SQLITE_CONSTRAINT: ("another process has removed that session", "Begin another one."),
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space; `session export` still works."),
    sqlite3.SQLITE_IOERR: ("the disk cannot be read or written", "Check the disk."),
}
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SALVAGE = (
    "`localcascade session export --all --format json -o FILE` saves what can be read;"
    " move the file away then."
)


def may_use_wal(version: tuple[int, ...]) -> bool:
    """Say whether an SQLite has the WAL-reset bug fixed, which damages files.

    Args:
        version: Of SQLite, three numbers.

    Source:
        sqlite.org/wal.html: fixed in 3.51.3, and in 3.50.7 and 3.44.6 of the older lines.
    """
    fixed_lines = {(3, 50): 7, (3, 44): 6}
    line = version[:2]
    return version >= (3, 51, 3) or (line in fixed_lines and version[2] >= fixed_lines[line])


def explain(path: Path, error: sqlite3.Error) -> HistoryError:
    """Put an error of SQLite into words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGE:
        return HistoryDamaged(path, f"the file is damaged ({error})", _SALVAGE)
    problem, hint = _PROBLEMS.get(code, (str(error), ""))
    return HistoryError(path, problem, hint)


@dataclass(slots=True)
class Database:
    """An open file; one connection, which one thread uses at a time."""

    path: Path
    connection: sqlite3.Connection
    has_index: bool
    """Whether there is full-text search."""
    problem: HistoryError | None = None
    """Why it can only be read; None if it can be written."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read rows.

        Raises:
            HistoryError: They cannot be read.
        """
        try:
            with self.lock:
                return self.connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise explain(self.path, error) from error

    def change(self, statements: Sequence[Statement]) -> list[sqlite3.Error]:
        """Carry statements out, all on the disk when this returns.

        Returns:
            Of those that were refused alone, why: a session may have been removed meanwhile.

        Raises:
            sqlite3.Error: Nothing was changed.
        """
        refused: list[sqlite3.Error] = []
        with self.lock, hold_transaction(self.connection):
            for sql, values, for_index in (*statements, *INDEX_REST):
                if self.has_index or not for_index:
                    try:
                        self.connection.execute(sql, values)
                    except (sqlite3.IntegrityError, sqlite3.DataError) as error:
                        refused.append(error)
        return refused


@contextmanager
def hold_transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Write all of a block or nothing; a DEFERRED one that only reads sees one state of it."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def open_database(path: Path) -> Database:
    """Open the file, or make it; for reading only where it cannot be written.

    Raises:
        HistoryDamaged: It is no database, or a damaged one.
        HistoryError: It is not ours, a newer version's, or can be neither made nor read.
    """
    try:
        _make_file(path)
    except OSError as error:
        if not path.exists():
            raise HistoryError(path, error.strerror or "it cannot be made") from error
    try:
        return _open_writable(path)
    except sqlite3.Error as error:
        problem = explain(path, error)
        if isinstance(problem, HistoryDamaged):
            raise problem from error
        return open_readable(path, problem)


def open_readable(path: Path, problem: HistoryError) -> Database:
    """Open the file for reading only.

    Args:
        path: The file.
        problem: Why it cannot be written.

    Raises:
        HistoryError: It cannot be read either.
    """
    try:
        connection = _connect(path, "mode=ro")
        _check_version(path, connection)
        tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
        if ("messages",) not in tables:
            raise problem
        return Database(path, connection, _has_index(connection), problem)
    except sqlite3.Error as error:
        raise explain(path, error) from error


def _make_file(path: Path) -> None:
    """Make an empty file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{parameters}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _open_writable(path: Path) -> Database:
    connection = _connect(path, "mode=rw")
    try:
        version = _check_version(path, connection)
        _set_up(connection)
        if version < len(schema.MIGRATIONS):
            migrate(connection, path, schema.MIGRATIONS)
        database = Database(path, connection, _make_index(connection))
        database.change(())
    except BaseException:
        connection.close()
        raise
    return database


def _set_up(connection: sqlite3.Connection) -> None:
    """Choose how the file is kept safe: a change is on the disk when its transaction ends."""
    wal = may_use_wal(sqlite3.sqlite_version_info)
    with suppress(sqlite3.OperationalError):  # while another process has it open, it stays
        connection.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
    connection.execute(f"PRAGMA synchronous = {'FULL' if wal else 'EXTRA'}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")


def _check_version(path: Path, connection: sqlite3.Connection) -> int:
    with hold_transaction(connection, "DEFERRED"):  # another process may be making the tables
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        n_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if owner != schema.APPLICATION_ID and n_tables:
        raise HistoryError(path, "it is a database of another program", "Move it away.")
    if version > len(schema.MIGRATIONS):
        raise HistoryError(
            path,
            f"it was written by a newer LocalCascade (version {version} of the file,"
            f" this one knows {len(schema.MIGRATIONS)})",
            "Update LocalCascade, or set LOCALCASCADE_HOME to another folder.",
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path, steps: Sequence[str]) -> None:
    """Bring a file up to date, with a copy of the old one beside it.

    Args:
        connection: To the file.
        path: The file; the copy is called like it, with `.v1.bak` for a file of version 1.
        steps: As schema.MIGRATIONS.
    """
    (old,) = connection.execute("PRAGMA user_version").fetchone()
    if 0 < old < len(steps):  # another process may have made the file or brought it up to date
        _copy(connection, path.with_name(f"{path.name}.v{old}.bak"))
    with hold_transaction(connection):
        # And here again.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for script in steps[version:]:
            for statement in schema.split_script(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    _make_file(part)
    with closing(sqlite3.connect(part)) as copy:
        connection.backup(copy)
    part.replace(target)


def _make_index(connection: sqlite3.Connection) -> bool:
    try:
        # A statement alone begins by reading, and is refused at once when another process writes.
        with hold_transaction(connection):
            connection.execute(schema.MAKE_INDEX)
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
    return _has_index(connection)


def _has_index(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT rowid FROM words LIMIT 1").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # that is: no such table or module
            raise
        return False
    return True
