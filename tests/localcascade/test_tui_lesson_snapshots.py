"""Tutor mode as it looks: sealed thinking, checked steps, and the choice of a problem.

`pytest --snapshot-update` renews the pictures; look at them before they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from textual.pilot import Pilot

from localcascade.chat.composition import Manner
from localcascade.chat.conversation import Conversation, MemoryJournal, Message, Stats
from localcascade.chat.tutor import ATTEMPT, load_tutor
from localcascade.prompt.events import Delta, PromptProgress
from localcascade.settings import THEMES
from localcascade.tui import speaker
from localcascade.tui.app import ChatApp
from localcascade.tui.opening import Opening, Preferences
from localcascade.tui.screens.practice import PracticeScreen
from localcascade.tui.widgets.composer import Composer
from localcascade.tui.widgets.transcript import Transcript
from tests.localcascade.scripted_engine import ScriptedEngine, ScriptedSource, end
from tests.localcascade.shelves import settle, wait_for_rows, wait_until

SIZES = ((60, 16), (100, 30), (140, 44))
COMPARE = Callable[..., bool]

PROBLEM = r"Compute $\frac{2}{3} + \frac{3}{5}$."
STEP = r"""Bring both to the denominator $3 \cdot 5 = 15$:

$$\frac{2}{3} + \frac{3}{5} = \frac{10}{15} + \frac{9}{15} = \frac{18}{15}.$$

Can it be reduced, if $n = 18$?
"""
STATS = Stats(84, 40, 96, 310, 0.4, 6.2, 2.1)
LESSON = (
    Message("1", None, "user", PROBLEM),
    Message("2", "1", "user", f"{ATTEMPT}5/8"),
    Message("3", "2", "user", "Show me the next step, please."),
    Message("4", "3", "assistant", STEP, "The answer is 19/15.\n", stats=STATS, is_sealed=True),
    Message("5", "4", "user", f"{ATTEMPT}19/15"),
)
N_CHECKED = 3


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that differs from run to run: no blinking, no memory, no colours of the machine."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setattr(speaker, "measure_children", lambda: 0)
    monkeypatch.setattr(Composer, "cursor_blink", False)


def open_lesson(
    messages: Sequence[Message] = LESSON,
    theme: str = "cascade-dark",
    script: Sequence[Any] = (end(),),
    topic: str | None = None,
) -> ChatApp:
    engine = ScriptedEngine([script], n_ctx=8192)
    conversation = Conversation(MemoryJournal(), messages)
    opening = Opening(conversation, "nemotron-cascade-2", engine, "Homework")
    preferences = Preferences(theme, manner=Manner(tutor=load_tutor()), checks=True)
    return ChatApp(ScriptedSource(engine), opening, preferences, topic=topic)


async def await_checks(pilot: Pilot[Any]) -> None:
    """Wait until the thread has told of everything."""
    transcript = pilot.app.screen.query_one(Transcript)
    await wait_until(pilot, lambda: len(transcript._findings) == N_CHECKED)
    await settle(pilot)


async def await_problems(pilot: Pilot[Any]) -> None:
    """Wait until the list is filled, with no cursor blinking above it."""
    await wait_until(pilot, lambda: isinstance(pilot.app.screen, PracticeScreen))
    await wait_for_rows(pilot)
    await settle(pilot)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lesson(snap_compare: COMPARE, theme: str, size: tuple[int, int]) -> None:
    assert snap_compare(open_lesson(theme=theme), terminal_size=size, run_before=await_checks)


def test_all_steps(snap_compare: COMPARE) -> None:
    async def turn(pilot: Pilot[Any]) -> None:
        await await_checks(pilot)
        await pilot.press("alt+s")
        pilot.app.clear_notifications()
        await settle(pilot)

    assert snap_compare(open_lesson(), terminal_size=(100, 30), run_before=turn)


def test_unsealed(snap_compare: COMPARE) -> None:
    async def reveal(pilot: Pilot[Any]) -> None:
        await await_checks(pilot)
        await pilot.press("alt+r")
        await settle(pilot)

    assert snap_compare(open_lesson(), terminal_size=(100, 30), run_before=reveal)


def test_sealed_thinking_streams(snap_compare: COMPARE) -> None:
    async def ask(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        pilot.app.screen.query_one(Composer).insert("Solve $x^2 + 1 = 0$.")
        await pilot.press("alt+h")
        transcript = pilot.app.screen.query_one(Transcript)
        await wait_until(pilot, lambda: "sealed" in transcript.render_line(4).text)
        await settle(pilot)

    thinking = "The roots are i and -i.\n\n## How to say it\nSo"
    script = [PromptProgress(96, 96, 84), Delta(thinking, "thinking"), None, end()]
    app = open_lesson((), script=script)
    assert snap_compare(app, terminal_size=(100, 30), run_before=ask)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_picker(snap_compare: COMPARE, theme: str, size: tuple[int, int]) -> None:
    async def choose(pilot: Pilot[Any]) -> None:
        await await_problems(pilot)
        await pilot.press("down", "down")
        await settle(pilot)

    app = open_lesson((), theme, topic="first year")
    assert snap_compare(app, terminal_size=size, run_before=choose)
