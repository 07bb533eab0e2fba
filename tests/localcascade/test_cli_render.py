"""An answer as Markdown on a terminal: finished once, the open block redrawn within the screen."""

from __future__ import annotations

import io
import re

import pytest

from localcascade.chat.lines import read_text
from localcascade.chat.markdown import Look, draw_markdown
from localcascade.cli import render
from localcascade.cli.render import MarkdownWriter
from tests.localcascade.terminal import replay

ANSWER = """# Sums

The sum is $\\frac{1}{2}$, and **bold** words; a long line that has to be broken somewhere here.

- one
- two with `code`

```python
for i in range(3):
    print(i)
```

$$x = \\frac{-b}{2a}$$

| a | b |
|---|---|
| 1 | 2 |

The end."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A screen of 40 columns and 10 lines; every piece is drawn."""
    for name, value in (("COLUMNS", "40"), ("LINES", "10"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(render, "REDRAWS_PER_S", 1e9)
    return Terminal()


def write(terminal: Terminal, text: str, n_characters: int) -> None:
    writer = MarkdownWriter(terminal)
    for at in range(0, len(text), n_characters):
        writer.feed(text[at : at + n_characters])
    writer.finish()


@pytest.mark.parametrize("n_characters", [1, 7, 1000])
def test_however_it_comes_the_screen_ends_as_if_set_at_once(
    terminal: Terminal, n_characters: int
) -> None:
    write(terminal, ANSWER, n_characters)
    at_once = read_text(draw_markdown(ANSWER, Look(39))).splitlines()
    assert replay(terminal.getvalue()) == [*(line.rstrip() for line in at_once), ""]


def test_never_more_is_taken_back_than_the_screen_shows(terminal: Terminal) -> None:
    write(terminal, "A paragraph without an end. " * 100, 9)
    moves = [int(n) for n in re.findall(r"\x1b\[(\d+)A", terminal.getvalue())]
    assert max(moves) == 8


def test_finished_blocks_are_written_once(terminal: Terminal) -> None:
    write(terminal, "First block.\n\nSecond block.\n\n" + "word " * 300, 5)
    last = terminal.getvalue().rindex("First block.")
    assert terminal.getvalue()[last:].count("word") > 600


def test_without_escape_codes_only_what_is_finished_is_written(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    writer = MarkdownWriter(terminal)
    writer.feed("**One**\n\nTw")
    assert terminal.getvalue() == ""  # the blank line may yet be followed by more of it
    writer.feed("o\n\nThree")
    assert terminal.getvalue() == "One\n"
    writer.finish()
    assert terminal.getvalue() == "One\n\nTwo\n\nThree\n"


def test_signs_of_the_model_cannot_steer_the_terminal(terminal: Terminal) -> None:
    write(terminal, "a\x1b[2Jb\U000f0000c", 100)
    assert replay(terminal.getvalue()) == ["a\\x1b[2Jb\ufffdc", ""]
