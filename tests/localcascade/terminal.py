"""What a terminal shows after the bytes that it was sent; only the codes that we use."""

from __future__ import annotations

import re

_CODE = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|(\r\n|\n)|(\r)|([^\x1b\r\n]+)")


def replay(text: str) -> list[str]:
    """The lines of the screen, colours left out and blanks at their ends too."""
    lines, row, column = [""], 0, 0
    for match in _CODE.finditer(text):
        count, code, newline, home, words = match.groups()
        if newline:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif home:
            column = 0
        elif words:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + words + line[column + len(words) :]
            column += len(words)
        elif code == "A":
            row = row - int(count or 1)
            assert row >= 0
        elif code == "J":
            lines[row] = lines[row][:column]
            del lines[row + 1 :]
        else:
            assert code == "m", f"an unexpected code: {match[0]!r}"
    return [line.rstrip() for line in lines]
