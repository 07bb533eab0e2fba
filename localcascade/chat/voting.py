"""Many answers to one problem: what each one says, which say the same, and which has the majority.

Pure, but for the comparison of expressions, which the caller may bring.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from localcascade.maths.expressions import evaluate_exactly, parse_expression
from localcascade.maths.lexemes import Unreadable

IsSame = Callable[[str, str], bool]
"""Whether two expressions in LaTeX are equal; False also where that is not known."""

MAX_ANSWER_CHARACTERS = 1000

_BOXED = re.compile(r"\\f?boxed\s*\{")
_LABEL = re.compile(
    r"(?:final\s+answer|answer)(?:\s+is)?\s*(?:\*\*|__)?\s*[:=]?\s*(?:\*\*|__)?[ \t]*"
    r"(?P<rest>[^\n]+)",
    re.IGNORECASE,
)
_FIRM_LABEL = re.compile(r"answer(?:\s+is\b|\s*(?:\*\*|__)?\s*:)", re.IGNORECASE)
_NUMBER = r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_LAST_NUMBER = re.compile(rf"(?<![\w.,]){_NUMBER}(?:\s*/\s*\d+)?\s*%?")
_CHOICE = re.compile(r"(?:option|choice)?\s*\(?([A-J])\)?[.:)]?(?:\s+\S.*)?", re.IGNORECASE)
_LONE_CHOICE = re.compile(r"(?:^|\n)\s*\(?([A-J])\)?[.)]?\s*$")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|operatorname)\s*\{([^{}]*)\}")
_QUANTITY = re.compile(
    rf"(?P<sign>[$€£])?\s*(?P<number>{_NUMBER}(?:\s*/\s*\d+)?)\s*"
    r"(?P<unit>(?!(?:and|or)\b)[A-Za-zµΩ€$£°][\w/^²³°€$£ .-]*)?"
)
_SMALL_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))")
_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_ASSIGNED = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=\s*(?!=)")
_MONEY = {"$": "dollars", "€": "euros", "£": "pounds"}
_UNIT_NAMES = {
    "dollar": "dollars", "usd": "dollars", "euro": "euros", "eur": "euros", "pound": "pounds",
    "degree": "°", "degrees": "°", "meters": "m", "metres": "m", "meter": "m", "metre": "m",
    "centimeters": "cm", "centimetres": "cm", "kilometers": "km", "kilometres": "km",
    "seconds": "s", "second": "s", "minute": "minutes", "hour": "hours", "day": "days",
    "percent": "%", "per cent": "%",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says, so that equal ones are equal."""

    shown: str
    """As the model wrote it."""
    key: str
    """Answers with the same key are the same."""
    unit: str = ""
    """Of a number; a number without one agrees with those that have one."""
    is_expression: bool = False
    """Whether only algebra can tell if another one is the same."""


@dataclass(frozen=True, slots=True)
class Group:
    """Answers that say the same."""

    answers: tuple[Answer, ...]

    @property
    def n_votes(self) -> int:
        """How many they are."""
        return len(self.answers)

    @property
    def shown(self) -> str:
        """The form that most of them have; of those with a unit, if there are such."""
        with_unit = [answer.shown for answer in self.answers if answer.unit]
        forms = Counter(with_unit or [answer.shown for answer in self.answers])
        return forms.most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Vote:
    """The count so far."""

    groups: tuple[Group, ...]
    """The largest first; of equals, the one that came first."""
    n_chains: int
    """Chains that have ended, also those without an answer."""

    @property
    def answer(self) -> str:
        """What the largest group says; empty if nobody answered."""
        return self.groups[0].shown if self.groups else ""

    @property
    def n_votes(self) -> int:
        """Of the largest group."""
        return self.groups[0].n_votes if self.groups else 0

    @property
    def is_tied(self) -> bool:
        """Whether another group is as large."""
        return len(self.groups) > 1 and self.groups[1].n_votes == self.n_votes

    def is_decided(self, n_left: int) -> bool:
        """Whether no other group can win or draw level with `n_left` more votes."""
        second = self.groups[1].n_votes if len(self.groups) > 1 else 0
        return self.n_votes > second + n_left


@dataclass
class Ballot:
    """Collects answers one by one.

    Args:
        is_same: Compares expressions.
    """

    is_same: IsSame = lambda _one, _other: False
    groups: list[list[Answer]] = field(default_factory=list)
    n_chains: int = 0

    def add(self, text: str) -> Answer | None:
        """Take the text of an answer.

        Returns:
            What it says; None if it says nothing.
        """
        self.n_chains += 1
        found = extract_answer(text)
        if not found:
            return None
        answer = normalize_answer(found)
        self.put(answer)
        return answer

    def put(self, answer: Answer) -> None:
        """Add an answer to those that say the same."""
        for group in self.groups:
            if self._agrees(answer, group):
                group.append(answer)
                return
        self.groups.append([answer])

    def count(self) -> Vote:
        """Count the votes."""
        ordered = sorted(self.groups, key=len, reverse=True)
        return Vote(tuple(Group(tuple(group)) for group in ordered), self.n_chains)

    def _agrees(self, answer: Answer, group: Sequence[Answer]) -> bool:
        units = {other.unit for other in group} | {answer.unit}
        if answer.key == group[0].key:
            return len(units - {""}) <= 1
        if units != {""} or not (answer.is_expression or group[0].is_expression):
            return False
        return self.is_same(strip_assignment(answer.shown), strip_assignment(group[0].shown))


def is_expected(vote: Vote, expected: str, is_same: IsSame) -> bool:
    """Whether the majority's answer is the expected one, however that is written."""
    if not vote.groups:
        return False
    ballot = Ballot(is_same, [list(vote.groups[0].answers)])
    ballot.put(normalize_answer(expected))
    return len(ballot.groups) == 1


def extract_answer(text: str) -> str:
    r"""Find the answer in what a model wrote.

    Args:
        text: Its answer, without its thinking.

    Returns:
        What is in the last \boxed, or behind the last "Answer:", or a lone letter of a choice on
        the last line, or the last number; empty if there is none of these.
    """
    for find in (_find_boxed, _find_labelled, _find_choice, _find_number):
        if found := find(text).strip():
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
    lists = [_split_list(_strip_markup(strip_assignment(each.shown))) for each in (one, other)]
    if max(map(len, lists)) > 1:
        return _match_lists(lists[0], lists[1], _is_bracketed(_strip_markup(other.shown)), compare)
    if one.is_expression or other.is_expression:
        return compare(*(strip_assignment(each.shown) for each in (one, other)))
    kinds = {answer.key.partition(" ")[0] for answer in (one, other)}
    return False if kinds in ({"number"}, {"choice"}) else None


def _match_lists(
    given: Sequence[str],
    expected: Sequence[str],
    is_ordered: bool,
    compare: Callable[[str, str], bool | None],
) -> bool | None:
    """Find each member of one list in the other."""
    if any(normalize_answer(part).key.startswith("text ") for part in given):
        return None
    if len(given) != len(expected):
        return False
    rest, found = list(expected), []
    for part in given:
        told = [is_same_answer(part, each, compare) for each in (rest[:1] if is_ordered else rest)]
        found.append(True if True in told else None if None in told else False)
        rest.pop(told.index(True) if True in told else 0)
    return False if False in found else None if None in found else True


def _find_boxed(text: str) -> str:
    for match in reversed(list(_BOXED.finditer(text))):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            step = text[at]
            at += 2 if step == "\\" else 1
            depth += (step == "{") - (step == "}")
        if not depth:
            return text[match.end() : at - 1]
    return ""


def _find_labelled(text: str) -> str:
    labels = [match for match in _LABEL.finditer(text) if _FIRM_LABEL.search(match[0])]
    if not labels:
        return ""
    rest = labels[-1]["rest"].strip().strip("*_ ").removesuffix(".").strip()
    if re.search(r"\s[A-Za-z]{2,}\s+[A-Za-z]{2,}\s", f" {rest} "):  # a sentence: its last number
        return _find_formula(rest) or _find_number(rest) or rest
    return rest


def _find_formula(text: str) -> str:
    found = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", text)
    return next((part for pair in found[-1:] for part in pair if part), "")


def _find_choice(text: str) -> str:
    match = _LONE_CHOICE.search(text.rstrip().strip("*_"))
    return match[1] if match else ""


def _find_number(text: str) -> str:
    found = _LAST_NUMBER.findall(text.replace("$", " "))
    return found[-1] if found else ""


def normalize_answer(text: str) -> Answer:
    r"""Bring an answer into a form in which equal ones are equal.

    1,000 = 1000 = 1e3; 1/2 = \frac{1}{2} = 0.5 = 50 %; "x = 3" = 3; (B) = B; units stay.

    Args:
        text: What `extract_answer` found.
    """
    shown = _strip_delimiters(text)
    plain = _strip_markup(strip_assignment(shown))
    if choice := _read_choice(plain):
        return Answer(shown, f"choice {choice}")
    if quantity := _read_quantity(plain):
        value, unit = quantity
        return Answer(shown, f"number {value}", unit)
    parts = _split_list(plain)
    if len(parts) > 1:
        return Answer(shown, _join_list(plain, parts), is_expression=False)
    try:
        value_or_none = evaluate_exactly(parse_expression(strip_assignment(shown)))
    except Unreadable:
        return Answer(shown, "text " + re.sub(r"\s+", " ", plain).casefold().rstrip("."))
    if value_or_none is not None:
        return Answer(shown, f"number {value_or_none}")
    return Answer(shown, "expression " + re.sub(r"\s+", "", plain), is_expression=True)


def strip_assignment(text: str) -> str:
    """Leave out the name in "x = 3"."""
    match = _ASSIGNED.match(text)
    rest = text[match.end() :] if match else text
    return rest if match and "=" not in rest else text


def _strip_delimiters(text: str) -> str:
    text = text.strip().strip("*_").strip().removesuffix(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inside = text.removeprefix(opening).removesuffix(closing)
        if len(inside) == len(text) - len(opening) - len(closing) and opening not in inside:
            return inside.strip()
    return text


def _strip_markup(text: str) -> str:
    """Take off commands that change only the looks, and write LaTeX's spaces as spaces."""
    while (inner := _WRAPPED.sub(r" \1 ", text)) != text:
        text = inner
    text = re.sub(r"(?<=\d)(?:\\[,!]|\{,\})(?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[,;:! ]|~", " ", text)
    text = _SMALL_FRACTION.sub(r"\1\3/\2\4", text)
    text = text.replace(r"\%", "%").replace(r"\$", "$").replace("^{\\circ}", "°")
    return text.replace(r"^\circ", "°").replace("\\dfrac", "\\frac").replace("−", "-").strip()


def _read_choice(text: str) -> str:
    match = _CHOICE.fullmatch(text)
    if not match:
        return ""
    is_bare = len(text) == 1 and text.isupper()
    has_signs = bool(
        re.match(r"(?:(?:option|choice)\s*\(?[A-J]\b|\([A-J]\)|[A-J][.:)])", text, re.I)
    )
    return match[1].upper() if is_bare or has_signs else ""


def _read_quantity(text: str) -> tuple[Fraction, str] | None:
    is_percent = text.endswith("%")
    match = _QUANTITY.fullmatch(text.removesuffix("%").strip())
    if not match:
        return None
    number = match["number"].replace(",", "").replace("−", "-").replace(" ", "")
    try:
        value = Fraction(number) if _is_modest(number) else None
    except (ValueError, ZeroDivisionError):
        return None
    if value is None:
        return None
    unit = _name_unit((match["unit"] or _MONEY.get(match["sign"] or "", "")).strip())
    if is_percent or unit == "%":
        return value / 100, ""
    return value, unit


def _is_modest(number: str) -> bool:
    """Whether a number is written out in few digits: 1e999999 is not."""
    exponent = re.search(r"[eE]([-+]?\d+)", number)
    return len(number) < 200 and (not exponent or abs(int(exponent[1])) < 400)


def _name_unit(unit: str) -> str:
    unit = re.sub(r"\s+", " ", unit.rstrip(".")).replace("^2", "²").replace("^3", "³")
    return _MONEY.get(unit) or _UNIT_NAMES.get(unit.casefold(), unit)


def _split_list(text: str) -> list[str]:
    """Cut a list at its commas, not at those inside brackets."""
    braced = _SET.fullmatch(text)
    inside = braced[1] if braced else text[1:-1] if _is_bracketed(text) else text
    inside = re.sub(r"\s+(?:and|or)\s+", ",", inside)
    parts, depth, start = [], 0, 0
    for at, character in enumerate(inside):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ",;":
            parts.append(inside[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, inside[start:]) if part.strip()]


def _is_bracketed(text: str) -> bool:
    return text[:1] in "([" and text[-1:] in ")]" and text.count("(") + text.count("[") == 1


def _join_list(text: str, parts: Sequence[str]) -> str:
    """Name a list by its members; only in round or square brackets does their order matter."""
    keys = [normalize_answer(part).key for part in parts]
    if _is_bracketed(text):
        return f"list {text[0]}{'; '.join(keys)}{text[-1]}"
    return "set " + "; ".join(sorted(set(keys)))
