"""Which splitter of llama.cpp is chosen, and that a name stands for the regexes of real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantize.errors import CheckpointError, UnsupportedModel
from quantize.pretokenizer import (
    PRE_TOKENIZERS,
    choose_pre_tokenizer,
    find_split_token,
    has_joined_token,
    read_patterns,
    spell_bytes,
)

FILE = Path("tokenizer.json")
BYTES = spell_bytes()

REAL = {
    "granite-embed-multi-97m": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen35": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""As written in the tokenizer.json of Mistral Nemo, Llama 3, Qwen 2 and Qwen 3.5."""


def split_by(*regexes: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """Value of pre_tokenizer with these regexes."""
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
        for regex in regexes
    ]
    end = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, end]}


@pytest.mark.parametrize("name", REAL)
def test_regex_of_a_real_model_gives_its_splitter(name: str) -> None:
    for kept in ({}, {"behavior": "Removed", "invert": True}):
        patterns = read_patterns(FILE, split_by(REAL[name], **kept))
        assert choose_pre_tokenizer(FILE, patterns, True, BYTES, []).name == name


def test_bytelevel_alone_is_gpt2_and_digits_before_it_smollm() -> None:
    alone = {"type": "ByteLevel", "add_prefix_space": False}
    assert choose_pre_tokenizer(FILE, read_patterns(FILE, alone), False, BYTES, []).name == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    both = read_patterns(FILE, {"type": "Sequence", "pretokenizers": [digits, alone]})
    assert choose_pre_tokenizer(FILE, both, False, BYTES, []).name == "smollm"


def test_line_ends_may_be_written_as_such_or_escaped() -> None:
    plain = REAL["llama-bpe"].replace(r"\r", "\r").replace(r"\n", "\n")
    assert read_patterns(FILE, split_by(plain)) == (REAL["llama-bpe"],)


@pytest.mark.parametrize("token", ["12", "x42", "n't", "e\u0301'", "٣٤"])
def test_tokens_across_the_regex_s_boundaries_give_tekken_itself(token: str) -> None:
    spelled = "".join(BYTES[byte] for byte in token.encode())
    patterns = read_patterns(FILE, split_by(REAL["granite-embed-multi-97m"]))
    assert choose_pre_tokenizer(FILE, patterns, True, [*BYTES, spelled], []).name == "tekken"


def test_tokens_within_them_do_not() -> None:
    tokens = ["1", "'t", "(a", "一二", ";\n//", "don", "1'", " '"]
    assert not has_joined_token(["".join(BYTES[b] for b in token.encode()) for token in tokens])


def test_ignore_merges_decides_only_where_it_matters() -> None:
    built, unbuilt = [*BYTES, "ab", "abc"], [*BYTES, "ab", "abc", "abcd"]
    merges = [("a", "b"), ("ab", "c")]
    llama3 = (REAL["llama-bpe"],)
    assert choose_pre_tokenizer(FILE, llama3, False, built, merges).name == "llama-bpe"
    assert choose_pre_tokenizer(FILE, llama3, False, unbuilt, merges).name == "dbrx"
    assert choose_pre_tokenizer(FILE, llama3, True, unbuilt, merges).name == "llama-bpe"
    with pytest.raises(UnsupportedModel, match="abcd"):
        choose_pre_tokenizer(FILE, (REAL["qwen2"],), True, unbuilt, merges)


def test_merges_go_by_rank_then_from_the_left() -> None:
    assert find_split_token(["abc"], [("b", "c"), ("a", "b"), ("ab", "c")]) == "abc"
    assert find_split_token(["aaa"], [("a", "a"), ("aa", "a")]) is None
    assert find_split_token(["aaa"], [("a", "a"), ("a", "aa")]) == "aaa"


def test_unknown_regex_is_named_with_the_known_splitters() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        choose_pre_tokenizer(FILE, (r"\w+",), False, BYTES, [])
    assert r"\\w+" in caught.value.message
    assert all(known.name in caught.value.hint for known in PRE_TOKENIZERS)


def test_damaged_pre_tokenizer() -> None:
    with pytest.raises(CheckpointError, match="pre_tokenizer"):
        read_patterns(FILE, {"type": "Sequence", "pretokenizers": [5]})


def test_each_byte_has_its_own_character_as_in_gpt2() -> None:
    assert len(set(BYTES)) == 256
    assert (BYTES[0], BYTES[0x20], BYTES[0x0A], BYTES[0x7F], BYTES[0xAD]) == (
        "Ā",
        "Ġ",
        "Ċ",
        "ġ",
        "Ń",
    )
    assert BYTES[ord("a")] == "a"
