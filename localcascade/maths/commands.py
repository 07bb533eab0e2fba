"""Commands with arguments: how each is drawn, as a table from name to arguments and function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pylatexenc.latexwalker import LatexCharsNode, LatexGroupNode, LatexMacroNode, LatexMathNode

from localcascade.maths.accents import (
    ACCENTS,
    draw_accent,
    draw_boxed,
    draw_braced,
    draw_negation,
    draw_strike,
    draw_underline,
)
from localcascade.maths.atoms import Atom, join_atoms
from localcascade.maths.box import Box, blank, place_beside, write_line
from localcascade.maths.calls import Call, Command
from localcascade.maths.delimiters import enclose
from localcascade.maths.errors import LayoutError
from localcascade.maths.fractions import (
    draw_binomial,
    draw_continued_fraction,
    draw_fraction_call,
    draw_root_call,
)
from localcascade.maths.grammar import Node, flatten
from localcascade.maths.scripts import add_scripts
from localcascade.maths.shapes import attach_limits
from localcascade.maths.symbols import SPACES, Kind, read_symbols
from localcascade.maths.tables import draw_grid, split_rows


def _draw_font(call: Call, font: str) -> Atom:
    style = replace(call.style, font=font)
    atoms = call.atoms(0, style)
    kind: Kind = atoms[0].kind if len(atoms) == 1 else "ord"
    return Atom(join_atoms(atoms, style.small), kind)


def _draw_text(call: Call) -> Atom:
    return Atom(_write_text(call.nodes(0), call))


def _write_text(nodes: Sequence[Node], call: Call) -> Box:
    return place_beside([_draw_text_node(node, call) for node in nodes])


def _draw_text_node(node: Node, call: Call) -> Box:
    if isinstance(node, LatexCharsNode):
        kept = [" " if c.isspace() else c for c in node.chars]
        return write_line("".join(kept))
    if isinstance(node, LatexGroupNode):
        return _write_text(node.nodelist, call)
    if isinstance(node, LatexMathNode):
        return join_atoms(call.draw_items(flatten(node.nodelist), call.style), call.style.small)
    box = join_atoms(call.draw_items([node], call.style), True)
    after = node.macro_post_space if isinstance(node, LatexMacroNode) else ""
    return place_beside([box, write_line(" ")]) if after and node.macroname in SPACES else box


def _draw_operator(call: Call) -> Atom:
    starred = call.arguments[0] is not None
    box = call.box(1)
    return Atom(box, "op", stacks=starred, with_limits=box if starred else None)


def _draw_kind(call: Call, kind: Kind) -> Atom:
    return Atom(call.box(0), kind, stacks=kind == "op")


def _draw_set(call: Call) -> Atom:
    """Something small set above or below a sign: \\overset, \\underset, \\stackrel."""
    script = call.atoms(0, replace(call.style, small=True))
    bases = call.atoms(1)
    kind: Kind = bases[0].kind if len(bases) == 1 else "ord"
    base = Atom(join_atoms(bases, call.style.small), "rel" if call.name == "stackrel" else kind)
    below, above = (script, None) if call.name == "underset" else (None, script)
    return add_scripts(replace(base, stacks=True), below, above, "", call.style)


def _draw_arrow(call: Call) -> Atom:
    small = replace(call.style, small=True)
    above = call.box(1, small)
    below = call.box(0, small) if call.arguments[0] is not None else None
    width = max(above.width, below.width if below else 0) + 2
    shaft = ("=" if call.style.ascii else "═") if call.name[1].isupper() else call.pen.horizontal
    tips = _find_tips(call)
    if call.style.flat and above.height == 1 and below is None:
        return Atom(write_line(f"{tips[0]}{shaft}{above.lines[0]}{shaft}{tips[1]}"), "rel")
    arrow = write_line(tips[0] + shaft * (width + 1 - len(tips[0] + tips[1])) + tips[1])
    return Atom(attach_limits(arrow, below, above), "rel")


def _find_tips(call: Call) -> tuple[str, str]:
    double = call.name[1].isupper()
    left, right = ("<", ">") if call.style.ascii else ("⇐", "⇒") if double else ("←", "→")
    name = call.name.lower()
    return (left if "left" in name else "", right if "right" in name else "")


def _draw_modulus(call: Call) -> Atom:
    content = call.box(0)
    if call.name == "mod":
        return Atom(place_beside([write_line("mod "), content]), "inner")
    word = "mod " if call.name == "pmod" else ""
    inside = place_beside([write_line(word), content])
    return Atom(enclose("(", inside, ")", call.style.ascii), "inner")


def _draw_phantom(call: Call) -> Atom:
    width = call.box(0).width
    return Atom(blank(0 if call.name == "vphantom" else width), "space")


def _draw_space(call: Call) -> Atom:
    return Atom(blank(1 if call.source(1)[:1] != "-" else 0), "space")


def _draw_tag(call: Call) -> Atom:
    """The number of an equation; the star of \\tag* leaves the brackets out."""
    left, right = ("(", ")") if call.arguments[0] is None else ("", "")
    tagged = enclose(left, _write_text(call.nodes(1), call), right, call.style.ascii)
    return Atom(place_beside([blank(4), tagged]), "space")


def _draw_substack(call: Call) -> Atom:
    """Conditions below each other, as a rule those of a sum."""
    rows, _ = split_rows(flatten(call.nodes(0)))
    if any(len(row) > 1 for row in rows):
        raise LayoutError("\\substack has one column")
    boxes = [join_atoms(call.draw_items(row[0], call.style), True) for row in rows]
    if call.style.flat and all(box.height == 1 for box in boxes):
        return Atom(write_line(", ".join(box.lines[0] for box in boxes)))
    return Atom(draw_grid([[box] for box in boxes], "c", (0,)))


def _draw_enclosed(call: Call) -> Atom:
    names = _BRACKETS[call.name]
    signs = [read_symbols()[name] for name in names]
    drawn = [sign.ascii if call.style.ascii else sign.unicode for sign in signs]
    return Atom(enclose(drawn[0], call.box(0), drawn[1], call.style.ascii), "group")


_BRACKETS = {
    "bra": ("langle", "vert"), "ket": ("vert", "rangle"), "braket": ("langle", "rangle"),
    "abs": ("vert", "vert"), "norm": ("Vert", "Vert"),
    "floor": ("lfloor", "rfloor"), "ceil": ("lceil", "rceil"),
}  # fmt: skip


def _draw_last(call: Call) -> Atom:
    return _make_plain(call, len(call.arguments) - 1)


def _make_plain(call: Call, index: int) -> Atom:
    atoms = call.atoms(index)
    kind: Kind = atoms[0].kind if len(atoms) == 1 else "ord"
    return Atom(join_atoms(atoms, call.style.small), kind)


def _draw_nothing(_: Call) -> None:
    return None


_FONTS = {
    "mathrm": "plain", "mathit": "plain", "mathnormal": "plain", "mathsf": "plain",
    "mathtt": "plain", "mathup": "plain", "mathbf": "bold", "boldsymbol": "bold", "bm": "bold",
    "pmb": "bold", "symbf": "bold", "mathbb": "blackboard", "mathds": "blackboard",
    "mathbbm": "blackboard", "Bbb": "blackboard", "mathcal": "calligraphic",
    "mathscr": "calligraphic", "mathfrak": "fraktur",
}  # fmt: skip

_GROUPS: tuple[tuple[str, str, Callable[[Call], Atom | None]], ...] = (
    ("frac dfrac tfrac nicefrac sfrac", "{{", draw_fraction_call),
    ("cfrac", "[{{", draw_continued_fraction),
    ("binom dbinom tbinom", "{{", draw_binomial),
    ("sqrt", "[{", draw_root_call),
    ("text textrm textit textbf textsf texttt textnormal textup textsc mbox hbox intertext emph",
     "{", _draw_text),
    ("operatorname", "*{", _draw_operator),
    (" ".join(ACCENTS), "{", draw_accent),
    ("underline underbar", "{", draw_underline),
    ("cancel bcancel xcancel sout", "{", draw_strike),
    ("not", "{", draw_negation),
    ("overbrace underbrace", "{", draw_braced),
    ("boxed fbox", "{", draw_boxed),
    ("overset underset stackrel", "{{", _draw_set),
    ("xrightarrow xleftarrow xleftrightarrow xRightarrow xLeftarrow xLeftrightarrow", "[{",
     _draw_arrow),
    ("pmod mod pod", "{", _draw_modulus),
    ("phantom hphantom vphantom", "{", _draw_phantom),
    ("hspace mspace hskip", "*{", _draw_space),
    ("tag", "*{", _draw_tag),
    ("substack", "{", _draw_substack),
    (" ".join(_BRACKETS), "{", _draw_enclosed),
    ("textcolor colorbox", "{{", _draw_last),
    ("fcolorbox", "{{{", _draw_last),
    ("smash mathstrut ensuremath mathclap", "{", _draw_last),
    ("label vspace", "*{", _draw_nothing),
    ("color", "{", _draw_nothing),
)  # fmt: skip

_KINDS: dict[str, Kind] = {
    "mathop": "op", "mathbin": "bin", "mathrel": "rel", "mathord": "ord", "mathopen": "open",
    "mathclose": "close", "mathpunct": "punct", "mathinner": "inner",
}  # fmt: skip

COMMANDS: dict[str, Command] = {
    **{name: Command(spec, draw) for names, spec, draw in _GROUPS for name in names.split()},
    **{name: Command("{", partial(_draw_font, font=font)) for name, font in _FONTS.items()},
    **{name: Command("{", partial(_draw_kind, kind=kind)) for name, kind in _KINDS.items()},
    "bmod": Command("", lambda _: Atom(write_line("mod"), "bin")),
}
"""Name of a command -> how it is drawn."""
