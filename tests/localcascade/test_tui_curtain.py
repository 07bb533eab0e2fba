"""The frame that is painted before Textual is there: as the chat will be, gone if that fails."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localcascade.chat.conversation import Conversation, MemoryJournal
from localcascade.settings import THEMES
from localcascade.tui.app import ChatApp
from localcascade.tui.curtain import draw_frame, show_curtain
from localcascade.tui.opening import Opening
from localcascade.tui.palettes import PALETTES
from tests.localcascade.reserved import TINY, write_header
from tests.localcascade.scripted_engine import ScriptedEngine, ScriptedSource

_STEP = re.compile(r"\x1b\[(?:(\d+);(\d+)H|2J|[\d;]+m)|([^\x1b]+)")


def place(frame: str, height: int) -> list[str]:
    """The lines that a frame leaves on the screen."""
    lines, row, column = [""] * height, 0, 0
    for match in _STEP.finditer(frame):
        if match[1]:
            row, column = int(match[1]) - 1, int(match[2]) - 1
        elif match[3]:
            line = lines[row].ljust(column)
            column += len(match[3])
            lines[row] = line[: column - len(match[3])] + match[3] + line[column:]
    return [line.rstrip() for line in lines]


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [(60, 16), (100, 30), (200, 60)])
async def test_the_chat_is_painted_where_its_frame_stood(size: tuple[int, int]) -> None:
    engine = ScriptedEngine([[None]])
    opening = Opening(Conversation(MemoryJournal()), "tiny", engine, "limits of sums")
    app = ChatApp(ScriptedSource(engine), opening)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        painted = [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]
    frame = place(draw_frame("tiny — limits of sums", *size, PALETTES[THEMES[0]]), size[1])
    assert frame[:-1] == painted[:-1]
    assert (frame[-1], painted[-1][:8]) == (" ○ loading", " ○ ready")


def test_a_frame_is_cut_to_its_terminal() -> None:
    frame = draw_frame("a\x1b[31m name\n" * 30, 20, 4, None)
    assert "\x1b[31m" not in frame
    assert all(len(line) <= 20 for line in place(frame, 4))


@pytest.mark.parametrize(
    ("variables", "has_colours"),
    [
        ({"COLORTERM": "truecolor"}, True),
        ({"COLORTERM": ""}, False),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_only_where_the_terminal_has_and_wants_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], has_colours: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = show(monkeypatch)
    assert ("48;2;" in shown) == has_colours
    assert "Ask anything" in shown and "\x1b[?1049l" not in shown


def test_what_fails_is_told_on_the_screen_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        show(monkeypatch, KeyboardInterrupt())
    assert isinstance(sys.__stderr__, io.StringIO)
    assert sys.__stderr__.getvalue().endswith("\x1b[?1049l")


def show(monkeypatch: pytest.MonkeyPatch, failure: BaseException | None = None) -> str:
    """What is written until the body ends, or fails."""
    screen = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: (80, 24))
    with show_curtain("tiny", THEMES[0]):
        if failure is not None:
            raise failure
    return screen.getvalue()


def test_the_frame_needs_no_textual() -> None:
    code = (
        "import sys, localcascade.cli.opening, localcascade.tui.curtain, localcascade.tui.opening;"
        "print(sorted({'textual', 'pydantic', 'markdown_it', 'llama_cpp'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_conversation_begins_without_numpy(home: Path) -> None:
    """Nor the plan, which needs it: all that stands between the command and the frame."""
    model = write_header(home / "m.gguf", TINY)
    code = (
        "import sys; from localcascade.cli.loading import Source\n"
        "from localcascade.cli.opening import Openings\n"
        "with Openings.open(Source()) as openings: openings.begin(sys.argv[1])\n"
        "print(sorted({'numpy', 'llama_cpp', 'localcascade.fit'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
