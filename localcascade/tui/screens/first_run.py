"""The first screen of all, while no model is installed: what fits here, and one key to have it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Center, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.offers import FIT_STYLES, write_error, write_fit
from localcascade.tui.shelf import Offer, Shelf, choose_recommended, choose_trial
from localcascade.tui.widgets.gauge import write_bytes

FirstChoice = Offer | Literal["browse"] | None
"""A model, the wish to see all of them, or None to leave."""


class FirstRunScreen(Screen[FirstChoice]):
    """Lets a new user choose how to begin.

    Args:
        shelf: The models there are.
    """

    CSS_PATH = "first_run.tcss"
    AUTO_FOCUS = "OptionList"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-tall")]  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "choose('try')", "Try tiny now", id="first.try"),
        Binding("p", "choose('pull')", "Pull the recommended", id="first.pull"),
        Binding("b", "choose('browse')", "All models", id="first.browse"),
        Binding("escape,q", "choose('leave')", "Leave", id="first.leave"),
    ]

    class Looked(Message):
        """The shelf has answered."""

        def __init__(
            self, machine: str, offers: Sequence[Offer], error: CascadeError | None = None
        ) -> None:
            super().__init__()
            self.machine = machine
            self.offers = offers
            self.error = error

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self._shelf = shelf
        self._rows: Sequence[_Row] = ()
        self._wanted = ""
        """What was asked for before the shelf had answered."""
        self._choices: dict[str, FirstChoice] = {"browse": "browse", "leave": None}

    def compose(self) -> ComposeResult:
        """A greeting, this machine, and what there is to choose from."""
        with VerticalScroll(id="first-scroll", can_focus=False), Center(), Vertical(id="first"):
            yield Static("LocalCascade", id="first-title")
            yield Static(
                "A reasoning model on this machine, offline. No model is installed yet.",
                id="first-about",
            )
            yield Static("Looking at this machine …", id="first-machine", markup=False)
            yield OptionList(id="first-choices")

    def on_mount(self) -> None:
        """Ask the shelf; leaving is possible at once."""
        self._look()

    @work(thread=True, exclusive=True)
    def _look(self) -> None:
        try:
            look = self._shelf.look()
            looked = self.Looked(look.machine, look.offers)
        except CascadeError as error:
            looked = self.Looked("", (), error)
        if not get_current_worker().is_cancelled:
            self.post_message(looked)

    @on(Looked)
    def _show(self, event: Looked) -> None:
        text = write_error(event.error) if event.error else event.machine
        self.query_one("#first-machine", Static).update(make_safe(text))
        recommended, trial = choose_recommended(event.offers), choose_trial(event.offers)
        if recommended:
            self._choices["pull"] = recommended
        if trial:
            self._choices["try"] = trial
        self._rows = _list_rows(recommended, trial, event.offers)
        self._draw()
        self.action_choose(self._wanted)

    def on_resize(self, _event: events.Resize) -> None:
        """Break the lines anew."""
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        rows = self.query_one(OptionList)
        at, width = rows.highlighted or 0, rows.scrollable_content_region.width
        rows.clear_options()
        rows.add_options(_draw_row(row, width, self.has_class("-tall")) for row in self._rows)
        rows.highlighted = at if self._rows else None

    @on(OptionList.OptionSelected)
    def _choose_row(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.action_choose(event.option_id or "")

    def action_choose(self, way: str) -> None:
        """Leave this screen with a choice, once it is known whether there is one of that kind."""
        self._wanted = way
        if way in self._choices:
            self.dismiss(self._choices[way])


@dataclass(frozen=True, slots=True)
class _Row:
    """Something to choose."""

    way: str
    key: str
    title: str
    about: tuple[tuple[str, str], ...]
    """Lines, and the style of each."""


def _list_rows(
    recommended: Offer | None, trial: Offer | None, offers: Sequence[Offer]
) -> list[_Row]:
    rows = []
    if trial:
        about = "Here in seconds, without a network. Adds and subtracts."
        rows.append(_Row("try", "t", f"Try {trial.name} now", ((about, ""),)))
    if recommended:
        about_it = tuple(_describe_recommended(recommended))
        rows.append(_Row("pull", "p", f"Pull {recommended.name}", about_it))
    n_fitting = sum(offer.fit not in ("no", "unknown") for offer in offers)
    about = f"{len(offers)} models, {n_fitting} of them fit this machine."
    rows.append(_Row("browse", "b", "See all models", ((about, ""),)))
    rows.append(_Row("leave", "q", "Leave", ()))
    return rows


def _describe_recommended(offer: Offer) -> Iterator[tuple[str, str]]:
    speed = f", about {offer.tokens_per_s:.0f} tokens a second" if offer.tokens_per_s else ""
    kind = f" as {offer.type}" if offer.type else ""
    yield offer.summary, ""
    yield f"{write_fit(offer)}{kind}{speed}", FIT_STYLES[offer.fit]
    sizes = write_bytes(offer.download_bytes), write_bytes(offer.size_bytes)
    yield f"{sizes[0]} to fetch, {sizes[1]} once quantized", "$foreground-muted"


def _draw_row(row: _Row, width: int, is_loose: bool) -> Option:
    """Draw a row; its text is broken here, as what follows is indented too."""
    lines = [Content.assemble((f" {row.key} ", "$text-accent bold"), (f" {row.title}", "bold"))]
    for text, style in row.about:
        parts = textwrap.wrap(make_safe(text), max(width - 5, 10))
        lines += [Content.assemble(" " * 4, (part, style)) for part in parts]
    return Option(Content("\n").join([*lines, Content("")] if is_loose else lines), id=row.way)
