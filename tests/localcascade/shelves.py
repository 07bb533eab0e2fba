"""A shelf of models that are not there, for tests of the screens that choose among them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Input, OptionList

from localcascade.errors import CascadeError
from localcascade.tui.shelf import Cancelled, Look, Offer, Share, Transfer
from localcascade.tui.themes import register_themes
from tests.localcascade.idleness import LIMIT_S

GIB = 1 << 30
LICENCE = ("NVIDIA Open Model License", "https://example.org/licence")

TINY = Offer(
    "tiny", "bundled", "Bundled toy of the same architecture; adds and subtracts", "q8_0",
    6_336_240, "gpu", 2974, 4096, (Share("CUDA0", 9 << 20, 23 * GIB), Share("RAM", GIB, 60 * GIB)),
    licence="Apache-2.0",
)  # fmt: skip
INSTALLED = Offer(
    "cascade-24g", "installed", "", "q5_1", int(22.9 * GIB), "experts", 41, 65536,
    (Share("CUDA0", int(21.8 * GIB), 23 * GIB), Share("RAM", int(3.1 * GIB), 60 * GIB)),
)  # fmt: skip
LARGE = Offer(
    "nemotron-cascade-2", "catalog", "NVIDIA's gold-medal reasoner; Mamba-2 and 128 experts", "16G",
    15 * GIB, "gpu", 118, 262_144,
    (Share("CUDA0", 17 * GIB, 23 * GIB), Share("RAM", GIB, 60 * GIB)), 63_155_874_688, *LICENCE,
    notes=("It comes as a checkpoint, from which the file is then quantized.",),
)  # fmt: skip
TOO_LARGE = Offer(
    "超大-model", "catalog", "Wide name, too wide a model", "q8_0", 150 * GIB, "no", 0, 0,
    (Share("CUDA0", 152 * GIB, 23 * GIB), Share("RAM", GIB, 60 * GIB)), 300 * GIB, *LICENCE,
    notes=("Would fit with a file of 19.2 GiB, 2.31 bits a weight.",),
)  # fmt: skip
STRANGE = Offer("by-hand\x1b[2J", "installed", size_bytes=GIB, notes=("llama is not planned",))
OFFERS = (INSTALLED, STRANGE, TINY, LARGE, TOO_LARGE)


@dataclass
class FakeShelf:
    """Answers at once, and fetches as it is told to."""

    offers: Sequence[Offer] = OFFERS
    error: CascadeError | None = None
    next_step: str = ""
    steps: Sequence[Transfer] = ()
    free_bytes: int = 900 * GIB
    hangs: bool = False
    """Wait, once all steps are told, until the user gives up."""
    fetched: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def look(self) -> Look:
        """A machine of a hobbyist with the offers as given, or the error."""
        if self.error:
            raise self.error
        machine = "NVIDIA GeForce RTX 4090 24.0 GiB  ·  RAM 64.0 GiB, 60.0 GiB free"
        return Look(machine, tuple(self.offers))

    def read_free_disk(self) -> int:
        """As given."""
        return self.free_bytes

    def fetch(
        self,
        offer: Offer,
        on_progress: Callable[[Transfer], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        """Tell the steps; then hang, fail or be done."""
        self.fetched.append(offer.name)
        for step in self.steps:
            on_progress(step)
        if self.hangs:
            while not is_cancelled():
                self.cancelled.wait(0.01)
            self.cancelled.set()
            raise Cancelled
        if self.error:
            raise self.error
        return self.next_step


class Stage(App[None]):
    """Shows one screen and keeps what it answers.

    Args:
        screen: Which one.
        theme: In which it is drawn.
    """

    def __init__(self, screen: Screen[Any], theme: str = "cascade-dark") -> None:
        super().__init__()
        self._first, self._look = screen, theme
        self.answers: list[Any] = []

    def on_mount(self) -> None:
        """Show the screen."""
        register_themes(self, self._look)
        self.push_screen(self._first, self.answers.append)


async def wait_until(pilot: Pilot[Any], is_so: Callable[[], object]) -> None:
    """Wait for what a thread is to bring about."""
    async with asyncio.timeout(LIMIT_S):
        while not is_so():
            await pilot.pause(0.01)
    await pilot.pause()


async def settle(pilot: Pilot[Any]) -> None:
    """Wait until all has been done that does not wait for the test."""
    for _ in range(3):  # what a refresh was waited with comes after it
        await pilot.pause()


async def wait_for_commands(pilot: Pilot[Any]) -> None:
    """Wait until the palette has found all that it will."""
    palette = pilot.app.screen

    def has_found() -> bool:
        searches = [worker for worker in pilot.app.workers if worker.node is palette]
        return all(search.is_finished for search in searches) and bool(
            palette.query_one(OptionList).option_count
        )

    await wait_until(pilot, has_found)


async def wait_for_rows(pilot: Pilot[Any]) -> None:
    """Wait until a list has rows, with no cursor blinking, as for a picture."""
    screen = pilot.app.screen
    for line in screen.query(Input):
        line.cursor_blink = False
    await wait_until(pilot, lambda: screen.query_one(OptionList).option_count)


def name_size(value: object) -> str:
    """Name a size of a terminal, or what else a picture is parametrized with, for a file's name."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
