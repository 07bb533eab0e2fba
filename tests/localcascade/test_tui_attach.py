"""The list in which a file is found: typed, chosen, read, refused; never in the way of keys."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from textual import on
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static, TextArea

from localcascade.chat.attachments import Attachment, CountTokens
from localcascade.errors import EngineDied
from localcascade.tui.themes import register_themes
from localcascade.tui.widgets.attach import AttachPicker, describe_attachment
from tests.localcascade.idleness import LIMIT_S
from tests.localcascade.shelves import wait_until

pytestmark = pytest.mark.asyncio


class Desk(App[None]):
    """A line to write in, with the list above it."""

    def __init__(self, theme: str = "cascade-dark") -> None:
        super().__init__()
        self._look = theme
        self.picked: list[Attachment] = []
        self.n_closed = 0

    def compose(self) -> ComposeResult:
        """The list, and something that has the focus before."""
        yield AttachPicker()
        yield TextArea()

    def on_mount(self) -> None:
        """Our colours."""
        register_themes(self, self._look)
        self.query_one(TextArea).focus()

    @on(AttachPicker.Picked)
    def keep(self, event: AttachPicker.Picked) -> None:
        """Keep what was chosen."""
        self.picked.append(event.attachment)

    @on(AttachPicker.Closed)
    def count(self) -> None:
        """Count."""
        self.n_closed += 1

    @property
    def state(self) -> str:
        """What the list says."""
        return str(self.query_one("#attach-state", Static).content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files."""
    files = {
        "docs/guide.md": b"# Guide\n",
        "src/main.py": b"print(1)\n",
        "src/maths.py": b"x = 1\n" * 99,
        "photo.png": b"\x89PNG\r\n\x1a\n\0\0",
        "wide-漢.txt": b"a",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def count_words(text: str) -> int:
    """A tokenizer, of a kind."""
    return len(text.split())


async def open_list(
    pilot: Pilot[None], folder: Path, limit: int = 100, count: CountTokens = count_words
) -> AttachPicker:
    """Open the list and wait until it has looked."""
    picker = pilot.app.query_one(AttachPicker)
    picker.query_one(Input).cursor_blink = False
    picker.open(folder, limit, count)
    await wait_until(pilot, lambda: picker.query_one(OptionList).option_count)
    return picker


async def type_in(pilot: Pilot[None], text: str, n_rows: int) -> None:
    """Type, and wait for the rows that match."""
    await pilot.press(*("full_stop" if char == "." else char for char in text))
    rows = pilot.app.query_one(OptionList)
    await wait_until(pilot, lambda: rows.option_count == n_rows)


async def test_a_file_is_found_and_read(folder: Path) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        picker = await open_list(pilot, folder)
        assert app.state.startswith("5 files")
        await type_in(pilot, "mapy", 2)
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.picked)
        assert app.picked == [Attachment("src/main.py", "print(1)\n", 9, 1)]
        assert app.n_closed == 1 and not picker.display


async def test_the_arrows_move_while_the_line_has_the_keys(folder: Path) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await open_list(pilot, folder, 1000)
        await type_in(pilot, "mapy", 2)
        await pilot.press("down", "down", "tab")
        await wait_until(pilot, lambda: app.picked)
        assert app.picked[0].path == "src/maths.py"
        assert app.picked[0].n_tokens == 297


@pytest.mark.parametrize(
    ("typed", "words"), [("maths", "297 tokens, where 100"), ("png", "no text")]
)
async def test_what_is_refused_says_why_and_another_can_be_chosen(
    folder: Path, typed: str, words: str
) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await open_list(pilot, folder)
        await type_in(pilot, typed, 1)
        await pilot.press("enter")
        await wait_until(pilot, lambda: words in app.state)
        assert app.query_one("#attach-state").has_class("-refused")
        await pilot.press(*["backspace"] * len(typed))
        await type_in(pilot, "guide", 1)
        assert not app.query_one("#attach-state").has_class("-refused")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.picked)
        assert app.picked[0].path == "docs/guide.md"


async def test_escape_attaches_nothing(folder: Path) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        picker = await open_list(pilot, folder)
        await pilot.press("escape")
        assert (app.picked, app.n_closed, picker.display) == ([], 1, False)


async def test_nothing_matches(folder: Path) -> None:
    app = Desk()
    async with app.run_test() as pilot:
        await open_list(pilot, folder)
        await type_in(pilot, "zzz", 0)
        assert app.state == "Nothing matches among 5 files"
        await pilot.press("enter")
        assert app.picked == []


async def test_keys_are_taken_while_tokens_are_counted(folder: Path) -> None:
    app, may_count = Desk(), threading.Event()

    def count_slowly(text: str) -> int:
        may_count.wait(LIMIT_S)
        return 7

    async with app.run_test() as pilot:
        await open_list(pilot, folder, count=count_slowly)
        await type_in(pilot, "guide", 1)
        await pilot.press("enter", "backspace", "backspace")
        assert app.query_one(Input).value == "gui"
        may_count.set()
        await wait_until(pilot, lambda: app.picked)
        assert app.picked[0].n_tokens == 7


async def test_an_engine_that_dies_while_counting_is_told(folder: Path) -> None:
    def fail(text: str) -> int:
        raise EngineDied("the worker is gone")

    app = Desk()
    async with app.run_test() as pilot:
        await open_list(pilot, folder, count=fail)
        await type_in(pilot, "guide", 1)
        await pilot.press("enter")
        await wait_until(pilot, lambda: "the worker is gone" in app.state)
        assert app.picked == []


@pytest.mark.parametrize(
    ("n_bytes", "n_tokens", "words"),
    [(812, 203, "812 B, 203 tokens"), (2048, 585, "2.0 KiB, 585 tokens"), (3 << 20, 1200, "3 MiB")],
)
async def test_size_and_tokens_are_told(n_bytes: int, n_tokens: int, words: str) -> None:
    told = describe_attachment(Attachment("a\x1b.txt", "", n_bytes, n_tokens))
    assert words in told and "\x1b" not in told
