"""The chat as it looks: three sizes, three themes, and each of its panels.

`pytest --snapshot-update` renews the pictures; look at them before they are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from localcascade.prompt.events import Delta, PromptProgress
from localcascade.settings import THEMES
from localcascade.tui import speaker
from localcascade.tui.widgets.composer import Composer
from tests.localcascade.chat_scene import SCENE
from tests.localcascade.scripted_engine import ScriptedEngine, end, open_chat
from tests.localcascade.shelves import settle

SIZES = ((60, 16), (100, 30), (140, 44))
COMPARE = Callable[..., bool]


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that differs from run to run: no blinking, no memory, no colours of the machine."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setattr(speaker, "measure_children", lambda: 0)
    monkeypatch.setattr(Composer, "cursor_blink", False)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_conversation(snap_compare: COMPARE, theme: str, size: tuple[int, int]) -> None:
    app = open_chat(ScriptedEngine([[end()]], n_ctx=8192), SCENE, theme)
    assert snap_compare(app, terminal_size=size, run_before=settle)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("panel", ["f4"]),
        ("thinking", ["alt+up", "alt+up", "alt+up", "ctrl+t", "ctrl+t"]),
        ("find", ["ctrl+f", *"root"]),
        ("source", ["f7", "alt+up", "alt+up", "alt+up"]),
        ("edit", ["ctrl+e"]),
    ],
)
def test_panels(snap_compare: COMPARE, name: str, keys: list[str]) -> None:
    async def press(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press(*keys)
        await settle(pilot)

    app = open_chat(ScriptedEngine([[end()]], n_ctx=8192), SCENE)
    assert snap_compare(app, terminal_size=(100, 30), run_before=press)


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_streaming(snap_compare: COMPARE, size: tuple[int, int]) -> None:
    async def ask(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        pilot.app.screen.query_one(Composer).insert("And what of $x^2 + 1 = 0$?")
        await pilot.press("enter")
        await settle(pilot)

    thinking = "The discriminant is -4.\n\n## Complex roots\nSo"
    script = [PromptProgress(96, 96, 84), Delta(thinking, "thinking"), None, end()]
    app = open_chat(ScriptedEngine([script], n_ctx=8192), SCENE)
    assert snap_compare(app, terminal_size=size, run_before=ask)


def test_first_words(snap_compare: COMPARE) -> None:
    app = open_chat(ScriptedEngine([[end()]], n_ctx=8192))
    assert snap_compare(app, terminal_size=(100, 30), run_before=settle)
