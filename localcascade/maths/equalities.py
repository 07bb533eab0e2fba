"""Where the equalities of a text are: in its formulas, and in plain arithmetic between them.

Words may belong to a side: "30 % of 50 = 15" does not say that 50 is 15. Such sides are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from localcascade.maths.segments import find

CONTEXT_CHARACTERS = 80
"""How much of a line is looked at before a formula."""

_ALIGNED = r"(?:align|aligned|equation|gather|gathered|split|multline)\*?"
_TOKEN = re.compile(
    rf"\\(?:begin|end)\s*\{{{_ALIGNED}\}}|\\(?:text|mbox|tag)\s*\{{[^{{}}]*\}}|\\\\(?:\[[^\]]*\])?"
    r"|\\[A-Za-z]+|\\.|.",
    re.DOTALL,
)
_BREAKS = frozenset(
    [r"\implies", r"\Rightarrow", r"\iff", r"\Leftrightarrow", r"\quad", r"\qquad", r"\to", ";",
     r"\le", r"\leq", r"\ge", r"\geq", r"\ne", r"\neq", r"\equiv", r"\in", "<", ">", "≤", "≥", "≠",
     r"\Longrightarrow", r"\rightarrow", r"\sim", r"\propto", r"\mid", r"\,,", "⇒", "→"]
)  # fmt: skip
_NEAR = frozenset([r"\approx", r"\simeq", "≈"])
_WORDS = (r"\text", r"\mbox", r"\tag")
_JOINING = re.compile(
    r"\b(?:and|or|so|then|hence|thus|therefore|because|since|as|if|for|when|where|with|but|by)\b"
)
_SIDE_ENDS = re.compile(
    r"(?:\^\{?-?\d\}?)?\s*(?:$|[=≈&,;.)<>≤≥≠⇒→]|\\(?:\\|[a-z]*(?:approx|rrow|implies|iff|quad)))",
    re.IGNORECASE,
)
"""Behind words that name the unit of a side: the exponent of a unit, and what ends a side."""
_RUN = re.compile(r"[\d.,()+*/^×·÷−=≈ \t-]+")
_START = re.compile(r"(?<![\w.])(?!\d+[.)][ \t])[-−]?[\d(]")
"""Where arithmetic begins, but for the number of a list's item."""
_UNFINISHED = " \t.,(+*/^×·÷−=≈-"
_PART_OF_WORD = re.compile(r"[\w^!²³°]")
_MARKUP = re.compile(r"^[\s>]*(?:[-*+]\s+)?|(?<!\S)[*_]{1,3}$")
_GOES_BEFORE = re.compile(
    r"(?:\d:|(?:\s:|[-+−*/×·÷^%√∛∑∏∫]|(?<![^\W\d_])[^\W\d_]|\b(?:of|mod|sin|cos|tan|log|ln|sqrt|"
    r"step|part|case|problem|question|exercise|example))\s*)$",
    re.IGNORECASE,
)
"""Before a side: an operator, a function or a letter that it is part of, or what it numbers."""
_GOES_BEHIND = re.compile(
    r"[ \t]*(?:%|[-+−*/×·÷][ \t]*(?:[\d(]|\w\b)|(?:of|per|R|rem|remainder)\b|\(?mod\b)",
    re.IGNORECASE,
)
_LONE_NUMBER = re.compile(r"[-−]?[\d.,]+")
_WORD = re.compile(
    r"(?:\b(?!(?:so|then|hence|thus|therefore|because|since)\s*$)[^\W\d_]{2,}|\))\s*$",
    re.IGNORECASE,
)
"""Before a lone number: what it may belong to, as in the GCD of 12 and 18 = 6."""


@dataclass(frozen=True, slots=True)
class Equality:
    """Two sides that a text says are equal."""

    left: str
    right: str
    """In LaTeX."""
    stop: int
    """Where the right side ends in the text: characters before that."""
    is_near: bool
    """Whether it says "about equal"."""


def find_equalities(text: str) -> Iterator[Equality]:
    """Find every equality.

    Args:
        text: Markdown with formulas, or plain arithmetic.
    """
    at = 0
    for segment in find(text):
        end = at + len(segment.source)
        if segment.is_maths:
            inside = at + max(segment.source.find(segment.latex), 0)
            yield from _drop_parts(_split_chains(segment.latex, inside), text, at, end)
        else:
            for start, stop in _find_arithmetic(text, at, end):
                chain = list(_split_chains(text[start:stop], start))
                if _PART_OF_WORD.match(text, stop):
                    chain = chain[:-1]
                yield from _drop_parts(chain, text, start, stop)
        at = end


def _find_arithmetic(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches of numbers and signs that say something is equal, each looked at once."""
    for run in _RUN.finditer(text, start, stop):
        first = _START.search(text, run.start(), run.end())
        if first and ("=" in run[0] or "≈" in run[0]):
            yield first.start(), run.start() + len(run[0].rstrip(_UNFINISHED))


def _drop_parts(chain: Iterable[Equality], text: str, start: int, stop: int) -> list[Equality]:
    """Leave out the first or last equality whose side goes on in the words around the chain."""
    found = list(chain)
    line_start = max(text.rfind("\n", 0, start) + 1, start - CONTEXT_CHARACTERS)
    before = _MARKUP.sub("", text[line_start:start])
    is_lone = bool(found and _LONE_NUMBER.fullmatch(found[0].left))
    if _GOES_BEFORE.search(before) or (is_lone and _WORD.search(before)):
        found = found[1:]
    if _GOES_BEHIND.match(text, stop):
        found = found[:-1]
    return found


def _split_chains(latex: str, start: int) -> Iterator[Equality]:
    """Cut a formula at its relations; a row that begins with one goes on with the row above."""
    left, begin, sign, depth = "", 0, "", 0
    for at, stop, token in [*_scan(latex), (len(latex), len(latex), "")]:
        depth += (token in ("{", "(", "[", r"\{")) - (token in ("}", ")", "]", r"\}"))
        is_row = token.startswith("\\\\") or token.startswith((r"\begin", r"\end"))
        is_relation = token == "=" or token in _NEAR
        is_words = token.startswith(_WORDS) and not _is_within(latex[begin:at], token, latex[stop:])
        is_break = token in _BREAKS or is_words
        is_comma = token == "," and not re.match(r",\d{3}(?!\d)", latex[at:])
        if token and (depth > 0 or not (is_row or is_relation or is_break or is_comma)):
            continue
        side = latex[begin:at].replace("&", " ").strip().rstrip(".")
        if side and sign and left:
            yield Equality(left, side, start + at, sign in _NEAR)
        left, begin = side or left, stop
        if is_relation:
            sign = token
        elif is_row:
            sign = ""
        else:
            left, sign = "", ""


def _is_within(before: str, words: str, behind: str) -> bool:
    """Whether words are part of a side, as in 30 % of 50, rather than before or behind one."""
    is_between = before.strip(" &") and not _SIDE_ENDS.match(behind)
    return bool(is_between) and not _JOINING.search(words) and not words.startswith(r"\tag")


def _scan(latex: str) -> Iterator[tuple[int, int, str]]:
    for match in _TOKEN.finditer(latex):
        yield match.start(), match.end(), match[0]
