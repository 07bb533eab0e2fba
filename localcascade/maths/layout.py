"""LaTeX maths -> lines of a terminal: rows of atoms, their scripts and their brackets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache

from pylatexenc.latexwalker import (
    LatexEnvironmentNode,
    LatexGroupNode,
    LatexMacroNode,
    LatexMathNode,
    LatexSpecialsNode,
)
from pylatexenc.macrospec import LatexContextDb

from localcascade.maths.atoms import EMPTY, Atom, Style, join_atoms, make_character, make_symbol
from localcascade.maths.big import make_big
from localcascade.maths.box import Box, place_beside, write_line
from localcascade.maths.calls import Call
from localcascade.maths.commands import COMMANDS
from localcascade.maths.delimiters import enclose, stretch
from localcascade.maths.errors import LayoutError
from localcascade.maths.fences import Fence, match_fences, name_of, sign_of
from localcascade.maths.fractions import draw_over
from localcascade.maths.grammar import (
    Item,
    Node,
    clean_source,
    flatten,
    is_blank,
    make_grammar,
    parse_latex,
)
from localcascade.maths.scripts import add_scripts
from localcascade.maths.symbols import SPACES, read_silent, read_symbols
from localcascade.maths.tables import ENVIRONMENTS, draw_rows, draw_table

MAX_DEPTH = 24

_FONT_SWITCHES = {"bf": "bold", "bm": "bold", "cal": "calligraphic", "frak": "fraktur"}
_SIZES = frozenset(("big", "Big", "bigg", "Bigg"))
_INFIX = frozenset(("over", "choose", "atop"))
_PRIMES = {1: "′", 2: "″", 3: "‴"}


def layout(
    latex: str, *, ascii: bool = False, display: bool = True, max_depth: int = MAX_DEPTH
) -> Box:
    """Lay a formula out in terminal cells.

    Args:
        latex: The formula without its delimiters; an environment with its \\begin and \\end.
        ascii: Whether to draw with ASCII characters only. Letters that are not ASCII in the source,
            in \\text for example, stay.
        display: Whether it stands on its own. If not, everything that has a form on one line takes
            it, as 1/2 for a fraction; only tables and the like then take more lines.
        max_depth: How deep braces, brackets and environments may nest.

    Returns:
        The lines, all of one width, and which of them is the baseline.

    Raises:
        LayoutError: It is not LaTeX, not finished, too large, or uses a command without a layout.
            Show the source instead.
    """
    style = Style(ascii, not display, depth_left=4 * max_depth)
    try:
        nodes = parse_latex(clean_source(latex), _read_grammar(), max_depth)
        return _draw_lines(flatten(nodes), style)
    except RecursionError:
        raise LayoutError("the formula nests too deep") from None


def draw(items: Sequence[Item], style: Style) -> list[Atom]:
    """The atoms of a row of items, not yet set beside each other.

    Raises:
        LayoutError: One of them has no layout.
    """
    return _Row(items, style, match_fences(items), 0, len(items)).read()


def _draw_lines(items: Sequence[Item], style: Style) -> Box:
    """The whole formula; with line ends outside any environment it is set like `aligned`."""
    if any(name_of(item) == "\\" for item in items):
        return draw_rows(items, ENVIRONMENTS["aligned"], style, draw)
    return join_atoms(draw(items, style), style.small)


@cache
def _read_grammar() -> LatexContextDb:
    macros = {name: command.arguments for name, command in COMMANDS.items()}
    environments = {name: environment.arguments for name, environment in ENVIRONMENTS.items()}
    return make_grammar(macros, environments)


class _Row:
    """Reads the items of one row from left to right."""

    def __init__(
        self, items: Sequence[Item], style: Style, fences: dict[int, Fence], start: int, stop: int
    ) -> None:
        if style.depth_left < 0:
            raise LayoutError("the formula nests too deep")
        self._items = items
        self._style = style.go_deeper()
        self._fences = fences
        self._at = self._start = start
        self._stop = stop

    def read(self) -> list[Atom]:
        """All atoms of the row."""
        middle = self._find_infix()
        if middle is not None:
            above, below = (
                self._read_part(self._start, middle),
                self._read_part(middle + 1, self._stop),
            )
            return [draw_over(name_of(self._items[middle]), above, below, self._style, draw)]
        atoms: list[Atom] = []
        while (item := self._peek()) is not None:
            if not self._switch(item):
                atom = self._read_bar(atoms) or self._read_nucleus(item)
                if atom is not None:
                    atoms.append(self._read_scripts(atom))
        return atoms

    def _find_infix(self) -> int | None:
        """Index of \\over and the like, unless it stands inside brackets of the row."""
        at = self._start
        while at < self._stop:
            if name_of(self._items[at]) in _INFIX:
                return at
            fence = self._fences.get(at)
            at = fence.after if fence else at + 1
        return None

    def _read_part(self, start: int, stop: int) -> list[Atom]:
        return _Row(self._items, self._style, self._fences, start, stop).read()

    def _peek(self) -> Item | None:
        while self._at < self._stop and is_blank(self._items[self._at]):
            self._at += 1
        return self._items[self._at] if self._at < self._stop else None

    def _take(self) -> Item:
        item = self._peek()
        if item is None:
            raise LayoutError("the formula ends where an argument should be")
        self._at += 1
        return item

    def _switch(self, item: Item) -> bool:
        """Take a command that draws nothing; a font lasts to the end of the row."""
        name = name_of(item)
        if name in _FONT_SWITCHES:
            self._style = replace(self._style, font=_FONT_SWITCHES[name])
        elif name not in read_silent():
            return False
        self._at += 1
        return True

    def _read_nucleus(self, item: Item) -> Atom | None:
        sign = sign_of(item)
        if sign in ("^", "_", "'"):
            return EMPTY
        fence = self._fences.get(self._at)
        if fence is not None:
            self._at = fence.after
            return self._draw_fence(fence)
        self._at += 1
        if not isinstance(item, str):
            return _draw_node(item, self._style)
        if sign == "," and self._is_inside_number():
            return Atom(write_line(","))
        return make_character(item, self._style.font, self._style.ascii)

    def _read_bar(self, atoms: Sequence[Atom]) -> Atom | None:
        r"""The bar of F(x)\Big|_0^1, which is as tall as what stands before it."""
        signs = [sign_of(item) for item in self._items[self._at : self._at + 2]]
        is_sized = self._at > 0 and name_of(self._items[self._at - 1]) in _SIZES
        if not is_sized or signs != ["|", "_"] or not atoms or atoms[-1].box.height == 1:
            return None
        self._at += 1
        return Atom(stretch("|", atoms[-1].box, self._style.ascii), "close")

    def _is_inside_number(self) -> bool:
        around = self._items[max(self._at - 2, 0) : self._at + 1]
        return len(around) == 3 and all(isinstance(i, str) and i.isdigit() for i in around[::2])

    def _draw_fence(self, fence: Fence) -> Atom:
        parts = [self._draw_part(start, stop) for start, stop in fence.parts]
        signs = [self._draw_sign(sign) for sign in fence.signs]
        measure = place_beside(parts)
        row = [parts[0]]
        for sign, part in zip(signs[1:-1], parts[1:], strict=True):
            row += [stretch(sign, measure, self._style.ascii), part]
        return Atom(enclose(signs[0], place_beside(row), signs[-1], self._style.ascii), "group")

    def _draw_part(self, start: int, stop: int) -> Box:
        return join_atoms(self._read_part(start, stop), self._style.small)

    def _draw_sign(self, sign: Item) -> str:
        name = sign_of(sign) or name_of(sign)
        if sign_of(sign) in (".", "|", "/"):
            return name.strip(".")
        symbol = read_symbols().get(name)
        if symbol is None:
            raise LayoutError(f"{name[:40]!r} is not a bracket")
        return symbol.ascii if self._style.ascii else symbol.unicode

    def _read_scripts(self, nucleus: Atom) -> Atom:
        """The nucleus with all scripts, primes and wishes for limits behind it."""
        scripts: dict[str, list[Atom]] = {}
        n_primes = 0
        while (item := self._peek()) is not None:
            sign = sign_of(item)
            if sign in ("^", "_"):
                self._add_script(sign, scripts)
            elif sign == "'":
                n_primes += 1
                self._at += 1
            elif (name := name_of(item)) in ("limits", "nolimits"):
                nucleus = replace(nucleus, stacks=name == "limits")
                self._at += 1
            else:
                break
        marks = self._draw_primes(n_primes)
        return add_scripts(nucleus, scripts.get("_"), scripts.get("^"), marks, self._style)

    def _add_script(self, sign: str, scripts: dict[str, list[Atom]]) -> None:
        if sign in scripts:
            raise LayoutError(f"two scripts at one {sign}")
        self._at += 1
        scripts[sign] = self._read_script()

    def _draw_primes(self, n_primes: int) -> str:
        return "'" * n_primes if self._style.ascii else _PRIMES.get(n_primes, "′" * n_primes)

    def _read_script(self) -> list[Atom]:
        style = replace(self._style, small=True)
        item = self._take()
        return draw([item], style)


def _draw_node(node: Node, style: Style) -> Atom | None:
    if isinstance(node, LatexMacroNode):
        return _draw_macro(node, style)
    if isinstance(node, LatexGroupNode | LatexMathNode):
        return _draw_group(draw(flatten(node.nodelist), style), style)
    if isinstance(node, LatexEnvironmentNode):
        return draw_table(node, style, draw)
    if isinstance(node, LatexSpecialsNode) and node.specials_chars == "~":
        return Atom(write_line(" "), "space")
    raise LayoutError(f"{node.latex_verbatim()[:20]!r} stands where it cannot")


def _draw_group(atoms: list[Atom], style: Style) -> Atom:
    loose = len(atoms) == 1 and atoms[0].loose
    return Atom(join_atoms(atoms, style.small), "ratio" if loose else "ord", loose)


def _draw_macro(node: Node, style: Style) -> Atom | None:
    name = node.macroname
    command = COMMANDS.get(name)
    if command is not None:
        arguments = node.nodeargd.argnlist if node.nodeargd else []
        if len(arguments) < len(command.arguments):
            raise LayoutError(f"\\{name} needs its argument in braces")
        return command.draw(Call(name, arguments, style, draw))
    if name in SPACES:
        return Atom(write_line(" " * SPACES[name]), "space")
    atom = _find_symbol(name, style.ascii)
    if atom is None:
        raise LayoutError(f"\\{name[:40]} has no layout")
    return atom


@lru_cache(maxsize=1024)
def _find_symbol(name: str, in_ascii: bool) -> Atom | None:
    symbol = read_symbols().get(name)
    if symbol is None or (len(name) == 1 and name.isalnum()):
        return None
    return (
        make_big(name, symbol, in_ascii) if symbol.kind == "big" else make_symbol(symbol, in_ascii)
    )
