"""The layout of formulas: a table checked by eye, and properties of random and hostile ones."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from rich.cells import cell_len

from localcascade.errors import CascadeError
from localcascade.maths import Box, Formula, LayoutError, layout
from localcascade.maths.commands import COMMANDS
from localcascade.maths.symbols import read_symbols as read_symbol_table
from localcascade.maths.tables import ENVIRONMENTS
from tests.soak import sample

VECTORS = Path(__file__).parents[1] / "vectors" / "maths"


def read_table(name: str) -> list[tuple[str, str]]:
    """Formula and layout of each entry of a table."""
    entries = (VECTORS / name).read_text(encoding="utf-8").split("\n=== ")[1:]
    return [(latex, drawn.rstrip("\n")) for latex, drawn in (e.split("\n", 1) for e in entries)]


DISPLAY = read_table("display.txt")
ASCII = read_table("ascii.txt")
INLINE = read_table("inline.txt")


def test_the_table_has_at_least_150_formulas() -> None:
    assert len({latex for latex, _ in DISPLAY}) >= 150


@pytest.mark.parametrize(("latex", "drawn"), DISPLAY, ids=[latex for latex, _ in DISPLAY])
def test_display(latex: str, drawn: str) -> None:
    assert layout(latex).text == drawn


@pytest.mark.parametrize(("latex", "drawn"), ASCII, ids=[latex for latex, _ in ASCII])
def test_ascii(latex: str, drawn: str) -> None:
    assert layout(latex, ascii=True).text == drawn
    assert drawn.isascii() or not latex.isascii()


@pytest.mark.parametrize(("latex", "drawn"), INLINE, ids=[latex for latex, _ in INLINE])
def test_inline(latex: str, drawn: str) -> None:
    assert layout(latex, display=False).text == drawn


def check_shape(box: Box) -> None:
    """A box is a rectangle of cells, and its baseline one of its lines."""
    assert {cell_len(line) for line in box.lines} == {box.width}
    assert box.height == len(box.lines)
    assert 0 <= box.baseline < box.height
    controls = [c for line in box.lines for c in line if unicodedata.category(c) in ("Cc", "Cf")]
    assert not controls


@pytest.mark.parametrize("style", [{}, {"ascii": True}, {"display": False}], ids=str)
def test_every_line_has_the_width_of_the_box(style: dict[str, bool]) -> None:
    for latex, _ in DISPLAY:
        check_shape(layout(latex, **style))


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
GREEK = {"alpha": "α", "beta": "β", "pi": "π", "Omega": "Ω", "infty": "∞", "nabla": "∇"}
OPERATORS = {"+": "+", "-": "−", r"\times": "×", r"\le": "≤", r"\in": "∈", r"\to": "→", "=": "="}


class Expressions:
    """Random formulas, each with the symbols that its layout must show."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def make(self, depth: int) -> tuple[str, str]:
        """A formula and its symbols."""
        if depth == 0:
            return self._make_leaf()
        return self._random.choice([self._make_row, self._make_shape, self._make_table])(depth)

    def _make_leaf(self) -> tuple[str, str]:
        if self._random.random() < 0.25:
            name = self._random.choice(sorted(GREEK))
            return f"\\{name} ", GREEK[name]
        letter = self._random.choice(LETTERS)
        return letter, letter

    def _make_row(self, depth: int) -> tuple[str, str]:
        left, shown_left = self.make(depth - 1)
        right, shown_right = self.make(depth - 1)
        operator = self._random.choice(sorted(OPERATORS))
        return f"{left} {operator} {right}", shown_left + OPERATORS[operator] + shown_right

    def _make_shape(self, depth: int) -> tuple[str, str]:
        first, shown_first = self.make(depth - 1)
        second, shown_second = self.make(depth - 1)
        shape = self._random.choice(SHAPES)
        return shape.replace("@", first).replace("#", second), shown_first + shown_second

    def _make_table(self, depth: int) -> tuple[str, str]:
        cells = [self.make(depth - 1) for _ in range(4)]
        name = self._random.choice(["pmatrix", "cases", "aligned", "bmatrix", "matrix"])
        body = r"{} & {} \\ {} & {}".format(*(latex for latex, _ in cells))
        return rf"\begin{{{name}}} {body} \end{{{name}}}", "".join(shown for _, shown in cells)


SHAPES = (
    r"\frac{@}{#}", r"{@}^{#}", r"{@}_{#}", r"\sqrt[@]{#}", r"\sqrt{@#}", r"\binom{@}{#}",
    r"\left(@#\right)", r"\sum_{@}^{#}", r"\int_{@}^{#}", r"\lim_{@}#", r"\overline{@#}",
    r"\underbrace{@}_{#}", r"\boxed{@#}", r"|@|#", r"\overset{@}{#}", r"{@ \over #}",
    r"\xrightarrow[@]{#}", r"\left\{@\middle|#\right\}", r"\mathbf{@}'#", r"\operatorname{@}#",
    r"\prod_{@}#", r"\hat{@}#", r"\text{$@$}#", r"\tag{$@$}#", r"\cancel{@}#", r"(@)[#]",
)  # fmt: skip


def read_symbols(text: str) -> Counter[str]:
    """The symbols on lines of a layout; small, bold and accented ones as plain ones."""
    plain = unicodedata.normalize("NFKD", text.replace("̸", ""))
    # Unicode decomposes the small phi of both kinds to one.
    return Counter(plain)


@pytest.mark.parametrize("seed", sample(range(200), 40))
@pytest.mark.parametrize("style", [{}, {"display": False}], ids=str)
def test_no_layout_loses_a_symbol(seed: int, style: dict[str, bool]) -> None:
    latex, symbols = Expressions(seed).make(1 + seed % 4)
    box = layout(latex, **style)
    check_shape(box)
    missing = Counter(symbols) - read_symbols("".join(box.lines))
    assert not missing, f"{latex}\n{box.text}"


@pytest.mark.parametrize("seed", sample(range(200), 20))
def test_ascii_layouts_are_ascii_and_lose_no_letter(seed: int) -> None:
    latex, symbols = Expressions(seed).make(1 + seed % 3)
    latex = latex.replace(r"\cancel", "")
    box = layout(latex, ascii=True)
    check_shape(box)
    assert box.text.isascii()
    kept = Counter(c for c in symbols if c.isascii() and c.isalnum())
    assert not kept - Counter("".join(box.lines))


def test_a_table_keeps_every_letter_of_its_formulas() -> None:
    for latex, drawn in DISPLAY:
        bare = re.sub(r"\\(color|textcolor)\{[a-z]+\}|\\begin\{array\}\{.*?\}", "", latex)
        bare = re.sub(r"\\(begin|end)\{.*?\}|\\[A-Za-z]+", " ", bare)
        letters = Counter(c for c in bare if c.isalnum())
        assert not letters - read_symbols(drawn), latex


HOSTILE = {
    "nested braces": "{" * 10_000 + "}" * 10_000,
    "open braces": "{" * 4_000,
    "a megabyte": "a" * 1_000_000,
    "nested optional arguments": r"\sqrt[" * 1_300,
    "nested brackets": "(" * 4_000 + ")" * 4_000,
    "nested fences": r"\left(" * 600 + r"\right)" * 600,
    "a wide table": r"\begin{matrix}" + "a&" * 3_000 + r"\end{matrix}",
    "a vast table": r"\begin{matrix}" + "a" * 2_000 + r"\\b" * 2_000 + r"\end{matrix}",
    "a chain of \\over": r"a\over " * 1_000,
    "a tower of scripts": "x" + "^{x" * 60 + "}" * 60,
}


@pytest.mark.parametrize("latex", HOSTILE.values(), ids=HOSTILE)
def test_hostile_formulas_are_refused(latex: str) -> None:
    with pytest.raises(LayoutError):
        layout(latex)


def test_a_long_but_flat_formula_is_laid_out() -> None:
    assert layout("a+" * 2_000 + "a").lines == (" + ".join("a" * 2_001),)


def test_depth_up_to_the_limit_is_laid_out() -> None:
    tower = layout("x" + "^{Q" * 10 + "}" * 10, max_depth=10)
    assert tower.height == 11
    with pytest.raises(LayoutError):
        layout("x" + "^{Q" * 11 + "}" * 11, max_depth=10)


@pytest.mark.parametrize(
    "latex",
    [r"\frac{a}{", r"a_{b", r"\unknowncommand x", r"\begin{matrix} a", r"\left( a", r"a \right)",
     "x^1^2", r"\begin{nonsense} a \end{nonsense}", "a}", r"\frac{1}", "a & b", "x^"],
)  # fmt: skip
def test_what_is_not_a_finished_formula_is_refused(latex: str) -> None:
    with pytest.raises(LayoutError) as caught:
        layout(latex)
    assert caught.value.message and caught.value.hint
    assert isinstance(caught.value, CascadeError)


SOUP = [
    *("\\" + name for name in [*read_symbol_table(), *COMMANDS, "left", "right", "middle", "over"]),
    *(f"\\{part}{{{name}}}" for part in ("begin", "end") for name in ENVIRONMENTS),
    *"{}[]()^_&$%#'~|.,:=+-<>!abx12 \n\x1b\u0301面½",
    *["{a}", "{b}", "{", "}", "{x}{y}", r"\left(", r"\right)", "\\\\"] * 30,
]


@pytest.mark.parametrize("seed", sample(range(100), 10))
def test_any_soup_of_commands_is_laid_out_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    n_drawn = 0
    for _ in range(60):
        latex = "".join(chance.choices(SOUP, k=chance.randint(1, 14)))
        try:
            check_shape(layout(latex, display=chance.random() < 0.5, ascii=chance.random() < 0.3))
        except LayoutError:
            continue
        n_drawn += 1
    assert n_drawn > 5


def test_lengths_behind_a_row_are_dropped_and_brackets_kept() -> None:
    assert layout(r"\begin{matrix} a \\[2pt] b \\*[-1.5 em] c \end{matrix}").lines == (
        "a",
        "b",
        "c",
    )
    assert layout(r"\begin{aligned} A \\ [C,D] \end{aligned}").lines[1].strip() == "[C, D]"


def test_control_characters_never_survive() -> None:
    source = "a\x1b[31m\x07+\u202eb\u200b\x9b\\text{c\x00\x1b]0;d}\ud800"
    assert layout(source).lines == ("a[31m + bc]0;d",)


def test_combining_marks_of_the_source_stay_with_their_letter() -> None:
    assert layout("e\u0301 + x\u0302").lines == ("é + x\u0302",)
    assert layout("a" + "\u0301" * 5_000).width == 1


def test_accents_are_precomposed_where_unicode_has_them() -> None:
    assert layout(r"\hat{a}\bar{x}\dot{z}\tilde{n}\not=").lines == ("âx\u0304żñ ≠",)


def test_wide_characters_count_two_cells() -> None:
    box = layout(r"\frac{\text{面积}}{a}")
    assert box.lines == ("面积", "────", " a  ")
    assert box.width == 4


def test_a_streaming_formula_holds_its_last_good_layout() -> None:
    formula = Formula()
    source = r"x = \frac{-b}{2a} + 1"
    heights = []
    for end in range(1, len(source) + 1):
        box = formula.update(source[:end])
        heights.append(box.height if box else 0)
    assert heights == sorted(heights) and heights[-1] == 3
    assert formula.box == layout(source) and formula.problem == ""


def test_a_finished_formula_without_a_layout_shows_nothing_older() -> None:
    formula = Formula()
    assert formula.update("a + b") is not None
    assert formula.update(r"a + b \foo") == layout("a + b")
    assert formula.update(r"a + b \foo", closed=True) is None
    assert "foo" in formula.problem
