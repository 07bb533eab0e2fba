"""The choice of a model: what is installed and what could be, with what fits this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.offers import describe_key, draw_details, draw_row, write_error
from localcascade.tui.screens.choosing import ChoosingScreen
from localcascade.tui.shelf import Offer, Shelf, filter_offers


class ModelScreen(ChoosingScreen[Offer | None]):
    """Lets the user choose a model; answers with the offer, or None.

    Args:
        shelf: The models there are.
        current: Name of the one in use, on which the cursor begins.
    """

    CSS_PATH = ["choosing.tcss", "models.tcss"]  # noqa: RUF012  (as Textual types it)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (96, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="models.close"),
        Binding("down", "move(1)", "Next", id="models.next", priority=True),
        Binding("up", "move(-1)", "Previous", id="models.previous", priority=True),
        Binding("pagedown", "move(8)", "Further down", id="models.page_down", priority=True),
        Binding("pageup", "move(-8)", "Further up", id="models.page_up", priority=True),
    ]

    class Listed(Message):
        """The shelf has answered."""

        def __init__(self, machine: str, offers: Sequence[Offer]) -> None:
            super().__init__()
            self.machine = machine
            self.offers = tuple(offers)

    class Failed(Message):
        """The shelf could not answer."""

        def __init__(self, error: CascadeError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, shelf: Shelf, current: str = "") -> None:
        super().__init__()
        self._shelf = shelf
        self._current = current
        self._offers: Sequence[Offer] = ()
        self._shown: Sequence[Offer] = ()

    def compose(self) -> ComposeResult:
        """The list, all about the model under the cursor, and what Enter does."""
        with Vertical(id="models"):
            with Horizontal(id="models-top"):
                yield Static("Models", id="models-title", classes="title")
                yield Static("", id="models-machine", markup=False)
            yield Input(placeholder="Type to filter", compact=True, id="models-filter")
            with Horizontal(id="models-middle"):
                yield OptionList(id="models-list")
                with VerticalScroll(id="models-details", can_focus=False):
                    yield Static("", id="models-about")
            yield Static(
                "Looking at this machine …", id="models-hint", classes="hint", markup=False
            )

    def on_mount(self) -> None:
        """Ask the shelf."""
        self._ask()

    @work(thread=True, exclusive=True)
    def _ask(self) -> None:
        try:
            look = self._shelf.look()
        except CascadeError as error:
            self.post_message(self.Failed(error))
            return
        if not get_current_worker().is_cancelled:
            self.post_message(self.Listed(look.machine, look.offers))

    @on(Listed)
    def _show_list(self, event: Listed) -> None:
        self._offers = event.offers
        self.query_one("#models-machine", Static).update(make_safe(event.machine))
        self._filter(self._current)

    @on(Failed)
    def _show_failure(self, event: Failed) -> None:
        self.query_one("#models-hint", Static).update(write_error(event.error))

    @on(Input.Changed)
    def _filter_typed(self, event: Input.Changed) -> None:
        event.stop()
        self._filter(self._get_highlighted_name())

    @on(Input.Submitted)
    def _choose(self, event: Input.Submitted) -> None:
        event.stop()
        offer = self._get_highlighted()
        if offer is not None:
            self.dismiss(offer)

    @on(OptionList.OptionSelected)
    def _choose_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._shown[event.option_index])

    @on(OptionList.OptionHighlighted)
    def _describe(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self._show_highlighted()

    def on_resize(self, _event: events.Resize) -> None:
        """Draw the rows anew, as wide as they can be."""
        self.call_after_refresh(self._draw_rows, self._get_highlighted_name())

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        """Move the cursor while the user goes on typing."""
        rows = self.query_one(OptionList)
        if self._shown:
            at = (rows.highlighted or 0) + step
            rows.highlighted = min(max(at, 0), len(self._shown) - 1)

    def _filter(self, name: str) -> None:
        self._shown = filter_offers(self._offers, self.query_one(Input).value)
        self._draw_rows(name)

    def _draw_rows(self, name: str) -> None:
        """Fill the list, with the cursor on a model of that name if it is there."""
        rows = self.query_one(OptionList)
        width = rows.scrollable_content_region.width
        rows.clear_options()
        rows.add_options(Option(draw_row(offer, width)) for offer in self._shown)
        names = [offer.name for offer in self._shown]
        if names:
            rows.highlighted = names.index(name) if name in names else 0
        self._show_highlighted()

    def _show_highlighted(self) -> None:
        offer = self._get_highlighted()
        about = self.query_one("#models-about", Static)
        about.update(draw_details(offer) if offer else "")
        if self._offers:
            self.query_one("#models-hint", Static).update(f"{describe_key(offer)}  ·  Esc closes")

    def _get_highlighted(self) -> Offer | None:
        at = self.query_one(OptionList).highlighted
        return self._shown[at] if at is not None and at < len(self._shown) else None

    def _get_highlighted_name(self) -> str:
        offer = self._get_highlighted()
        return offer.name if offer else self._current
