"""The first thing that the chat paints: its empty frame, before Textual is imported.

To import Textual and what draws conversations takes most of the start; meanwhile the user sees the
chat already. What is typed into the frame stands where it will stand, and nothing of it is lost.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from localcascade.chat.controls import make_safe
from localcascade.tui.palettes import PALETTES

PLACEHOLDER = "Ask anything. Enter sends, F1 helps."
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?7l", "\x1b[0m\x1b[?7h\x1b[?1049l"
"""The terminal's other screen, without wrapping; Textual uses it too, and leaves it at its end."""


@contextmanager
def show_curtain(heading: str, theme: str) -> Iterator[None]:
    """Show the frame until the chat is painted over it; gone again if the body raises.

    Args:
        heading: Model and title, for the first line.
        theme: One of settings.THEMES.
    """
    screen = sys.__stderr__  # where Textual paints
    assert screen is not None
    width, height = shutil.get_terminal_size()
    screen.write(_ENTER + draw_frame(heading, width, height, _choose_palette(theme)))
    screen.flush()
    try:
        yield
    except BaseException:
        screen.write(_LEAVE)
        screen.flush()
        raise


def draw_frame(heading: str, width: int, height: int, palette: Mapping[str, Any] | None) -> str:
    """Draw what an empty chat looks like while its model loads.

    Args:
        heading: For the first line; cut where it is too long.
        width: Of the terminal, in cells.
        height: In lines.
        palette: Its colours; None uses none.

    Returns:
        Text with escape codes; the cursor ends where the user writes.
    """
    ground, field, bar, muted = "", "", "", ""
    if palette is not None:
        muted = _colour(38, palette["variables"]["text-muted"])
        ground = _colour(48, palette["background"]) + muted
        field = _colour(48, palette["surface"])
        bar = _colour(38, palette["primary"])
    shown = make_safe(heading).replace("\n", " ")[: max(width - 2, 0)]
    return (
        f"{ground}\x1b[2J\x1b[1;2H{shown}"
        f"\x1b[{height - 1};2H{field}{' ' * (width - 2)}\x1b[{height - 1};2H{bar}▌ {muted}"
        f"{PLACEHOLDER[: max(width - 5, 0)]}"
        f"\x1b[{height};2H{ground}○ loading\x1b[{height - 1};4H{field}"
    )


def _choose_palette(theme: str) -> Mapping[str, Any] | None:
    """The colours, where the terminal says that it has all of them and may use them."""
    has_all = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return PALETTES[theme] if has_all and not os.environ.get("NO_COLOR") else None


def _colour(kind: int, colour: str) -> str:
    """The code of a ground (48) or a text (38) in a colour such as #12151C."""
    red, green, blue = bytes.fromhex(colour[1:])
    return f"\x1b[{kind};2;{red};{green};{blue}m"
