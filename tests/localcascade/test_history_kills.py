"""A process that streams into the history is killed at any moment: nothing flushed is lost."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from localcascade.history import History
from tests.soak import SOAK

ROOT = Path(__file__).parents[2]
N_KILLS = 1000 if SOAK else 20


def kill_writer(path: Path, tag: str, delay_s: float) -> dict[str, str]:
    """Let a child write for a while after its first word; what it said was on the disk."""
    command = [sys.executable, "-m", "tests.localcascade.history_child", str(path), tag]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delay_s)
        child.kill()
        rest = child.stdout.read()
    lines = (first + rest).splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    return {id: text for line in whole for id, text in json.loads(line).items()}


def check_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]


def test_a_kill_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    moments = random.Random(6)
    n_told = 0
    for i in range(N_KILLS):
        told = kill_writer(path, str(i), moments.expovariate(25))
        assert told
        check_file(path)
        with History.open(path) as history:
            kept = {message.id: message for message in history.read_messages(list(told))}
            assert {id for id, text in told.items() if not kept[id].text.startswith(text)} == set()
            tree = history.read_tree(kept[next(iter(told))].session)
            assert {message.state for message in tree} <= {"complete", "stopped"}
            assert history.search(f'"{i}.0.0"')[0].session == tree[0].session
        check_file(path)
        n_told += len(told)
    assert n_told > 2 * N_KILLS
