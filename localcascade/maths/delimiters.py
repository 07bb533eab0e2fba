"""Brackets as tall as what they hold."""

from __future__ import annotations

from localcascade.maths.box import Box, measure_cells, place_beside

# Drawn sign -> its pieces on several lines: top, middle, bottom, and what fills the lines between.
_TALL: dict[str, str | tuple[str, ...]] = {
    "(": "⎛⎜⎝⎜", ")": "⎞⎟⎠⎟", "[": "⎡⎢⎣⎢", "]": "⎤⎥⎦⎥", "{": "⎧⎨⎩⎪", "}": "⎫⎬⎭⎪",
    "⌊": "⎢⎢⎣⎢", "⌋": "⎥⎥⎦⎥", "⌈": "⎡⎢⎢⎢", "⌉": "⎤⎥⎥⎥", "|": "││││", "∣": "││││", "⟦": "⟦⟦⟦⟦",
}  # fmt: skip
_TALL_ASCII: dict[str, str | tuple[str, ...]] = {
    "(": "/|\\|", ")": "\\|/|", "{": "/<\\|", "}": "\\>/|",
    "|_": ("| ", "| ", "|_", "| "), "_|": (" |", " |", "_|", " |"),
    "|~": ("|~", "| ", "| ", "| "), "~|": ("~|", " |", " |", " |"),
}  # fmt: skip
_TWO_LINES = {"{": "⎰⎱", "}": "⎱⎰"}
_ANGLES = {"⟨": ("╱", "╲"), "⟩": ("╲", "╱"), "<": ("/", "\\"), ">": ("\\", "/")}


def enclose(left: str, content: Box, right: str, in_ascii: bool) -> Box:
    """Put brackets around a box, both as tall as it is.

    Args:
        left: The sign on the left as drawn on one line; empty for none.
        content: What they hold.
        right: The sign on the right.
        in_ascii: Whether tall signs are made of ASCII characters.

    Returns:
        The whole, on the baseline of the content.
    """
    sides = [stretch(sign, content, in_ascii) for sign in (left, right)]
    return place_beside([sides[0], content, sides[1]])


def stretch(sign: str, content: Box, in_ascii: bool) -> Box:
    """A sign as tall as `content` and on its baseline; an empty sign takes no width."""
    if content.height == 1 or not sign:
        lines = (sign,) * content.height
    elif sign in _ANGLES and (not in_ascii or sign in "<>"):
        lines = _draw_angle(*_ANGLES[sign], content.height)
    else:
        lines = _draw_tall(sign, content, in_ascii)
    return Box(lines, measure_cells(lines[0]), content.baseline)


def _draw_tall(sign: str, content: Box, in_ascii: bool) -> tuple[str, ...]:
    height = content.height
    if height == 2 and sign in _TWO_LINES and not in_ascii:
        return tuple(_TWO_LINES[sign])
    pieces = (_TALL_ASCII if in_ascii else _TALL).get(sign)
    if pieces is None:
        return (sign,) * height
    top, middle, bottom, filler = tuple(pieces)
    lines = [top, *[filler] * (height - 2), bottom]
    if height > 2:
        lines[min(max(content.baseline, 1), height - 2)] = middle
    return tuple(lines)


def _draw_angle(upper: str, lower: str, height: int) -> tuple[str, ...]:
    half = (height + 1) // 2
    opens = upper in "╱/"
    steps = [min(i, height - 1 - i) for i in range(height)]
    offsets = [half - 1 - s if opens else s for s in steps]
    signs = [upper if i < height / 2 else lower for i in range(height)]
    if height % 2:
        tips = {("╱", "╲"): "⟨", ("╲", "╱"): "⟩", ("/", "\\"): "<", ("\\", "/"): ">"}
        signs[half - 1] = tips[upper, lower]
    return tuple((" " * o + s).ljust(half) for o, s in zip(offsets, signs, strict=True))
