"""What the runner's tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Hear Ctrl-C again: a shell that starts the tests in the background has it ignored, and those
    that they start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what `--offline` sets for the process, after each test that gives it in this one."""
    for name in ("LOCALCASCADE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that there is something to restore
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LOCALCASCADE_HOME, and an empty working folder beside it."""
    folder, working = tmp_path / "home", tmp_path / "work"
    folder.mkdir()
    working.mkdir()
    monkeypatch.setenv("LOCALCASCADE_HOME", str(folder))
    monkeypatch.chdir(working)
    for name in ("LOCALCASCADE_OFFLINE", "LOCALCASCADE_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return folder
