"""The three looks of the chat, as Textual's themes."""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.theme import Theme

from localcascade.settings import THEMES
from localcascade.tui.palettes import PALETTES

ALL = tuple(Theme(name=name, **palette) for name, palette in PALETTES.items())


def register_themes(app: App[Any], name: str = THEMES[0]) -> None:
    """Let an app draw our themes, and draw it in one of them.

    Args:
        app: Which one.
        name: One of settings.THEMES.
    """
    for theme in ALL:
        app.register_theme(theme)
    app.theme = name


def find_next_theme(name: str) -> str:
    """Find the theme after one; the first after any that is not ours."""
    at = THEMES.index(name) if name in THEMES else -1
    return THEMES[(at + 1) % len(THEMES)]
