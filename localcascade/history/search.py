"""Finding messages by their words: full-text search, or plain comparison where there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from localcascade.history.database import Database
from localcascade.history.records import Match

_WORDS = re.compile(r'"([^"]*)"|(\S+)')
_OPEN, _CLOSE = "\x02", "\x03"
_AROUND = 60  # characters on either side of what was found
_COLUMNS = "sessions.id, title, messages.id, role, messages.created_s"
_SNIPPET = "snippet(words, {}, char(2), char(3), '…', 24)"
_INDEXED = f"""
    SELECT {_COLUMNS}, {_SNIPPET.format(0)}, {_SNIPPET.format(1)} FROM words
    JOIN messages ON messages.n = words.rowid JOIN sessions ON sessions.id = session
    WHERE words MATCH ? AND deleted_s IS NULL AND sessions.id = coalesce(?, sessions.id)
    ORDER BY rank LIMIT ?
"""
_TEXT_LIKE = "text LIKE ? ESCAPE '\\'"
_LIKE = f"({_TEXT_LIKE} OR thinking LIKE ? ESCAPE '\\')"
_PLAIN = f"""
    SELECT {_COLUMNS}, text, thinking FROM messages JOIN sessions ON sessions.id = session
    WHERE {{}} AND deleted_s IS NULL AND sessions.id = coalesce(?, sessions.id)
    ORDER BY messages.n DESC LIMIT ?
"""

_SESSIONS = "SELECT DISTINCT session FROM messages JOIN sessions ON sessions.id = session"
_SESSIONS_INDEXED = f"""
    {_SESSIONS} JOIN words ON messages.n = words.rowid WHERE words MATCH ? AND deleted_s IS NULL
"""
_SESSIONS_PLAIN = f"{_SESSIONS} WHERE {{}} AND deleted_s IS NULL"


def split_query(query: str) -> list[tuple[str, bool]]:
    """Cut a query into what must occur.

    Returns:
        Words, and whether each was quoted and so means itself, not a beginning.
    """
    found = [(match[1] or match[2] or "", match[2] is None) for match in _WORDS.finditer(query)]
    return [(word, quoted) for word, quoted in found if word.strip()]


def search(database: Database, query: str, session: str | None, limit: int) -> list[Match]:
    """Find messages; see `History.search`.

    Where the index finds nothing, texts are compared: it knows no parts of words, no signs, and
    takes a sentence without blanks for one word.
    """
    words = split_query(query)
    if not words:
        return []
    found = _search_index(database, words, session, limit) if _fits_index(database, words) else []
    return found or _search_plainly(database, [word for word, _ in words], session, limit)


def find_sessions(database: Database, query: str) -> set[str]:
    """Find sessions by the texts of their messages; see `History.find_sessions`."""
    words = split_query(query)
    if not words:
        return set()
    sql = _SESSIONS_INDEXED
    terms = f"text : ({_write_terms(words)})"
    rows = database.query(sql, (terms,)) if _fits_index(database, words) else []
    if not rows:
        condition = " AND ".join([_TEXT_LIKE] * len(words))
        values = [_write_pattern(word) for word, _ in words]
        rows = database.query(_SESSIONS_PLAIN.format(condition), values)
    return {session for (session,) in rows}


def _fits_index(database: Database, words: Sequence[tuple[str, bool]]) -> bool:
    return database.has_index and all(re.search(r"\w", word) for word, _ in words)


def _search_index(
    database: Database, words: Sequence[tuple[str, bool]], session: str | None, limit: int
) -> list[Match]:
    rows = database.query(_INDEXED, (_write_terms(words), session, limit))
    return [_read_match(row, _cut_marked(row[5]), _cut_marked(row[6])) for row in rows]


def _write_terms(words: Sequence[tuple[str, bool]]) -> str:
    return " ".join(_quote(word) + ("" if quoted else "*") for word, quoted in words)


def _quote(word: str) -> str:
    return '"' + word.replace('"', '""').replace("\0", " ") + '"'


def _search_plainly(
    database: Database, words: Sequence[str], session: str | None, limit: int
) -> list[Match]:
    condition = " AND ".join([_LIKE] * len(words))
    values = [pattern for word in words for pattern in [_write_pattern(word)] * 2]
    rows = database.query(_PLAIN.format(condition), (*values, session, limit))
    return [_read_match(row, _cut(row[5], words), _cut(row[6], words)) for row in rows]


def _write_pattern(word: str) -> str:
    return "%" + re.sub(r"([%_\\])", r"\\\1", word) + "%"


def _read_match(row: Sequence[Any], text: tuple[str, ...], thinking: tuple[str, ...]) -> Match:
    """What was found in the text counts more than what was thought."""
    in_thinking = len(text) < 2 <= len(thinking)
    session, title, message, role, created_s = row[:5]
    snippet = thinking if in_thinking else text
    return Match(session, title, message, role, created_s, in_thinking, snippet)


def _cut_marked(snippet: str) -> tuple[str, ...]:
    return tuple(re.split(f"{_OPEN}|{_CLOSE}", snippet or ""))


def _cut(text: str, words: Sequence[str]) -> tuple[str, ...]:
    """The text around the first word that occurs, cut before and after each one."""
    pattern = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
    first = pattern.search(text)
    start = max(first.start() - _AROUND, 0) if first else 0
    stop = first.end() + _AROUND if first else _AROUND
    pieces, at = [], start
    for match in pattern.finditer(text, start, stop):
        pieces += [text[at : match.start()], match[0]]
        at = match.end()
    pieces.append(text[at:stop] + "…" * (stop < len(text)))
    pieces[0] = "…" * (start > 0) + pieces[0]
    return tuple(pieces)
