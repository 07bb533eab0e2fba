"""What screens share on which the user chooses from a list that is filtered as he types."""

from __future__ import annotations

from textual.screen import ModalScreen, ScreenResultType
from textual.widgets import OptionList


class ChoosingScreen(ModalScreen[ScreenResultType]):
    """A box with a title, an Input that filters, an OptionList, and a hint at the bottom.

    Whoever inherits puts them on the screen, in a Vertical; the title has the class `title`, the
    hint `hint`. Its CSS_PATH begins with `choosing.tcss`.
    """

    AUTO_FOCUS = "Input"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-tall")]  # noqa: RUF012  (as Textual types it)

    def on_mount(self) -> None:
        """Leave the keys to the line that is typed in."""
        self.query_one(OptionList).can_focus = False
