"""Patience: it times what it is entered for, and ends the process that does not come back."""

from __future__ import annotations

import subprocess
import sys

from localcascade.engine.patience import Patience

HANGING = """
import threading
from localcascade.engine import patience
patience.MOST_S, patience.CHECK_S = 0.05, 0.01
waited = patience.Patience("a grammar")
waited.watch()
with waited:
    pass
with waited:
    threading.Event().wait()
"""


def test_it_tells_how_long_the_last_one_took() -> None:
    patience = Patience("a test")
    assert patience.last_s == 0
    with patience:
        pass
    assert patience.last_s > 0


def test_what_does_not_come_back_ends_the_process_with_its_reason() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert ended.stderr == "error: a grammar took over 0 s\n"
