"""The choice of a problem to practise with: by topic, or by the words in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localcascade.chat.lines import Line
from localcascade.chat.markdown import Look, draw_markdown
from localcascade.chat.practice import Problem, filter_problems
from localcascade.tui.screens.choosing import ChoosingScreen

_STYLES = {"maths": "$text-success", "dim": "$foreground-muted"}


class PracticeScreen(ChoosingScreen[Problem | None]):
    """Lets the student choose a problem; answers with it, or None.

    Args:
        problems: To choose from, topic by topic.
        query: What the list is filtered with at first.
    """

    CSS_PATH = ["choosing.tcss", "practice.tcss"]  # noqa: RUF012  (as Textual types it)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="practice.close"),
        Binding("down", "move(1)", "Next", id="practice.next", priority=True),
        Binding("up", "move(-1)", "Previous", id="practice.previous", priority=True),
        Binding("pagedown", "move(6)", "Further down", id="practice.page_down", priority=True),
        Binding("pageup", "move(-6)", "Further up", id="practice.page_up", priority=True),
    ]

    def __init__(self, problems: Sequence[Problem], query: str = "") -> None:
        super().__init__()
        self._problems = {problem.id: problem for problem in problems}
        self._query = query
        self._drawn: dict[tuple[str, int], Content] = {}

    def compose(self) -> ComposeResult:
        """The filter, the problems, and what Enter does."""
        with Vertical(id="practice"):
            yield Static("Practice problems", classes="title")
            yield Input(
                self._query,
                placeholder="Type a topic, a level or a word",
                compact=True,
                id="practice-filter",
            )
            yield OptionList(id="practice-list")
            yield Static("", id="practice-hint", classes="hint", markup=False)

    def on_resize(self, _event: events.Resize) -> None:
        """Draw the problems anew, as wide as they can be."""
        self.call_after_refresh(self._redraw)

    @on(Input.Changed)
    def _filter(self, event: Input.Changed) -> None:
        event.stop()
        self._query = event.value
        self._draw_rows()

    @on(Input.Submitted)
    def _choose(self, event: Input.Submitted) -> None:
        event.stop()
        rows = self.query_one(OptionList)
        if rows.highlighted is not None:
            self._answer(rows.get_option_at_index(rows.highlighted))

    @on(OptionList.OptionSelected)
    def _choose_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._answer(event.option)

    def action_leave(self) -> None:
        """Choose nothing."""
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        """Move the cursor while the student goes on typing; headings are passed over."""
        rows = self.query_one(OptionList)
        move = rows.action_cursor_down if step > 0 else rows.action_cursor_up
        for _ in range(abs(step)):
            move()

    def _answer(self, option: Option) -> None:
        if option.id is not None:
            self.dismiss(self._problems[option.id])

    def _redraw(self) -> None:
        """Draw the same problems again, with the cursor on the same one."""
        rows = self.query_one(OptionList)
        at = rows.highlighted
        self._draw_rows()
        rows.highlighted = rows.highlighted if at is None else at

    def _draw_rows(self) -> None:
        rows = self.query_one(OptionList)
        width = max(rows.scrollable_content_region.width - 2, 20)
        shown = filter_problems(list(self._problems.values()), self._query)
        rows.clear_options()
        for topic, problems in groupby(shown, key=lambda problem: problem.topic):
            listed = list(problems)
            rows.add_option(Option(_draw_heading(topic, listed[0].level), disabled=True))
            rows.add_options(Option(self._draw(each, width), id=each.id) for each in listed)
        rows.highlighted = 1 if shown else None
        told = f"{len(shown)} of {len(self._problems)} problems"
        self.query_one("#practice-hint", Static).update(
            f"{told}  ·  Enter begins with one  ·  Esc closes" if shown else "There is none."
        )

    def _draw(self, problem: Problem, width: int) -> Content:
        """Draw a problem once for each width: the list is filled anew at every key."""
        key = problem.id, width
        if key not in self._drawn:
            self._drawn[key] = draw_problem(problem, width)
        return self._drawn[key]


def draw_problem(problem: Problem, width: int) -> Content:
    """Draw a problem as a row of the list; tall formulas take several lines.

    Args:
        problem: The problem.
        width: Cells there are.
    """
    lines = draw_markdown(problem.text, Look(width))
    return Content("\n").join([_draw_line(line, "  ") for line in lines])


def _draw_heading(topic: str, level: str) -> Content:
    return Content.assemble((topic, "$text-primary bold"), (f"  {level}", "$foreground-muted"))


def _draw_line(line: Line, inset: str) -> Content:
    spans = [(span.text, _STYLES.get(span.style, "")) for span in line]
    return Content.assemble(inset, *spans)
