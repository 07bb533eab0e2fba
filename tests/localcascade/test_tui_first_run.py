"""The first screen of all, and the fetching of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, ProgressBar, Static

from localcascade.errors import DownloadError
from localcascade.tui.screens.fetch import FetchScreen, limit_rate
from localcascade.tui.screens.first_run import FirstRunScreen
from localcascade.tui.shelf import Look, Transfer
from tests.localcascade.idleness import LIMIT_S
from tests.localcascade.shelves import (
    GIB,
    LARGE,
    TINY,
    TOO_LARGE,
    FakeShelf,
    Stage,
    name_size,
    wait_for_rows,
    wait_until,
)

STEP = Transfer("Fetching", 23 * GIB, 59 * GIB, 55e6, 700.0)


def read(app: Stage, selector: str) -> str:
    """The text of a line."""
    return str(app.screen.query_one(selector, Static).content)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("keys", "choice"),
    [
        (["t"], TINY),
        (["p"], LARGE),
        (["b"], "browse"),
        (["q"], None),
        (["escape"], None),
        (["enter"], TINY),
        (["down", "enter"], LARGE),
        (["down", "down", "enter"], "browse"),
    ],
)
async def test_one_key_is_enough(keys: list[str], choice: Any) -> None:
    app = Stage(FirstRunScreen(FakeShelf()))
    async with app.run_test() as pilot:
        await wait_for_rows(pilot)
        await pilot.press(*keys)
        await pilot.pause()
    assert app.answers == [choice]


@pytest.mark.asyncio
async def test_what_does_not_fit_is_not_recommended() -> None:
    app = Stage(FirstRunScreen(FakeShelf(offers=[TINY, TOO_LARGE])))
    async with app.run_test() as pilot:
        await wait_for_rows(pilot)
        await pilot.press("p")
        assert app.answers == []
        rows = app.screen.query_one(OptionList)
        assert [row.id for row in rows.options] == ["try", "browse", "leave"]
        assert "2 models, 1 of them fit" in str(rows.get_option("browse").prompt)


@pytest.mark.asyncio
async def test_one_can_leave_before_the_machine_has_answered() -> None:
    error = DownloadError("the catalog is broken")
    app = Stage(FirstRunScreen(FakeShelf(error=error)))
    async with app.run_test() as pilot:
        await wait_until(pilot, lambda: "broken" in read(app, "#first-machine"))
        await pilot.press("q")
    assert app.answers == [None]


@pytest.mark.asyncio
async def test_a_key_counts_that_is_pressed_before_the_machine_has_answered() -> None:
    shelf = FakeShelf()
    may_answer, look = threading.Event(), shelf.look

    def look_late() -> Look:
        may_answer.wait(LIMIT_S)
        return look()

    shelf.look = look_late  # type: ignore[method-assign]
    app = Stage(FirstRunScreen(shelf))
    async with app.run_test() as pilot:
        await pilot.press("t")
        assert app.answers == []
        may_answer.set()
        await wait_until(pilot, lambda: app.answers)
    assert app.answers == [TINY]


@pytest.mark.asyncio
async def test_nothing_is_fetched_before_the_licence_is_accepted() -> None:
    shelf = FakeShelf(steps=[STEP], next_step="Now quantize it.")
    app = Stage(FetchScreen(shelf, LARGE))
    async with app.run_test() as pilot:
        await pilot.pause()
        assert shelf.fetched == []
        about = read(app, "#fetch-about")
        assert LARGE.licence in about and LARGE.licence_url in about and "58.8 GiB" in about
        await pilot.press("enter")
        await wait_until(pilot, lambda: "Now quantize it." in read(app, "#fetch-state"))
        assert shelf.fetched == ["nemotron-cascade-2"]
        await pilot.press("enter")
    assert app.answers == [False]


@pytest.mark.asyncio
async def test_the_bundled_one_is_made_without_asking() -> None:
    shelf = FakeShelf(steps=[Transfer("Quantizing", 1, 2)])
    app = Stage(FetchScreen(shelf, TINY))
    async with app.run_test() as pilot:
        await wait_until(pilot, lambda: app.answers)
    assert (app.answers, shelf.fetched) == ([True], ["tiny"])


@pytest.mark.asyncio
async def test_progress_is_shown_and_can_be_ended() -> None:
    shelf = FakeShelf(steps=[STEP], hangs=True)
    app = Stage(FetchScreen(shelf, LARGE))
    async with app.run_test() as pilot:
        await pilot.press("enter")
        await wait_until(pilot, lambda: "12 min left" in read(app, "#fetch-state"))
        assert app.screen.query_one(ProgressBar).percentage == pytest.approx(23 / 59)
        await pilot.press("escape")
        await wait_until(pilot, shelf.cancelled.is_set)
    assert app.answers == [False]


@pytest.mark.asyncio
async def test_a_failure_is_told_and_can_be_tried_again() -> None:
    shelf = FakeShelf(error=DownloadError("the line is cut", "Run it again."))
    app = Stage(FetchScreen(shelf, LARGE))
    async with app.run_test() as pilot:
        await pilot.press("enter")
        await wait_until(pilot, lambda: "the line is cut. Run it" in read(app, "#fetch-state"))
        shelf.error = None
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.answers)
    assert (app.answers, len(shelf.fetched)) == ([True], 2)


@pytest.mark.asyncio
async def test_a_disk_that_is_too_small_is_told_before() -> None:
    app = Stage(FetchScreen(FakeShelf(free_bytes=5 * GIB), LARGE))
    async with app.run_test() as pilot:
        await wait_until(pilot, lambda: "Only 5.0 GiB are free" in read(app, "#fetch-state"))


def test_some_of_many_steps_are_told_and_always_the_last() -> None:
    told: list[Transfer] = []
    now_s = iter(range(10_000))
    tell = limit_rate(told.append, lambda: next(now_s) / 1000)
    steps = [Transfer("Fetching", n, 1000) for n in range(1001)]
    for step in [*steps, Transfer("Reading back", 0, 1000)]:
        tell(step)
    assert 5 <= len(told) <= 20
    assert told[0].done == 0 and told[-2:] == [steps[-1], Transfer("Reading back", 0, 1000)]


@pytest.mark.parametrize(
    ("size", "theme"), [((100, 30), "cascade-dark"), ((60, 16), "cascade-light")], ids=name_size
)
def test_the_first_screen_looks_as_it_did(
    snap_compare: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    app = Stage(FirstRunScreen(FakeShelf()), theme)
    assert snap_compare(app, terminal_size=size, run_before=wait_for_rows)


@pytest.mark.parametrize(
    ("size", "theme"), [((80, 24), "cascade-contrast"), ((60, 16), "cascade-dark")], ids=name_size
)
def test_fetching_looks_as_it_did(
    snap_compare: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    shelf, may_fetch = FakeShelf(steps=[STEP], hangs=True), threading.Event()
    fetch = shelf.fetch

    def fetch_late(*arguments: Any) -> str:
        may_fetch.wait(LIMIT_S)
        return fetch(*arguments)

    shelf.fetch = fetch_late  # type: ignore[method-assign]
    app = Stage(FetchScreen(shelf, LARGE), theme)

    async def begin(pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        may_fetch.set()  # a bar that has no width yet rounds its share otherwise
        await wait_until(pilot, lambda: "left" in read(app, "#fetch-state"))

    assert snap_compare(app, terminal_size=size, run_before=begin)
