"""How long native code may take that cannot be interrupted: after that, the process ends itself."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import NoReturn

MOST_S = 60.0
"""Nobody else is answered meanwhile. A process that ends is started again."""
CHECK_S = 1.0


class Patience:
    """Times what it is entered for, by one thread at a time; a context manager.

    Args:
        what: What takes so long, for the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun_s: float | None = None
        self.last_s = 0.0
        """How long the last one took."""

    def __enter__(self) -> None:
        self._begun_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._begun_s is not None
        self.last_s, self._begun_s = time.monotonic() - self._begun_s, None

    def watch(self) -> None:
        """Start the thread that ends the process when patience does."""
        threading.Thread(target=self._watch, name="patience", daemon=True).start()

    def _watch(self) -> NoReturn:
        while True:
            time.sleep(CHECK_S)
            begun_s = self._begun_s
            if begun_s is not None and time.monotonic() - begun_s > MOST_S:
                problem = f"error: {self._what} took over {MOST_S:.0f} s"
                print(problem, file=sys.stderr, flush=True)
                os._exit(1)
