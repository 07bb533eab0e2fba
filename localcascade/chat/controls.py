"""Text of a model, a file or a person, made safe to put on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

TAB_CELLS = 4
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_ENDS = (0x2028, 0x2029, 0x85)


def make_safe(text: str) -> str:
    """Take from a text what a terminal would obey.

    Control characters are shown as pictures of themselves, marks that turn the writing direction
    as their numbers; those of C1, invisible tags and private planes, which are our own marks, as
    the replacement character.

    Args:
        text: Any text; a part of one at a time is fine too.

    Returns:
        Text whose only control character is the newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_read_replacements())


@cache
def _read_replacements() -> Mapping[int, str]:
    table = _Replacements({at: chr(0x2400 + at) for at in range(0x20)})
    table |= dict.fromkeys(range(128, 160), "�")
    table |= {at: f"⟨U+{at:04X}⟩" for at in _DIRECTIONS}
    table |= dict.fromkeys(_LINE_ENDS, "\n")
    table |= {ord("\n"): "\n", ord("\t"): " " * TAB_CELLS, ord("\r"): "", 0x7F: "\u2421"}
    table |= {0xFEFF: "", 0xFFF9: "", 0xFFFA: "", 0xFFFB: ""}
    return table


class _Replacements(dict[int, str]):
    """Also answers for the planes above 13, without a row for each of their characters."""

    def __missing__(self, code: int) -> str:
        if code >= 0xE0000 and not 0xE0100 <= code <= 0xE01EF:
            return "\ufffd"
        raise LookupError(code)
