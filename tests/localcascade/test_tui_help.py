"""Help, palette and keys: made from the bindings, and changed by the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.content import Content
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, Static

from localcascade.tui.actions import apply_keys, collect_ids, group_actions, list_actions
from localcascade.tui.screens.help import HelpScreen, draw_help
from localcascade.tui.screens.palette import ActionProvider
from localcascade.tui.themes import register_themes
from tests.localcascade.shelves import name_size, wait_for_commands, wait_until


class Talk(Screen[None]):
    """A screen with a few keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "note('answer')", "Answer now", id="chat.answer_now", priority=True),
        Binding("escape,ctrl+x", "note('stop')", "Stop", id="chat.stop", priority=True),
        Binding("ctrl+b", "note('hidden')", "", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Something with keys of its own."""
        yield Input()

    def action_note(self, word: str) -> None:
        """Keep what was done."""
        assert isinstance(self.app, Program)
        self.app.done.append(word)


class Program(App[None]):
    """A program with a few keys."""

    COMMANDS = {ActionProvider}  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f10", "note", "Next theme", id="app.theme", priority=True),
    ]

    def __init__(self, keys: dict[str, str] | None = None) -> None:
        super().__init__()
        self._keys = keys or {}
        self.done: list[str] = []
        self.problems: list[str] = []

    def on_mount(self) -> None:
        """Show the screen, with the keys of the settings."""
        register_themes(self)
        self.problems = apply_keys(self, self._keys, collect_ids(Program, Talk))
        self.push_screen(Talk())

    def action_note(self) -> None:
        """Keep what was done."""
        self.done.append("theme")


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.asyncio
async def test_help_lists_every_key_that_is_in_force() -> None:
    app = Program()
    async with app.run_test() as pilot:
        await pilot.pause()
        actions = {action.id: action for action in list_actions(app.screen) if action.id}
        assert set(actions) == {"chat.answer_now", "chat.stop", "app.theme"}
        assert len(actions["chat.stop"].keys) == 2
        groups = group_actions(list_actions(app.screen))
        assert list(groups) == ["Conversation", "Program", "Writing and moving"]
        described = {action.description for action in groups["Writing and moving"]}
        shown = {b.binding.description for b in app.screen.active_bindings.values()}
        assert described == shown - {"", "Answer now", "Stop", "Next theme"} - _list_system(app)


def _list_system(app: App[None]) -> set[str]:
    bindings = (active.binding for active in app.screen.active_bindings.values())
    return {binding.description for binding in bindings if binding.system}


@pytest.mark.asyncio
async def test_keys_of_the_settings_replace_ours() -> None:
    app = Program({"chat.stop": "f12"})
    async with app.run_test() as pilot:
        await pilot.press("escape", "f12", "f5")
        assert app.done == ["stop", "answer"]
        stop = next(a for a in list_actions(app.screen) if a.id == "chat.stop")
        assert stop.keys == ("f12",)


@pytest.mark.asyncio
async def test_keys_that_make_no_sense_are_told() -> None:
    app = Program({"chat.stopp": "f12", "chat.stop": "f7", "chat.answer_now": "f3,f7"})
    async with app.run_test() as pilot:
        await pilot.pause()
    assert len(app.problems) == 2
    assert "did you mean chat.stop?" in app.problems[0]
    assert "f7" in app.problems[1] and "chat.answer_now" in app.problems[1]


@pytest.mark.asyncio
async def test_the_palette_finds_and_runs_an_action() -> None:
    app = Program()
    async with app.run_test() as pilot:
        await pilot.pause()
        app.action_command_palette()
        await pilot.pause()
        assert isinstance(app.screen, CommandPalette)
        await pilot.press(*"answer")
        await wait_for_commands(pilot)
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: app.done)
        assert app.done == ["answer"]


@pytest.mark.asyncio
async def test_the_palette_offers_everything_at_first() -> None:
    app = Program()
    async with app.run_test() as pilot:
        await pilot.pause()
        provider = ActionProvider(app.screen)
        await provider.startup()
        hits = [hit async for hit in provider.discover()]
        assert [hit.display for hit in hits] == ["Answer now", "Stop", "Next theme"]
        for hit in hits:
            await hit.command()  # type: ignore[misc]
        assert app.done == ["answer", "stop", "theme"]


@pytest.mark.asyncio
@pytest.mark.parametrize("width", [40, 56, 102, 103, 160])
async def test_nothing_is_lost_in_columns(width: int) -> None:
    app = Program()
    async with app.run_test() as pilot:
        await pilot.pause()
        actions = list_actions(app.screen)
        drawn: Content = draw_help(actions, width)
        for action in actions:
            assert action.description in drawn.plain and action.id in drawn.plain
        n_columns = 1 + ("Conversation" in drawn.plain.split("\n")[0] and width >= 103)
        n_lines = len(drawn.plain.split("\n"))
        n_all = len(actions) + 2 * len(group_actions(actions)) - 1
        assert n_lines == n_all if n_columns == 1 else n_lines < n_all


@pytest.mark.asyncio
async def test_help_closes_with_the_key_that_opened_it() -> None:
    app = Program()
    async with app.run_test() as pilot:
        await pilot.pause()
        for key in ("f1", "escape", "q"):
            await app.push_screen(HelpScreen(list_actions(app.screen), "Note"))
            await pilot.pause()
            assert isinstance(app.screen, HelpScreen)
            assert str(app.screen.query_one("#help-note", Static).content) == "Note"
            await pilot.press(key)
            assert isinstance(app.screen, Talk)


@pytest.mark.parametrize(("size"), [(120, 30), (60, 16)], ids=name_size)
def test_help_looks_as_it_did(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    async def open_it(pilot: Pilot[None]) -> None:
        note = 'Other keys: a [keys] table in settings.toml, as chat.stop = "ctrl+x".'
        app = pilot.app
        assert isinstance(app, App)
        await app.push_screen(HelpScreen(list_actions(app.screen), note))
        await pilot.pause()

    assert snap_compare(Program(), terminal_size=size, run_before=open_it)
