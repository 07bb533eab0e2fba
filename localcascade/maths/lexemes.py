"""The words of a formula: numbers, names, signs and groups, taken from the nodes of its LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, Final, Literal

from pylatexenc.latexwalker import LatexGroupNode, LatexMacroNode

from localcascade.maths.errors import LayoutError
from localcascade.maths.grammar import Item, clean_source, flatten, make_grammar, parse_latex

MAX_DEPTH = 30
MAX_DIGITS = 60
CALLS: Final = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "exp",
        "ln",
        "log",
        "sqrt",
    ]
)  # fmt: skip
GREEK: Final = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Delta",
    ]
)  # fmt: skip

_ARGUMENTS = {
    "frac": "{{", "dfrac": "{{", "tfrac": "{{", "cfrac": "{{", "binom": "{{", "dbinom": "{{",
    "sqrt": "[{", "text": "{", "mathrm": "{", "mathbf": "{", "textbf": "{", "operatorname": "{",
    "boxed": "{", "mbox": "{", "mathbb": "{", "phantom": "{",
}  # fmt: skip
_SIGNS = {
    "cdot": "*", "times": "*", "div": "/", "lbrace": "{", "rbrace": "}", "{": "{", "}": "}",
    "lvert": "|", "rvert": "|", "vert": "|", "%": "%", "le": "≤", "leq": "≤", "ge": "≥",
    "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "simeq": "≈", "to": "→", "equiv": "≡",
    "rightarrow": "→", "infty": "∞", "pi": "π", "implies": "⇒", "Rightarrow": "⇒", "iff": "⇔",
    "Leftrightarrow": "⇔", "Longrightarrow": "⇒", "qquad": ";", "quad": ";", "\\": "\n",
}  # fmt: skip
_SILENT = frozenset(
    [
        ",",
        ";",
        ":",
        "!",
        "left",
        "right",
        "big",
        "Big",
        "bigl",
        "bigr",
        "Bigl",
        "Bigr",
        "displaystyle",
        "textstyle",
        "limits",
    ]
) | {" "}  # fmt: skip
_PLAIN_SIGNS = {"−": "-", "·": "*", "×": "*", "÷": "/", "⋅": "*", "[": "(", "]": ")"}
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_WORDS = re.compile("|".join(sorted(CALLS | {"pi"}, key=len, reverse=True)))
_NUMBER = re.compile(
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,2}(?!\d))?"
)
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")


class Unreadable(ValueError):
    """A formula whose meaning we do not know for certain; it is left unchecked."""


Kind = Literal["number", "name", "sign", "command", "group"]


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One word of a formula."""

    kind: Kind
    text: str = ""
    """Name, sign or command; digits of a number."""
    value: Fraction = Fraction(0)
    """Of a number."""
    places: int | None = None
    """Digits behind the point of a number that has one."""
    parts: tuple[tuple[Lexeme, ...] | None, ...] = ()
    """Arguments of a command, inside of a group; None for an optional one that is not there."""


@cache
def _make_grammar() -> Any:
    return make_grammar(_ARGUMENTS, {})


def read_lexemes(latex: str) -> list[Lexeme]:
    """Read a formula, in LaTeX or as people type it: `\\frac{1}{2}`, `2*x^10`, `sqrt(3)`.

    Args:
        latex: Without delimiters.

    Raises:
        Unreadable: It is not LaTeX, or uses what we give no meaning to.
    """
    if "\\" not in latex and "{" not in latex:
        latex = re.sub(r"\^\s*(-?\d+)", r"^{\1}", latex.replace("**", "^"))
    latex = _RAISED.sub(lambda match: f"^{{{match[0].translate(_LOWERED)}}}", latex)
    latex = re.sub(r"√\s*(\d+|[^\W\d_])", r"\\sqrt{\1}", latex).replace("√(", "sqrt(")
    source = clean_source(latex).replace("{,}", ",")
    source = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", source)
    try:
        return _read_items(flatten(parse_latex(source, _make_grammar(), MAX_DEPTH)))
    except LayoutError as error:
        raise Unreadable(error.message) from error


def _read_items(items: Sequence[Item]) -> list[Lexeme]:
    lexemes: list[Lexeme] = []
    at = 0
    while at < len(items):
        item = items[at]
        if isinstance(item, str):
            stop = at
            while stop < len(items) and isinstance(items[stop], str):
                stop += 1
            after_script = bool(lexemes) and lexemes[-1].text in ("^", "_")
            lexemes += _read_text("".join(items[at:stop]), after_script)
            at = stop
        else:
            lexemes += _read_node(item)
            at += 1
    return lexemes


def _read_text(text: str, after_script: bool = False) -> list[Lexeme]:
    """Plain characters; a script takes only the first one, as in LaTeX."""
    lexemes: list[Lexeme] = []
    at = 0
    while at < len(text):
        is_script = lexemes[-1].text in ("^", "_") if lexemes else after_script
        number = _NUMBER.match(text, at, at + 1 if is_script else len(text))
        word = _WORDS.match(text, at)
        if number:
            lexemes.append(_read_number(number[0]))
            at = number.end()
        elif word:
            lexemes += _read_name(word[0])
            at = word.end()
        elif long_word := _LONG_WORD.match(text, at):
            raise Unreadable(f"the word {long_word[0]}")
        else:
            lexemes += _read_character(text[at])
            at += 1
    return lexemes


def _read_number(text: str) -> Lexeme:
    digits = text.replace(",", "")
    if len(digits) > MAX_DIGITS:
        raise Unreadable(f"a number has {len(digits)} digits")
    has_places = "." in digits and "e" not in digits
    places = len(digits.partition(".")[2]) if has_places else None
    return Lexeme("number", digits, Fraction(digits), places)


def _read_character(character: str) -> list[Lexeme]:
    sign = _PLAIN_SIGNS.get(character, character)
    if sign in "π∞" or not (sign.isalpha() or sign.isspace()):
        return [Lexeme("sign", sign)]
    return [Lexeme("name", sign)] if sign.isalpha() else []


def _read_name(name: str) -> list[Lexeme]:
    return [Lexeme("sign", "π")] if name == "pi" else [Lexeme("command", name)]


def _read_node(node: Any) -> list[Lexeme]:
    if isinstance(node, LatexGroupNode):
        return [Lexeme("group", parts=(tuple(_read_items(flatten(node.nodelist))),))]
    if not isinstance(node, LatexMacroNode):
        raise Unreadable("an environment or a special sign")
    name = node.macroname
    if name in _SILENT:
        return []
    if name in _SIGNS:
        return [Lexeme("sign", _SIGNS[name])]
    if name in GREEK:
        return [Lexeme("name", name)]
    if name in ("mathrm", "operatorname"):
        return _read_upright(node)
    return [Lexeme("command", name, parts=tuple(_read_arguments(node)))]


def _read_upright(node: Any) -> list[Lexeme]:
    r"""Names in upright letters: \mathrm{d}, \operatorname{ln}; any other is a unit or a word."""
    name = node.nodeargd.argnlist[0].latex_verbatim().strip("{} ")
    if name in CALLS:
        return [Lexeme("command", name)]
    if name in ("d", "e", "i"):
        return [Lexeme("name", name)]
    raise Unreadable(f"the word {name}")


def _read_arguments(node: Any) -> list[tuple[Lexeme, ...] | None]:
    parts: list[tuple[Lexeme, ...] | None] = []
    for argument in node.nodeargd.argnlist if node.nodeargd else ():
        if argument is None:
            parts.append(None)
            continue
        inside = argument.nodelist if isinstance(argument, LatexGroupNode) else [argument]
        is_word = node.macroname in ("text", "textbf", "mbox", "phantom")
        parts.append(() if is_word else tuple(_read_items(flatten(list(inside)))))
    return parts
