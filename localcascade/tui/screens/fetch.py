"""Fetching or making a model: its licence and size first, then how far it is; it can be ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import ProgressBar, Static
from textual.worker import get_current_worker

from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.offers import describe_transfer, write_error
from localcascade.tui.shelf import Cancelled, Offer, Shelf, Transfer
from localcascade.tui.widgets.gauge import write_bytes

WRITES_PER_S = 8


class FetchScreen(ModalScreen[bool]):
    """Fetches or makes a model; answers whether it can be used now.

    What needs no network and no licence begins at once.

    Args:
        shelf: Where models come from.
        offer: Which one.
    """

    CSS_PATH = "fetch.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-tall")]  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "go_on", "Accept and fetch", id="fetch.accept"),
        Binding("escape", "leave", "Cancel", id="fetch.cancel"),
    ]

    class Moved(Message):
        """Some of it has come."""

        def __init__(self, transfer: Transfer) -> None:
            super().__init__()
            self.transfer = transfer

    class Ended(Message):
        """It is here, or will not come."""

        def __init__(self, next_step: str = "", error: CascadeError | None = None) -> None:
            super().__init__()
            self.next_step = next_step
            self.error = error

    def __init__(self, shelf: Shelf, offer: Offer) -> None:
        super().__init__()
        self._shelf, self._offer = shelf, offer
        self._state = "asking"
        """asking, fetching, failed or done."""

    def compose(self) -> ComposeResult:
        """What it is, how far it is, and what the keys do."""
        with Vertical(id="fetch"):
            yield Static(make_safe(self._offer.name), id="fetch-title", markup=False)
            yield Static(self._describe(), id="fetch-about")
            yield ProgressBar(id="fetch-bar", show_eta=False, show_percentage=True)
            yield Static("", id="fetch-state", markup=False)
            yield Static("", id="fetch-hint", markup=False)

    def on_mount(self) -> None:
        """Ask, or begin at once where nothing has to be asked."""
        self._measure_disk()
        if self._offer.state == "catalog":
            self._enter("asking", "Enter accepts the licence and fetches it  ·  Esc cancels")
        else:
            self._begin()

    def action_go_on(self) -> None:
        """Accept the licence, try once more, or go on to what was fetched."""
        if self._state in ("asking", "failed"):
            self._begin()
        elif self._state == "done":
            self.dismiss(False)

    def action_leave(self) -> None:
        """End it; what has come is kept for the next time."""
        self.workers.cancel_node(self)
        self.dismiss(False)

    def _describe(self) -> Content:
        offer = self._offer
        lines = [Content(make_safe(offer.summary))]
        if offer.licence:
            licence = make_safe(offer.licence)
            lines.append(Content.assemble(("Licence   ", "$foreground-muted"), licence))
        if offer.licence_url:
            lines.append(Content(make_safe(offer.licence_url)))
        if offer.download_bytes:
            size = write_bytes(offer.download_bytes)
            lines.append(Content.assemble(("Download  ", "$foreground-muted"), size))
        lines += [Content.assemble((make_safe(note), "$foreground-muted")) for note in offer.notes]
        return Content("\n").join(lines)

    @work(thread=True)
    def _measure_disk(self) -> None:
        free_bytes = self._shelf.read_free_disk()
        if free_bytes < self._offer.download_bytes:
            text = f"Only {write_bytes(free_bytes)} are free on that disk"
            self.post_message(self.Moved(Transfer(text, 0, 0)))

    def _begin(self) -> None:
        self._enter("fetching", "Esc ends it; what has come is kept")
        self.query_one("#fetch-state", Static).update("Beginning …")
        self._fetch()

    @work(thread=True, exclusive=True, group="fetch")
    def _fetch(self) -> None:
        worker = get_current_worker()
        tell = limit_rate(lambda transfer: self.post_message(self.Moved(transfer)))
        try:
            next_step = self._shelf.fetch(self._offer, tell, lambda: worker.is_cancelled)
        except Cancelled:
            return
        except CascadeError as error:
            self.post_message(self.Ended(error=error))
            return
        self.post_message(self.Ended(next_step))

    @on(Moved)
    def _show_progress(self, event: Moved) -> None:
        transfer = event.transfer
        if transfer.total:
            self.query_one(ProgressBar).update(total=transfer.total, progress=transfer.done)
        self.query_one("#fetch-state", Static).update(make_safe(describe_transfer(transfer)))

    @on(Ended)
    def _end(self, event: Ended) -> None:
        state = self.query_one("#fetch-state", Static)
        if event.error is not None:
            state.update(write_error(event.error))
            self._enter("failed", "Enter tries again  ·  Esc closes")
        elif event.next_step:
            state.update(make_safe(event.next_step))
            self._enter("done", "Enter closes")
        else:
            self.dismiss(True)

    def _enter(self, state: str, hint: str) -> None:
        self._state = state
        self.query_one(ProgressBar).display = state in ("fetching", "failed")
        self.set_class(state == "failed", "-failed")
        self.query_one("#fetch-hint", Static).update(hint)


def limit_rate(
    tell: Callable[[Transfer], object], clock: Callable[[], float] = time.monotonic
) -> Callable[[Transfer], None]:
    """Let only so many transfers a second through, and always one that begins or ends a stage.

    Args:
        tell: Who is told.
        clock: Seconds that never go back.
    """
    told_s, stage = -1.0, ""

    def tell_some(transfer: Transfer) -> None:
        nonlocal told_s, stage
        is_end = transfer.done >= transfer.total or transfer.stage != stage
        if is_end or clock() - told_s >= 1 / WRITES_PER_S:
            told_s, stage = clock(), transfer.stage
            tell(transfer)

    return tell_some
