"""The themes: contrast as WCAG 2.2 computes it, and no colour at all where none is wanted."""

from __future__ import annotations

import pytest
from rich.color import Color as RichColor
from textual.app import App, ComposeResult
from textual.color import Color
from textual.theme import Theme
from textual.widgets import Label

from localcascade.settings import THEMES
from localcascade.tui.themes import ALL, find_next_theme, register_themes

INKS = (
    "foreground", "text", "text-muted", "foreground-muted", "text-primary", "text-secondary",
    "text-accent", "text-success", "text-warning", "text-error",
)  # fmt: skip
GROUNDS = ("background", "surface", "panel")


def measure_contrast(ink: Color, ground: Color) -> float:
    """Contrast ratio, from 1 to 21. Source: WCAG 2.2, relative luminance and contrast ratio."""

    def measure_luminance(color: Color) -> float:
        parts = [value / 255 for value in color.rgb]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((measure_luminance(ink), measure_luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_that_of_the_standard() -> None:
    assert measure_contrast(Color(0, 0, 0), Color(255, 255, 255)) == pytest.approx(21)
    # An example in the standard's own notes: this gray on white passes 4.5 by a hair.
    assert measure_contrast(Color.parse("#767676"), Color(255, 255, 255)) == pytest.approx(
        4.54, 1e-3
    )


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_every_text_can_be_read(theme: Theme) -> None:
    least = 7.0 if theme.name == "cascade-contrast" else 4.5
    colors = theme.to_color_system().generate()
    low = {
        (ink, ground): round(
            measure_contrast(Color.parse(colors[ink]), Color.parse(colors[ground])), 2
        )
        for ink in INKS
        for ground in GROUNDS
    }
    assert {pair: ratio for pair, ratio in low.items() if ratio < least} == {}


@pytest.mark.parametrize("theme", ALL, ids=lambda theme: theme.name)
def test_a_cursor_can_be_read(theme: Theme) -> None:
    colors = theme.to_color_system().generate()
    for kind in ("block-cursor", "block-cursor-blurred"):
        ink, ground = (
            Color.parse(colors[f"{kind}-{part}"]) for part in ("foreground", "background")
        )
        assert measure_contrast(ink, ground) >= (7.0 if theme.name == "cascade-contrast" else 4.5)


def test_the_settings_name_exactly_these_themes() -> None:
    assert tuple(theme.name for theme in ALL) == THEMES


def test_themes_go_round() -> None:
    assert [find_next_theme(name) for name in THEMES] == [*THEMES[1:], THEMES[0]]
    assert find_next_theme("nord") == THEMES[0]


class Colored(App[None]):
    """Writes in colours."""

    def compose(self) -> ComposeResult:
        """A word in each colour."""
        for ink in INKS:
            yield Label(f"[${ink}]word[/]")

    def on_mount(self) -> None:
        """Begin in the dark."""
        register_themes(self)


@pytest.mark.asyncio
@pytest.mark.parametrize("wanted", [True, False])
async def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not wanted:
        monkeypatch.setenv("NO_COLOR", "1")
    app = Colored()
    async with app.run_test() as pilot:
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        filtered = [
            strip.apply_filter(f, Color(0, 0, 0)) for strip in strips for f in app._filters
        ] or strips
        colors = {s.style.color for strip in filtered for s in strip if s.style and s.style.color}
    assert any(_is_colored(color) for color in colors) is wanted


def _is_colored(color: RichColor) -> bool:
    return len(set(color.get_truecolor())) > 1
