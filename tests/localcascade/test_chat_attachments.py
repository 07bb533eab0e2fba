"""Files in a message: what is taken, and that nothing in a file can leave its fence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from localcascade.chat.attachments import (
    MAX_TOKEN_BYTES,
    Attachment,
    AttachmentRefused,
    decode_text,
    estimate_tokens,
    make_attachment,
    measure_attachment,
    write_attachment,
    write_code_span,
    write_message,
)

TEXT = st.text(st.sampled_from("`~# \n\tab<>*_[](){}-=é漢"), min_size=1, max_size=60)
NAME = st.text(st.sampled_from("`*_ab./\n\r\x1b[]$# "), min_size=1, max_size=20)


@given(TEXT, NAME)
def test_a_markdown_parser_finds_the_file_whole_and_alone(text: str, name: str) -> None:
    source = write_message("# The end", [Attachment(name, text, 0, 0)])
    tokens = MarkdownIt().parse(source)
    fences = [token for token in tokens if token.type == "fence"]
    ended = text if text.endswith("\n") else text + "\n"
    assert [fence.content for fence in fences] == [ended]
    kinds = [token.type for token in tokens if token.level == 0 and token.nesting >= 0]
    assert kinds == ["paragraph_open", "fence", "heading_open"]


@given(NAME)
def test_a_name_is_one_span_of_code(name: str) -> None:
    tokens = MarkdownIt().parse(f"File {write_code_span(name)}:")
    spans = [child for child in tokens[1].children or () if child.type == "code_inline"]
    shown = "".join(char if char.isprintable() else "�" for char in name)
    assert len(spans) == 1 and spans[0].content.strip() == shown.strip()


@pytest.mark.parametrize(
    ("path", "language"),
    [("a.py", "python"), ("a/b.RS", "rust"), ("c.toml", "toml"), ("Makefile", ""), ("x.a b", "")],
)
def test_the_language_is_told(path: str, language: str) -> None:
    assert write_attachment(Attachment(path, "x", 1, 1)).splitlines()[2] == f"```{language}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc", "a\nb\nc"),
        (b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9fe", "grüße"),
        ("Ω\n".encode("utf-16"), "Ω\n"),
        ("Ω".encode("utf-16-be").join([b"\xfe\xff", b""]), "Ω"),
    ],
)
def test_text_is_read_in_the_encodings_of_text(data: bytes, text: str) -> None:
    assert decode_text("x", data) == text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF\x03\x00\x00\x00", "character 5 is a zero"),
        (b"caf\xe9 au lait", "byte 3 is not UTF-8"),
        (b" \n\t", "empty"),
        (b"", "empty"),
        (b"x" * (100 * MAX_TOKEN_BYTES + 1), "more than 1,600 bytes"),
        (b"word " * 101, "101 tokens, where 100"),
    ],
)
def test_what_is_no_text_or_too_much_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(AttachmentRefused, match=words) as refused:
        make_attachment("notes.txt", data, 100, lambda text: text.count(" "))
    assert refused.value.message.startswith("notes.txt")


def test_an_attachment_knows_its_size() -> None:
    taken = make_attachment("a.txt", "äöü\r\n".encode(), 100, len)
    assert taken == Attachment("a.txt", "äöü\n", 8, 4)


def test_the_estimate_is_above_what_a_tokenizer_counts() -> None:
    # 9 tokens with the tokenizer of GPT-4, whose vocabulary is of the same size as Nemotron's.
    assert 9 <= estimate_tokens("The quick brown fox jumps over the lazy dog") <= 18
    assert estimate_tokens("") == 0


def test_an_estimate_is_marked_until_somebody_counts() -> None:
    guessed = make_attachment("a.txt", b"four words are here", 100, lambda text: None)
    assert (guessed.n_tokens, guessed.is_estimate) == (estimate_tokens(guessed.text), True)
    counted = measure_attachment(guessed, 4, lambda text: len(text.split()))
    assert (counted.n_tokens, counted.is_estimate) == (4, False)
    with pytest.raises(AttachmentRefused, match="4 tokens"):
        measure_attachment(guessed, 3, lambda text: len(text.split()))
    with pytest.raises(AttachmentRefused, match="about 6 tokens"):
        measure_attachment(guessed, 3, lambda text: None)
