"""What an answer says: found in a text, and brought into a form in which equal ones are equal.

Pure, but for the comparison of expressions, which the caller may bring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localcascade.chat.quantities import NUMBER, read_quantity, write_repeating
from localcascade.maths.expressions import evaluate_exactly, find_symbols, parse_expression
from localcascade.maths.lexemes import Unreadable
from localcascade.maths.segments import find

MAX_ANSWER_CHARACTERS = 1000
MAX_DEPTH = 8
"""How deep the lists in a list are read."""

_BRACE = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_LABEL = re.compile(
    r"(?:answer|correct\s+(?:option|choice))(?:\s+is)?\s*(?:\*\*|__)?\s*[:=]?\s*(?:\*\*|__)?[ \t]*"
    r"(?P<rest>[^\n]+)",
    re.IGNORECASE,
)
_FIRM_LABEL = re.compile(r"(?:answer|option|choice)(?:\s+is\b|\s*(?:\*\*|__)?\s*:)", re.IGNORECASE)
_LAST_NUMBER = re.compile(rf"(?<![\w.,]){NUMBER}(?:\s*/\s*\d+)?\s*%?")
_CHOICE = re.compile(r"(?:option|choice)?\s*\(?([A-J])\)?[.:)]?(?:\s+\S.*)?", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{3,}|no", re.IGNORECASE)
_LONE_CHOICE = re.compile(r"(?:^|\n)\s*\(?([A-J])\)?[.)]?\s*$")
_DOLLARS = re.compile(r"(?<!\\)\$(?! )([^$]+)(?<![ \\])\$(?!\d)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|operatorname)\s*\{([^{}]*)\}")
_RELATION = re.compile(r"=|≈|\\approx")
_ROWS = re.compile(r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|gathered|split)\*?\}|&")
_SMALL_FRACTION = re.compile(r"(\d?)\s*\\[dt]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))")
_GROUPED = re.compile(r"(?<=\d)(?:\\[,!]|\{,\}| )(?=\d{3}(?![\d/]))")
_SQUARED = re.compile(r"(?<=[A-Za-z°])\s*\^\s*(?:\{([23])\}|([23])(?!\d))")
_MATRIX = re.compile(r"\\begin\{([bp]?matrix)\}(.*?)\\end\{\1\}", re.DOTALL)
_SET = re.compile(r"\\?\{(.*?)\\?\}", re.DOTALL)
_NAMED = re.compile(
    r"\s*(?:\\(?:text|mathrm|angle|overline|vec)\s*)?(?P<name>\{[A-Za-z ]+\}|\\?[A-Za-z]+"
    r"|\\frac\{d\w*\}\{d\w\})(?:_\w|_\{\w+\})?'?(?:\([A-Za-z]\))?\s*(?:=|\\in\b|∈)\s*(?!=)"
)
_PLAIN_SIGNS = {
    "−": "-", r"\%": "%", r"\$": "$", r"^\circ": "°", r"^{\circ}": "°", r"\dfrac": r"\frac",
    r"\tfrac": r"\frac", r"\varnothing": r"\emptyset", "∅": r"\emptyset", "±": r"\pm",
    r"\geq": r"\ge", r"\leq": r"\le", "≥": r"\ge ", "≤": r"\le ", "∞": r"\infty", "∪": r"\cup",
}  # fmt: skip


_ORDERED = ("()", "[]", "[)", "(]")
_List = tuple[str, Sequence[str]]
"""The brackets of a list, or none, and its members."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says, so that equal ones are equal."""

    shown: str
    """As the model wrote it."""
    key: str
    """Answers with the same key are the same."""
    unit: str = ""
    """Of a number; a number without one agrees with those that have one."""

    @property
    def kind(self) -> str:
        """A choice, number, expression, set, list or text."""
        return self.key.partition(" ")[0]


def extract_answer(text: str) -> str:
    r"""Find the answer in what a model wrote.

    Args:
        text: Its answer, without its thinking.

    Returns:
        What is in the last \boxed, or behind the last "Answer:", or a lone letter of a choice on
        the last line, or the last number; empty if there is none of these.
    """
    for look in (_find_boxed, _find_labelled, _find_choice, _find_number):
        if found := look(text).strip():
            return found[:MAX_ANSWER_CHARACTERS]
    return ""


def names_answer(text: str) -> bool:
    """Whether a text says which its final answer is, in a box or behind "Answer:"."""
    return bool((_find_boxed(text) or _find_labelled(text)).strip())


def is_same_answer(
    given: str, expected: str, compare: Callable[[str, str], bool | None]
) -> bool | None:
    """Say whether two answers are the same, however they are written.

    Args:
        given: One, as `extract_answer` found it or a student wrote it.
        expected: The other; the order of a list in it counts only in round or square brackets.
        compare: Says whether two expressions in LaTeX are equal; None where that is not known.

    Returns:
        None where it is not known.
    """
    one, other = normalize_answer(given), normalize_answer(expected)
    if one.key == other.key:
        return len({one.unit, other.unit} - {""}) <= 1
    lists = [_read_list(_strip_markup(strip_name(each.shown))) for each in (one, other)]
    if max(len(members) for _, members in lists) > 1:
        return _match_lists(lists[0], lists[1], compare)
    kinds = {one.kind, other.kind}
    if "expression" in kinds and not one.unit and not other.unit:
        return compare(*(strip_name(each.shown) for each in (one, other)))
    return False if kinds in ({"number"}, {"choice"}) else None


def _match_lists(
    given: _List, expected: _List, compare: Callable[[str, str], bool | None]
) -> bool | None:
    """Find each member of one list in the other."""
    (brackets, parts), (others, rest) = given, list(expected)
    if any(normalize_answer(part).kind == "text" for part in (*parts, *rest)):
        return None
    if len(parts) != len(rest):
        return False
    rest, found = list(rest), []
    for part in parts:
        candidates = rest[:1] if others in _ORDERED else rest
        told = [is_same_answer(part, each, compare) for each in candidates]
        found.append(True if True in told else None if None in told else False)
        rest.pop(told.index(True) if True in told else 0)
    is_same = False if False in found else None if None in found else True
    has_other_brackets = brackets and others and brackets != others
    return None if is_same and has_other_brackets else is_same


def _find_boxed(text: str) -> str:
    """What is in the last box that is closed; each brace is looked at once."""
    opened: list[tuple[int, bool]] = []
    start, stop = 0, 0
    for match in _BRACE.finditer(text):
        is_box = "boxed" in match[0]
        if is_box or match[0] == "{":
            opened.append((match.end(), is_box))
        elif match[0] == "}" and opened:
            begin, was_box = opened.pop()
            if was_box and begin > start:
                start, stop = begin, match.start()
    return text[start:stop]


def _find_labelled(text: str) -> str:
    labels = [match for match in _LABEL.finditer(text) if _FIRM_LABEL.search(match[0])]
    if not labels:
        return ""
    rest = labels[-1]["rest"].lstrip("*_ ").rstrip("*_ .")
    if re.search(r"\s[A-Za-z]{2,}\s+[A-Za-z]{2,}\s", f" {rest} "):  # a sentence: its last number
        return _find_formula(rest) or _find_number(rest) or rest
    return rest


def _find_formula(text: str) -> str:
    found = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", text)
    return next((part for pair in found[-1:] for part in pair if part), "")


def _find_choice(text: str) -> str:
    match = _LONE_CHOICE.search(text.rstrip().strip("*_`"))
    return match[1] if match else ""


def _find_number(text: str) -> str:
    """The last number; if it is in a formula, the right side of that."""
    last = next((each for each in reversed(find(text)) if re.search(r"\d", each.source)), None)
    if last is not None and last.is_maths:
        return _RELATION.split(_ROWS.sub(" ", last.latex))[-1].strip(" .,")
    found = _LAST_NUMBER.findall(text.replace("$", " "))
    return found[-1] if found else ""


def normalize_answer(text: str) -> Answer:
    r"""Bring an answer into a form in which equal ones are equal.

    1,000 = 1000 = 1e3; 1/2 = \frac{1}{2} = 0.5 = 50 %; "x = 3" = 3; (B) = B; units stay.

    Args:
        text: What `extract_answer` found.
    """
    shown = _strip_delimiters(text)
    plain = _strip_markup(strip_name(shown))
    if choice := _read_choice(plain):
        return Answer(shown, f"choice {choice}")
    if quantity := read_quantity(plain):
        value, unit = quantity
        return Answer(shown, f"number {value}", unit)
    brackets, members = _read_list(plain)
    if len(members) > 1:
        return Answer(shown, _join_list(brackets, members))
    try:
        if _WORD.fullmatch(plain):
            raise Unreadable("a word")
        value_or_none = evaluate_exactly(parse_expression(strip_name(shown)))
    except Unreadable:
        space = "" if "\\" in plain else " "
        return Answer(shown, "text " + re.sub(r"\s+", space, plain).casefold().rstrip("."))
    if value_or_none is not None:
        return Answer(shown, f"number {value_or_none}")
    return Answer(shown, "expression " + re.sub(r"\s+", "", plain))


def strip_name(text: str) -> str:
    """Leave out the name in "x = 3", and what was calculated in "2 + 3 = 5"."""
    match = _NAMED.match(text)
    rest = text[match.end() :] if match else text
    first, *others = rest.split("=")
    if not others:
        return rest
    return others[-1].strip() if _is_constant(first) and _is_constant(others[-1]) else text


def _is_constant(text: str) -> bool:
    try:
        return not find_symbols(parse_expression(text))
    except Unreadable:
        return False


def _strip_delimiters(text: str) -> str:
    text = text.strip().strip("*_`").strip().removesuffix(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inside = text.removeprefix(opening).removesuffix(closing)
        if len(inside) == len(text) - len(opening) - len(closing) and opening not in inside:
            return inside.strip()
    return text


def _strip_markup(text: str) -> str:
    """Take off commands that change only the looks, and write LaTeX's spaces as spaces."""
    text = _DOLLARS.sub(r"\1", text)
    while (inner := _WRAPPED.sub(r" \1 ", text)) != text:
        text = inner
    text = _GROUPED.sub(",", _MATRIX.sub(_write_matrix, text))
    text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[,;:! ]|~", " ", text)
    for sign, plain in _PLAIN_SIGNS.items():
        text = text.replace(sign, plain)
    text = write_repeating(_SMALL_FRACTION.sub(_write_fraction, text))
    squared = _SQUARED.sub(lambda match: "²³"[(match[1] or match[2]) == "3"], text)
    return re.sub(r"(?<=°)\s+(?=[CF]\b)|\s+(?=[²³])", "", squared).strip()


def _write_fraction(match: re.Match[str]) -> str:
    before, *parts = match.groups(default="")
    top, bottom = parts[0] + parts[2], parts[1] + parts[3]
    return f"{before} {top}/{bottom}" if before else f"{top}/{bottom}"


def _write_matrix(match: re.Match[str]) -> str:
    """A column as a list, any other matrix as a list of its rows."""
    rows = [row.strip() for row in match[2].split("\\\\") if row.strip()]
    if len(rows) > 1 and not any("&" in row for row in rows):
        return f"({','.join(rows)})"
    return f"({','.join('(' + row.replace('&', ',') + ')' for row in rows)})"


def _read_choice(text: str) -> str:
    match = _CHOICE.fullmatch(text)
    if not match:
        return ""
    is_bare = len(text) == 1 and text.isupper()
    has_signs = bool(
        re.match(r"(?:(?:option|choice)\s*\(?[A-J]\b|\([A-J]\)|[A-J][.:)])", text, re.I)
    )
    return match[1].upper() if is_bare or has_signs else ""


def _read_list(text: str) -> _List:
    """Cut a list at its commas, not at those inside brackets.

    "x = 1, y = 2" is the list (1, 2), whatever the order of the names; "x = 1, x = 2" is a set.
    """
    if both_signs := _cut_signs(text):
        return "", both_signs
    braced = _SET.fullmatch(text)
    brackets = "{}" if braced else _find_brackets(text)
    inside = braced[1] if braced else text[1:-1] if brackets else text
    inside = re.sub(r"\s+(?:and|or)\s+", ",", inside)
    parts, depth, start = [], 0, 0
    for at, character in enumerate(inside):
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            return "", [text]
        if depth == 0 and character in ",;":
            parts.append(inside[start:at])
            start = at + 1
    members = [part.strip() for part in (*parts, inside[start:]) if part.strip()]
    names = [match["name"] for part in members if (match := _NAMED.match(part))]
    if 1 < len(set(names)) == len(members):
        return "()", [part for _, part in sorted(zip(names, members, strict=True))]
    return brackets, members


def _cut_signs(text: str) -> list[str]:
    r"""The two numbers that \pm stands for."""
    before, sign, after = text.partition(r"\pm")
    return [f"{before}{each}{after}" for each in "+-"] if sign and r"\pm" not in after else []


def _find_brackets(text: str) -> str:
    """The brackets that hold the whole text; empty where there are none."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return text[0] + text[at] if at and at == len(text) - 1 else ""
    return ""


def _join_list(brackets: str, members: Sequence[str]) -> str:
    """Name a list by its members; only in round or square brackets does their order matter."""
    keys = [normalize_answer(member).key for member in members]
    if brackets in _ORDERED:
        return f"list {brackets[0]}{'; '.join(keys)}{brackets[1]}"
    return "set " + "; ".join(sorted(set(keys) if brackets else keys))
