"""What single operations of a chat template cost, known before they are carried out.

Units are those of `meter`. Each function returns an upper bound, or refuses what no template needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

from localcascade.prompt.meter import ELEMENT, measure_span

MAX_INT_BITS = 4096
MAX_WIDTH = 1000
"""Characters of padding, indentation or precision that one operation may ask for."""
MAX_DIGITS = 30
_NAIVE_METHODS = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
_PLAIN_FIELD = re.compile(r"%[-+ #0]{0,5}\d{0,3}(?:\.\d{0,3})?[sdifeEgGxXorc]")


def cost_of_operator(operator: str, left: Any, right: Any) -> int:
    """Units of a binary operator.

    Args:
        operator: As Jinja spells it.
        left: Any value.
        right: Any value.

    Returns:
        The size of the result, where it may be large.

    Raises:
        SecurityError: A number is absurd, or `%` formats with more than plain fields.
    """
    for value in (left, right):
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise SecurityError(f"a number has more than {MAX_INT_BITS} bits")
    cost = _OPERATORS.get(operator)
    return cost(left, right) if cost else 0


def cost_of_method(name: str, text: str, arguments: Sequence[Any]) -> int:
    """Units of a method of a string.

    Args:
        name: The method, one of those a template may call.
        text: The string it belongs to.
        arguments: What it is given, by position or by name.

    Returns:
        The size of the result and the work of the search.
    """
    strings = [value for value in arguments if isinstance(value, str)]
    if name == "join":
        return sum(_cost_of_joining(text, value) for value in arguments)
    if name == "replace":
        return _cost_of_replacing(text, strings)
    units = len(text) + sum(map(len, strings))
    if name in ("split", "rsplit", "splitlines"):
        units += ELEMENT * _count_pieces(text, strings, arguments)
    if name in _NAIVE_METHODS:
        # Their search is naive: the product is its worst case.
        units += len(text) * max(map(len, strings), default=0)
    return units


def cost_of_filter(name: str, value: Any, arguments: Sequence[Any]) -> int:
    """Units of what a filter makes beyond its input; 0 for most.

    Args:
        name: The filter, one of those a template may use.
        value: What it is applied to.
        arguments: What it is given besides, by position or by name.

    Returns:
        The size of the result.

    Raises:
        SecurityError: It is asked for an absurd width, or for what it is not made for.
    """
    cost = _FILTERS.get(name)
    return cost(value, arguments) if cost else 0


def check_json_layout(value: object, indent: object, separators: object) -> None:
    """Refuse to write JSON with more blanks than content.

    Args:
        value: What is to be written; already paid for.
        indent: As json.dumps takes it.
        separators: As json.dumps takes it.

    Raises:
        SecurityError: The indentation of the innermost line, or a separator, is absurd.
    """
    width = len(indent) if isinstance(indent, str) else indent
    if isinstance(width, int) and max(width, 1) * _measure_depth(value) > MAX_WIDTH:
        raise SecurityError(f"tojson would indent by more than {MAX_WIDTH}")
    parts = separators if isinstance(separators, list | tuple) else ()
    if any(isinstance(part, str) and len(part) > MAX_DIGITS for part in parts):
        raise SecurityError(f"tojson takes separators of at most {MAX_DIGITS} characters")


def _measure_depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        holders = [item for item in level if isinstance(item, list | tuple | dict)]
        level = [
            item for held in holders for item in (held.values() if isinstance(held, dict) else held)
        ]
    return depth


def _cost_of_sum(left: Any, right: Any) -> int:
    return measure_span(left) + measure_span(right)


def _cost_of_product(left: Any, right: Any) -> int:
    if isinstance(left, int):
        left, right = right, left
    return measure_span(left) * max(right, 0) if isinstance(right, int) else 0


def _cost_of_power(left: Any, right: Any) -> int:
    integers = isinstance(left, int) and isinstance(right, int)
    if integers and right * left.bit_length() > MAX_INT_BITS:
        raise SecurityError(f"a number would have more than {MAX_INT_BITS} bits")
    return 0


def _cost_of_formatting(left: Any, _right: Any) -> int:
    if not isinstance(left, str):
        return 0
    form = left.replace("%%", "")
    if len(_PLAIN_FIELD.findall(form)) != form.count("%"):
        raise SecurityError("% takes only plain fields such as %s and %5d")
    return len(left) + form.count("%") * MAX_WIDTH


def _cost_of_joining(separator: str, value: Any) -> int:
    if not isinstance(value, Collection):
        return 0
    pieces = () if isinstance(value, str | range) else value
    lengths = (len(piece) for piece in pieces if isinstance(piece, str))
    return sum(lengths) + len(value) * (len(separator) + ELEMENT)


def _cost_of_replacing(text: str, strings: Sequence[str]) -> int:
    if len(strings) < 2:
        return len(text)
    return len(text) + text.count(strings[0]) * len(strings[1])


def _count_pieces(text: str, strings: Sequence[str], arguments: Sequence[Any]) -> int:
    limits = [value + 1 for value in arguments if type(value) is int and value >= 0]
    most = text.count(strings[0]) + 1 if strings else len(text) // 2 + 1
    return min([most, *limits])


def _cost_of_indent(value: Any, arguments: Sequence[Any]) -> int:
    widths = [len(item) if isinstance(item, str) else int(item) for item in arguments]
    width = max(widths, default=4)
    if width > MAX_WIDTH:
        raise SecurityError(f"indent by {width}")
    return len(str(value).splitlines()) * max(width, 0)


def _cost_of_join(value: Any, arguments: Sequence[Any]) -> int:
    longest = max((str(item) for item in arguments), key=len, default="")
    return _cost_of_joining(longest, value)


def _cost_of_replace(value: Any, arguments: Sequence[Any]) -> int:
    return _cost_of_replacing(str(value), [str(item) for item in arguments])


def _cost_of_trim(value: Any, arguments: Sequence[Any]) -> int:
    return cost_of_method("strip", str(value), arguments)


def _cost_of_round(value: Any, arguments: Sequence[Any]) -> int:
    precise = any(isinstance(item, int) and abs(item) > MAX_DIGITS for item in arguments)
    if precise or not isinstance(value, int | float):
        raise SecurityError(f"round takes a number and at most {MAX_DIGITS} digits")
    return 0


def _cost_of_total(_value: Any, arguments: Sequence[Any]) -> int:
    if any(isinstance(item, list | tuple) for item in arguments):
        raise SecurityError("sum adds numbers only")
    return 0


def _cost_of_int(value: Any, _arguments: Sequence[Any]) -> int:
    if isinstance(value, str) and len(value) > MAX_WIDTH:
        raise SecurityError(f"int takes at most {MAX_WIDTH} digits")
    return 0


def _cost_of_list(value: Any, _arguments: Sequence[Any]) -> int:
    return len(value) * ELEMENT if isinstance(value, str) else 0


_OPERATORS: Mapping[str, Callable[[Any, Any], int]] = {
    "+": _cost_of_sum,
    "*": _cost_of_product,
    "**": _cost_of_power,
    "%": _cost_of_formatting,
}
_FILTERS: Mapping[str, Callable[[Any, Sequence[Any]], int]] = {
    "indent": _cost_of_indent,
    "int": _cost_of_int,
    "join": _cost_of_join,
    "list": _cost_of_list,
    "replace": _cost_of_replace,
    "round": _cost_of_round,
    "sum": _cost_of_total,
    "trim": _cost_of_trim,
}
