"""The three looks of the chat. Text on any of its grounds has a contrast of at least 4.5 to 1,
in high contrast 7 to 1 (WCAG 2.2, 1.4.3 and 1.4.6)."""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.theme import Theme

from localcascade.settings import THEMES

DARK = Theme(
    name="cascade-dark",
    primary="#82AAFF",
    secondary="#C3A6FF",
    accent="#F2B872",
    success="#A5D6A0",
    warning="#F2C572",
    error="#FF8B98",
    foreground="#E4E8F0",
    background="#12151C",
    surface="#1A1F29",
    panel="#28303E",
    variables={
        "text": "#E4E8F0",
        "text-muted": "#A4ADBD",
        "foreground-muted": "#A4ADBD",
        "text-primary": "#9DBDFF",
        "text-secondary": "#CDB5FF",
        "text-accent": "#F2B872",
        "text-success": "#A5D6A0",
        "text-warning": "#F2C572",
        "text-error": "#FF9CA7",
        "block-cursor-foreground": "#12151C",
        "block-cursor-background": "#82AAFF",
        "block-cursor-blurred-foreground": "#E4E8F0",
        "block-cursor-blurred-background": "#28303E",
        "border": "#82AAFF",
        "border-blurred": "#3B4557",
        "footer-key-foreground": "#F2B872",
    },
)

LIGHT = Theme(
    name="cascade-light",
    dark=False,
    primary="#1F56B5",
    secondary="#6B3FB0",
    accent="#8A4B00",
    success="#23661F",
    warning="#7A4B00",
    error="#B01530",
    foreground="#1B2130",
    background="#FBFAF7",
    surface="#F1EFEA",
    panel="#E3E0D8",
    variables={
        "text": "#1B2130",
        "text-muted": "#515868",
        "foreground-muted": "#515868",
        "text-primary": "#1A4FA8",
        "text-secondary": "#6237A5",
        "text-accent": "#7E4400",
        "text-success": "#1E5C1A",
        "text-warning": "#714500",
        "text-error": "#A3112B",
        "block-cursor-foreground": "#FFFFFF",
        "block-cursor-background": "#1F56B5",
        "block-cursor-blurred-foreground": "#1B2130",
        "block-cursor-blurred-background": "#E3E0D8",
        "border": "#1F56B5",
        "border-blurred": "#B9B4A7",
        "footer-key-foreground": "#7E4400",
    },
)

CONTRAST = Theme(
    name="cascade-contrast",
    primary="#6FC3FF",
    secondary="#E0B3FF",
    accent="#FFD75F",
    success="#87FF87",
    warning="#FFD75F",
    error="#FFA0A0",
    foreground="#FFFFFF",
    background="#000000",
    surface="#0C0C0C",
    panel="#262626",
    variables={
        "text": "#FFFFFF",
        "text-muted": "#D0D0D0",
        "foreground-muted": "#D0D0D0",
        "text-primary": "#8FD0FF",
        "text-secondary": "#E5C0FF",
        "text-accent": "#FFD75F",
        "text-success": "#87FF87",
        "text-warning": "#FFD75F",
        "text-error": "#FFB3B3",
        "block-cursor-foreground": "#000000",
        "block-cursor-background": "#FFD75F",
        "block-cursor-blurred-foreground": "#FFFFFF",
        "block-cursor-blurred-background": "#3A3A3A",
        "border": "#FFFFFF",
        "border-blurred": "#B0B0B0",
        "footer-key-foreground": "#FFD75F",
    },
)

ALL = (DARK, LIGHT, CONTRAST)


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
