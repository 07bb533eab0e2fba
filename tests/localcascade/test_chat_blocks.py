"""Markdown that streams: pieces against markdown-it's own reading of the whole text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from localcascade.chat.blocks import CODE_LINES, BlockSplitter, Piece

SOURCE = """
word|two words|# Head|- item|  - inner|  more|1. one|2. two|> quote|```py|```|~~~|    code|---|===|
* star|[x]: /url|[x]|[x]:|/url|**bold**|+|2) two|<div>|\t- tab|10. ten
"""
LINES = st.sampled_from([*SOURCE.replace("\n", "").split("|"), "", "| a | b |", "|---|---|"])


def split(text: str, n_characters: int) -> list[Piece]:
    """Feed a text in parts of a size."""
    splitter = BlockSplitter()
    pieces = []
    for at in range(0, len(text), n_characters):
        pieces += splitter.feed(text[at : at + n_characters])
        assert "".join(p.text for p in pieces) + splitter.open == text[: at + n_characters]
    return pieces + splitter.finish()


def read_starts(text: str) -> list[int]:
    """First line of each block of the top level, as markdown-it finds them in the whole text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable("reference")
    return [t.map[0] for t in parser.parse(text) if t.map and t.level == 0 and t.nesting >= 0]


def find_piece_starts(pieces: list[Piece]) -> list[int]:
    """First line with text of each piece that begins a block."""
    starts, n_lines = [], 0
    for piece in pieces:
        lines = piece.text.split("\n")
        blank = next((i for i, line in enumerate(lines) if line.strip()), None)
        if not piece.continues and blank is not None:
            starts.append(n_lines + blank)
        n_lines += len(lines) - 1
    return starts


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES, max_size=14), st.integers(1, 40))
def test_pieces_begin_where_markdown_its_blocks_begin(lines: list[str], n_characters: int) -> None:
    text = "\n".join(lines)
    pieces = split(text, n_characters)
    assert "".join(piece.text for piece in pieces) == text
    assert find_piece_starts(pieces) == read_starts(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=14), st.integers(1, 40), st.integers(1, 40))
def test_the_size_of_what_is_fed_does_not_matter(lines: list[str], one: int, other: int) -> None:
    text = "\n".join(lines)
    starts = [find_piece_starts(split(text, size)) for size in (one, other)]
    assert starts[0] == starts[1]


def test_a_long_list_is_handed_out_item_by_item() -> None:
    splitter = BlockSplitter()
    pieces = [splitter.feed(f"{n}. item {n}\n   - inner\n") for n in range(1, 6)]
    assert [len(p) for p in pieces] == [0, 1, 1, 1, 1]
    assert pieces[3][0].text == "3. item 3\n   - inner\n"
    assert splitter.open == "5. item 5\n   - inner\n"


def test_a_long_fence_is_handed_out_in_parts_that_are_code_by_themselves() -> None:
    text = "```python\n" + "x = '- no list'\n" * (2 * CODE_LINES + 7) + "```\nafter\n"
    pieces = split(text, 11)
    code = [MarkdownIt().parse(piece.markdown)[0] for piece in pieces[:3]]
    assert [(t.type, t.info, t.content.count("\n")) for t in code] == [
        ("fence", "python", CODE_LINES),
        ("fence", "python", CODE_LINES),
        ("fence", "python", 7),
    ]
    assert pieces[3].text == "after\n"


def test_a_long_table_is_handed_out_by_rows_with_its_header() -> None:
    text = "| a | b |\n|:--|--:|\n" + "".join(f"| {n} | x |\n" for n in range(40)) + "\nend\n"
    pieces = split(text, 5)
    parser = MarkdownIt("commonmark").enable("table")
    rows = [
        token.content
        for piece in pieces[:-1]
        for token in parser.parse(piece.markdown)
        if token.type == "inline" and token.content.isdigit()
    ]
    assert len(pieces) > 3
    assert rows == [str(n) for n in range(40)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(9, 30), st.sampled_from(["", "\n", "\n\n"]))
def test_what_follows_a_long_table_is_no_row_of_it(n: int, n_rows: int, gap: str) -> None:
    text = "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * n_rows + f"{gap}word\n\nend"
    pieces = split(text, n)
    parser = MarkdownIt("commonmark").enable("table")
    tokens = [token for piece in pieces for token in parser.parse(piece.markdown)]
    n_found = sum(t.type == "tr_open" for t in tokens) - sum(t.type == "thead_open" for t in tokens)
    assert n_found == n_rows + (not gap)  # without a blank line Markdown takes it for a row


def test_a_formula_is_never_cut() -> None:
    formula = "$$\na\n- b\n=\n\n# c\n$$"
    pieces = split(f"before\n\n{formula}\n\nafter\n", 3)
    assert [piece.text.strip() for piece in pieces] == ["before", formula, "after"]
    assert [p.text for p in split("- costs $5\n- or $6\n", 4)] == ["- costs $5\n", "- or $6\n"]


def test_a_dollar_that_never_closes_is_text_in_the_end() -> None:
    pieces = split("$$ x\n\n- a\n\n# b\n", 2)
    assert [piece.text.strip() for piece in pieces] == ["$$ x", "- a", "# b"]
