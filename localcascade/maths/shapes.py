"""Shapes made of boxes: fractions, roots, scripts, limits, braces and frames."""

from __future__ import annotations

from dataclasses import dataclass

from localcascade.maths.alphabets import lower_text, raise_text
from localcascade.maths.box import (
    Box,
    measure_cells,
    place_above,
    place_beside,
    widen,
    write_line,
)


@dataclass(frozen=True, slots=True)
class Pen:
    """The characters that lines are drawn with."""

    horizontal: str = "─"
    vertical: str = "│"
    corners: str = "┌┐└┘"
    over: str = "╭┴╮"
    under: str = "╰┬╯"
    integral: tuple[str, ...] = ("⌠", "⎮", "⌡")


UNICODE_PEN = Pen()
ASCII_PEN = Pen("-", "|", "++++", "/^\\", "\\v/", (" /", "| ", "/ "))


def draw_fraction(above: Box, below: Box, pen: Pen) -> Box:
    """One box over another with a bar, longer than the bars inside it."""
    margin = 2 if above.height > 1 or below.height > 1 else 0
    bar = write_line(pen.horizontal * (max(above.width, below.width) + margin))
    return place_above([above, bar, below], above.height)


def draw_root(body: Box, index: Box | None, in_ascii: bool) -> Box:
    """A root of one or more lines, the index over its left end."""
    if in_ascii or body.height > 1:
        root = _draw_tall_root(body, in_ascii)
        return _put_index(root, index) if index else root
    root = place_above(
        [write_line(" " + "_" * body.width), place_beside([write_line("√"), body])], 1
    )
    if index is None:
        return root
    raised = raise_text(index.lines[0]) if index.height == 1 else None
    if raised is None:
        return _put_index(root, index)
    return place_beside([write_line(raised), root])


def attach_scripts(base: Box, lower: Box | None, upper: Box | None, in_ascii: bool) -> Box:
    """Put scripts at the right of a base.

    Superscript and subscript characters where all of them exist, else lines above and below. A
    tall base has its scripts at its corners, unless all that makes it tall is an accent or a bar.

    Args:
        base: What carries them.
        lower: The subscript.
        upper: The superscript.
        in_ascii: Whether superscript and subscript characters are out of the question.

    Returns:
        Base and scripts, on the baseline of the base.
    """
    small = None if in_ascii else _write_scripts(lower, upper)
    is_accented = base.height == 2 and base.baseline == 1
    if base.height == 1 or (is_accented and small):
        column = small or _stack_scripts(base, lower, upper, -1, 1)
    else:
        upper = upper if in_ascii else _write_scripts(None, upper) or upper
        lower = lower if in_ascii else _write_scripts(lower, None) or lower
        column = _stack_scripts(base, lower, upper, 0, base.height - 1)
    return place_beside([base, column])


def attach_limits(base: Box, lower: Box | None, upper: Box | None) -> Box:
    """Put limits above and below an operator."""
    boxes = [box for box in (upper, base, lower) if box is not None]
    return place_above(boxes, base.baseline + (upper.height if upper else 0))


def draw_integral(pen: Pen) -> Box:
    """An integral sign of three lines."""
    return Box(pen.integral, len(pen.integral[0]), 1)


def draw_brace(base: Box, above: bool, pen: Pen) -> Box:
    """A brace above or below a box."""
    base = widen(base, 3)
    left, tip, right = tuple(pen.over if above else pen.under)
    half, odd = divmod(base.width - 3, 2)
    brace = left + pen.horizontal * half + tip + pen.horizontal * (half + odd) + right
    return draw_line(base, brace, above)


def draw_line(base: Box, text: str, above: bool) -> Box:
    """A line of text above or below a box."""
    line = write_line(text)
    if above:
        return place_above([line, base], base.baseline + 1)
    return place_above([base, line], base.baseline)


def draw_frame(content: Box, pen: Pen) -> Box:
    """A frame around a box."""
    top_left, top_right, bottom_left, bottom_right = tuple(pen.corners)
    line = pen.horizontal * (content.width + 2)
    lines = [f"{pen.vertical} {text} {pen.vertical}" for text in content.lines]
    framed = (top_left + line + top_right, *lines, bottom_left + line + bottom_right)
    return Box(framed, content.width + 4, content.baseline + 1)


def _draw_tall_root(body: Box, in_ascii: bool) -> Box:
    corner, side, foot, bar = (" +", " |", "\\|", "-") if in_ascii else (" ┌", " │", "√│", "─")
    sides = [side] * (body.height - 1) + [foot]
    lines = [s + text for s, text in zip(sides, body.lines, strict=True)]
    return Box((corner + bar * body.width, *lines), body.width + 2, body.baseline + 1)


def _put_index(root: Box, index: Box) -> Box:
    foot = root.height - 1
    column = Box(index.lines, index.width, index.height - 1)
    whole = place_beside([column, Box(root.lines, root.width, foot - 1)])
    return Box(whole.lines, whole.width, whole.baseline + root.baseline - (foot - 1))


def _write_scripts(lower: Box | None, upper: Box | None) -> Box | None:
    scripts = [(box, change) for box, change in ((lower, lower_text), (upper, raise_text)) if box]
    drawn = [change(box.lines[0]) if box.height == 1 else None for box, change in scripts]
    return None if None in drawn or not drawn else write_line("".join(filter(None, drawn)))


def _stack_scripts(base: Box, lower: Box | None, upper: Box | None, top: int, foot: int) -> Box:
    """A column with the superscript ending on line `top` of the base, the other from `foot` on."""
    above = upper.lines if upper else ()
    below = lower.lines if lower else ()
    first = top + 1 if upper else 0
    last = foot - 1 if lower else base.height - 1
    width = max(box.width for box in (lower, upper) if box)
    rows = (*above, *[""] * (last - first + 1), *below)
    lines = tuple(row + " " * (width - measure_cells(row)) for row in rows)
    return Box(lines, width, base.baseline + len(above) - first)
