"""The list in which the user finds a file to go along with the message: `@`, then some letters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from localcascade.chat.attachments import Attachment, CountTokens
from localcascade.chat.controls import make_safe
from localcascade.errors import CascadeError
from localcascade.tui.files import list_files, rank_files, read_attachment
from localcascade.tui.offers import write_error
from localcascade.tui.widgets.gauge import write_bytes, write_count

N_ROWS = 50
"""Most files in the list; more letters find the others."""


def _count_nothing(_text: str) -> int | None:
    return None


class AttachPicker(Vertical):
    """Finds, reads and measures a text file; hidden until it is opened.

    It lists and reads in threads, so keys are never kept waiting.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="attach.close", priority=True),
        Binding("down", "move(1)", "Next file", id="attach.next", priority=True),
        Binding("up", "move(-1)", "Previous file", id="attach.previous", priority=True),
        Binding("tab", "choose", "Attach", id="attach.choose", priority=True),
    ]
    DEFAULT_CSS = """
    AttachPicker {
        display: none;
        height: auto;
        max-height: 12;
        padding: 0 1;
        background: $surface;

        Horizontal { height: 1; }
        Label { color: $text-accent; }
        Input { width: 1fr; background: $surface; }
        OptionList {
            height: auto;
            max-height: 9;
            padding: 0;
            border: none;
            background: $surface;
            scrollbar-size-vertical: 1;
            scrollbar-background: $surface;
            scrollbar-background-hover: $surface;
            scrollbar-background-active: $surface;
            scrollbar-color: $panel;

            & > .option-list--option-highlighted {
                color: $foreground;
                background: $panel;
                text-style: none;
            }
        }
        #attach-state { height: auto; max-height: 2; color: $foreground-muted; }
        #attach-state.-refused { color: $text-error; }
    }
    """

    class Picked(Message):
        """A file is to go along with the message."""

        def __init__(self, attachment: Attachment) -> None:
            super().__init__()
            self.attachment = attachment

    class Closed(Message):
        """The user is done, with a file or without."""

    class Listed(Message):
        """The files of the folder are known."""

        def __init__(self, paths: Sequence[str]) -> None:
            super().__init__()
            self.paths = paths

    class Ranked(Message):
        """The files that match what was typed."""

        def __init__(self, typed: str, paths: Sequence[str]) -> None:
            super().__init__()
            self.typed = typed
            self.paths = paths

    class Refused(Message):
        """A file cannot go along."""

        def __init__(self, error: CascadeError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._folder = Path()
        self._limit_tokens = 0
        self._count_tokens: CountTokens = _count_nothing
        self._paths: Sequence[str] | None = None
        self._shown: Sequence[str] = ()

    def compose(self) -> ComposeResult:
        """What is typed, what matches, and what became of it."""
        with Horizontal():
            yield Label("@ ")
            yield Input(placeholder="letters of a file's name", compact=True)
        yield OptionList()
        yield Static("", id="attach-state", markup=False)

    def on_mount(self) -> None:
        """Keep the keys in the line that is typed in."""
        self.query_one(OptionList).can_focus = False

    def open(
        self, folder: Path, limit_tokens: int, count_tokens: CountTokens = _count_nothing
    ) -> None:
        """Show it and let the user type.

        Args:
            folder: In which to look.
            limit_tokens: Most tokens that a file may have.
            count_tokens: Counts them; called in a thread, may wait for the engine. Without it
                they are estimated.
        """
        self._folder, self._limit_tokens = folder, limit_tokens
        self._count_tokens = count_tokens
        self._paths, self._shown = None, ()
        self.display = True
        self.query_one(OptionList).clear_options()
        self._show_state("Looking for files …")
        with self.prevent(Input.Changed):
            self.query_one(Input).value = ""
        self.query_one(Input).focus()
        self._list()

    @work(thread=True, exclusive=True, group="attach-list")
    def _list(self) -> None:
        paths = list_files(self._folder)
        if not get_current_worker().is_cancelled:
            self.post_message(self.Listed(paths))

    @work(thread=True, exclusive=True, group="attach-rank")
    def _rank(self, paths: Sequence[str], typed: str) -> None:
        ranked = rank_files(paths, typed, N_ROWS)
        if not get_current_worker().is_cancelled:
            self.post_message(self.Ranked(typed, ranked))

    @work(thread=True, exclusive=True, group="attach-read")
    def _read(self, path: str) -> None:
        try:
            found = read_attachment(self._folder, path, self._limit_tokens, self._count_tokens)
        except CascadeError as error:
            self.post_message(self.Refused(error))
            return
        if not get_current_worker().is_cancelled:
            self.post_message(self.Picked(found))

    @on(Listed)
    def _take_list(self, event: Listed) -> None:
        event.stop()
        self._paths = event.paths
        self._rank(event.paths, self.query_one(Input).value)

    @on(Input.Changed)
    def _look(self, event: Input.Changed) -> None:
        event.stop()
        if self._paths is not None:
            self._rank(self._paths, event.value)

    @on(Ranked)
    def _show_ranked(self, event: Ranked) -> None:
        event.stop()
        if event.typed != self.query_one(Input).value:
            return
        self._shown = event.paths
        rows = self.query_one(OptionList)
        rows.clear_options()
        rows.add_options(Option(draw_path(path)) for path in event.paths)
        rows.highlighted = 0 if event.paths else None
        n_files = len(self._paths or ())
        limit = write_count(self._limit_tokens)
        found = f"{n_files:,} files  ·  room for {limit} tokens  ·  Enter attaches"
        self._show_state(found if event.paths else f"Nothing matches among {n_files:,} files")

    @on(Input.Submitted)
    def _submit(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_choose()

    @on(OptionList.OptionSelected)
    def _choose_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._begin_reading(event.option_index)

    @on(Refused)
    def _show_refusal(self, event: Refused) -> None:
        event.stop()
        self._show_state(write_error(event.error), is_refused=True)

    @on(Picked)
    def _hide(self) -> None:
        self._close()

    def action_choose(self) -> None:
        """Read the file under the cursor."""
        at = self.query_one(OptionList).highlighted
        if at is not None:
            self._begin_reading(at)

    def action_move(self, step: int) -> None:
        """Move the cursor while the user goes on typing."""
        rows = self.query_one(OptionList)
        if self._shown:
            rows.highlighted = min(max((rows.highlighted or 0) + step, 0), len(self._shown) - 1)

    def action_close(self) -> None:
        """Attach nothing."""
        self._close()

    def _begin_reading(self, at: int) -> None:
        self._show_state(f"Reading {self._shown[at]} …")
        self._read(self._shown[at])

    def _close(self) -> None:
        self.workers.cancel_node(self)
        self.display = False
        self.post_message(self.Closed())

    def _show_state(self, text: str, *, is_refused: bool = False) -> None:
        state = self.query_one("#attach-state", Static)
        state.update(make_safe(text))
        state.set_class(is_refused, "-refused")


def draw_path(path: str) -> Content:
    """Draw a path, the name of the file itself standing out."""
    folder, slash, name = make_safe(path).replace("\n", " ").rpartition("/")
    return Content.assemble((folder + slash, "$foreground-muted"), name)


def describe_attachment(attachment: Attachment) -> str:
    """Say what is attached in a few words: its name, size and tokens, ~ before an estimate."""
    size = write_bytes_short(attachment.n_bytes)
    tokens = "~" * attachment.is_estimate + write_count(attachment.n_tokens)
    return f"{make_safe(attachment.path)} ({size}, {tokens} tokens)"


def write_bytes_short(n_bytes: int) -> str:
    """Write the size of a small file in bytes or KiB, of a larger one as elsewhere."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    return f"{n_bytes / 1024:.1f} KiB" if n_bytes < 1_000_000 else write_bytes(n_bytes)
