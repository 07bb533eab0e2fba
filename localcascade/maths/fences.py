"""Which brackets of a row belong together, so that they can grow with what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pylatexenc.latexwalker import LatexMacroNode

from localcascade.maths.errors import LayoutError
from localcascade.maths.grammar import Item, is_blank
from localcascade.maths.symbols import read_symbols

_LEFT = frozenset(("left", "bigl", "Bigl", "biggl", "Biggl"))
_RIGHT = frozenset(("right", "bigr", "Bigr", "biggr", "Biggr"))


@dataclass(frozen=True, slots=True)
class Fence:
    """A pair of brackets, and the signs between them that grow too."""

    signs: tuple[Item, ...]
    """The bracket on the left, each \\middle sign, the bracket on the right."""

    parts: tuple[tuple[int, int], ...]
    """Start and stop of the items between two signs."""

    after: int
    """Index of the first item behind the pair."""


@dataclass(slots=True)
class _Open:
    start: int
    signs: list[Item]
    starts: list[int]
    stops: list[int]
    is_left: bool
    must_close: bool


def name_of(item: Item) -> str:
    """The name of a command, without its backslash; empty for anything else."""
    return str(item.macroname) if isinstance(item, LatexMacroNode) else ""


def sign_of(item: Item) -> str:
    """The character that an item is; empty for anything but a character."""
    return item if isinstance(item, str) else ""


def match_fences(items: Sequence[Item]) -> dict[int, Fence]:
    """Find the pairs of brackets of a row.

    Args:
        items: The row.

    Returns:
        Index of the item that opens a pair -> the pair. \\left goes with \\right, \\bigl with
        \\bigr, any other opening bracket with any closing one; what has no partner is left out.

    Raises:
        LayoutError: A \\left or \\right has no partner.
    """
    fences: dict[int, Fence] = {}
    stack: list[_Open] = []
    at = 0
    while at < len(items):
        step = _read_fence(items, at, stack, fences)
        at += step
    if any(entry.must_close for entry in stack):
        raise LayoutError("\\left has no \\right")
    return fences


def _read_fence(
    items: Sequence[Item], at: int, stack: list[_Open], fences: dict[int, Fence]
) -> int:
    """Look at one item; returns how many items it took."""
    item = items[at]
    name = name_of(item)
    if name in _LEFT or name in _RIGHT or name == "middle":
        sign_at = _find_sign(items, at + 1, name)
        if name in _LEFT:
            start = sign_at + 1
            stack.append(_Open(at, [items[sign_at]], [start], [], True, name == "left"))
        elif name == "middle":
            _divide(stack, items[sign_at], at, sign_at + 1)
        else:
            _close(stack, fences, items[sign_at], at, sign_at + 1, name)
        return sign_at + 1 - at
    kind = _find_kind(item, name)
    if kind == "open":
        stack.append(_Open(at, [item], [at + 1], [], False, False))
    elif kind == "close" and stack and not stack[-1].is_left:
        _finish(stack.pop(), fences, item, at, at + 1)
    return 1


def _find_sign(items: Sequence[Item], at: int, name: str) -> int:
    while at < len(items) and is_blank(items[at]):
        at += 1
    if at == len(items):
        raise LayoutError(f"\\{name} has no bracket")
    return at


def _find_kind(item: Item, name: str) -> str:
    text = name or sign_of(item)
    if text in ("!", "?"):
        return ""
    symbol = read_symbols().get(text)
    return symbol.kind if symbol else ""


def _divide(stack: list[_Open], sign: Item, at: int, start: int) -> None:
    while stack and not stack[-1].is_left:
        stack.pop()
    if not stack:
        raise LayoutError("\\middle stands outside \\left and \\right")
    stack[-1].signs.append(sign)
    stack[-1].stops.append(at)
    stack[-1].starts.append(start)


def _close(
    stack: list[_Open], fences: dict[int, Fence], sign: Item, at: int, after: int, name: str
) -> None:
    while stack and not stack[-1].is_left:
        stack.pop()
    if stack:
        _finish(stack.pop(), fences, sign, at, after)
    elif name == "right":
        raise LayoutError("\\right has no \\left")


def _finish(entry: _Open, fences: dict[int, Fence], sign: Item, at: int, after: int) -> None:
    parts = tuple(zip(entry.starts, [*entry.stops, at], strict=True))
    fences[entry.start] = Fence((*entry.signs, sign), parts, after)
