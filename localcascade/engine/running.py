"""Which engines run on this machine: each says so in a file, and whoever asks drops the dead."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from localcascade import paths

_SAME_START_S = 2.0
"""Two processes of the same number that began this close together are one."""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """One worker process with its model."""

    pid: int
    model: str
    """Path of its file."""
    n_ctx: int
    """Context in tokens, of all its sequences."""
    started_s: float
    """When the process began, in seconds since 1970."""
    memory_bytes: int
    """Main memory that it holds now, the mapped part of the model file included."""


def find_engines_folder() -> Path:
    """Folder where engines say that they run: PID.json each."""
    return paths.find_cache_folder() / "engines"


def announce_engine(model: Path, n_ctx: int) -> None:
    """Say that this process runs an engine, until it ends; a full disk is no reason to fail.

    Args:
        model: The model file.
        n_ctx: Context in tokens.
    """
    started_s = psutil.Process().create_time()
    engine = RunningEngine(os.getpid(), str(model), n_ctx, started_s, 0)
    file = find_engines_folder() / f"{engine.pid}.json"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A reader must never see half of it.
        part = file.with_suffix(f".{time.monotonic_ns()}")
        part.write_text(json.dumps(asdict(engine)), "utf-8")
        part.replace(file)


def list_engines() -> list[RunningEngine]:
    """List the engines that run, the oldest first; files of those that do not are removed."""
    found = []
    for file in find_engines_folder().glob("*.json"):
        engine = _read_engine(file)
        if engine is None:
            with contextlib.suppress(OSError):
                file.unlink()
        else:
            found.append(engine)
    return sorted(found, key=lambda engine: engine.started_s)


def _read_engine(file: Path) -> RunningEngine | None:
    """Read what an engine said of itself; None if it has ended or the file is damaged."""
    try:
        said = RunningEngine(**json.loads(file.read_text("utf-8")))
        process = psutil.Process(said.pid)
        if abs(process.create_time() - said.started_s) > _SAME_START_S:
            return None
        memory_bytes = process.memory_info().rss
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return RunningEngine(said.pid, said.model, said.n_ctx, said.started_s, memory_bytes)
