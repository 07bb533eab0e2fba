"""What stands over, under, through and around a piece: accents, lines, strokes, braces, frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localcascade.maths.atoms import Atom, combine
from localcascade.maths.box import Box, write_line
from localcascade.maths.calls import Call
from localcascade.maths.errors import LayoutError
from localcascade.maths.shapes import draw_brace, draw_frame, draw_line


@dataclass(frozen=True, slots=True)
class _Accent:
    mark: str
    """The combining mark."""

    over: str
    """What stands on a line above; the last character ends a line that the first one fills."""

    ascii: str
    """The same in ASCII."""


ACCENTS = {
    "hat": _Accent("\u0302", "^", "^"), "widehat": _Accent("\u0302", "^", "^"),
    "check": _Accent("\u030c", "ˇ", "v"), "tilde": _Accent("\u0303", "~", "~"),
    "widetilde": _Accent("\u0303", "~", "~"), "bar": _Accent("\u0304", "__", "__"),
    "overline": _Accent("\u0305", "__", "__"), "vec": _Accent("\u20d7", "─→", "->"),
    "overrightarrow": _Accent("\u20d7", "─→", "->"), "overleftarrow": _Accent("\u20d6", "←─", "<-"),
    "overleftrightarrow": _Accent("\u20e1", "↔", "<>"),
    "dot": _Accent("\u0307", ".", "."), "ddot": _Accent("\u0308", "¨", "\""),
    "dddot": _Accent("\u20db", "...", "..."), "acute": _Accent("\u0301", "´", "'"),
    "grave": _Accent("\u0300", "`", "`"), "breve": _Accent("\u0306", "˘", "u"),
    "mathring": _Accent("\u030a", "°", "o"), "wideparen": _Accent("\u0311", "⁀", "^"),
}  # fmt: skip


def draw_accent(call: Call) -> Atom:
    """An accent over one sign or over several."""
    accent, body = ACCENTS[call.name], call.box(0)
    text = body.lines[0]
    single = body.height == 1 and body.width <= 1 and len(text) < 3
    is_line = call.name in ("bar", "overline") and call.style.flat and text.isalnum()
    if not call.style.ascii and (single or is_line) and text.strip():
        return Atom(write_line(combine(text, accent.mark)))
    if call.is_linear and body.height == 1:
        return Atom(write_line(f"{call.name}({text})"), "word")
    over = accent.ascii if call.style.ascii else accent.over
    return Atom(draw_line(body, _extend(over, body.width), above=True))


def _extend(over: str, width: int) -> str:
    if len(over) != 2:
        return over
    filler, end = (over[1], over[0]) if over[0] in "←<" else (over[0], over[1])
    line = filler * (width - 1)
    return end + line if over[0] in "←<" else line + end


def draw_underline(call: Call) -> Atom:
    """A line below."""
    body = call.box(0)
    if call.is_linear and body.height == 1:
        text = body.lines[0]
        drawn = f"underline({text})" if call.style.ascii else combine(text, "\u0332")
        return Atom(write_line(drawn))
    return Atom(draw_line(body, ("-" if call.style.ascii else "‾") * body.width, above=False))


def draw_strike(call: Call) -> Atom:
    """A stroke through each sign."""
    body = call.box(0)
    if call.style.ascii and body.height == 1:
        return Atom(write_line(f"cancel({body.lines[0]})"), "word")
    if call.style.ascii:
        raise LayoutError("\\cancel over several lines has no layout in ASCII")
    lines = tuple(combine(line, "\u0338") for line in body.lines)
    return Atom(Box(lines, body.width, body.baseline))


def draw_negation(call: Call) -> Atom:
    """The sign of the opposite: a stroke through it."""
    atoms = call.atoms(0)
    if len(atoms) != 1 or atoms[0].box.height != 1:
        raise LayoutError("\\not needs one sign")
    text = atoms[0].box.lines[0]
    drawn = "!" + text if call.style.ascii else combine(text, "\u0338")
    return replace(atoms[0], box=write_line(drawn))


def draw_braced(call: Call) -> Atom:
    """A brace above or below; its label comes as a script."""
    body = draw_brace(call.box(0), call.name.startswith("over"), call.pen)
    return Atom(body, "ord", stacks=True)


def draw_boxed(call: Call) -> Atom:
    """A frame; brackets where there is one line."""
    content = call.box(0)
    if call.is_linear and content.height == 1:
        return Atom(write_line(f"[{content.lines[0]}]"), "group")
    return Atom(draw_frame(content, call.pen), "ord")
