"""What the runner's tests share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.localcascade.idleness import LIMIT_S, wait_for_idle


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


@pytest.fixture(autouse=True)
def idle_at_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Textual's pilot wait for idleness itself, where there is one."""
    if "textual" in sys.modules:
        for module in ("textual.app", "textual.pilot"):
            monkeypatch.setattr(f"{module}.wait_for_idle", wait_for_idle)


@pytest.fixture(autouse=True, scope="session")
def algebra_at_any_speed() -> Iterator[None]:
    """Let SymPy take its time on a busy machine, where a test does not say how much."""
    from localcascade.maths import algebra, check

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "START_LIMIT_S", LIMIT_S)
        patch.setattr(algebra.Algebra.__init__, "__defaults__", (LIMIT_S,))
        patch.setattr(check.check_steps, "__defaults__", ("", LIMIT_S))
        yield


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
