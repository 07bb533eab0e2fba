"""The real program in a terminal, on the bundled model: types, stops, edits, quits, resumes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from localcascade.cli.app import run_arguments
from localcascade.history import History
from tests.localcascade.asking import is_worker

PATIENCE_S = 120.0
PROGRAM = f"{shlex.quote(sys.executable)} -m localcascade"


class Terminal:
    """A terminal of tmux with one program in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def run(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def press(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def read(self) -> str:
        return self.run("capture-pane", "-p")

    def wait_for(self, *words: str, absent: str = "\0") -> str:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            screen = self.read()
            if all(word in screen for word in words) and absent not in screen:
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{words} did not appear; the screen is\n{self.read()}")

    @contextmanager
    def pause_engine(self) -> Iterator[None]:
        """Hold the engine's process, which is below the shell, as if it were very slow."""
        shell = psutil.Process(int(self.run("display-message", "-p", "#{pane_pid}")))
        (engine,) = (p for p in shell.children(recursive=True) if is_worker(p))
        engine.suspend()
        try:
            yield
        finally:
            engine.resume()


@contextmanager
def open_terminal(folder: Path, command: str) -> Iterator[Terminal]:
    """A terminal of 90 by 24 that keeps the shell after the program has ended."""
    # A server of its own: one that is being killed still answers, and refuses.
    terminal = Terminal(Path(tempfile.mkdtemp(dir=folder)) / "tmux")
    terminal.run("new-session", "-d", "-x", "90", "-y", "24", f"{command}; echo ended; cat")
    try:
        yield terminal
    finally:
        terminal.run("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_conversation_is_stopped_edited_quit_and_resumed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_arguments(["demo"]) == 0
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    with open_terminal(tmp_path, f"{PROGRAM} chat tiny") as terminal:
        terminal.wait_for("Ask anything", "ready")
        terminal.press("-l", "What is 20 + 30?")
        terminal.wait_for("20 + 30")
        with terminal.pause_engine():  # `tiny` answers faster than a finger
            terminal.press("Enter")
            terminal.wait_for("❯ What is 20 + 30?", "reading")
            terminal.press("Escape")
            terminal.wait_for("■ Stopped.")
        terminal.wait_for("ready")
        terminal.press("C-e")
        terminal.wait_for("Editing")
        terminal.press("C-u")
        terminal.press("-l", "What is 20 + 47?")
        terminal.wait_for("What is 20 + 47?")
        terminal.press("Enter")
        # The model is trained to think first, and to answer additions like this one.
        terminal.wait_for("❯ What is 20 + 47?", "Thought", "20 + 47 = 67", "ready")
        terminal.press("M-Left")
        terminal.wait_for("❯ What is 20 + 30?", absent="= 67")
        terminal.press("M-Right")
        terminal.wait_for("20 + 47 = 67")
        terminal.press("C-q")
        terminal.wait_for("ended")
    with open_terminal(tmp_path, f"{PROGRAM} chat -c") as terminal:
        terminal.wait_for("20 + 47 = 67", "tiny — What is 20 + 30?", "ready")
        terminal.press("C-q")
        terminal.wait_for("ended")
    history = History.open()
    try:
        session = history.find_last_session()
        assert session is not None
        kept = [(m.role, m.state, m.text) for m in history.read_tree(session.id)]
    finally:
        history.close()
    assert kept[0] == ("user", "complete", "What is 20 + 30?")
    assert kept[1][:2] == ("assistant", "stopped")
    assert kept[2] == ("user", "complete", "What is 20 + 47?")
    assert kept[3][:2] == ("assistant", "complete")
    assert "20 + 47 = 67" in kept[3][2]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_lesson_is_held_left_and_gone_on_with(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_arguments(["demo"]) == 0
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with open_terminal(tmp_path, f"{PROGRAM} chat tiny --practice arithmetic") as terminal:
        terminal.wait_for("Practice problems", "7 of 95 problems")
        terminal.press("Enter")
        terminal.wait_for("❯ What is 347 + 586", "Alt+A", "ready")
        terminal.press("-l", "805")
        terminal.press("M-a")
        terminal.wait_for("❯ My answer: 805", "answer ✗ wrong")
        terminal.press("-l", "804")
        terminal.press("M-a")
        terminal.wait_for("❯ My answer: 804", "answer ✓ right")
        terminal.press("M-h")
        terminal.wait_for("❯ Give me a hint, please.", "sealed", "ready")
        terminal.press("C-q")
        terminal.wait_for("ended")
    with open_terminal(tmp_path, f"{PROGRAM} chat -c") as terminal:
        terminal.wait_for("tutor, thinking", "answer ✓ right", "sealed", "ready", absent="│ ")
        terminal.press("M-r")
        terminal.wait_for("▾ Thought", "│ ", absent="sealed")
        terminal.press("C-q")
        terminal.wait_for("ended")


def test_a_chat_needs_a_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_arguments(["chat", "tiny"]) == 2
    assert "localcascade run" in capsys.readouterr().err


def test_textual_is_not_imported_by_other_commands() -> None:
    code = (
        "import sys; from localcascade.cli.app import run_arguments; run_arguments(['--help']);"
        "import localcascade.cli.chat; print([m for m in sys.modules if m in "
        "('textual', 'llama_cpp', 'numpy', 'markdown_it')])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.endswith("[]\n")


def test_the_chat_imports_no_llama_cpp() -> None:
    code = (
        "import sys; import localcascade.tui.app, localcascade.cli.opening;"
        "from localcascade.engine.client import Engine;"
        "print([m for m in sys.modules if m in ('llama_cpp', 'numpy', 'pygments.lexers.python')])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"
