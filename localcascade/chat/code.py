"""Code with its words coloured: what Pygments finds, in a few kinds."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from localcascade.chat.lines import Line, Span

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# The first row that a token's name begins with decides.
_KINDS = (
    ("Token.Comment", "comment"),
    ("Token.Keyword", "keyword"),
    ("Token.Literal.String", "string"),
    ("Token.Literal.Number", "number"),
    ("Token.Name.Function", "name"),
    ("Token.Name.Class", "name"),
    ("Token.Name.Builtin", "builtin"),
    ("Token.Name.Decorator", "builtin"),
    ("Token.Operator.Word", "keyword"),
    ("Token.Generic.Deleted", "removed"),
    ("Token.Generic.Inserted", "added"),
    ("Token.Generic.Heading", "keyword"),
)


def colour_code(code: str, language: str) -> list[Line]:
    """Cut code into lines of styled spans.

    Args:
        code: Without its fence.
        language: As the fence names it; an unknown one leaves the code plain.
    """
    lexer = _find_lexer(language.lower()) if language else None
    if lexer is None:
        return [(Span(line, "fence"),) for line in code.split("\n")]
    lines: list[list[Span]] = [[]]
    for kind, text in lexer.get_tokens(code):
        style = _name_style(kind)
        for at, part in enumerate(text.split("\n")):
            if at:
                lines.append([])
            if part:
                lines[-1].append(Span(part, style))
    return [tuple(line) for line in lines[: code.count("\n") + 1]]


@lru_cache(maxsize=256)
def _name_style(kind: Any) -> str:
    name = str(kind)
    return "fence " + next((style for start, style in _KINDS if name.startswith(start)), "")


@lru_cache(maxsize=16)
def _find_lexer(language: str) -> Lexer | None:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
