"""A rectangle of terminal cells with a baseline, and the two ways to put rectangles together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from localcascade.maths.errors import LayoutError

Align = Literal["left", "center", "right"]

MAX_CELLS = 200_000


@dataclass(frozen=True, slots=True)
class Box:
    """Lines of equal width, in terminal cells."""

    lines: tuple[str, ...]
    """Top to bottom, at least one; each fills `width` cells."""

    width: int
    """Cells; a wide character counts two, a combining mark none."""

    baseline: int = 0
    """Index of the line that lines up with the lines of neighbours."""

    @property
    def height(self) -> int:
        """Number of lines."""
        return len(self.lines)

    @property
    def text(self) -> str:
        """The lines as one string, without trailing blanks."""
        return "\n".join(line.rstrip() for line in self.lines)


def measure_cells(text: str) -> int:
    """Terminal cells that `text` takes."""
    return len(text) if text.isascii() else cell_len(text)


def write_line(text: str) -> Box:
    """A box of one line."""
    return Box((text,), measure_cells(text))


def blank(width: int, height: int = 1, baseline: int = 0) -> Box:
    """A box of nothing but blanks, sizes in cells and lines."""
    return Box((" " * width,) * height, width, baseline)


def place_beside(boxes: Sequence[Box]) -> Box:
    """Put boxes side by side, baselines on one line.

    Args:
        boxes: Left to right; none gives an empty box of one line.

    Returns:
        The whole, without any space between.

    Raises:
        LayoutError: It would be larger than any formula has a right to be.
    """
    if all(len(box.lines) == 1 for box in boxes):
        return Box(("".join([box.lines[0] for box in boxes]),), sum([box.width for box in boxes]))
    above = max(box.baseline for box in boxes)
    below = max(box.height - box.baseline for box in boxes)
    width = sum(box.width for box in boxes)
    _check_size(width, above + below)
    columns = [_fill(box, above - box.baseline, below + box.baseline - box.height) for box in boxes]
    return Box(tuple("".join(cells) for cells in zip(*columns, strict=True)), width, above)


def place_above(boxes: Sequence[Box], baseline: int, align: Align = "center") -> Box:
    """Put boxes on top of each other.

    Args:
        boxes: Top to bottom, at least one.
        baseline: Line of the result that becomes its baseline.
        align: Where the narrower ones stand.

    Returns:
        The whole, as wide as the widest.

    Raises:
        LayoutError: It would be larger than any formula has a right to be.
    """
    width = max(box.width for box in boxes)
    _check_size(width, sum(box.height for box in boxes))
    lines = [line for box in boxes for line in widen(box, width, align).lines]
    return Box(tuple(lines), width, baseline)


def widen(box: Box, width: int, align: Align = "center") -> Box:
    """Fill a box with blanks up to `width` cells."""
    spare = width - box.width
    if spare <= 0:
        return box
    left = {"left": 0, "center": spare // 2, "right": spare}[align]
    lines = tuple(" " * left + line + " " * (spare - left) for line in box.lines)
    return Box(lines, width, box.baseline)


def _fill(box: Box, above: int, below: int) -> list[str]:
    line = " " * box.width
    return [*[line] * above, *box.lines, *[line] * below]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_CELLS:
        raise LayoutError(f"the formula would take {height} lines of {width} cells")
