"""Markdown in lines of a terminal, held against what it must look like and against streaming."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from localcascade.chat.blocks import BlockSplitter
from localcascade.chat.card import FOLD_LINES, TAIL_LINES, Card, Live
from localcascade.chat.controls import make_safe
from localcascade.chat.conversation import Message
from localcascade.chat.lines import PlainText, Span, mark_line, measure_line, read_text, wrap_text
from localcascade.chat.markdown import Look, Page, draw_markdown
from localcascade.chat.outline import find_step
from localcascade.maths import layout
from tests.localcascade.test_chat_blocks import LINES

LOOK = Look(40)


def draw(text: str, look: Look = LOOK) -> str:
    return "\n".join(line.rstrip() for line in read_text(draw_markdown(text, look)).split("\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Head\ntext", "Head\n\ntext"),
        ("1. a\n2. b\n   - c\n", "1. a\n2. b\n   ◦ c"),
        ("- a\n\n- b\n", "• a\n\n• b"),
        ("3. a\n3. b\n3. c\n", "3. a\n4. b\n5. c"),
        ("> a\n> b\n", "▌ a b"),
        ("```\nx  y\n```", "  x  y"),
        ("a [b](http://c) d", "a b (http://c) d"),
        ("<http://c>", "http://c"),
        ("a [b][1]\n\n[1]: http://c\n[2]: http://d", "a [b][1]\n\n[1]: http://c\n[2]: http://d"),
        ("- a[^1]\n\n> [^1]: why\n> [^2]: how", "• a[^1]\n\n▌ [^1]: why\n▌ [^2]: how"),
        ("a\\\nb", "a\nb"),
        ("<b>x</b>", "<b>x</b>"),
        ("| a | bb |\n|--:|:--|\n| 1 | 2 |\n", "a  bb\n─  ──\n1  2"),
        ("x $\\frac{1}{2}$ y", "x 1/2 y"),
        ("it costs $5 and $6", "it costs $5 and $6"),
        ("`$x$`", "$x$"),
        ("word " * 12, "word word word word word word word word\nword word word word"),
    ],
)
def test_markdown_looks_like_this(text: str, expected: str) -> None:
    assert draw(text) == expected


def test_a_formula_of_several_lines_stands_in_its_paragraph() -> None:
    formula = r"\sum_{k=1}^n \frac{1}{k}"
    box = layout(formula)
    lines = draw(f"so\n\n$${formula}$$\n\nis large").split("\n")
    drawn = [line.removeprefix("    ") for line in lines[2:-2]]
    assert drawn == [line.rstrip() for line in box.lines]
    assert draw(f"$${formula}$$", Look(40, shows_source=True)) == f"$${formula}$$"


def test_a_formula_without_a_layout_shows_its_source() -> None:
    assert draw(r"see $\unknowncommand{x}$ there") == r"see $\unknowncommand{x}$ there"


def test_a_formula_without_room_flows_as_text_where_nothing_scrolls() -> None:
    total = " + ".join(f"a_{{{number}}}" for number in range(20))
    look = Look(40, scrolls=False)
    lines = draw(rf"so $$x = {total} + \frac{{1}}{{2}}$$ is", look).split("\n")
    assert lines[0] == "so" and lines[1].startswith("x = a₀ + a₁ +") and lines[-1] == "is"
    assert lines[-2].endswith("a₁₉ + 1/2") and all(len(line) <= 40 for line in lines)
    table = rf"$$\begin{{pmatrix}} {total} \\ 1 \end{{pmatrix}}$$"
    assert draw(table, look).replace("\n", " ") == table
    assert draw(r"$$\frac{1}{2}$$", look) == draw(r"$$\frac{1}{2}$$")


def test_columns_share_a_line_that_is_too_short() -> None:
    row = "| " + "long words " * 6 + "| short |\n"
    lines = draw("| a | b |\n|---|---|\n" + row).split("\n")
    assert all(len(line) <= LOOK.width for line in lines)
    assert re.sub(r"\s+", " ", " ".join(lines[2:])).count("long words") >= 5


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=12), st.integers(1, 25))
@example(["```py", "```", "[x]: /url", "word", "[x]: /url"], 1)
@example(["[x]", "", "[x]: /url", "", "[x]"], 1)
@example(["# [x]", "[x]:", "/url", "word"], 1)
@example(["- [x]: /url", "- [x]", "", "> [x]: /url", "[x]"], 1)
def test_streaming_draws_what_the_whole_draws(lines: list[str], n_characters: int) -> None:
    text = "\n".join(lines)
    splitter, page = BlockSplitter(), Page(LOOK)
    for at in range(0, len(text), n_characters):
        for piece in splitter.feed(text[at : at + n_characters]):
            page.add(piece)
    for piece in splitter.finish():
        page.add(piece)
    assert page.lines == draw_markdown(text, LOOK)


@settings(max_examples=200, deadline=None)
@given(st.text("ab 漢字é\n", max_size=200), st.integers(2, 30), st.integers(1, 9))
def test_plain_text_keeps_its_words_and_its_width(text: str, width: int, n_fed: int) -> None:
    lines = wrap_text(text, width)
    assert all(measure_line(line) <= width for line in lines)
    assert "".join(read_text(lines).split()) == "".join(text.split())
    growing = PlainText(width)
    for at in range(0, len(text), n_fed):
        growing.feed(text[at : at + n_fed])
    assert "".join(read_text(growing.lines).split()) == "".join(text.split())
    assert all(measure_line(line) <= width + 1 for line in growing.lines)


def test_marks_go_over_spans() -> None:
    line = mark_line((Span("abc"), Span("def", "em")), 2, 5, "match")
    assert line == (Span("ab"), Span("c", " match"), Span("de", "em match"), Span("f", "em"))


@given(st.text(max_size=300))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    safe = make_safe(text)
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", safe
    )
    assert not any(ord(c) >= 0xF0000 for c in safe)


def test_safe_text_tells_what_was_there() -> None:
    assert make_safe("a\x1b[2Jb\u202ec\tд漢👩\u200d💻\r\n") == "a␛[2Jb⟨U+202E⟩c    д漢👩\u200d💻\n"


@pytest.mark.parametrize(
    ("thinking", "step"),
    [
        ("First.\n\n## Check the sum\nbut then", "Check the sum"),
        ("1. Add both\nso we", "1. Add both"),
        ("It is even. So it is not prime. And the", "So it is not prime."),
        ("**Step one**: go\nyes", "Step one: go"),
        ("", ""),
    ],
)
def test_the_step_is_the_last_that_is_complete(thinking: str, step: str) -> None:
    assert find_step(thinking) == step


def write(card: Card) -> str:
    return "\n".join(line.rstrip() for line in read_text(card.lines).split("\n"))


def test_a_card_grows_as_its_message_does() -> None:
    message = Message("1", None, "assistant", state="streaming")
    card = Card(message, (1, 1), LOOK)
    card.take(message, Live(waiting="Reading 5 of 9 tokens"))
    assert write(card) == "Reading 5 of 9 tokens\n"
    parts = ["# A\n\nte", "xt\n\n```py\nx = ", "1\n", "```\n\n- one\n- tw", "o\n"]
    text = ""
    for part in parts:
        text += part
        card.take(Message("1", None, "assistant", text, state="streaming"))
    assert write(card) == "A\n\ntext\n\n  x = 1\n\n• one\n- two\n"
    card.take(Message("1", None, "assistant", text))
    assert write(card) == draw(text) + "\n"


def test_a_card_shows_thinking_in_three_ways() -> None:
    thinking = "".join(f"line {n}\n" for n in range(20))
    card = Card(Message("1", None, "assistant", "end", thinking), (2, 3), LOOK)
    assert write(card).startswith("▸ Thought")
    assert write(card).endswith("\n\nend\n\n‹ 2/3 ›\n")
    card.set_view("tail")
    assert write(card).count("│") == TAIL_LINES
    card.set_view("all")
    assert "│ line 0\n│ line 1\n" in write(card)


def test_a_long_question_is_folded() -> None:
    card = Card(Message("1", None, "user", "a\n\n" * 40), (1, 1), LOOK)
    assert write(card).count("\n") == FOLD_LINES + 1
    assert "… 55 more lines" in write(card)
    card.set_view("all")
    assert write(card).count("a") == 40


def test_wide_characters_count_two_cells() -> None:
    lines = draw("漢字" * 30).split("\n")
    assert [cell_len(line) for line in lines] == [40, 40, 40]
