"""Finding formulas in Markdown: what is maths, what is money, what is code."""

from __future__ import annotations

import random

import pytest

from localcascade.maths import Segment, find
from tests.soak import sample


def list_formulas(text: str, *, streaming: bool = False) -> list[tuple[str, bool]]:
    """The formulas of a text, each with whether it stands on its own lines."""
    return [(s.latex, s.display) for s in find(text, streaming=streaming) if s.is_maths]


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("Let $x = 2$ be.", [("x = 2", False)]),
        ("$a$ and $b$", [("a", False), ("b", False)]),
        ("$$x^2$$", [("x^2", True)]),
        ("$$\nx^2\n\n+1\n$$", [("x^2\n\n+1", True)]),
        (r"so \(x+1\), or \[y\]", [("x+1", False), ("y", True)]),
        (r"the $n$th and $5$ and $2x$", [("n", False), ("5", False), ("2x", False)]),
        ("$5 + x$ is maths", [("5 + x", False)]),
        (r"$\$5 + \$6$", [(r"\$5 + \$6", False)]),
        ("$a\n+ b$", [("a\n+ b", False)]),
        ("($x$, $y$)", [("x", False), ("y", False)]),
        (
            "\\begin{align}\na &= b \\\\\n&= c\n\\end{align} end",
            [("\\begin{align}\na &= b \\\\\n&= c\n\\end{align}", True)],
        ),
        (
            r"\begin{matrix}\begin{matrix}a\end{matrix}\end{matrix}",
            [(r"\begin{matrix}\begin{matrix}a\end{matrix}\end{matrix}", True)],
        ),
        ("It costs $5. Then $x=1$.", [("x=1", False)]),
        ("`$` then $x$ then ``a`$b$``", [("x", False)]),
        ("```\n$a$\n```\n$b$", [("b", False)]),
        ("~~~~ text\n$a$\n~~~\n$b$\n~~~~\n$c$", [("c", False)]),
        ("an ` alone and $x$", [("x", False)]),
    ],
)
def test_formulas_are_found(text: str, formulas: list[tuple[str, bool]]) -> None:
    assert list_formulas(text) == formulas


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "costs $5, $10 or $20",
        "from $5-$10",
        "US$5 and A$10",
        "$5 million in cash$",
        r"\$x\$ is escaped",
        "set $HOME/$USER first",
        "an open $x with nothing behind",
        "a $ b $ c",
        "$ x$",
        "$a\n\nb$",
        "$$",
        "$$$$",
        "`$x$`",
        "```\n$$x$$\n",
        "    ```python\nprint('$x$')\n    ```",
        r"\\(not maths\\)",
        r"\begin{itemize} a \end{itemize}",
        r"\begin{align} a",
    ],
)
def test_what_is_not_maths_is_left_alone(text: str) -> None:
    assert find(text) == [Segment(text)]


@pytest.mark.parametrize(
    ("text", "latex", "display"),
    [
        (r"so $\frac{1}{", r"\frac{1}{", False),
        ("so $$x +", "x +", True),
        (r"so \[ x", " x", True),
        (r"so \(x", "x", False),
        (r"so \begin{align} a &= b", r"\begin{align} a &= b", True),
    ],
)
def test_while_streaming_the_text_may_end_in_a_formula(
    text: str, latex: str, display: bool
) -> None:
    before, formula = find(text, streaming=True)
    assert before == Segment("so ")
    assert formula == Segment(text[3:], latex, True, display, False)
    assert find(text) == [Segment(text)]


@pytest.mark.parametrize("text", ["it costs $5", "it costs $", "it costs $5 or", "$a\n\nb", "`$x"])
def test_while_streaming_money_is_still_money(text: str) -> None:
    assert not [s for s in find(text, streaming=True) if s.is_maths and s.latex[:1].isdigit()]
    assert [s.latex for s in find(text, streaming=True)][:1] != ["5"]


PIECES = [
    "$", "$$", "\\", r"\(", r"\)", r"\[", r"\]", "`", "```", "\n", "\n\n", " ", "x", "5", "{", "}",
    r"\begin{align}", r"\end{align}", r"\begin{cases}", r"\end{cases}", "~~~", "> ", "面", "\x1b",
]  # fmt: skip


@pytest.mark.parametrize("seed", sample(range(2_000), 300))
@pytest.mark.parametrize("streaming", [False, True])
def test_the_sources_of_the_segments_are_the_text(seed: int, streaming: bool) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choices(PIECES, k=1 + seed % 60))
    segments = find(text, streaming=streaming)
    assert "".join(segment.source for segment in segments) == text
    assert all(segment.source for segment in segments)
    assert all(segment.closed for segment in segments[:-1])
    assert all(segment.latex in segment.source for segment in segments)


@pytest.mark.parametrize("piece", ["$ ", "$x ", r"\(", r"\[", "$$", r"\begin{align}", "```\n", "`"])
def test_a_megabyte_of_openings_is_read_whole(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    assert "".join(segment.source for segment in find(text)) == text
