"""From LaTeX source to the nodes of pylatexenc's parser, within limits of size and depth."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pylatexenc.latexwalker import (
    LatexCharsNode,
    LatexCommentNode,
    LatexWalker,
    LatexWalkerError,
)
from pylatexenc.macrospec import (
    EnvironmentSpec,
    LatexContextDb,
    MacroSpec,
    SpecialsSpec,
)

from localcascade.maths.errors import LayoutError

Node = Any
"""A node of pylatexenc, which has no types."""

Item = Any
"""A character of the source (str) or any other node."""

MAX_CHARACTERS = 8192

# Control and format characters, bidirectional overrides, lone surrogates: none reaches a terminal.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_PERCENT = re.compile(r"(\\.)|%", re.DOTALL)
_NESTING = re.compile(r"\\(begin|end)\b|\\.|([{}])", re.DOTALL)


def clean_source(latex: str) -> str:
    """The source without control characters, composed, with each % as the sign it is meant to be.

    A model that writes 50% in a formula means per cent, never a comment.
    """
    composed = unicodedata.normalize("NFC", _CONTROLS.sub("", latex))
    return _PERCENT.sub(lambda match: match[1] or r"\%", composed)


def parse_latex(latex: str, grammar: LatexContextDb, max_depth: int) -> list[Node]:
    """Parse a formula.

    Args:
        latex: The formula without its delimiters, as `clean_source` leaves it.
        grammar: What `make_grammar` made.
        max_depth: How deep braces and environments may nest.

    Returns:
        The nodes at the top.

    Raises:
        LayoutError: It is too long, nests too deep, or is not LaTeX (yet).
    """
    if len(latex) > MAX_CHARACTERS:
        raise LayoutError(f"the formula has {len(latex)} characters, at most {MAX_CHARACTERS} can")
    if _measure_depth(latex) > max_depth:
        raise LayoutError(f"the formula nests more than {max_depth} deep")
    try:
        walker = LatexWalker(latex, latex_context=grammar, tolerant_parsing=False)
        nodes: list[Node] = walker.get_latex_nodes()[0]
    except LatexWalkerError as error:
        raise LayoutError(f"the formula is not LaTeX: {str(error).splitlines()[0]}") from error
    return nodes


def make_grammar(macros: Mapping[str, str], environments: Mapping[str, str]) -> LatexContextDb:
    """A grammar for pylatexenc.

    Args:
        macros: Name -> arguments: { one that must be there, [ one that may, * a star.
        environments: The same for environments.

    Returns:
        The grammar; names that it lacks take no arguments.
    """
    grammar = LatexContextDb()
    grammar.add_context_category(
        "maths",
        macros=[MacroSpec(name, arguments) for name, arguments in macros.items()],
        environments=[EnvironmentSpec(name, spec) for name, spec in environments.items()],
        specials=[SpecialsSpec("&"), SpecialsSpec("~")],
    )
    grammar.set_unknown_macro_spec(MacroSpec(""))
    grammar.set_unknown_environment_spec(EnvironmentSpec(""))
    return grammar


def flatten(nodes: list[Node]) -> list[Item]:
    """Nodes with runs of characters taken apart; combining marks stay with their character."""
    items: list[Item] = []
    for node in nodes:
        if isinstance(node, LatexCharsNode):
            _split_characters(node.chars, items)
        elif node is not None and not isinstance(node, LatexCommentNode):
            items.append(node)
    return items


def is_blank(item: Item) -> bool:
    """Whether an item is white space of the source, which maths ignores."""
    return isinstance(item, str) and item.isspace()


def _split_characters(text: str, items: list[Item]) -> None:
    if text.isascii():
        items.extend(text)
        return
    for character in text:
        if not unicodedata.combining(character):
            items.append(character)
        elif items and isinstance(items[-1], str) and len(items[-1]) < 4:
            items[-1] += character


def _measure_depth(latex: str) -> int:
    depth = deepest = 0
    for match in _NESTING.finditer(latex):
        step = match[1] or match[2]
        if step in ("begin", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif step in ("end", "}"):
            depth -= 1
    return deepest
