"""The thread that brings changes to the disk, so that nobody else waits for it."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass

from localcascade.errors import HistoryError
from localcascade.history import statements
from localcascade.history.database import Database, explain
from localcascade.history.owner import name_owner
from localcascade.history.statements import Statement

PERIOD_S = 0.2
"""How long pieces of streaming messages are collected."""
RETRY_S = 1.0
"""How long it waits after a failure; nothing is forgotten meanwhile."""


@dataclass(slots=True)
class _Piece:
    """What has come of a streaming message and is not on the disk yet."""

    message: str
    thinking: list[str]
    text: list[str]

    def to_statement(self) -> Statement:
        return statements.extend(self.message, "".join(self.thinking), "".join(self.text))


class Writer:
    """Takes changes at once and writes them in their order.

    Args:
        database: Where to.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changed = threading.Condition()
        self._queue: list[Statement | _Piece] = []
        self._pieces: dict[str, _Piece] = {}
        self._n_given = self._n_written = self._n_tries = 0
        self._hurried = self._closing = False
        self._problem: HistoryError | None = None
        self._owner = ""
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> HistoryError | None:
        """Why the last try to write failed; None if it did not."""
        return self._problem

    def submit(self, *changes: Statement) -> None:
        """Take changes that are written as soon as the disk can."""
        with self._changed:
            self._queue += changes
            self._n_given += len(changes)
            self._hurried = True
            self._changed.notify_all()

    def extend(self, message: str, thinking: str, text: str) -> None:
        """Take a piece of a streaming message; it is written within PERIOD_S."""
        with self._changed:
            piece = self._pieces.get(message)
            if piece is None:
                piece = self._pieces[message] = _Piece(message, [], [])
                self._queue.append(piece)
                self._n_given += 1
                self._changed.notify_all()
            piece.thinking.append(thinking)
            piece.text.append(text)

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was taken is on the disk.

        Raises:
            HistoryError: It cannot be written, and is kept and tried again; or some of it was
                refused, as that of a session that another process has removed.
        """
        with self._changed:
            goal, n_tries = self._n_given, self._n_tries
            self._hurried = True
            self._changed.notify_all()

            def is_over() -> bool:
                return self._n_written >= goal or (self._n_tries > n_tries and bool(self._problem))

            if not self._changed.wait_for(is_over, timeout_s):
                raise HistoryError(self._database.path, "the disk does not answer", "Try again.")
            if self._problem:
                raise self._problem

    def close(self) -> None:
        """Write what is left, once, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            queue = self._take()
            try:
                refused = self._database.change([self._complete(change) for change in queue])
            except sqlite3.Error as error:
                self._settle(queue, 0, explain(self._database.path, error))
            else:
                reason = explain(self._database.path, refused[0]) if refused else None
                self._settle([], len(queue), reason)

    def _wait(self) -> bool:
        """Wait for something to write; False when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            delay_s = RETRY_S if self._problem and self._queue else PERIOD_S
            self._changed.wait_for(lambda: self._hurried or self._closing, delay_s)
            return bool(self._queue)

    def _take(self) -> list[Statement | _Piece]:
        with self._changed:
            queue, self._queue, self._pieces = self._queue, [], {}
            self._hurried = False
            return queue

    def _settle(
        self, left: list[Statement | _Piece], n_written: int, problem: HistoryError | None
    ) -> None:
        """Note how a try ended; what is left comes first at the next one, if there is one."""
        with self._changed:
            self._queue = [] if left and self._closing else left + self._queue
            self._n_written += n_written
            self._n_tries += 1
            self._problem = problem
            self._changed.notify_all()

    def _complete(self, change: Statement | _Piece) -> Statement:
        statement = change.to_statement() if isinstance(change, _Piece) else change
        if statements.THIS_PROCESS not in statement.values:
            return statement
        self._owner = self._owner or name_owner()
        own = (
            self._owner if each is statements.THIS_PROCESS else each for each in statement.values
        )
        return statement._replace(values=tuple(own))
