"""Which process streams a message, and whether that process is still there."""

from __future__ import annotations

import os

_TOLERANCE_S = 2.0
"""The start of a process is counted from the boot, whose moment moves with the clock."""


def name_owner() -> str:
    """Name this process: its number and the second it began, as numbers are used again."""
    import psutil

    return f"{os.getpid()} {psutil.Process().create_time():.2f}"


def is_alive(owner: str) -> bool:
    """Say whether the process that `name_owner` named runs."""
    import psutil

    pid, _, started_s = owner.partition(" ")
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(started_s)) <= _TOLERANCE_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):
        return False
