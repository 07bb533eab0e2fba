"""F1: what every key does here and now, made from the bindings themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from localcascade.tui.actions import Action, group_actions
from localcascade.tui.offers import fit_cells

_KEY_CELLS = 13
_NAME_CELLS = 20
_COLUMN_CELLS = 50
_GAP_CELLS = 3


class HelpScreen(ModalScreen[None]):
    """Lists the keys.

    Args:
        actions: Of the screen below, see `localcascade.tui.actions.list_actions`.
        note: What stands under them, for the reader.
    """

    CSS_PATH = "help.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-tall")]  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss", "Close", id="help.close"),
    ]

    def __init__(self, actions: Sequence[Action], note: str = "") -> None:
        super().__init__()
        self._actions = actions
        self._note = note

    def compose(self) -> ComposeResult:
        """The keys in one or two columns, and where they can be changed."""
        with Vertical(id="help"):
            yield Static("Keys", id="help-title")
            with VerticalScroll(id="help-scroll"):
                yield Static("", id="help-keys")
            yield Static(self._note, id="help-note", markup=False)

    def on_mount(self) -> None:
        """Let the arrow keys scroll."""
        self.query_one("#help-scroll").focus()

    def on_resize(self, _event: events.Resize) -> None:
        """Use two columns where there is room for them."""
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        width = self.query_one("#help-scroll").scrollable_content_region.width
        self.query_one("#help-keys", Static).update(draw_help(self._actions, width))


def draw_help(actions: Iterable[Action], width: int) -> Content:
    """Draw actions with their keys, group by group, in as many columns as there is room for.

    Args:
        actions: What to list.
        width: Cells there are.
    """
    groups = group_actions(actions)
    blocks = [[_draw_title(title), *map(_draw_action, rows)] for title, rows in groups.items()]
    n_columns = max((width + _GAP_CELLS) // (_COLUMN_CELLS + _GAP_CELLS), 1)
    columns = [column for column in deal_blocks(blocks, min(n_columns, 2)) if column]
    height = max(map(len, columns), default=0)
    lines = [
        _join_row([c[i] if i < len(c) else Content("") for c in columns]) for i in range(height)
    ]
    return Content("\n").join(lines)


def deal_blocks(blocks: Sequence[list[Content]], n_columns: int) -> list[list[Content]]:
    """Deal blocks of lines to columns: each to the one that is shortest then."""
    columns: list[list[Content]] = [[] for _ in range(n_columns)]
    for block in sorted(blocks, key=len, reverse=True) if n_columns > 1 else blocks:
        column = min(columns, key=len)
        column += [Content(""), *block] if column else block
    return columns


def _join_row(cells: Sequence[Content]) -> Content:
    """Put cells beside each other, all but the last one filled to the width of a column."""
    padded = [
        cell.pad_right(max(_COLUMN_CELLS + _GAP_CELLS - cell.cell_length, 1)) for cell in cells[:-1]
    ]
    return Content.assemble(*padded, cells[-1])


def _draw_title(title: str) -> Content:
    return Content.assemble((title, "$text-primary bold"))


def _draw_action(action: Action) -> Content:
    keys = fit_cells(" ".join(action.keys), _KEY_CELLS - 1)
    name = action.description.ljust(_NAME_CELLS)
    return Content.assemble(
        (keys, "$text-accent"),
        " ",
        name,
        " " if action.id else "",
        (action.id, "$foreground-muted"),
    )
